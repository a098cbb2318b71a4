"""Checkpoints stored in fp32, bf16 and int8: size, start to first entity, peak memory; beside gliner's.

    python bench/stored_dtypes.py [--models modernbert,minilm] [--rounds 5] [--json FILE]

Models: see bench_peers.py. Each start is a process of its own, which imports the library, loads the checkpoint and
finds the entities of one sentence. "start" are the seconds of the whole process, "load" those after the imports of
torch and the library, with transformers for gliner, which imports it; "peak" is the most memory of the process, its
resident set. Rows take turns, in reverse order every other round. All files are in the page cache: they are read once
before.
"""

import argparse
import json
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

SENTENCE = "Angela Merkel met Emmanuel Macron in Berlin in 2019 ."
LABELS = ["politician", "city", "country", "date"]


class Row(NamedTuple):
    """How a start loads a checkpoint. stored: dtype of the file. dtype: as given to from_pretrained."""

    name: str
    library: str
    stored: str
    dtype: str


ROWS = (
    Row("gliner", "gliner", "fp32", "fp32"),
    Row("ours fp32", "ours", "fp32", "fp32"),
    Row("ours, int8 made at load", "ours", "fp32", "int8"),
    Row("ours, stored in bf16", "ours", "bf16", "bf16"),
    Row("ours, stored in int8", "ours", "int8", "auto"),
)


def start(library: str, folder: str, dtype: str) -> None:
    """Load and find entities; prints the seconds after the imports and the peak resident set in MiB."""
    import torch  # noqa: F401

    warnings.simplefilter("ignore")
    if library == "gliner":
        from gliner import GLiNER
        from transformers import AutoConfig, AutoModel, AutoTokenizer  # noqa: F401

        begin = time.perf_counter()
        GLiNER.from_pretrained(folder, local_files_only=True).predict_entities(SENTENCE, LABELS)
    else:
        from glimodern import GLiModern

        begin = time.perf_counter()
        GLiModern.from_pretrained(folder, dtype=dtype).predict(SENTENCE, LABELS)
    seconds = time.perf_counter() - begin
    # getrusage's maximum includes the process that started this one
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak is not None
    print(seconds, int(peak[1]) / 1024, flush=True)


def stored_folders(model: str) -> dict[str, Path]:
    """Return the folders of a model by stored dtype, built once."""
    from peer_rows import RUNS, checkpoint_folder

    from glimodern import GLiModern

    fp32 = checkpoint_folder(model, [SENTENCE], LABELS)
    folders = {"fp32": fp32}
    for dtype in ("bf16", "int8"):
        folders[dtype] = RUNS / f"{fp32.name}-{dtype}"
        if not folders[dtype].exists():
            # random weights agree with nothing
            GLiModern.from_pretrained(fp32, dtype="fp32").save_pretrained(folders[dtype], dtype=dtype, force=True)
    return folders


def measure(model: str, rounds: int) -> list[dict[str, Any]]:
    folders = stored_folders(model)
    size = {dtype: sum(f.stat().st_size for f in folder.glob("model*")) for dtype, folder in folders.items()}
    figures: dict[str, list[tuple[float, float, float]]] = {row.name: [] for row in ROWS}
    for number in range(rounds + 1):  # the first round warms the page cache
        for row in ROWS if number % 2 else ROWS[::-1]:
            command = [sys.executable, __file__, "--start", row.library, str(folders[row.stored]), row.dtype]
            begin = time.perf_counter()
            run = subprocess.run(command, check=True, capture_output=True, text=True)
            if number:
                load, peak = map(float, run.stdout.split()[-2:])
                figures[row.name].append((time.perf_counter() - begin, load, peak))
    found = []
    for row in ROWS:
        start, load, peak = (median(values) for values in zip(*figures[row.name], strict=True))
        mib = size[row.stored] / 2**20
        found.append({"model": model, "row": row.name, "mib": mib, "start": start, "load": load, "peak": peak})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="modernbert,minilm")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--start", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        start(*options.start)
        return
    rows = [row for model in options.models.split(",") for row in measure(model, options.rounds)]
    print(f"{'model':<12}{'':<26}{'file':>10}{'start':>9}{'load':>9}{'peak':>11}   against gliner")
    for row in rows:
        base = next(other for other in rows if other["model"] == row["model"])
        ratios = "  ".join(f"{base[key] / row[key]:.2f}x" for key in ("mib", "start", "load", "peak"))
        figures = f"{row['mib']:>6.0f} MiB{row['start']:>7.2f} s{row['load']:>7.2f} s{row['peak']:>7.0f} MiB"
        print(f"{row['model']:<12}{row['row']:<26}{figures}   {ratios}")
    if options.json:
        from measure import session_info

        options.json.write_text(json.dumps({"session": session_info(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
