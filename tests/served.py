"""What tests of the engine and the server share: a small packed model, and a gate before its computation."""

import threading

from glimodern.model.glimodern import GLiModern
from tests.conftest import make_tiny_model

SECONDS = 60  # a test that hangs fails


def save_served(folder):
    """Save a model that reads long texts in windows, and many labels in groups; return its folder."""
    make_tiny_model(dropout=0.0, max_width=6, max_len=48, max_types=8).save_pretrained(folder)
    return folder


def served_model(folder):
    """Load a model whose scores have the same bits in any batch."""
    return GLiModern.from_pretrained(folder, dtype="fp32")


class Gate:
    """Holds the computing thread before its next batch, and records the number of passages of each batch."""

    def __init__(self, monkeypatch, model):
        self.open, self.reached, self.batches = threading.Event(), threading.Event(), []
        candidates = model._candidates

        def wait(batch, threshold, label_vectors=None):
            self.reached.set()
            assert self.open.wait(SECONDS)
            self.batches.append(len(batch.cu_seqlens) - 1)
            return candidates(batch, threshold, label_vectors=label_vectors)

        monkeypatch.setattr(model, "_candidates", wait)
