"""token_scores: start, end and inside logits of every word and type, without a stored hidden layer."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from glimodern import reference
from glimodern.reference.span import fp32_product

from . import dispatch
from ._check import check_dropout, check_offsets_shape, check_tensors, text_offsets
from ._linear_packed import PackedWeight, cpp_weight, linear_packed
from ._register import differentiable_op
from ._span import stored
from .dispatch import BF16, FP32, accumulator_dtype, backend, needs_grad, promote, storage, triton_kernels

Grads = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # of a, b, x, y, w1, w2, b2

_TILE_HIDDEN = 1 << 20  # hidden values that exist at a time where PyTorch computes them: 4 MB in fp32
_BLOCK_PAIRS = 64


class TokenInputs(NamedTuple):
    """Arguments of the registered op: see `token_scores`."""

    a: Tensor
    b: Tensor
    x: Tensor
    y: Tensor
    w1: Tensor
    w2: Tensor
    b2: Tensor
    cu_words: Tensor
    cu_types: Tensor
    dropout_p: float
    seed: int

    @property
    def floats(self) -> Grads:
        return self[:7]

    def checked(self) -> "TokenInputs":
        """The inputs with the floats in their widest dtype; ValueError or TypeError for bad shapes, dtypes, devices."""
        a, b, x, y, w1, w2, b2 = self.floats
        named = {"a": a, "b": b, "x": x, "y": y, "w1": w1, "w2": w2, "b2": b2}
        offsets = {"cu_words": self.cu_words, "cu_types": self.cu_types}
        check_tensors(named, offsets)
        for name, cu in offsets.items():
            check_offsets_shape(name, cu)
        if self.cu_words.shape != self.cu_types.shape:
            raise ValueError(
                f"cu_words, cu_types: expected the same length, texts + 1, got {len(self.cu_words)} and "
                f"{len(self.cu_types)}"
            )
        if a.ndim != 2 or w1.ndim != 2:
            raise ValueError(f"a, w1: expected [words, H] and [H, d], got {tuple(a.shape)} and {tuple(w1.shape)}")
        hidden, width = w1.shape
        shapes = {
            "a": (len(a), hidden), "b": (len(b), hidden), "x": (len(a), width), "y": (len(b), width),
            "w2": (3, hidden), "b2": (3,),
        }  # fmt: skip
        for name, shape in shapes.items():
            if named[name].shape != shape:
                raise ValueError(f"{name}: expected {list(shape)}, got {list(named[name].shape)}")
        check_dropout(self.dropout_p)
        return self._with(promote(*self.floats))

    def check_offsets(self) -> None:
        """ValueError for bad offsets on the CPU; elsewhere reading them would wait for the device."""
        if self.a.device.type == "cpu":
            text_offsets("cu_words", self.cu_words, len(self.a))
            text_offsets("cu_types", self.cu_types, len(self.b))

    def in_accumulator_dtype(self) -> "TokenInputs":
        dtype = accumulator_dtype(self.a)
        return self._with([x.to(dtype) for x in self.floats])

    def _with(self, floats: Sequence[Tensor]) -> "TokenInputs":
        a, b, x, y, w1, w2, b2 = floats
        return TokenInputs(a, b, x, y, w1, w2, b2, *self[7:])


def _forward(inputs: TokenInputs) -> Tensor:
    chosen = backend("token_scores", inputs.a)
    inputs.check_offsets()
    if chosen == "cpp":
        weight = PackedWeight.pack(inputs.w1, dtype="bf16" if inputs.w1.dtype == BF16 else "fp32")
        return _scores_cpp(inputs, weight)
    if chosen == "triton":
        launch = triton_kernels("token_scores").token_scores_forward
        return launch(*inputs.floats, *_pairs(inputs), inputs.dropout_p, inputs.seed)
    with torch.no_grad():
        return reference.token_scores(*inputs.in_accumulator_dtype())


def _pairs(inputs: TokenInputs) -> tuple[Tensor, Tensor]:
    """Word and type of each pair, int32 [pairs]."""
    word, type_id = reference.pair_indices(inputs.cu_words, inputs.cu_types)
    return word.to(torch.int32), type_id.to(torch.int32)


def _scores_cpp(inputs: TokenInputs, weight: PackedWeight) -> Tensor:
    """Logits by the C++ kernel. weight: W1p, packed; `inputs.w1` is not read."""
    a, b, x, y = map(stored, inputs[:4])
    w2, b2 = (t.detach().float().contiguous() for t in (inputs.w2, inputs.b2))
    word, type_id = _pairs(inputs)
    logits = a.new_empty(len(word), 3, dtype=FP32)
    addresses = [t.data_ptr() for t in (a, b, x, y, w2, b2, word, type_id, logits)]
    dispatch.extension.token_scores(
        storage(a.dtype), *addresses, len(word), weight.inputs, weight.outputs, *cpp_weight(weight.tensors),
        inputs.dropout_p, inputs.seed & 0xFFFFFFFF, torch.get_num_threads(),
    )  # fmt: skip
    return logits


def _backward(grad: Tensor, inputs: TokenInputs) -> Grads:
    chosen = backend("token_scores", inputs.a)
    with torch.autocast(grad.device.type, enabled=False):
        exact = tiled_grads(grad, inputs.in_accumulator_dtype(), cpp=chosen == "cpp")
    da, db, dx, dy, dw1, dw2, db2 = (t.to(x.dtype) for t, x in zip(exact, inputs.floats, strict=True))
    return da, db, dx, dy, dw1, dw2, db2


def tiled_grads(grad: Tensor, inputs: TokenInputs, *, cpp: bool) -> Grads:
    """Gradients of the seven floats from those of the logits [pairs, 3], in the inputs' dtype, fp32 or fp64.

    With z the sum inside relu, h = drop(relu(z)), p = x_i * y_t and g = dloss/dlogits:

        dh = g W2    dz = dh [z > 0] / (1 - p) where kept    dW2 = g^T h    db2 = sum g
        da_i = sum_t dz    db_t = sum_i dz    dp = dz W1p    dW1p = dz^T p    dx_i = sum_t dp y_t    dy_t = sum_i dp x_i

    h is computed again, for some words of a text at a time. cpp: h and dz by one pass in C++ after the product with
    W1p; the products are PyTorch's. Autograd cannot record inside a custom op.
    """
    x, y, w1, cu_words, cu_types = inputs.x, inputs.y, inputs.w1, inputs.cu_words, inputs.cu_types
    da, db, dx, dy, dw1, dw2, db2 = (torch.zeros_like(t) for t in inputs.floats)
    grad = grad.to(x.dtype).contiguous()
    words, types, first = cu_words.tolist(), cu_types.tolist(), 0
    for n0, n1, m0, m1 in zip(words, words[1:], types, types[1:], strict=False):
        tile = max(1, _TILE_HIDDEN // max(w1.shape[0] * (m1 - m0), 1))
        for begin in range(n0, n1 if m1 > m0 else n0, tile):
            rows, columns = slice(begin, min(begin + tile, n1)), slice(m0, m1)
            pairs = (x[rows, None] * y[None, columns]).flatten(0, 1)
            g = grad[first : first + len(pairs)]
            hidden_and_dz = _hidden_and_dz_cpp if cpp else _hidden_and_dz
            hidden, dz = hidden_and_dz(inputs, rows, columns, pairs, g, first)
            first += len(pairs)
            dw2 += _blockwise_product(g, hidden)
            db2 += g.sum(0)
            dw1.addmm_(dz.T, pairs)
            shape = (rows.stop - rows.start, m1 - m0)
            by_pair, by_hidden = (dz @ w1).unflatten(0, shape), dz.unflatten(0, shape)
            dx[rows] = (by_pair * y[None, columns]).sum(1)
            dy[columns] += (by_pair * x[rows, None]).sum(0)
            da[rows] = by_hidden.sum(1)
            db[columns] += by_hidden.sum(0)
    return da, db, dx, dy, dw1, dw2, db2


def _blockwise_product(g: Tensor, hidden: Tensor) -> Tensor:
    """Compute g^T hidden [3, H] of [pairs, 3] and [pairs, H] as a sum over blocks of pairs.

    A product of so few rows adds up the pairs one by one: on 2,304 pairs its largest error was 7 times that of blocks.
    """
    whole = len(g) // _BLOCK_PAIRS * _BLOCK_PAIRS
    blocks, hidden_blocks = (t[:whole].unflatten(0, (-1, _BLOCK_PAIRS)) for t in (g, hidden))
    return torch.bmm(blocks.mT, hidden_blocks).sum(0) + g[whole:].T @ hidden[whole:]


def _hidden_and_dz(
    inputs: TokenInputs, rows: slice, columns: slice, pairs: Tensor, g: Tensor, first: int
) -> tuple[Tensor, Tensor]:
    """h and dz [pairs, H] of some words and the types of their text.

    pairs: p [pairs, d]. g: gradients of their logits. first: the first pair's number in the batch.
    """
    a, b, x, y, w1, w2 = inputs[:6]
    options = (inputs.dropout_p, inputs.seed, first)
    hidden = reference.token_hidden(a[rows], b[columns], x[rows], y[columns], w1, *options).flatten(0, 1)
    return hidden, torch.ops.aten.threshold_backward((g / (1.0 - inputs.dropout_p)) @ w2, hidden, 0.0)


def _hidden_and_dz_cpp(
    inputs: TokenInputs, rows: slice, columns: slice, pairs: Tensor, g: Tensor, first: int
) -> tuple[Tensor, Tensor]:
    """`_hidden_and_dz` in C++, fp32."""
    a, b, w2 = (t.contiguous() for t in (inputs.a[rows], inputs.b[columns], inputs.w2))
    hidden = pairs @ inputs.w1.T
    dz = torch.empty_like(hidden)
    addresses = [t.data_ptr() for t in (a, b, w2, g, hidden, dz)]
    dispatch.extension.token_hidden_gradients(
        *addresses, len(a), len(b), hidden.shape[1], first, inputs.dropout_p, inputs.seed & 0xFFFFFFFF,
        torch.get_num_threads(),
    )  # fmt: skip
    return hidden, dz


def _fake(inputs: TokenInputs) -> Tensor:
    pairs = torch.library.get_ctx().new_dynamic_size()
    return inputs.a.new_empty(pairs, 3, dtype=accumulator_dtype(inputs.a))


_token_scores = differentiable_op("token_scores", _forward, _backward, _fake)


def token_scores(
    a: Tensor,
    b: Tensor,
    x: Tensor,
    y: Tensor,
    w1: Tensor | PackedWeight,
    w2: Tensor,
    b2: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    *,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Start, end and inside logits of every word and type of a text: W2 drop(relu(a_i + b_t + W1p (x_i * y_t))) + b2.

    a: [n, H], x: [n, d], one row per word. b: [m, H], y: [m, d], one row per entity type. w1: W1p [H, d]; or, for
        inference, packed by `PackedWeight.pack` without a bias. w2: [3, H]. b2: [3]. All fp32, fp16, bf16 or
        fp64, promoted to the widest dtype among them; differentiable.
    cu_words, cu_types: int32 [texts + 1], the texts' offsets in a and x, and in b and y.
    dropout_p: share of the hidden layer that is dropped, by a counter-based generator that depends on seed and pair
        alone (`reference.dropout_keep`).

    Returns the logits in fp32 (fp64 for fp64 inputs), [pairs, 3]: text after text, each row-major [words, types]
    (`split_token_scores` cuts them up). Nothing of size pairs * H is stored. A packed w1 runs as a plain function, not
    as a registered op.

    Raises ValueError or TypeError for bad shapes, dtypes and devices and, on the CPU, for bad offsets; for a packed w1
    where an input requires gradients, too.
    """
    if not isinstance(w1, PackedWeight):
        inputs = TokenInputs(a, b, x, y, w1, w2, b2, cu_words, cu_types, float(dropout_p), int(seed)).checked()
        return _token_scores(inputs, *inputs.floats)
    stand_in = a.new_empty(1, 1).expand(w1.outputs, w1.inputs)  # for the checks; not read
    inputs = TokenInputs(a, b, x, y, stand_in, w2, b2, cu_words, cu_types, float(dropout_p), int(seed)).checked()
    if needs_grad(*inputs.floats):
        raise ValueError(
            "w1: expected a tensor where gradients are required, got a weight packed for inference; load the model "
            "with trainable=True"
        )
    inputs.check_offsets()
    if backend("token_scores", a) == "cpp":
        return _scores_cpp(inputs, w1)
    return _scores_packed(inputs, w1)


