"""Coreference, mention scores to clusters, on `glimodern.ops`: python examples/coreference.py

Mentions, pruning and antecedents as in https://arxiv.org/abs/1707.07045, over packed documents:

1. `ops.span_scores` with one type gives every span up to MAX_WIDTH words a mention score s_m, differentiably.
2. The best spans of each document are kept, half as many as it has words; `ops.span_vectors` makes their vectors only.
3. A pair's antecedent score is s_a(i, j) = relu(A v_i + B v_j) . u + (P v_i) . (Q v_j) + distance. Its first part is
   `ops.span_scores` again: mentions stand for words, "the span i..i+k" for the pair (i, i + k), and what is asked of
   it is one u. The second compares two names, which a sum cannot.
4. A mention's antecedent is the best of s_m(i) + s_m(j) + s_a(i, j) over the ANTECEDENTS mentions before it, and 0 for
   none. Trained on the log-probability of all its gold antecedents together, and on the mentions by `ops.span_loss`.

Documents are made up: people and things with names of two words, mentioned again by either word of the name or by a
pronoun, which means the last person or thing of its kind. Training from scratch takes about a minute on a CPU.
"""

import argparse
import random
from dataclasses import dataclass

import torch
from packed_transformer import PackedTransformer, bounds
from torch import Tensor, nn

from glimodern import ops

NAMES = {  # kind: first names, second names, pronoun
    "woman": ("Ada Bea Cleo Dina Eva Fay".split(), "Holt Iver Jansen Kerr Lund Moss".split(), "she"),
    "man": ("Abe Ben Carl Dan Emil Finn".split(), "Holt Iver Jansen Kerr Lund Moss".split(), "he"),
    "thing": ("red old big tin wet new".split(), "lamp boat door book bell coin".split(), "it"),
}
VERBS = "sees takes likes paints hears finds".split()
WORDS = {word for firsts, seconds, pronoun in NAMES.values() for word in (*firsts, *seconds, pronoun)}
VOCABULARY = {word: i for i, word in enumerate([".", "today", *VERBS, *sorted(WORDS)])}
WIDTH, HIDDEN, MAX_WIDTH, ANTECEDENTS, KEPT = 64, 128, 3, 12, 0.5

Span = tuple[int, int]  # first word, width - 1


@dataclass
class Document:
    words: list[str]
    mentions: dict[Span, int]  # the entity each means


def document(rng: random.Random) -> Document:
    """Sentences "X verb Y ."; every kind has up to two entities, whose names share no word."""
    made = Document([], {})
    entities: dict[str, tuple[str, str, str]] = {}  # by second name, so that it means one of them
    for kind, (firsts, seconds, _) in NAMES.items():
        for first, second in zip(rng.sample(firsts, 2), rng.sample(seconds, rng.randint(1, 2)), strict=False):
            entities.setdefault(second, (kind, first, second))
    chosen = list(entities.values())
    seen: set[int] = set()
    last: dict[str, int] = {}
    for _ in range(rng.randint(3, 7)):
        for place in range(2):
            number = rng.randrange(len(chosen))
            kind, first, second = chosen[number]
            forms = [[first, second]]
            if number in seen:
                forms += [[first], [second]]
            if last.get(kind) == number:
                forms += [[NAMES[kind][2]]] * 3
            form = rng.choice(forms)
            made.mentions[len(made.words), len(form) - 1] = number
            made.words += [*form, rng.choice(VERBS) if place == 0 else "."]
            seen.add(number)
            last[kind] = number
        if rng.random() < 0.3:
            made.words[-1:] = ["today", "."]
    return made


@dataclass
class Batch:
    """Packed documents: words int64 [n], cu_words; gold: the entity of each mention (first word, width - 1), words and
    entities counted in the whole batch."""

    words: Tensor
    cu_words: Tensor
    gold: dict[Span, int]

    @classmethod
    def of(cls, documents: list[Document]) -> "Batch":
        words: list[str] = []
        gold = {}
        for number, one in enumerate(documents):
            gold |= {(len(words) + i, k): 100 * number + entity for (i, k), entity in one.mentions.items()}
            words += one.words
        ids = torch.tensor([VOCABULARY[word] for word in words])
        return cls(ids, bounds([len(one.words) for one in documents]), gold)


class CoreferenceModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = PackedTransformer(len(VOCABULARY), WIDTH, layers=3)
        self.start, self.end = nn.Linear(WIDTH, HIDDEN), nn.Linear(WIDTH, HIDDEN, bias=False)
        self.mention = nn.Linear(HIDDEN, 1)
        self.vector = nn.Linear(HIDDEN, WIDTH)  # applied by ops.span_vectors
        self.earlier, self.later = nn.Linear(WIDTH, HIDDEN), nn.Linear(WIDTH, HIDDEN, bias=False)
        self.pair = nn.Linear(HIDDEN, 1)
        self.name, self.renamed = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.distance = nn.Parameter(torch.zeros(ANTECEDENTS + 1))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(spans kept [m, 2], in order; pair scores [m, ANTECEDENTS] with the mention k + 1 before each, -inf where
        there is none; the loss of the mention scores)."""
        cu = batch.cu_words
        asked = one_type_each(self.mention, len(cu) - 1)
        x = self.encoder(batch.words, cu)
        a, b = self.start(x), self.end(x)
        scores = ops.span_scores(a, b, *asked[:2], cu, asked[2], MAX_WIDTH).view(-1, MAX_WIDTH)
        texts = torch.searchsorted(cu, torch.tensor([i for i, _ in batch.gold]), right=True) - 1
        positives = torch.tensor([[i, k, text] for (i, k), text in zip(batch.gold, texts.tolist(), strict=True)])
        mention_loss = ops.span_loss(a, b, *asked[:2], cu, asked[2], positives, MAX_WIDTH)
        spans = torch.cat([best(scores, *ends) for ends in zip(cu.tolist(), cu[1:].tolist(), strict=False)])
        vectors = ops.span_vectors(a, b, self.vector.weight, self.vector.bias, cu, MAX_WIDTH, spans)
        cu_spans = torch.searchsorted(spans[:, 0].contiguous(), cu.long()).int()
        return spans, self.pair_scores(vectors, scores[spans[:, 0], spans[:, 1]], cu_spans), mention_loss

    def pair_scores(self, vectors: Tensor, scores: Tensor, cu: Tensor) -> Tensor:
        """Mentions' vectors [m, WIDTH] and scores [m], cu int32 [documents + 1] -> [m, ANTECEDENTS]."""
        asked = one_type_each(self.pair, len(cu) - 1)
        sums = ops.span_scores(self.earlier(vectors), self.later(vectors), *asked[:2], cu, asked[2], ANTECEDENTS + 1)
        later, apart = torch.arange(len(vectors))[:, None], torch.arange(1, ANTECEDENTS + 1)
        earlier = later - apart
        inside = earlier >= torch.repeat_interleave(cu[:-1], cu.diff().long())[:, None]
        earlier = earlier.clamp(min=0)
        names = (self.name(vectors)[:, None] * self.renamed(vectors)[earlier]).sum(-1)
        pairs = sums.view(-1, ANTECEDENTS + 1)[earlier, apart] + names + self.distance[apart]
        return (pairs + scores[:, None] + scores[earlier]).masked_fill(~inside, -torch.inf)


def one_type_each(linear: nn.Linear, texts: int) -> tuple[Tensor, Tensor, Tensor]:
    """u, c, cu_types for span operators that ask one thing of every text."""
    return linear.weight.expand(texts, -1), linear.bias.expand(texts), torch.arange(texts + 1, dtype=torch.int32)


def best(scores: Tensor, first: int, end: int) -> Tensor:
    """Of the mention scores [n, MAX_WIDTH] of words first..end: (word, width - 1) of the best, in order, [kept, 2]."""
    top = scores[first:end].detach().flatten().topk(max(1, int(KEPT * (end - first)))).indices.sort().values
    return torch.stack([first + top // MAX_WIDTH, top % MAX_WIDTH], 1)


def antecedent_loss(spans: Tensor, pairs: Tensor, gold: dict[Span, int]) -> Tensor:
    """-log of the probability of all right antecedents together, summed; "none" is right where there is none."""
    entity = torch.tensor([gold.get((i, k), -1) for i, k in spans.tolist()])
    earlier = (torch.arange(len(spans))[:, None] - torch.arange(1, ANTECEDENTS + 1)).clamp(min=0)
    right = pairs.isfinite() & (entity[earlier] == entity[:, None]) & (entity >= 0)[:, None]
    choices = torch.cat([pairs.new_zeros(len(pairs), 1), pairs], 1)
    right = torch.cat([~right.any(1, keepdim=True), right], 1)
    return (choices.logsumexp(1) - choices.masked_fill(~right, -torch.inf).logsumexp(1)).sum()


def linked(spans: list[Span], clusters: list[int]) -> set[tuple[Span, Span]]:
    """All pairs of mentions of one cluster."""
    members: dict[int, list[Span]] = {}
    for span, cluster in zip(spans, clusters, strict=True):
        members.setdefault(cluster, []).append(span)
    return {(a, b) for group in members.values() for i, a in enumerate(group) for b in group[i + 1 :]}


def train(steps: int, seed: int = 0) -> float:
    """F1 of pairs of mentions in one cluster, on unseen documents."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    model = CoreferenceModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    test = Batch.of([document(rng) for _ in range(200)])
    for step in range(steps):
        batch = Batch.of([document(rng) for _ in range(24)])
        spans, pairs, mention_loss = model(batch)
        loss = (antecedent_loss(spans, pairs, batch.gold) + mention_loss) / 24
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f} a document")
    with torch.no_grad():
        spans, pairs, _ = model(test)
    clusters: list[int] = []
    for i, (score, k) in enumerate(zip(*(column.tolist() for column in pairs.max(1)), strict=True)):
        clusters.append(clusters[i - k - 1] if score > 0 else i)
    found = linked([(i, k) for i, k in spans.tolist()], clusters)
    gold = linked(list(test.gold), list(test.gold.values()))
    return 2 * len(found & gold) / (len(found) + len(gold))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=700)
    f1 = train(parser.parse_args().steps)
    print(f"F1 of pairs of mentions in one cluster, on unseen documents: {100 * f1:.1f}")
    if f1 < 0.85:
        raise SystemExit("expected at least 85")
