"""validate: every count by a sentence made for it, and by brute force."""

import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from glimodern.data import Dataset, Entity, Example, load_dataset, validate
from glimodern.data.report import Cut, CutCounts


def sentence(words: str, *entities: Entity, types: tuple[str, ...] | None = None) -> Example:
    return Example(words.split(), list(entities), types=types)


DATASET = Dataset(
    "made [up]",
    [
        sentence("a b c d e", (0, 3, "x"), (0, 2, "x"), (4, 4, "X")),  # 4 words wide, nested
        sentence("a b c", (0, 0, "x"), (0, 0, "x"), (0, 0, "y"), (2, 2, " y")),  # duplicate, conflict
        sentence("a b", (1, 2, "x"), (-1, 0, "x"), (1, 0, "x")),
        sentence("", types=("z",)),
        sentence("a b", types=("x",)),
        sentence("a b", (0, 0, "x"), (1, 1, "y"), types=("x", "y ")),
        Example(["a", "", "\u00a0"], []),
    ],
    skipped=4,
    skipped_out_of_range=2,
    unmatched=5,
)


def test_every_count() -> None:
    report = validate(DATASET, 3)
    assert report.to_dict() == {
        "name": "made [up]",
        "max_width": 3,
        "sentences": 7,
        "words": 17,
        "entities": 12,
        "types": 6,
        "wider_than_max_width": 1,
        "overlapping": 2,
        "duplicate": 1,
        "conflicting": 1,
        "out_of_range": 5,
        "unasked": 1,
        "empty_sentences": 1,
        "zero_entity_sentences": 3,
        "blank_words": 2,
        "case_variants": [[" y", "y", "y "], ["X", "x"]],
        "skipped": 4,
        "unmatched": 5,
        "cut": None,
        "share_lost": 1 / 12,
    }
    json.dumps(report.to_dict())
    assert validate(DATASET, 4).wider_than_max_width == 0
    assert validate(Dataset("none", [Example(["a"], [])]), 1).share_lost == 0.0


def test_table() -> None:
    console = Console(file=io.StringIO(), width=120)
    console.print(validate(DATASET, 3).table())
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert "data set made [up]" in lines[0]

    def row(what: str) -> str:
        return next(" ".join(line.replace("│", " ").split()) for line in lines if what in line)

    assert row("wider than 3 words") == "wider than 3 words 1 cannot be found: 8.33% of gold lost"
    assert row("duplicate") == "duplicate 1 same span and type twice"
    assert row("out of range").startswith("out of range 5 ")
    assert row("types equal") == "types equal but for case 5 ' y' / 'y' / 'y '; 'X' / 'x'"


def test_what_is_cut() -> None:
    """The rows of long texts, and the column of windows where something is cut."""

    def rows(cut: Cut | None) -> list[str]:
        console = Console(file=io.StringIO(), width=120)
        console.print(validate(DATASET, 3, cut).table())
        text: str = console.file.getvalue()  # type: ignore[attr-defined]
        return [" ".join(line.replace("│", " ").split()) for line in text.splitlines()]

    counts = CutCounts(4, 90, 1_200, 7), CutCounts(1, 0, 2, 3)
    cut = Cut(384, 512, *counts, "cut")
    assert json.loads(json.dumps(validate(DATASET, 3, cut).to_dict()["cut"]))["with_windows"]["entities"] == 3
    shown = rows(cut)
    assert "sentences cut 4 1 longer than the model reads" in shown
    assert "words beyond 384 90 0 cut: max_len" in shown
    assert "words beyond 512 tokens 1,200 2 cut: the encoder's limit, prompt included" in shown
    assert "entities cut 7 3 cannot be found: beyond what is read" in shown
    assert "wider than 3 words 1 1 cannot be found: 8.33% of gold lost" in shown
    assert any(line.startswith("sentences 7") for line in shown) and any("with windows" in line for line in shown)
    windowed = rows(Cut(384, 512, *counts, "windows"))
    assert "entities cut 3 7 cannot be found: beyond what is read" in windowed
    assert "words beyond 384 0 90" in windowed and any("if cut" in line for line in windowed)
    for long_texts in ("windows", "cut"):
        nothing = rows(Cut(384, None, CutCounts(), CutCounts(), long_texts))
        assert not any("with windows" in line or "if cut" in line for line in nothing)
        assert not any("tokens" in line and "words beyond" in line for line in nothing)
    assert not any("sentences cut" in line for line in rows(None))


spans = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).map(lambda pair: (min(pair), max(pair))), max_size=8)


@settings(deadline=None, derandomize=True)
@given(spans)
def test_overlaps_by_brute_force(pairs: list[tuple[int, int]]) -> None:
    distinct = set(pairs)
    expected = sum(any(a != b and a[0] <= b[1] and b[0] <= a[1] for b in distinct) for a in distinct)
    example = Example(["w"] * 10, [(start, end, "x") for start, end in pairs])
    report = validate(Dataset("d", [example]), 10)
    assert report.overlapping == expected
    assert report.duplicate == len(pairs) - len(distinct)


@pytest.mark.parametrize("width", [0, -1])
def test_max_width_is_checked(width: int) -> None:
    with pytest.raises(ValueError, match=f"max_width: expected at least 1, got {width}"):
        validate(DATASET, width)


def test_mix(shared: Path) -> None:
    report = validate(load_dataset(shared / "data" / "mix"), 12)
    assert (report.sentences, report.entities, report.types) == (32220, 53162, 1545)
    assert (report.wider_than_max_width, report.overlapping, report.out_of_range) == (53, 210, 0)
    assert 0.0009 < report.share_lost < 0.0011
