"""The minimum work of every operator: floating-point operations and bytes of memory, as formulas (docs/ROOFLINE.md).

    python bench/roofline.py      prints that document's tables

`flops(op, shape, backward)` and `bytes_moved(op, shape, backward)` take an operator's name and its shape, one of the
dataclasses below. The costs of forward and backward are additive. A kernel may do more work (padded tiles, values
computed twice, partial sums), but not less.

Matrix FLOPs count 2 per multiply-add of a product that a GEMM or tensor core can compute. Vector FLOPs count 1 for
every other add, multiply, comparison or transcendental function. Bytes count each input read once and each output
written once. Not counted, as each is below 0.1 %: cu_seqlens, cu_words, cu_types, the list of positives, thresholds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


class Cost(NamedTuple):
    """Minimum work of one call: FLOPs of matrix products, other FLOPs, bytes of memory read and written."""

    matrix_flops: float
    vector_flops: float
    bytes_moved: float


@dataclass(frozen=True)
class Spans:
    """A batch of the span operators: words and types of each text, H, K, d, bytes per element.

    candidates: number of entries that span_entities keeps.
    """

    words: tuple[int, ...]
    types: tuple[int, ...]
    hidden: int = 3072
    max_width: int = 12
    width: int = 768
    itemsize: int = 2
    candidates: int = 0

    def spans_by_text(self) -> list[int]:
        """Number of spans inside each text: w K - K (K - 1) / 2, with K at most the text's number of words w."""
        widths = [min(words, self.max_width) for words in self.words]
        return [words * width - width * (width - 1) // 2 for words, width in zip(self.words, widths, strict=True)]

    @property
    def spans(self) -> int:
        return sum(self.spans_by_text())

    @property
    def pairs(self) -> int:
        """Number of (span, type) pairs inside the texts."""
        return sum(spans * types for spans, types in zip(self.spans_by_text(), self.types, strict=True))

    @property
    def logits(self) -> int:
        """Number of elements of span_scores' result, which includes spans that leave their text."""
        return self.max_width * sum(words * types for words, types in zip(self.words, self.types, strict=True))

    @property
    def logit_itemsize(self) -> int:
        """Bytes of a logit and of its gradient, which are fp32 for inputs in half precision."""
        return max(self.itemsize, 4)

    @property
    def parameters(self) -> int:
        """Number of elements of a, b [n, H], u [m, H] and c [m] together, and also of their gradients."""
        return 2 * sum(self.words) * self.hidden + sum(self.types) * (self.hidden + 1)


@dataclass(frozen=True)
class Tokens:
    """A batch of the elementwise operators: rows, elements per row (of the result for geglu), bytes per element.

    longest, head_dim: size of rotary's tables, fp32 cos and sin [longest, head_dim / 2].
    """

    tokens: int
    width: int
    itemsize: int = 2
    longest: int = 0
    head_dim: int = 64


@dataclass(frozen=True)
class Attention:
    """A batch of attention_varlen: tokens of each text, heads, bytes per element. window: |i - j| <= window."""

    lengths: tuple[int, ...]
    heads: int = 12
    head_dim: int = 64
    window: int | None = None
    itemsize: int = 2

    @property
    def pairs(self) -> int:
        """Number of (query, key) pairs of one head: L (2 w + 1) - w (w + 1), or L^2 if the window covers the text."""
        w = self.window
        return sum(x * x if w is None or x <= w else x * (2 * w + 1) - w * (w + 1) for x in self.lengths)


@dataclass(frozen=True)
class Linear:
    """A product y = x W^T + b: rows of x, inputs and outputs per row, bytes per element of x and y, and of W."""

    rows: int
    inputs: int
    outputs: int
    itemsize: int = 4
    weight_itemsize: int = 4


@dataclass(frozen=True)
class Pairs:
    """A batch of token_scores: words and types of each text, H, d, bytes per element."""

    words: tuple[int, ...]
    types: tuple[int, ...]
    hidden: int = 3072
    width: int = 768
    itemsize: int = 2

    @property
    def pairs(self) -> int:
        """Number of (word, type) pairs of the texts."""
        return sum(words * types for words, types in zip(self.words, self.types, strict=True))

    @property
    def parameters(self) -> int:
        """Number of elements of a, b, x, y, W1p, W2 and b2 together, and also of their gradients."""
        rows = sum(self.words) + sum(self.types)
        return rows * (self.hidden + self.width) + self.hidden * (self.width + 3) + 3


Shape = Spans | Tokens | Attention | Linear | Pairs


def span_scores(x: Spans, backward: bool) -> Cost:
    """Cost of span_scores.

    Forward: an add and a ReLU per hidden value, the product with u, the bias. Backward: the same hidden values again,
    the products with u and with g, then a mask and two sums per hidden value, and one sum per pair.
    """
    if not backward:
        moved = x.itemsize * x.parameters + x.logit_itemsize * x.logits
        return Cost(2 * x.hidden * x.pairs, 2 * x.hidden * x.spans + x.pairs, moved)
    moved = x.itemsize * (2 * x.parameters - sum(x.types)) + x.logit_itemsize * x.pairs  # c is not read
    return Cost(4 * x.hidden * x.pairs, 5 * x.hidden * x.spans + x.pairs, moved)


def span_loss(x: Spans, backward: bool) -> Cost:
    """Cost of span_loss: as span_scores, plus 10 per pair for the focal loss and 5 for its derivative.

    The logits and their gradient g need not leave the chip, and the backward pass can follow immediately: it reads
    nothing and writes the four gradients.
    """
    scores = span_scores(x, backward)
    elementwise = (5 if backward else 10) * x.pairs
    return Cost(scores.matrix_flops, scores.vector_flops + elementwise, x.itemsize * x.parameters)


def span_entities(x: Spans, backward: bool) -> Cost:
    """Cost of span_entities: as span_scores, plus one comparison of logits per pair.

    A candidate is word, width, type and score: 16 bytes.
    """
    scores = span_scores(x, backward)
    moved = x.itemsize * x.parameters + 16 * x.candidates
    return Cost(scores.matrix_flops, scores.vector_flops + x.pairs, moved)


def span_vectors(x: Spans, backward: bool) -> Cost:
    """Cost of span_vectors: as span_scores, with W2 [d, H] and b2 [d] instead of types, and one vector per span."""
    words, weights, results = 2 * sum(x.words) * x.hidden, x.width * (x.hidden + 1), x.spans * x.width
    products = 2 * x.hidden * results
    if not backward:
        return Cost(products, 2 * x.hidden * x.spans + results, x.itemsize * (words + weights + results))
    moved = x.itemsize * (2 * words + 2 * weights - x.width + results)  # b2 is not read
    return Cost(2 * products, 5 * x.hidden * x.spans + results, moved)


def token_scores(x: Pairs, backward: bool) -> Cost:
    """Cost of token_scores.

    Forward: the products x_i y_t, their product with W1p, two adds and a ReLU per hidden value, the product with W2,
    the bias; logits are fp32. Backward: the hidden values again, the products of dz with W1p and with x_i y_t, of g
    with W2 and with h; a mask and two sums per hidden value, two multiplications and two sums per product.
    """
    product, hidden = 2 * x.pairs * x.width * x.hidden, x.pairs * x.hidden
    if not backward:
        moved = x.itemsize * x.parameters + max(x.itemsize, 4) * 3 * x.pairs
        return Cost(product, x.pairs * x.width + (3 + 6) * hidden + 3 * x.pairs, moved)
    moved = 2 * x.itemsize * x.parameters + max(x.itemsize, 4) * 3 * x.pairs
    return Cost(3 * product, 5 * x.pairs * x.width + (3 + 12 + 3) * hidden, moved)


def rotary(x: Tokens, backward: bool) -> Cost:
    """Cost of rotary: two multiplications and a sum per element of q and k. Backward rotates by the opposite angle."""
    elements = 2 * x.tokens * x.width
    return Cost(0, 3 * elements, 2 * x.itemsize * elements + 4 * x.longest * x.head_dim)


def geglu(x: Tokens, backward: bool) -> Cost:
    """Cost of geglu.

    Forward a/2 (1 + erf(a / sqrt 2)) b: 5 per element of the result; reads 2, writes 1. Backward: gelu again (4),
    gelu' = Phi + a phi (5), times dy b and dy (3); reads 3, writes 2.
    """
    elements = x.tokens * x.width
    return Cost(0, (12 if backward else 5) * elements, x.itemsize * (5 if backward else 3) * elements)


def add_layer_norm(x: Tokens, backward: bool) -> Cost:
    """Cost of add_layer_norm.

    Forward: r = x + residual, its mean (1) and variance (2), normalised (2), weighted (1); reads 2, writes r and y.
    Backward: reads dy, dr, r, writes one gradient for both summands and dw. Mean and 1 / std are fp32, 8 bytes per row.
    """
    elements = x.tokens * x.width
    weights = x.width * (2 if backward else 1)
    moved = x.itemsize * (4 * elements + weights) + 8 * x.tokens
    return Cost(0, (13 if backward else 7) * elements, moved)


def attention_varlen(x: Attention, backward: bool) -> Cost:
    """Cost of attention_varlen.

    Forward: Q K^T and P V; scale, maximum, difference, exp and sum per pair; log-sum-exp in fp32. Backward: five
    products (Q K^T again, dO V^T, P^T dO, dS K, dS^T Q) and 6 per pair; reads q, k, v, o, do, writes dq, dk, dv.
    """
    pairs, elements = x.heads * x.pairs, sum(x.lengths) * x.heads * x.head_dim
    sums = 4 * sum(x.lengths) * x.heads
    if not backward:
        return Cost(4 * x.head_dim * pairs, 5 * pairs, 4 * x.itemsize * elements + sums)
    return Cost(10 * x.head_dim * pairs, 6 * pairs, 8 * x.itemsize * elements + sums)


def linear_packed(x: Linear, backward: bool) -> Cost:
    """Cost of y = x W^T + b: reads x, W and b (fp32), writes y."""
    del backward
    moved = x.itemsize * x.rows * (x.inputs + x.outputs) + x.outputs * (x.weight_itemsize * x.inputs + 4)
    return Cost(2 * x.rows * x.inputs * x.outputs, x.rows * x.outputs, moved)


COSTS: dict[str, Callable[..., Cost]] = {
    function.__name__: function
    for function in (
        span_scores, span_loss, span_entities, span_vectors, rotary, geglu, add_layer_norm, attention_varlen,
        linear_packed, token_scores,
    )
}  # fmt: skip
FORWARD_ONLY = ("span_entities", "linear_packed")


def cost(op: str, shape: Shape, backward: bool = False) -> Cost:
    """Minimum work of one call. Raises ValueError for an unknown operator, and for one without a backward pass."""
    if op not in COSTS:
        raise ValueError(f"cost: expected one of {', '.join(COSTS)}, got {op!r}")
    if backward and op in FORWARD_ONLY:
        raise ValueError(f"backward: expected False, as {op} has no backward pass, got True; leave it out")
    return COSTS[op](shape, backward)


def flops(op: str, shape: Shape, backward: bool = False) -> float:
    """Matrix and vector FLOPs. Compare `cost(...).matrix_flops`, if there are any, with the rate of a GEMM."""
    work = cost(op, shape, backward)
    return work.matrix_flops + work.vector_flops


def bytes_moved(op: str, shape: Shape, backward: bool = False) -> float:
    return cost(op, shape, backward).bytes_moved


class Device(NamedTuple):
    """Peak rates per second: bytes of memory, 16-bit matrix FLOPs, single vector operations, warp instructions."""

    memory: float
    matrix: float
    vector: float
    issue: float


# H100 SXM5, from NVIDIA's data sheet (https://www.nvidia.com/en-us/data-center/h100/): 3.35 TB/s; bf16 989.4 TFLOP/s
# without sparsity; fp32 66.9 TFLOP/s, which counts a fused multiply-add as two. A warp instruction is 32 lanes.
H100 = Device(3.35e12, 989.4e12, 66.9e12 / 2, 66.9e12 / 2 / 32)
WORKED: dict[str, Shape] = {
    **dict.fromkeys(("span_scores", "span_loss"), Spans((35,) * 74, (9,) * 74)),
    "span_entities": Spans((35,) * 74, (9,) * 74, candidates=500),
    "span_vectors": Spans((35,) * 74, (9,) * 74),
    "rotary": Tokens(4500, 768, longest=75),
    "geglu": Tokens(4500, 1152),
    "add_layer_norm": Tokens(4500, 768),
    "attention_varlen": Attention((75,) * 60, window=64),
}


def floors(work: Cost, device: Device = H100) -> dict[str, float]:
    """Minimum seconds of memory, tensor cores and vector lanes, each alone, in bf16."""
    return {
        "memory": work.bytes_moved / device.memory,
        "matrix": work.matrix_flops / device.matrix,
        "vector": work.vector_flops / device.vector,
    }


def pieces(lengths: tuple[int, ...], tile: int) -> int:
    """Number of (tile, text) pairs if the rows of all texts are cut into tiles across text boundaries."""
    count, begin = 0, 0
    for length in lengths:
        end = begin + length
        count += (-(-end // tile) - begin // tile) if length else 0
        begin = end
    return count


def warp_instructions(x: Spans) -> dict[str, int]:
    """Warp instructions that our span kernels issue in bf16 with up to 16 types per text.

    They are the instructions inside each loop, times its iterations, times 4 warps. The instructions per loop,
    innermost first, are `loops` of `python bench/resources.py --json` for cuda:90 with Triton 3.9.0. Tiles are those of
    kernels/_common.py.
    """
    rows = pieces(tuple(words * x.max_width for words in x.words), 64)
    words = pieces(x.words, 16)
    steps, columns = -(-x.hidden // 32), -(-x.hidden // 64)
    row_steps = sum(-(-words * x.max_width // 64) for words in x.words)

    def scored(inner: int, text: int) -> int:
        return 4 * rows * (steps * inner + text - inner)

    def word_grads(inner: int, text: int) -> int:
        return 4 * words * columns * (x.max_width * inner + text - inner)

    return {
        "`scores_kernel`": scored(95, 390),
        "`loss_kernel`, loss only": scored(99, 897),
        "`loss_kernel` with gradients": scored(99, 1195),
        "`word_grads_kernel`, da and db": word_grads(78, 167) + word_grads(78, 169),
        "`type_grads_kernel`": 4 * steps * (row_steps * 324 + len(x.words) * (478 - 324)),
    }


def floor_table() -> str:
    lines = [
        "| operator | MB | matrix GFLOP | vector GFLOP | memory µs | matrix µs | vector µs |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for op, shape in WORKED.items():
        for backward in (False, True)[: 1 if op in FORWARD_ONLY else 2]:
            work = cost(op, shape, backward)
            flop = [f"{work.matrix_flops / 1e9:.2f}", f"{work.vector_flops / 1e9:.3f}"]
            times = [f"{1e6 * seconds:.1f}" for seconds in floors(work).values()]
            numbers = " | ".join((f"{work.bytes_moved / 1e6:.1f}", *flop, *times))
            lines.append(f"| `{op}` {'backward' if backward else 'forward'} | {numbers} |")
    return "\n".join(lines)


def issue_table(spans: Spans) -> str:
    lines = ["| kernel | million warp instructions | issue µs |", "|---|---:|---:|"]
    for name, count in warp_instructions(spans).items():
        lines.append(f"| {name} | {count / 1e6:.1f} | {1e6 * count / H100.issue:.0f} |")
    return "\n".join(lines)


def prediction_table(spans: Spans) -> str:
    """Build the table of predictions. Expected: between half and three quarters of the clocks issue an instruction."""
    scores, loss, loss_grads, *backward = warp_instructions(spans).values()
    lines = ["| | floor µs | issue µs | expected µs |", "|---|---:|---:|---:|"]
    for name, op, directions, count in (
        ("`span_scores` forward", "span_scores", (False,), scores),
        ("`span_scores` backward", "span_scores", (True,), sum(backward)),
        ("`span_loss`, loss only", "span_loss", (False,), loss),
        ("`span_loss` with gradients", "span_loss", (False, True), loss_grads + sum(backward)),
    ):
        floor = 1e6 * sum(bytes_moved(op, spans, direction) for direction in directions) / H100.memory
        issue = 1e6 * count / H100.issue
        lines.append(f"| {name} | {floor:.1f} | {issue:.0f} | {issue * 4 / 3:.0f} to {issue * 2:.0f} |")
    return "\n".join(lines)


def tables() -> list[str]:
    """Build the computed tables of docs/ROOFLINE.md, in Markdown."""
    spans = WORKED["span_scores"]
    assert isinstance(spans, Spans)
    return [floor_table(), issue_table(spans), prediction_table(spans)]


if __name__ == "__main__":
    print("\n\n".join(tables()))
