"""`calibration.json`, the file of a model's calibration."""

import os
from pathlib import Path

from glimodern.data.calibration import Calibration
from glimodern.data.json_rows import read_utf8
from glimodern.files.atomic import atomic_file, current_files, user_path

CALIBRATION_FILE = "calibration.json"


def read_calibration(folder: Path) -> Calibration | None:
    """Read `calibration.json` of a folder; None if there is none. Raises ValueError for a damaged file."""
    file = folder / CALIBRATION_FILE
    if not file.is_file():
        return None
    text = read_utf8(file, "calibrate the model again, or delete the file")
    return Calibration.from_json(text, os.fspath(file))


def write_calibration(folder: str | os.PathLike[str], calibration: Calibration) -> Path:
    """Write `calibration.json` atomically into a folder, which may hold a checkpoint. Returns the file's path."""
    file = user_path(folder, "folder") / CALIBRATION_FILE
    with atomic_file(current_files(file.parent) / CALIBRATION_FILE) as partial:
        partial.write_text(calibration.to_json(), encoding="utf-8")
    return file


def check_calibration(calibration: Calibration | None, fingerprint: str, folder: Path) -> Calibration | None:
    """Return a checkpoint's calibration. Raises ValueError if it was made on other weights than `fingerprint`'s."""
    if calibration is not None and calibration.fingerprint != fingerprint:
        raise ValueError(
            f"{folder / CALIBRATION_FILE}: fingerprint: expected {fingerprint}, as of the weights beside it, got "
            f"{calibration.fingerprint}; it was made on another model, delete the file (and calibrate again)"
        )
    return calibration
