"""Loading of a file, a folder or a hub data set as one Dataset."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from glimodern.inputs.words import DEFAULT_SPLITTER, check_splitter

from . import tables
from .convert import docbin
from .example import Dataset
from .formats import FORMATS, JSON_SUFFIXES, ReadOptions, Rows, read_file, read_rows
from .lines import COMPRESSED, stem_and_suffix

logger = logging.getLogger(__name__)

_EXTENSIONS = (
    *JSON_SUFFIXES, ".txt", ".conll", ".conllu", ".bio", ".iob", ".iob2", ".bioes", ".tsv",
    docbin.SUFFIX, tables.SUFFIX,
)  # fmt: skip
_SPLITS = {"train": "train", "dev": "dev", "valid": "dev", "validation": "dev", "val": "dev", "test": "test"}
_IGNORED_PREFIXES = ("readme", "license", "licence", "notice")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def load_dataset(
    source: str | os.PathLike[str],
    *,
    split: str | None = None,
    skip_bad_rows: bool = False,
    format: str = "auto",
    label_names: Mapping[str, str] | None = None,
    splitter: str = DEFAULT_SPLITTER,
    text_key: str | None = None,
    cut_words: bool = False,
) -> Dataset:
    """Read a data set from a file, a folder or the hub.

    source: one of
        - a file or a pipe, also compressed (.gz, .bz2, .xz, .zst);
        - a folder with files named after splits (train.txt, dev.jsonl, ...; valid, validation and val mean dev);
        - a folder with other data files; each file's stem becomes the group of its examples;
        - a folder with one such folder per domain, whose name becomes the group;
        - a folder that `datasets` saved with save_to_disk, with or without splits;
        - if no such path exists, a hub name ("owner/name").
    split: name of the split; None means "train" for a hub data set. Data without splits is read whole.
    skip_bad_rows: skip bad rows, count them in `Dataset.skipped`, and log one warning per file with the first reason.
    format: "auto" (by content), or one of `glimodern.data.formats.FORMATS`, which that module describes.
    label_names: labels for CoNLL tags; they take precedence over those of `glimodern.data.tags`.
    splitter: splits rows that have a text and no words; one of `glimodern.inputs.words.SPLITTERS`, that of the model.
    text_key: the field of Label Studio's tasks with the text. cut_words: cut a word where an entity begins or ends
    inside it, instead of refusing the row; a model reads whole words, so this is for writing other formats.

    The data set's name is the file's stem or the folder's name, with the split ("ai-test" for ai/test.txt).
    Raises FileNotFoundError for a missing path, split or data file; ValueError for a bad row (with file and line), an
    ambiguous folder or an empty file; ImportError for a hub name or a saved table without the package `datasets`, a
    .parquet file without `pyarrow`, a .spacy file without `spacy`, and a .zst file without `zstandard` (before Python
    3.14).
    """
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"source: expected a path or a hub name, got {type(source).__name__}")
    if format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    check_splitter(splitter, "splitter")
    name = os.fspath(source)
    if not name:
        raise ValueError("source: expected a path or a hub name, got an empty string")
    options = ReadOptions(format, skip_bad_rows, None, label_names, splitter, text_key, cut_words)
    path = Path(os.path.expanduser(name))
    if _is_file(path):
        stem = stem_and_suffix(path)[0]
        own_split = _SPLITS.get(stem.lower())
        if split is not None and own_split not in (None, _canonical(split)):
            raise ValueError(
                f"split: expected {own_split!r}, after which {path} is named, got {split!r}; leave split out, or name "
                "a folder"
            )
        dataset_name = stem if own_split is None else f"{path.resolve().parent.name}-{stem}"
        return _dataset(dataset_name, read_file(path, options))
    if path.is_dir() and tables.is_table_folder(path):
        return _dataset(*_table_folder(path, split, options))
    if path.is_dir():
        dataset_name, rows = _folder(path, split, options)
        return _dataset(dataset_name, rows)
    if not _looks_like_hub_name(name):
        raise FileNotFoundError(f"{name}: no such file or folder (and not of the form owner/name of a hub data set)")
    return _dataset(name, _hub(name, split, options))


def load_table(
    table: Iterable[Mapping[str, Any]],
    name: str = "table",
    *,
    skip_bad_rows: bool = False,
    label_names: Mapping[str, str] | None = None,
    splitter: str = DEFAULT_SPLITTER,
) -> Dataset:
    """Read a loaded table of `datasets`, with the names of its tags, or another iterable of rows of JSON's form.

    name: the data set's. The other arguments and the errors are those of `load_dataset`.
    """
    check_splitter(splitter, "splitter")
    options = ReadOptions("auto", skip_bad_rows, None, label_names, splitter)
    return _dataset(name, read_rows(name, tables.table_rows(name, table), options))


def load_split(
    source: str, split: str | None, *, skip_bad_rows: bool = False, splitter: str = DEFAULT_SPLITTER
) -> Dataset:
    """Read a data set as `load_dataset` does, but ignore `split` for a file."""
    is_file = _is_file(Path(os.path.expanduser(source)))
    return load_dataset(source, split=None if is_file else split, skip_bad_rows=skip_bad_rows, splitter=splitter)


def _is_file(path: Path) -> bool:
    """Return whether a path is a file or a pipe, such as /dev/stdin or a shell's <(...)."""
    return path.exists() and not path.is_dir()


