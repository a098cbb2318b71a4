"""Relations between entities, end to end, on `glimodern.ops`: python examples/relations.py

1. Entities: `ops.span_loss` scores all spans of all sentences against the entity types; none is enumerated in Python.
2. A vector for each entity: `ops.span_vectors` of these spans only, plus a vector of its type (the type as a marker
   of its words, https://arxiv.org/abs/2010.12812).
3. Relations: a pair's score is relu(A v_i + B v_j) . u_r + c_r, which is what the span operators compute: the
   entities of a sentence stand for words, "the span i..i+k" for the pair (i, i + k), and every relation is asked once
   in either direction. So `ops.span_loss` and `ops.span_entities` serve again.

The sentences are made up: names are the same for people, companies and places, so that only the context tells them
apart; a sentence has up to three statements, some without a relation, and no relation crosses them. Training from
scratch takes about a minute on a CPU; test sentences are not among those of training.
"""

import argparse
import random
from dataclasses import dataclass

import torch
from packed_transformer import PackedTransformer, bounds
from torch import Tensor, nn

from glimodern import ops

TYPES = ["person", "company", "place"]
RELATIONS = ["works for", "based in", "born in"]
NAMES = [
    f"{first}{last}" for first in "Bel Dor Kan Lim Mor Nav Pel Ros Tam Zor".split() for last in "a en is o".split()
]
# pattern, its entities' types by their letters -> the relation of its first and second entity; + 3: turned round
PATTERNS = {
    "P works at C": 0, "P is employed by C": 0, "C has hired P": 0 + 3, "P left C": None, "P sued C": None,
    "C is based in L": 1, "C runs its office from L": 1, "C closed its office in L": None,
    "P was born in L": 2, "L is where P was born": 2 + 3, "P flew to L": None, "P met P": None,
}  # fmt: skip
LETTERS = {"P": 0, "C": 1, "L": 2}
FILLERS = sorted({word for pattern in PATTERNS for word in pattern.split() if word not in LETTERS})
VOCABULARY = {word: i for i, word in enumerate([",", "and", "yesterday", *FILLERS, *NAMES])}
WIDTH, HIDDEN, MAX_WIDTH, MAX_PAIR = 64, 128, 3, 8  # MAX_PAIR: entities apart, counted from 1
ASKED = 2 * len(RELATIONS)  # relation r of (i, j) is r, of (j, i) is r + 3


@dataclass
class Sentence:
    words: list[str]
    entities: list[tuple[int, int, int]]  # first word, width - 1, type; in order
    relations: list[tuple[int, int, int]]  # first entity, entities further on, relation asked


def sentence(rng: random.Random) -> Sentence:
    made = Sentence(["yesterday"] if rng.random() < 0.3 else [], [], [])
    for number in range(rng.randint(1, 3)):
        if number:
            made.words.append(rng.choice([",", "and"]))
        pattern, relation = rng.choice(list(PATTERNS.items()))
        first = len(made.entities)
        for word in pattern.split():
            if word in LETTERS:
                name = rng.sample(NAMES, rng.randint(1, MAX_WIDTH))
                made.entities.append((len(made.words), len(name) - 1, LETTERS[word]))
                made.words += name
            else:
                made.words.append(word)
        if relation is not None:
            made.relations.append((first, 1, relation))
    return made


@dataclass
class Batch:
    """Packed sentences: words [n], cu_words; entities int64 [e, 3] and cu_entities; relations int64 [r, 3]; entities,
    their types, and relations count in the whole batch."""

    words: Tensor
    cu_words: Tensor
    entities: Tensor
    cu_entities: Tensor
    relations: Tensor

    @classmethod
    def of(cls, sentences: list[Sentence]) -> "Batch":
        entities, relations, words, before = [], [], 0, 0
        for text, one in enumerate(sentences):
            entities += [(words + i, k, kind) for i, k, kind in one.entities]
            relations += [(before + i, k, text * ASKED + r) for i, k, r in one.relations]
            words, before = words + len(one.words), before + len(one.entities)
        return cls(
            torch.tensor([VOCABULARY[word] for one in sentences for word in one.words]),
            bounds([len(one.words) for one in sentences]),
            torch.tensor(entities),
            bounds([len(one.entities) for one in sentences]),
            torch.tensor(relations).reshape(-1, 3),
        )


