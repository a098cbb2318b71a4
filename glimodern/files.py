"""Files and folders that appear whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_file(file: str | os.PathLike[str]) -> Iterator[Path]:
    """A name beside `file` to write to, which takes its place when the block ends, and goes when the block raises."""
    final = Path(file)
    partial = final.with_name(f".{final.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, final)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(file: str | os.PathLike[str], content: Any) -> None:
    """One JSON value, whole or not at all; what JSON has no form for, as text."""
    with atomic_file(file) as partial:
        partial.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")


@contextmanager
def atomic_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A fresh folder beside `folder` that takes its place when the block ends, and vanishes when the block raises."""
    final = Path(folder)
    final.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    os.chmod(staged, 0o777 & ~_umask())
    try:
        yield staged
        if final.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{final.name}.old.", dir=final.parent))
            os.replace(final, old / "replaced")
            try:
                os.replace(staged, final)
            except OSError:
                os.replace(old / "replaced", final)
                raise
            finally:
                shutil.rmtree(old)
        else:
            os.replace(staged, final)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
