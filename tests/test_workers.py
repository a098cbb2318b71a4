"""`predict` in the workers that other libraries start gives what it gives in their parent."""

import functools
import multiprocessing
import os
import shutil
import sys
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from glimodern import GLiModern
from tests.conftest import WORDS

LABELS, THRESHOLD = ["person", "place"], 0.4
TEXTS = [" ".join(WORDS[i % 5 : i % 5 + 9]) for i in range(40)]


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers") / "model"
    tiny_model.save_pretrained(folder)
    return folder


@functools.cache
def load(folder: Path) -> GLiModern:
    return GLiModern.from_pretrained(folder, dtype="fp32")


def entities_of(folder: Path, texts: list[str]) -> list[list[dict[str, object]]]:
    return [list(found) for found in load(folder).predict(texts, LABELS, THRESHOLD)]


@pytest.fixture
def wanted(folder):
    found = entities_of(folder, TEXTS)
    assert any(found)
    return found


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_multiprocessing(folder, wanted, method):
    """A spawned process loads the model; a forked one has its parent's."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    with multiprocessing.get_context(method).Pool(1) as pool:
        found = pool.map(functools.partial(entities_of, folder), [TEXTS[:20], TEXTS[20:]])
    assert found[0] + found[1] == wanted


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_joblib(folder, wanted, backend):
    joblib = pytest.importorskip("joblib", reason="comes with the extra peers")
    calls = [joblib.delayed(entities_of)(folder, part) for part in (TEXTS[:20], TEXTS[20:])]
    first, second = joblib.Parallel(n_jobs=2, backend=backend)(calls)
    assert first + second == wanted


def pid_and_entities(folder: Path, texts: list[str]) -> tuple[int, list[list[dict[str, object]]]]:
    return os.getpid(), entities_of(folder, texts)


def test_data_loader_workers(folder, wanted):
    loader = DataLoader(TEXTS, batch_size=20, num_workers=1, collate_fn=functools.partial(pid_and_entities, folder))
    (one, first), (other, second) = loader
    assert first + second == wanted
    assert one == other != os.getpid()


@pytest.mark.parametrize("processes", [None, 2])
def test_datasets_map(folder, wanted, processes, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="needs the package datasets")
    monkeypatch.setattr(os, "environ", os.environ)  # map leaves a copy in its place, which other libraries do not see

    def add(batch: dict[str, list[str]]) -> dict[str, list[object]]:
        return {"entities": entities_of(folder, batch["text"])}

    table = datasets.Dataset.from_dict({"text": TEXTS, "n": range(len(TEXTS))})
    mapped = table.map(add, batched=True, batch_size=10, num_proc=processes, new_fingerprint="of-this-test")
    assert mapped["text"][:] == TEXTS and mapped["n"][:] == list(range(len(TEXTS)))
    assert mapped["entities"][:] == wanted


@pytest.mark.slow
def test_spark(folder, wanted, tmp_path, monkeypatch):
    """examples/spark_job.py on a local Spark."""
    sql = pytest.importorskip("pyspark.sql", reason="needs the package pyspark, and Java")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = Path(__file__).parents[1]
    monkeypatch.syspath_prepend(str(root / "examples"))
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(os.path.abspath, [root / "examples", root, *sys.path])))
    import spark_job

    pq.write_table(pa.table({"n": range(len(TEXTS)), "text": TEXTS}), tmp_path / "in.parquet")
    builder = sql.SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    spark = builder.config("spark.sql.execution.arrow.maxRecordsPerBatch", "7").getOrCreate()
    try:
        spark_job.run(spark, str(folder), str(tmp_path / "in.parquet"), str(tmp_path / "out"), LABELS)
        rows = sorted(pq.read_table(tmp_path / "out").to_pylist(), key=lambda row: row["n"])
    finally:
        spark.stop()
    assert [row["text"] for row in rows] == TEXTS
    found = [list(entities) for entities in load(folder).predict(TEXTS, LABELS)]
    assert [row["entities"] for row in rows] == found and any(found)
