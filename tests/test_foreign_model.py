"""A span model that is not ours, on `glimodern.ops` alone: it learns, eagerly and compiled.

A chunk scorer: word embeddings, a convolution over neighbours as its encoder, one score a chunk type. It knows nothing
of GLiNER: its types are rows of a weight, the same for all texts.
"""

import pytest
import torch
from backends import CPP, running
from torch import Tensor, nn

from glimodern import ops

VOCABULARY, KINDS, WIDTH, MAX_WIDTH = 40, 3, 24, 4


class ChunkScorer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.mix = nn.Conv1d(WIDTH, WIDTH, kernel_size=3, padding=1)
        self.start = nn.Linear(WIDTH, 2 * WIDTH)
        self.end = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.kinds = nn.Parameter(torch.randn(KINDS, 2 * WIDTH) / WIDTH**0.5)
        self.bias = nn.Parameter(torch.full((KINDS,), -2.0))

    def forward(self, words: Tensor, cu_words: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        texts = len(cu_words) - 1
        x = self.embedding(words)
        x = x + torch.tanh(self.mix(x.T[None])[0].T)
        u, c = self.kinds.repeat(texts, 1), self.bias.repeat(texts)
        cu_types = torch.arange(texts + 1, dtype=torch.int32) * KINDS
        return self.start(x), self.end(x), u, c, cu_words, cu_types


def corpus() -> tuple[Tensor, Tensor, Tensor]:
    """Texts of 3 to 12 words; words 0..2 open a chunk of kind 0..2, word 3 closes it: (words, cu_words, positives)."""
    generator = torch.Generator().manual_seed(7)
    words, bounds, positives = [], [0], []
    for text in range(24):
        length = int(torch.randint(3, 13, (), generator=generator))
        row = torch.randint(4, VOCABULARY, (length,), generator=generator).tolist()
        kind, width = text % KINDS, 1 + text % (MAX_WIDTH - 1)
        start = int(torch.randint(max(length - width, 1), (), generator=generator))
        width = min(width, length - 1 - start)
        row[start], row[start + width] = kind, 3
        positives.append((bounds[-1] + start, width, text * KINDS + kind))
        words += row
        bounds.append(bounds[-1] + length)
    return torch.tensor(words), torch.tensor(bounds, dtype=torch.int32), torch.tensor(positives)


def train(step, model: nn.Module, steps: int = 60) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for seed in range(steps):
        optimizer.zero_grad()
        loss = step(seed)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture
def model() -> ChunkScorer:
    torch.manual_seed(0)
    return ChunkScorer()


@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
@pytest.mark.parametrize("backend", ["reference", *CPP])
def test_it_learns_by_span_loss(model, backend, dropout_p):
    words, cu_words, positives = corpus()

    def step(seed: int) -> Tensor:
        options = {"focal_gamma": 1.0, "dropout_p": dropout_p, "seed": seed}
        return ops.span_loss(*model(words, cu_words), positives, MAX_WIDTH, **options)

    with running(backend):
        losses = train(step, model)
        assert losses[-1] < 0.1 * losses[0]
        logits = ops.span_scores(*model(words, cu_words), MAX_WIDTH)
    cu_types = torch.arange(len(cu_words), dtype=torch.int32) * KINDS
    found = set()
    for text, part in enumerate(ops.split_scores(logits, cu_words, cu_types, MAX_WIDTH)):
        for word, k, kind in (part > 0).nonzero().tolist():
            found.add((int(cu_words[text]) + word, k, text * KINDS + kind))
    gold = set(map(tuple, positives.tolist()))
    assert len(found & gold) >= 0.9 * max(len(found), len(gold))


def test_it_learns_by_a_loss_of_its_own(model):
    """A hinge on span_scores' logits: their gradient is the caller's."""
    words, cu_words, positives = corpus()
    cu_types = torch.arange(len(cu_words), dtype=torch.int32) * KINDS
    sign = -torch.ones(len(words) * MAX_WIDTH * KINDS)
    parts = ops.split_scores(sign, cu_words, cu_types, MAX_WIDTH)
    for text, (word, k, kind) in enumerate(positives.tolist()):
        parts[text][word - int(cu_words[text]), k, kind - text * KINDS] = 1.0

    def step(seed: int) -> Tensor:
        logits = ops.span_scores(*model(words, cu_words), MAX_WIDTH)
        inside = logits.isfinite()
        return torch.relu(1.0 - sign[inside] * logits[inside]).sum()

    losses = train(step, model)
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
def test_it_compiles_whole(model, dropout_p):
    """torch.compile(fullgraph=True) over the model and its loss: no graph break, the same losses step by step."""
    words, cu_words, positives = corpus()

    def step(seed: int) -> Tensor:
        return ops.span_loss(*model(words, cu_words), positives, MAX_WIDTH, dropout_p=dropout_p, seed=5)

    start = {name: value.clone() for name, value in model.state_dict().items()}
    plain = train(step, model, steps=5)
    model.load_state_dict(start)
    compiled = train(torch.compile(step, fullgraph=True, backend="aot_eager"), model, steps=5)
    assert plain[-1] < plain[0]
    torch.testing.assert_close(torch.tensor(compiled), torch.tensor(plain), rtol=1e-5, atol=0)
