"""Where data comes from: a file, a folder or a hub data set becomes one Dataset."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .example import Dataset
from .formats import FORMATS, JSON_SUFFIXES, ReadOptions, Rows, read_file, read_rows
from .json_rows import Row
from .lines import COMPRESSED, stem_and_suffix

logger = logging.getLogger(__name__)

_EXTENSIONS = (*JSON_SUFFIXES, ".txt", ".conll", ".conllu", ".bio", ".iob", ".iob2", ".bioes", ".tsv")
_SPLITS = {"train": "train", "dev": "dev", "valid": "dev", "validation": "dev", "val": "dev", "test": "test"}
_NO_DATA = ("readme", "license", "licence", "notice")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def load_dataset(
    source: str | os.PathLike[str],
    *,
    split: str | None = None,
    skip_bad_rows: bool = False,
    format: str = "auto",
    label_names: Mapping[str, str] | None = None,
) -> Dataset:
    """Read a data set.

    source: a file or a pipe, also compressed (.gz, .bz2, .xz, .zst); or a folder with files named after splits
        (train.txt, dev.jsonl, ...; valid, validation and val mean dev), with any other data files (each file's stem
        becomes its examples' group), or with one such folder per domain (the folder's name becomes the group); or, only
        if there is no such path, a hub name ("owner/name").
    split: which split of a folder or hub data set (there "train" if not given). Undivided data is read whole.
    skip_bad_rows: leave bad rows out, count them in `Dataset.skipped`, and log one warning a file with the first
        reason.
    format: "auto" (by content), "gliner", "spans", "conll" or "pile-ner"; see `glimodern.data.formats`.
    label_names: labels for CoNLL tags, before the built-in ones of `glimodern.data.tags`.

    The name is the file's stem or the folder's name, with the split ("ai-test" for ai/test.txt).
    Errors: FileNotFoundError for a missing path or split; ValueError for a bad row (naming file and line), an ambiguous
    or empty folder, or an empty file; ImportError for a hub name without the package `datasets`, and for a .zst file
    without `zstandard` (before Python 3.14).
    """
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"source: expected a path or a hub name, got {type(source).__name__}")
    if format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    name = os.fspath(source)
    if not name:
        raise ValueError("source: expected a path or a hub name, got an empty string")
    options = ReadOptions(format, skip_bad_rows, None, label_names)
    path = Path(os.path.expanduser(name))
    if _is_file(path):
        stem = stem_and_suffix(path)[0]
        own_split = _SPLITS.get(stem.lower())
        if split is not None and own_split not in (None, _canonical(split)):
            raise ValueError(
                f"split: {path} is named after another split than {split!r}; leave split out, or name a folder"
            )
        shown = stem if own_split is None else f"{path.resolve().parent.name}-{stem}"
        return _dataset(shown, read_file(path, options))
    if path.is_dir():
        shown, rows = _folder(path, split, options)
        return _dataset(shown, rows)
    if not _looks_like_hub_name(name):
        raise FileNotFoundError(f"{name}: no such file or folder (and not of the form owner/name of a hub data set)")
    return _dataset(name, _hub(name, split, options))


def load_split(source: str, split: str | None, *, skip_bad_rows: bool = False) -> Dataset:
    """load_dataset, where a file is taken as it is, whatever split it is named after."""
    is_file = _is_file(Path(os.path.expanduser(source)))
    return load_dataset(source, split=None if is_file else split, skip_bad_rows=skip_bad_rows)


def _is_file(path: Path) -> bool:
    """Whether a path can be read: a file, or a pipe such as /dev/stdin or a shell's <(...)."""
    return path.exists() and not path.is_dir()


def _dataset(name: str, rows: Rows) -> Dataset:
    return Dataset(
        name,
        rows.examples,
        skipped=rows.skipped,
        skipped_out_of_range=rows.out_of_range,
        unmatched=rows.unmatched,
    )


def _canonical(split: str) -> str:
    return _SPLITS.get(split.lower(), split)


