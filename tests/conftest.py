"""Fixtures and the environment every test runs in: no network, and Triton by its interpreter where there is no GPU."""

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real corpora and checkpoints beside a checkout; tests that use it skip where it is absent."""
    path = Path(os.environ.get("GLIMODERN_SHARED", SHARED))
    if not path.is_dir():
        pytest.skip(f"no shared data at {path} (set GLIMODERN_SHARED to the folder with data/ and checkpoints/)")
    return path