def asked_of_each(types: Tensor, bias: Tensor, texts: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same types, rows [m, H] with biases [m], asked of every text: u, c, cu_types."""
    return types.repeat(texts, 1), bias.repeat(texts), torch.arange(texts + 1, dtype=torch.int32) * len(types)


class RelationModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = PackedTransformer(len(VOCABULARY), WIDTH, layers=2)
        self.start, self.end = nn.Linear(WIDTH, HIDDEN), nn.Linear(WIDTH, HIDDEN, bias=False)
        self.types = nn.Parameter(torch.randn(len(TYPES), HIDDEN) / HIDDEN**0.5)
        self.type_bias = nn.Parameter(torch.full((len(TYPES),), -3.0))
        self.vector = nn.Linear(HIDDEN, WIDTH)  # applied by ops.span_vectors
        self.marker = nn.Embedding(len(TYPES), WIDTH)
        self.head, self.tail = nn.Linear(WIDTH, HIDDEN), nn.Linear(WIDTH, HIDDEN, bias=False)
        self.relations = nn.Parameter(torch.randn(ASKED, HIDDEN) / HIDDEN**0.5)
        self.relation_bias = nn.Parameter(torch.full((ASKED,), -3.0))

    def spans(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """a, b [n, H]: a word as a start, as an end."""
        x = self.encoder(batch.words, batch.cu_words)
        return self.start(x), self.end(x)

    def pairs(self, a: Tensor, b: Tensor, batch: Batch, entities: Tensor) -> tuple[Tensor, Tensor]:
        """entities int64 [e, 3] -> [e, H] twice: an entity as a pair's first, as its second."""
        vectors = ops.span_vectors(
            a, b, self.vector.weight, self.vector.bias, batch.cu_words, MAX_WIDTH, entities[:, :2]
        )
        marked = vectors + self.marker(entities[:, 2])
        return self.head(marked), self.tail(marked)

    def loss(self, batch: Batch) -> Tensor:
        texts = len(batch.cu_words) - 1
        a, b = self.spans(batch)
        u, c, cu_types = asked_of_each(self.types, self.type_bias, texts)
        positives = batch.entities.clone()
        positives[:, 2] += len(TYPES) * torch.repeat_interleave(torch.arange(texts), batch.cu_entities.diff().long())
        of_spans = ops.span_loss(a, b, u, c, batch.cu_words, cu_types, positives, MAX_WIDTH)
        first, second = self.pairs(a, b, batch, batch.entities)
        u, c, cu_asked = asked_of_each(self.relations, self.relation_bias, texts)
        of_pairs = ops.span_loss(first, second, u, c, batch.cu_entities, cu_asked, batch.relations, MAX_PAIR)
        return (of_spans + of_pairs) / texts

    @torch.no_grad()
    def find(self, batch: Batch) -> tuple[set[tuple[int, ...]], set[tuple[int, ...]]]:
        """Entities (first word, width - 1, type) and relations (entity, entity, relation) above 0.5."""
        texts = len(batch.cu_words) - 1
        a, b = self.spans(batch)
        found = ops.span_entities(
            a, b, *asked_of_each(self.types, self.type_bias, texts)[:2], batch.cu_words,
            torch.arange(texts + 1, dtype=torch.int32) * len(TYPES), MAX_WIDTH, 0.5,
        )  # fmt: skip
        best = found.score.argsort(descending=True, stable=True)
        kept = best[ops.select_spans(found.word[best], (found.word + found.width)[best])].sort().values
        entities = torch.stack([found.word[kept], found.width[kept], found.type[kept] % len(TYPES)], 1)
        ends = torch.searchsorted(entities[:, 0].contiguous(), batch.cu_words.long())
        first, second = self.pairs(a, b, batch, entities)
        u, c, cu_asked = asked_of_each(self.relations, self.relation_bias, texts)
        pairs = ops.span_entities(first, second, u, c, ends.int(), cu_asked, MAX_PAIR, 0.5)
        return named(entities, torch.stack([pairs.word, pairs.width, pairs.type % ASKED], 1))


def named(entities: Tensor, relations: Tensor) -> tuple[set[tuple[int, ...]], set[tuple[int, ...]]]:
    """Entities and relations as sets; a relation by the words of both its entities, types included."""
    rows = [tuple(row) for row in entities.tolist()]
    return set(rows), {(*rows[i], *rows[i + k], r % ASKED) for i, k, r in relations.tolist()}


def f1(gold: set[tuple[int, ...]], found: set[tuple[int, ...]]) -> float:
    return 2 * len(gold & found) / max(len(gold) + len(found), 1)


def train(steps: int, seed: int = 0) -> dict[str, float]:
    """Micro F1 of entities and of relations (both entities with their types right) on unseen sentences."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    model = RelationModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    test = [sentence(rng) for _ in range(400)]
    unseen = {tuple(one.words) for one in test}
    for step in range(steps):
        rows = [one for one in (sentence(rng) for _ in range(32)) if tuple(one.words) not in unseen]
        loss = model.loss(Batch.of(rows))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f} a sentence")
    batch = Batch.of(test)
    (entities, relations), (gold, gold_relations) = model.find(batch), named(batch.entities, batch.relations)
    return {"entities": f1(gold, entities), "relations": f1(gold_relations, relations)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800)
    scores = train(parser.parse_args().steps)
    print("F1 on unseen sentences: " + ", ".join(f"{what} {100 * score:.1f}" for what, score in scores.items()))
    if min(scores.values()) < 0.9:
        raise SystemExit("expected at least 90 of both")