def _dataset(name: str, rows: Rows) -> Dataset:
    return Dataset(
        name,
        rows.examples,
        skipped=rows.skipped,
        skipped_out_of_range=rows.out_of_range,
        unmatched=rows.unmatched,
        left_out=dict(rows.left_out),
        notes={what: count for what, count in rows.notes.items() if count},
    )


def _canonical(split: str) -> str:
    return _SPLITS.get(split.lower(), split)


def _data_files(folder: Path) -> list[Path]:
    """Return the sorted data files of a folder. Raises ValueError if two differ only in their compression suffix."""
    files = sorted(
        path
        for path in folder.iterdir()
        if path.is_file()
        and stem_and_suffix(path)[1] in _EXTENSIONS
        and not path.name.startswith(".")
        and not path.name.lower().startswith(_IGNORED_PREFIXES)
    )
    names: dict[tuple[str, str], Path] = {}
    for path in files:
        twin = names.setdefault(stem_and_suffix(path), path)
        if twin is not path:
            raise ValueError(
                f"{folder}: expected each file once, got {twin.name} and {path.name}; remove one, or name the one to "
                "read"
            )
    return files


def _table_folder(folder: Path, split: str | None, options: ReadOptions) -> tuple[str, Rows]:
    """Return (name, rows) of a table that `datasets` saved, or of one split of it."""
    table, name = tables.load_table_folder(folder), folder.resolve().name
    if isinstance(table, Mapping):
        offered = ", ".join(table)
        if split is None and len(table) > 1:
            raise ValueError(f"{folder}: split: expected the name of one of its splits ({offered}), got None")
        own = next((own for own in table if split is None or _canonical(own) == _canonical(split)), None)
        if own is None:
            raise FileNotFoundError(
                f"{folder}: split: no table for {split!r}, got {offered}; choose one of these splits"
            )
        table, name = table[own], f"{name}-{own if split is None else split}"
    elif split is not None:
        logger.info("%s: not divided into splits, read whole (split %r requested)", folder, split)
    return name, read_rows(str(folder), tables.table_rows(str(folder), table), options)


def _folder(folder: Path, split: str | None, options: ReadOptions) -> tuple[str, Rows]:
    """Return (name, rows) of a folder with data files, or with folders of data files."""
    name = folder.resolve().name
    files = _data_files(folder)
    parts = sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".") and _data_files(path)
    )
    if files and parts:
        raise ValueError(
            f"{folder}: expected data files or folders of data files, got both ({files[0].name}, ... and "
            f"{parts[0].name}, ...); name the one to read"
        )
    if files:
        rows, divided = _files(folder, files, split, options)
    elif parts:
        named = [part.name for part in parts if part.name.lower() in _SPLITS]
        if named:
            raise ValueError(
                f"{folder}: expected split files or a folder per domain, got folders of splits ({', '.join(named)}); "
                "name one of them"
            )
        rows, divided = Rows(), False
        for part in parts:
            more, part_divided = _files(part, _data_files(part), split, replace(options, group=part.name))
            rows.extend(more)
            divided = divided or part_divided
    else:
        raise FileNotFoundError(f"{folder}: expected a data file ({', '.join(_EXTENSIONS)}) in this folder, got none")
    return (f"{name}-{split}" if divided and split is not None else name), rows


def _files(folder: Path, files: list[Path], split: str | None, options: ReadOptions) -> tuple[Rows, bool]:
    """Return (rows of all files or of the split's file, whether the folder is divided into splits)."""
    splits = [path for path in files if stem_and_suffix(path)[0].lower() in _SPLITS]
    if not splits:
        rows = Rows()
        if split is not None:
            logger.info("%s: not divided into splits, read whole (split %r requested)", folder, split)
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
        raise FileNotFoundError(f"{folder}: split: no file for {split!r}, got {names}; choose one of these splits")
    if len(chosen) > 1:
        raise ValueError(
            f"{folder}: expected one file for split {split!r}, got {', '.join(path.name for path in chosen)}; name one"
        )
    return read_file(chosen[0], options), True


def _looks_like_hub_name(name: str) -> bool:
    if not _HUB_NAME.fullmatch(name) or name.lower().endswith((*_EXTENSIONS, *COMPRESSED)):
        return False
    # if the folder data/ exists, "data/crossner" is probably a mistyped path
    return not Path(name).parent.is_dir()


def _hub(name: str, split: str | None, options: ReadOptions) -> Rows:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"{name}: no such path, and loading it from the hub needs the package `datasets`; pip install datasets"
        ) from error
    split = split or "train"
    if _canonical(split) != "train":  # the hub's name for "dev" is usually "validation"
        offered = datasets.get_dataset_split_names(name)
        split = next((own for own in offered if _canonical(own) == _canonical(split)), split)
    table = datasets.load_dataset(name, split=split)
    return read_rows(f"{name}/{split}", tables.table_rows(f"{name}/{split}", table), options)
