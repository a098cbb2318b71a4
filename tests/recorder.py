"""A recorder for CUDA graphs that runs without a GPU: a recording keeps the function, a replay calls it again."""

import contextlib

import torch

from glimodern.inputs.batch import PackedBatch
from glimodern.network.cuda_graphs import GraphCache
from tests.conftest import WORDS

LABELS = ["person", "place", "machine"]


class Calls:
    """The recorder of one or more caches: how often each recorded, replayed and waited for the memory."""

    def __init__(self):
        self.recorded = self.replayed = self.finished = 0
        self.inside = False
        self.error = None

    def problem(self, model):
        return ""

    def record(self, run):
        assert self.inside and not torch.is_grad_enabled()
        if self.error:
            raise self.error
        self.recorded += 1
        return Call(self, run)

    @contextlib.contextmanager
    def turn(self):
        assert not self.inside
        self.inside = True
        yield
        self.inside = False

    def synchronize(self):
        assert not self.inside
        self.finished += 1


class Call:
    """As a graph does, writes into outputs that stay."""

    def __init__(self, calls, run):
        self.calls, self.run, self.outputs = calls, run, run()

    def replay(self):
        assert self.calls.inside
        self.calls.replayed += 1
        for old, new in zip(self.outputs, self.run(), strict=True):
            old.copy_(new)


def calling():
    """A cache of graphs on the CPU, and their recorder."""
    calls = Calls()
    return GraphCache(lambda device: calls, "cpu"), calls


def serve(cache, model, batch):
    """The rows of words and types by a graph, or None."""
    return cache.rows(model, batch, model.device)


def pack(model, *lengths, labels=LABELS):
    """Texts of so many words."""
    return model.packer.pack([(WORDS * 9)[:n] for n in lengths], [labels] * len(lengths))


def synthetic(*lengths):
    """Texts of so many tokens: the first two are prompts of types, all others words."""
    generator = torch.Generator().manual_seed(sum(lengths))
    cu = torch.tensor([0, *lengths]).cumsum(0)
    place = torch.cat([torch.arange(n) for n in lengths])
    counts = [[max(n - 2, 0) for n in lengths], [min(n, 2) for n in lengths]]
    cu_words, cu_types = (torch.tensor([0, *n]).cumsum(0).to(torch.int32) for n in counts)
    ids = torch.randint(4, 300, (sum(lengths),), generator=generator)
    words, types = (place >= 2).nonzero()[:, 0], (place < 2).nonzero()[:, 0]
    positives = torch.empty(0, 3, dtype=torch.int32)
    return PackedBatch(ids, cu.to(torch.int32), max(lengths), words, cu_words, types, cu_types, positives)


def eager(model, batch):
    with torch.no_grad():
        return model.head.rows(*model.encode(batch))


def assert_as_eager(model, batch, rows):
    wanted_rows = eager(model, batch)
    for got, wanted in zip((*rows.words, *rows.types), (*wanted_rows.words, *wanted_rows.types), strict=True):
        assert (got - wanted).abs().max() <= 1e-6 * max(1.0, wanted.abs().max())
