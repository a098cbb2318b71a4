"""The named edge cases of the span operators, built from a seed."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class SpanBatch(NamedTuple):
    """What span_loss takes; the first six are what span_scores takes, with max_width."""

    a: Tensor
    b: Tensor
    u: Tensor
    c: Tensor
    cu_words: Tensor
    cu_types: Tensor
    positives: Tensor
    max_width: int

    @property
    def floats(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.a, self.b, self.u, self.c

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        return self.cu_words, self.cu_types

    def to(self, dtype: torch.dtype) -> "SpanBatch":
        return self._replace(a=self.a.to(dtype), b=self.b.to(dtype), u=self.u.to(dtype), c=self.c.to(dtype))

    def on(self, device: torch.device) -> "SpanBatch":
        return SpanBatch(*(x.to(device) for x in self[:-1]), self.max_width)  # type: ignore[misc]

    def leaves(self) -> "SpanBatch":
        """The same values as fresh leaves that require gradients."""
        a, b, u, c = (x.detach().clone().requires_grad_() for x in self.floats)
        return self._replace(a=a, b=b, u=u, c=c)


def bounds_of(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


@dataclass(frozen=True)
class SpanCase:
    """Texts of so many words and types; scale multiplies the types' vectors, and so the logits."""

    name: str
    words: tuple[int, ...]
    types: tuple[int, ...]
    hidden: int
    max_width: int
    scale: float = 1.0
    small: bool = True  # small enough for Triton's interpreter

    def build(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> SpanBatch:
        generator = torch.Generator().manual_seed(seed)
        words, types = sum(self.words), sum(self.types)
        a, b = (torch.randn(words, self.hidden, generator=generator) for _ in range(2))
        u = torch.randn(types, self.hidden, generator=generator) * (self.scale / self.hidden**0.5)
        c = torch.randn(types, generator=generator) * self.scale
        positives = []
        first_word = first_type = 0
        for length, kinds in zip(self.words, self.types, strict=True):
            for word in range(length if kinds else 0):
                width = int(torch.randint(min(self.max_width, length - word), (), generator=generator))
                kind = int(torch.randint(kinds, (), generator=generator))
                if word % 3 == 0:
                    positives.append((first_word + word, width, first_type + kind))
            first_word += length
            first_type += kinds
        rows = torch.tensor(positives, dtype=torch.int64).reshape(-1, 3)
        batch = SpanBatch(a, b, u, c, bounds_of(self.words), bounds_of(self.types), rows, self.max_width)
        return batch.to(dtype)


SPAN_CASES = (
    SpanCase("plain", (7, 4), (3, 2), 48, 4),
    SpanCase("one word", (1,), (2,), 16, 3),
    SpanCase("empty text in the batch", (3, 0, 5), (2, 3, 1), 32, 3),
    SpanCase("only an empty text", (0,), (2,), 16, 2),
    SpanCase("no text", (), (), 16, 2),
    SpanCase("K longer than the text", (5, 2), (2, 2), 24, 9),
    SpanCase("one type", (6,), (1,), 32, 3),
    SpanCase("a text without types", (4, 4), (0, 2), 32, 3),
    SpanCase("no types", (4,), (0,), 16, 3),
    SpanCase("width one", (6,), (3,), 32, 1),
    SpanCase("dims that are no multiple of 16", (5, 3), (3, 7), 37, 5),
    SpanCase("hidden width one", (4,), (2,), 1, 2),
    SpanCase("huge logits", (6,), (3,), 32, 3, scale=300.0),
    SpanCase("tiny logits", (6,), (3,), 32, 3, scale=1e-6),
    SpanCase("longer than a block, many columns", (70, 33), (9, 10), 1100, 12, small=False),
    SpanCase("wide spans", (50,), (5,), 72, 40, small=False),
    SpanCase("many types", (5, 2), (700, 33), 40, 3, small=False),
)
SMALL_SPAN_CASES = tuple(case for case in SPAN_CASES if case.small)


def case_id(case: SpanCase) -> str:
    return case.name.replace(" ", "-")
