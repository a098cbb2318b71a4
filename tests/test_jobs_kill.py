"""A job that is killed in any call of the thread that writes goes on, and writes what it would have written without."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_jobs import files_of, texts

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

PROGRAM = """
import gzip, os, random, signal, sys, threading
import pyarrow.parquet
import torch
pyarrow.array([{"a": 1}])  # imports more, so that few calls of the thread that writes are imports
torch.set_num_threads(1)
from pathlib import Path
from glimodern import GLiModern
from glimodern.jobs.__main__ import main
model, output, kills, most, arguments = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:]
loaded = GLiModern.from_pretrained(model, dtype="fp32")
GLiModern.from_pretrained = lambda *args, **kwargs: loaded  # a child has it at once
rng = random.Random(0)
calls = 0


def run(last):
    # Run the job; a kill in call number `last` of a function in the thread that writes; None: no kill.
    def count(*_):
        global calls
        if threading.current_thread().name.startswith("glimodern-write"):
            calls += 1
            if last is not None and calls >= last:
                os.kill(os.getpid(), signal.SIGKILL)

    threading.setprofile(count)
    main([model, "--output", output, *arguments])
    threading.setprofile(None)


for _ in range(kills):
    last = rng.randint(1, most)
    child = os.fork()
    if not child:
        try:
            run(last)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != -signal.SIGKILL:
        sys.exit(f"status {status} of a job to be killed in call {last}")
run(None)
print(calls)
"""


@pytest.mark.parametrize(
    ("rows", "kills"),
    [pytest.param(100, 3, marks=pytest.mark.slow), pytest.param(1000, 20, marks=pytest.mark.exhaustive)],
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

    def run(output: Path, kills: int, most: int) -> int:
        """Run the job, which is killed so many times before, each time in one of its first `most` calls; its calls."""
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "model"), str(output), str(kills), str(most)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
        command += arguments
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr
        return int(ran.stdout.strip().splitlines()[-1])

    calls = run(tmp_path / "whole", 0, 0)
    run(tmp_path / "killed", kills, calls // kills)  # so that the job is not done before its last kill
    whole = files_of(tmp_path / "whole")
    assert len(whole) == 2 + 3 * rows // 50
    assert files_of(tmp_path / "killed") == whole