def _data_files(folder: Path) -> list[Path]:
    """The data files of a folder, sorted. ValueError for a file that is there compressed and not, or in two ways."""
    files = sorted(
        path
        for path in folder.iterdir()
        if path.is_file()
        and stem_and_suffix(path)[1] in _EXTENSIONS
        and not path.name.startswith(".")
        and not path.name.lower().startswith(_NO_DATA)
    )
    names: dict[tuple[str, str], Path] = {}
    for path in files:
        twin = names.setdefault(stem_and_suffix(path), path)
        if twin is not path:
            raise ValueError(f"{folder}: holds {twin.name} and {path.name}, one file twice; remove one, or name one")
    return files


def _folder(folder: Path, split: str | None, options: ReadOptions) -> tuple[str, Rows]:
    """(name, rows) of a folder with data files, or with folders of data files."""
    name = folder.resolve().name
    files = _data_files(folder)
    parts = sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".") and _data_files(path)
    )
    if files and parts:
        raise ValueError(
            f"{folder}: holds data files ({files[0].name}, ...) and folders of data files ({parts[0].name}, ...);"
            " name the one that is meant"
        )
    if files:
        rows, divided = _files(folder, files, split, options)
    elif parts:
        named = [part.name for part in parts if part.name.lower() in _SPLITS]
        if named:
            raise ValueError(f"{folder}: is divided into folders ({', '.join(named)}); name one of them")
        rows, divided = Rows(), False
        for part in parts:
            more, part_divided = _files(part, _data_files(part), split, replace(options, group=part.name))
            rows.extend(more)
            divided = divided or part_divided
    else:
        raise FileNotFoundError(f"{folder}: expected a data file ({', '.join(_EXTENSIONS)}) in this folder, got none")
    return (f"{name}-{split}" if divided and split is not None else name), rows


def _files(folder: Path, files: list[Path], split: str | None, options: ReadOptions) -> tuple[Rows, bool]:
    """(rows of the files, or of the split's file; whether the folder is divided into splits)."""
    splits = [path for path in files if stem_and_suffix(path)[0].lower() in _SPLITS]
    if not splits:
        rows = Rows()
        if split is not None:
            logger.info("%s: not divided into splits, read whole (asked for %r)", folder, split)
        for path in files:
            group = options.group or (stem_and_suffix(path)[0] if len(files) > 1 else None)
            rows.extend(read_file(path, replace(options, group=group)))
        return rows, False
    if split is None and len(splits) == 1 == len(files):
        return read_file(splits[0], options), True
    names = ", ".join(path.name for path in splits)
    if split is None:
        raise ValueError(f"{folder}: split: expected the name of one of its splits ({names}), got None")
    chosen = [path for path in files if _canonical(stem_and_suffix(path)[0]) == _canonical(split)]
    if not chosen:
        raise FileNotFoundError(f"{folder}: no file for split {split!r}; it has {names}")
    if len(chosen) > 1:
        raise ValueError(
            f"{folder}: several files for split {split!r} ({', '.join(path.name for path in chosen)}); name one"
        )
    return read_file(chosen[0], options), True


def _looks_like_hub_name(name: str) -> bool:
    if not _HUB_NAME.fullmatch(name) or name.lower().endswith((*_EXTENSIONS, *COMPRESSED)):
        return False
    # "data/crossner" beside an existing folder data/ is a slip in a path, not a question to the hub.
    return not Path(name).parent.is_dir()


def _hub(name: str, split: str | None, options: ReadOptions) -> Rows:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"{name}: is no existing path, and to load it from the hub the package `datasets` is needed:"
            " pip install datasets"
        ) from error
    split = split or "train"
    if _canonical(split) != "train":  # "dev" is "validation" there
        offered = datasets.get_dataset_split_names(name)
        split = next((own for own in offered if _canonical(own) == _canonical(split)), split)
    table = datasets.load_dataset(name, split=split)
    return read_rows(f"{name}/{split}", _hub_rows(f"{name}/{split}", table), options)


def _hub_rows(source: str, table: Any) -> Iterator[Row]:
    """Rows with integer tags (the hub's ClassLabel) turned into their names."""
    names: dict[str, list[str]] = {}
    for column in ("ner_tags", "tags"):
        inner = getattr((table.features or {}).get(column), "feature", None)
        if inner is not None and hasattr(inner, "names"):
            names[column] = inner.names
    for index, row in enumerate(table):
        row = dict(row)
        for column, tags in names.items():
            row[column] = [tags[tag] if isinstance(tag, int) and 0 <= tag < len(tags) else tag for tag in row[column]]
        yield Row(f"{source}[{index}]", row)
