"""examples/: each model learns in a short run, and its parts mean what they say."""

import importlib
import random
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def example(monkeypatch):
    """Imports a file of examples/."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


def test_relations_are_learned(example):
    relations = example("relations")
    untrained, trained = relations.train(1), relations.train(220)
    assert max(untrained.values()) < 0.2
    assert trained["entities"] > 0.9 and trained["relations"] > 0.7


def test_coreference_is_learned(example):
    coreference = example("coreference")
    assert coreference.train(1) < 0.2
    assert coreference.train(220) > 0.6


def test_relations_of_made_sentences(example):
    relations = example("relations")
    one = relations.Sentence("Bela en works at Dora , Kanis has hired Limo".split(), [], [])
    one.entities, one.relations = [(0, 1, 0), (4, 0, 1), (6, 0, 1), (9, 0, 0)], [(0, 1, 0), (2, 1, 3)]
    one.words[1] = "Belen"
    batch = relations.Batch.of([one, one])
    assert batch.cu_words.tolist() == [0, 10, 20] and batch.cu_entities.tolist() == [0, 4, 8]
    assert batch.relations.tolist() == [[0, 1, 0], [2, 1, 3], [4, 1, 6], [6, 1, 9]]
    _, named = relations.named(batch.entities, batch.relations)
    assert (0, 1, 0, 4, 0, 1, 0) in named and (16, 0, 1, 19, 0, 0, 3) in named and len(named) == 4
    for made in (relations.sentence(random.Random(seed)) for seed in range(50)):
        assert all(word in relations.VOCABULARY for word in made.words)
        for i, k, _ in made.relations:
            assert i + k < len(made.entities)


def test_antecedents_stay_in_their_document(example):
    """A pair's score depends on both mentions, and on none of another document."""
    coreference = example("coreference")
    torch.manual_seed(0)
    model = coreference.CoreferenceModel()
    rng = random.Random(1)
    first, second = coreference.document(rng), coreference.document(rng)
    with torch.no_grad():
        spans, pairs, _ = model(coreference.Batch.of([first, second]))
        alone, alone_pairs, _ = model(coreference.Batch.of([second]))
    assert torch.equal(spans[-len(alone) :] - torch.tensor([len(first.words), 0]), alone)
    torch.testing.assert_close(pairs[-len(alone) :], alone_pairs)
    m = torch.arange(len(alone))[:, None]
    assert torch.equal(alone_pairs.isfinite(), m > torch.arange(coreference.ANTECEDENTS))


def test_antecedent_loss_by_hand(example):
    coreference = example("coreference")
    spans = torch.tensor([[0, 0], [2, 0], [4, 1]])
    pairs = torch.full((3, coreference.ANTECEDENTS), -torch.inf)
    pairs[1, 0], pairs[2, 0], pairs[2, 1] = 0.5, 1.0, 2.0
    gold = {(0, 0): 7, (4, 1): 7}  # the second span is no mention
    wanted = (
        torch.tensor([0.0, 0.5]).logsumexp(0) - 0.0 + torch.tensor([0.0, 1.0, 2.0]).logsumexp(0) - 2.0
    )  # none; the first span, two before
    assert coreference.antecedent_loss(spans, pairs, gold).item() == pytest.approx(wanted.item())
    assert coreference.linked([(0, 0), (2, 0), (4, 1)], [1, 5, 1]) == {((0, 0), (4, 1))}
