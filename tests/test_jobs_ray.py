"""A job on a local Ray cluster writes what a job without Ray writes, though one of its two workers is killed."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.test_jobs import files_of, texts

pytest.importorskip("ray.data", reason="needs the extra ray")
psutil = pytest.importorskip("psutil", reason="finds the workers")


def workers(driver: int) -> list[int]:
    """The processes of actors that a driver has started."""
    found = []
    for process in psutil.Process(driver).children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::MapWorker"):
                found.append(process.pid)
        except psutil.Error:  # it has ended meanwhile
            continue
    return found


@pytest.mark.exhaustive
def test_a_worker_that_is_killed_is_replaced(tiny_model, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    tiny_model.save_pretrained(tmp_path / "model")
    lines = [json.dumps({"text": text, "i": i}) if i % 90 else "{" for i, text in enumerate(texts(6000))]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    pq.write_table(pa.table({"text": texts(500), "n": range(500)}), tmp_path / "b.parquet", row_group_size=70)
    command = [
        sys.executable, "-m", "glimodern.jobs", "model", "--input", "a.jsonl", "b.parquet", "--labels", "person,place",
        "--threshold", "0.4", "--shard-rows", "100", "--dtype", "fp32",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    environment.pop("RAY_ADDRESS", None)
    options = {"cwd": tmp_path, "env": environment, "text": True}
    subprocess.run([*command, "--output", "plain"], check=True, **options)

    with (tmp_path / "said").open("w") as said:
        spread = subprocess.Popen([*command, "--output", "spread", "--ray"], stdout=said, stderr=said, **options)
    manifest, deadline, victim = tmp_path / "spread" / "manifest.jsonl", time.monotonic() + 240, None
    while victim is None and spread.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)  # between looks at the manifest
        if manifest.exists() and manifest.read_bytes().count(b"\n") >= 3 and len(both := workers(spread.pid)) == 2:
            victim = both[0]
            os.kill(victim, signal.SIGKILL)
    assert spread.wait(timeout=240) == 0, (tmp_path / "said").read_text()
    assert victim is not None
    assert files_of(tmp_path / "spread") == files_of(tmp_path / "plain")

    # either goes on with what the other began
    again = subprocess.run([*command, "--output", "spread"], stdout=subprocess.PIPE, check=True, **options)
    assert "the job is finished" in again.stdout


def test_devices_and_a_missing_package(monkeypatch):
    from glimodern.jobs.config import parse_job_config
    from glimodern.jobs.ray_pool import check_ray

    config = parse_job_config(["m", "--input", "a", "--output", "b", "--ray", "--device", "cuda:1"])
    with pytest.raises(ValueError, match="--device: expected cpu or cuda with --ray"):
        check_ray(config)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(ImportError, match=r"pip install 'glimodern\[ray\]'"):
        check_ray(config)
