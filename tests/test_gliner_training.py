"""A training step's gradients are those of gliner's model: of every parameter, for heads and poolings alike."""

import pytest
import torch
import torch.nn.functional as F

from glimodern.checkpoint.folder import to_public
from tests.checkpoint_rows import LABELS, ROWS, public_model

gliner = pytest.importorskip("gliner", reason="needs the extra peers (gliner)")

WORDS = [
    "Jean-Pierre Gonçalves joined the antidisestablishmentarianism party in São Paulo .".split(),
    "London".split(),
    "The engine of 1843 was internationally unknown".split(),
]
GOLD = [
    [(0, 1, LABELS[0]), (3, 4, LABELS[1]), (6, 7, LABELS[2])],
    [(0, 0, LABELS[2]), (0, 0, LABELS[3])],
    [],
]


def public_loss(model):
    """Cross-entropy of gliner's logits, by torch: gliner's own adds an epsilon to probabilities, ours needs none."""
    batch = model.collate_batch(
        [{"tokenized_text": words, "ner": None} for words in WORDS], LABELS, model.create_collator()
    )
    logits = model.model(**{name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}).logits
    total = logits.new_zeros(())
    for i, (words, gold) in enumerate(zip(WORDS, GOLD, strict=True)):
        labels = torch.zeros_like(logits[i])
        for start, end, label in gold:
            labels[start, end - start, LABELS.index(label)] = 1.0
        inside = torch.arange(logits.shape[1])[:, None] + torch.arange(logits.shape[2]) < len(words)
        total = total + F.binary_cross_entropy_with_logits(logits[i][inside], labels[inside], reduction="sum")
    return total


@pytest.mark.parametrize("row", ROWS[1:8], ids=lambda row: "-".join(row.cells[:5]))
def test_loss_and_gradients(row, tmp_path):
    from glimodern import GLiModern

    public = public_model(tmp_path, row)
    wanted = public_loss(public)
    wanted.backward()
    theirs = {name: p.grad for name, p in public.model.named_parameters() if p.grad is not None}
    scale = max(float(gradient.abs().max()) for gradient in theirs.values())

    ours = GLiModern.from_pretrained(tmp_path / "public", trainable=True)
    batch = ours.packer.pack(WORDS, [LABELS] * len(WORDS), GOLD)
    for fused in (True, False):
        ours.zero_grad()
        loss = ours(batch, fused=fused)
        loss.backward()
        torch.testing.assert_close(loss, wanted.detach(), rtol=1e-5, atol=1e-5)
        gradients = to_public({name: p.grad for name, p in ours.named_parameters() if p.grad is not None})
        assert set(theirs) <= set(gradients)
        for name, gradient in theirs.items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=2e-6 * scale, msg=name)
