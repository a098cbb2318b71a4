"""docs/COMPATIBILITY.md, made by running it: `python tests/compatibility.py` measures every row and writes the table.

A section is a table: rows, and a function that builds a row's model and compares it with another package's. Modules
named in SECTIONS each define one, as `SECTION`; tests/test_compatibility.py runs the same rows.
"""

import importlib
import math
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SECTIONS = ("checkpoint_rows", "token_rows", "bi_encoder_section", "encoder_section", "refused_rows")
DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "COMPATIBILITY.md"
HEAD = """# Compatibility

Written by `python tests/compatibility.py`, which runs every row; `make test` runs them again. A difference is the
greatest of all logits', rounded up to a power of ten.
"""


@dataclass(frozen=True)
class Row:
    """cells: what the row is, one a column of its section. options: what the section builds it from."""

    cells: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """A table of the document.

    columns name the rows' cells, measured what `measure` gives for a row and an empty folder; it raises AssertionError
    where the two packages do not agree. notes stand under the table. needs: the package that `measure` compares with.
    """

    title: str
    text: str
    columns: tuple[str, ...]
    measured: tuple[str, ...]
    rows: tuple[Row, ...]
    measure: Callable[[Row, Path], tuple[str, ...]]
    notes: str = ""
    needs: str = "gliner"


def sections() -> list[Section]:
    return [importlib.import_module(name).SECTION for name in SECTIONS]


def decade(difference: float) -> str:
    """The next power of ten, so that rounding on another machine rarely changes the document."""
    return f"<= 1e{math.ceil(math.log10(difference))}" if difference > 0 else "0"


def table(section: Section) -> str:
    """The section in Markdown, measured now."""
    lines = [section.columns + section.measured, ("---",) * (len(section.columns) + len(section.measured))]
    for row in section.rows:
        with tempfile.TemporaryDirectory() as folder:
            lines.append(row.cells + section.measure(row, Path(folder)))
        print(" | ".join(lines[-1]), flush=True)
    body = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return "\n\n".join(part for part in (f"## {section.title}", section.text, body, section.notes) if part)


def listed_rows(document: str, section: Section) -> list[tuple[str, ...]]:
    """The cells, without the measured ones, of a section's rows as the document has them."""
    _, _, rest = document.partition(f"## {section.title}\n")
    lines = [line for line in rest.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return [tuple(cell.strip() for cell in line[1:-1].split("|"))[: len(section.columns)] for line in lines[2:]]


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path.insert(1, str(DOCUMENT.parents[1]))  # tests.conftest
    DOCUMENT.write_text("\n\n".join([HEAD.rstrip(), *map(table, sections())]) + "\n", encoding="utf-8")
    print(f"wrote {DOCUMENT}")