def _scores_packed(inputs: TokenInputs, weight: PackedWeight) -> Tensor:
    """Logits by `linear_packed` and PyTorch, some pairs at a time."""
    a, b, x, y, _, w2, b2 = inputs.floats
    word, type_id = reference.pair_indices(inputs.cu_words, inputs.cu_types)
    blocks = [a.new_empty(0, 3, dtype=FP32)]
    for rows in torch.arange(len(word), device=a.device).split(max(1, _TILE_HIDDEN // max(weight.outputs, 1))):
        i, t = word[rows], type_id[rows]
        z = linear_packed(x[i].float() * y[t].float(), weight, dtype=FP32)
        hidden = torch.relu(z + a[i] + b[t])
        if inputs.dropout_p > 0.0:
            keep = reference.dropout_keep(rows, hidden.shape[1], inputs.dropout_p, inputs.seed)
            hidden = torch.where(keep, hidden / (1.0 - inputs.dropout_p), 0.0)
        blocks.append(fp32_product(hidden, w2) + b2)
    return torch.cat(blocks)


def split_token_scores(logits: Tensor, cu_words: Tensor, cu_types: Tensor) -> list[Tensor]:
    """Cut the logits of `token_scores` up into one view [words, types, 3] per text.

    Reads cu_words and cu_types, which waits for their device. Raises ValueError if logits has another shape than these
    offsets make.
    """
    shapes = list(zip(cu_words.diff().tolist(), cu_types.diff().tolist(), strict=True))
    sizes = [words * types for words, types in shapes]
    if logits.shape != (sum(sizes), 3):
        raise ValueError(
            f"logits: expected [{sum(sizes)}, 3], which cu_words and cu_types make, got {tuple(logits.shape)}"
        )
    blocks = zip(logits.split(sizes), shapes, strict=True)
    return [block.view(words, types, 3) for block, (words, types) in blocks]
