"""Tables of the Hugging Face libraries: Parquet files, folders of `datasets.save_to_disk`, and loaded tables.

Rows have the keys of JSON rows (see `formats`). Integer tags become the names of their ClassLabel, which Parquet files
of the hub keep in their metadata. A folder is mapped, not copied to a cache.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .json_rows import Row

SUFFIX = ".parquet"
TAG_COLUMNS = ("ner_tags", "tags")
_BATCH = 1000  # rows of a Parquet file in memory at a time


def is_table_folder(folder: Path) -> bool:
    """Return whether `datasets` saved a table, or one a split, to a folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def load_table_folder(folder: Path) -> Any:
    """Return a saved table, or {split: table}. Raises ImportError without the package `datasets`."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"{folder}: expected the package datasets, which saved this folder, got none; pip install datasets"
        ) from error
    return datasets.load_from_disk(str(folder))


def parquet_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a Parquet file. Raises ValueError for a damaged file, ImportError without pyarrow."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f"{path}: expected the package pyarrow, which reads Parquet, got none; pip install pyarrow"
        ) from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = _names_in_metadata(file.schema_arrow.metadata or {})
        index = 0
        for batch in file.iter_batches(_BATCH):
            for row in batch.to_pylist():
                yield Row(f"{path}[{index}]", _named(row, names))
                index += 1
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: expected a Parquet file, got other or damaged data ({error})") from error


def _names_in_metadata(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Return {column: names of its tags} of the features that `datasets` wrote into a file."""
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = {}
    for column in TAG_COLUMNS:
        feature = features.get(column)
        inner = feature[0] if isinstance(feature, list) and feature else feature
        inner = inner.get("feature", inner) if isinstance(inner, dict) else {}
        if isinstance(inner, dict) and isinstance(inner.get("names"), list):
            names[column] = inner["names"]
    return names


def table_rows(source: str, table: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    """Yield the rows of a table of `datasets`, or of another iterable of mappings. source: its name in errors."""
    names: dict[str, list[str]] = {}
    features = getattr(table, "features", None) or {}
    for column in TAG_COLUMNS:
        inner = getattr(features.get(column), "feature", None)
        if inner is not None and hasattr(inner, "names"):
            names[column] = inner.names
    for index, row in enumerate(table):
        yield Row(f"{source}[{index}]", _named(dict(row), names))


def _named(row: dict[str, Any], names: Mapping[str, list[str]]) -> dict[str, Any]:
    for column, tags in names.items():
        if isinstance(row.get(column), list):
            row[column] = [tags[tag] if isinstance(tag, int) and 0 <= tag < len(tags) else tag for tag in row[column]]
    return row
