"""A job that is killed at any moment goes on, and writes what it would have written without."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_jobs import files_of, texts

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

PROGRAM = """
import os, random, signal, sys, time
import torch
torch.set_num_threads(1)
from pathlib import Path
from glimodern import GLiModern
from glimodern.jobs.__main__ import main
model, output, kills, arguments = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
loaded = GLiModern.from_pretrained(model, dtype="fp32")
GLiModern.from_pretrained = lambda *args, **kwargs: loaded  # a child has it at once
rng = random.Random(0)


def lines():
    manifest = output / "manifest.jsonl"
    return manifest.read_bytes().count(b"\\n") if manifest.exists() else 0


killed = 0
while True:
    child = os.fork()
    if not child:
        status = 1
        try:
            main([model, "--output", str(output), *arguments])
            status = 0
        finally:
            os._exit(status)
    wanted = lines() + rng.choice([0, 0, 1, 1, 2, 3])
    deadline = time.monotonic() + 60
    ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while killed < kills and time.monotonic() < deadline and os.waitid(os.P_PID, child, ended) is None:
        time.sleep(0.001)  # between looks at the manifest
        if lines() >= wanted and rng.random() < 0.1:
            os.kill(child, signal.SIGKILL)
            killed += 1
            break
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != -signal.SIGKILL:
        print(killed, status)
        break
"""


@pytest.mark.parametrize(
    ("rows", "kills"),
    [pytest.param(400, 3, marks=pytest.mark.slow), pytest.param(1000, 20, marks=pytest.mark.exhaustive)],
)
def test_killed_at_any_moment(tiny_model, tmp_path, rows, kills):
    pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra parquet")
    import pyarrow as pa

    tiny_model.save_pretrained(tmp_path / "model")
    lines = [json.dumps({"text": text, "i": i}) if i % 40 else "{" for i, text in enumerate(texts(rows))]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.csv").write_text("text,n\n" + "".join(f'"{text}\n",1\n' for text in texts(rows)))
    table = pa.table({"text": texts(rows), "n": range(rows)})
    pq.write_table(table, tmp_path / "c.parquet", row_group_size=70)
    arguments = ["--input", "a.jsonl", "b.csv", "c.parquet", "--labels", "person,place", "--threshold", "0.4"]
    arguments += ["--shard-rows", "50", "--compress", "gzip"]

    def run(output: Path, kills: int) -> str:
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "model"), str(output), str(kills), *arguments]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.strip().splitlines()[-1]

    assert run(tmp_path / "whole", 0) == "0 0"
    assert run(tmp_path / "killed", kills) == f"{kills} 0"
    whole = files_of(tmp_path / "whole")
    assert len(whole) == 2 + 3 * rows // 50
    assert files_of(tmp_path / "killed") == whole
