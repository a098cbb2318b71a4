# mypy: allow-untyped-defs
"""Device functions and tile sizes of the span kernels: dropout hash, text of a word, tiles of hidden values and logits.

A span is a row: row = i * K + k, with i the first word's index in the batch and k = end - start. Tiles of rows ignore
the texts; a program loops over the one or two texts that its tile overlaps, each with its own types. So there is no
tile map to build, the grid follows from shapes alone, and nothing waits for the device.

n * H and the number of logits may exceed 2^31, so a tile's offset in memory is an int64 scalar; within a tile, offsets
are int32, for half the registers and address arithmetic.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.language.target_info import is_hip
from triton.runtime import driver

# fp32 products run on NVIDIA's tensor cores as three TF32 products of split operands, with a few ulps of error (TF32
# alone keeps 10 bits); "ieee" would not use the tensor cores. For AMD, Triton has no "tf32x3": CDNA's matrix cores take
# fp32 natively ("ieee"), RDNA's not at all. Half precision ignores both and multiplies natively.
NVIDIA_PRECISION = tl.constexpr("tf32x3")
AMD_PRECISION = tl.constexpr("ieee")


@dataclass(frozen=True)
class Tiles:
    """Tile sizes of every span kernel; fixed, because an autotuner would stall the first step of each new shape.

    The sizes follow from the machine code that bench/resources.py reads (registers, no spills); no GPU has timed them.

    rows: spans that a program scores at once: one Hopper warpgroup's MMA height, and only 5 words at K = 12, so that
        short texts fill their tiles.
    hidden: columns per step: an fp32 row's 128-byte line (64 would spill in fp32).
    score_warps: one warpgroup also for 32 types: two would each compute all hidden values, for half of the types.
    words, columns: the tile of the gradients of a and b, small because a tile is computed once for each text that it
        overlaps.
    programs: number of programs to reach by splitting the loop over types or rows when the batch is small (about four
        for each multiprocessor of an H100).
    """

    rows: int = 64
    hidden: int = 32
    score_warps: int = 4
    words: int = 16
    columns: int = 64
    word_warps: int = 4
    programs: int = 512

    def types(self, types: int, texts: int) -> int:
        """Types per step, from the batch's mean: 16 (the least MMA width of every dtype) or 32 (64 would spill)."""
        return min(32, max(16, triton.next_power_of_2(triton.cdiv(types, texts))))

    def warps(self, types: int) -> int:
        """Warps of the kernels with a tile of rows and types: as many as keep that tile from spilling."""
        return 4 if types == 16 else 8

    def stages(self, dtype: torch.dtype) -> int:
        """Stages of the asynchronous loads over the hidden width or over rows: the most that does not spill."""
        return 3 if dtype == torch.float32 else 4

    def type_rows(self, dtype: torch.dtype, types: int) -> int:
        """Rows per step in the gradients of u and c; half where fp32's split operands would spill."""
        return self.rows // 2 if dtype == torch.float32 and types > 16 else self.rows

    def word_stages(self, dtype: torch.dtype) -> int:
        """Stages over the types in the gradients of a and b: few, as one step holds most texts' types; none spills."""
        return 2 if dtype == torch.float32 else 1

    def splits(self, programs: int, limit: int) -> int:
        """Number of parts to split a loop of at most `limit` steps into, when the rest of the grid has `programs`."""
        return max(1, min(limit, self.programs // max(programs, 1)))


TILES = Tiles()


def no_spills() -> dict[str, int]:
    """Launch options that let ptxas take the registers a kernel needs.

    Without them ptxas spills 8 to 24 bytes of word_grads_kernel to fit one program more on a multiprocessor; no GPU has
    timed which is faster. AMD's compiler has no such option.
    """
    if INTERPRETED or driver.active.get_current_target().backend != "cuda":
        return {}
    return {"maxnreg": 255}


def as_int32(value: int) -> int:
    """The int32 with the same low 32 bits: all seeds then have one argument type, and so one compiled kernel."""
    return (value + 2**31) % 2**32 - 2**31


@triton.jit
def mix32(x):
    """The 32-bit hash "lowbias32" (https://github.com/skeeto/hash-prospector) on uint32, as reference.mix32."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    return x ^ (x >> 16)


INTERPRETED = tl.constexpr(not isinstance(mix32, triton.JITFunction))


@triton.jit
def dropout_key(row, seed):
    """uint32 key of each row's random numbers, from row int [rows] (int64, or its low 32 bits) and seed int32."""
    return mix32(mix32(row.to(tl.uint32)) ^ seed.to(tl.uint32))


@triton.jit
def dropout_keep(key, column, THRESHOLD: tl.constexpr):
    """bool [rows, columns], True where kept, as reference.dropout_keep, from key uint32 [rows] and column [columns]."""
    counter = key[:, None] + (column.to(tl.uint32) * 0x9E3779B9)[None, :]
    return mix32(counter) >= tl.full((1, 1), THRESHOLD, tl.uint32)


@triton.jit
def product(x, y, total):
    """total + x @ y on the tensor cores, accumulated in fp32."""
    if INTERPRETED:  # Triton 3.9's interpreter multiplies the bits of bf16 as integers
        return tl.dot(x.to(tl.float32), y.to(tl.float32), total)
    elif is_hip():
        return tl.dot(x, y, total, input_precision=AMD_PRECISION)
    else:
        return tl.dot(x, y, total, input_precision=NVIDIA_PRECISION)


@triton.jit
def text_of(cu_words_ptr, word, texts):
    """Index of the text that a word is in: the number of texts that end at the word or before."""
    count = tl.full((), 0, tl.int32)
    for first in range(0, texts, 128):
        text = first + tl.arange(0, 128)
        end = tl.load(cu_words_ptr + 1 + text, mask=text < texts, other=2147483647)
        count += tl.sum((end <= word).to(tl.int32))
    return count


@triton.jit
def text_frame(cu_words_ptr, cu_types_ptr, text, word0):
    """A text's first word (int64), begin and end counted from word0, first type (int64), and number of types."""
    first_word = tl.load(cu_words_ptr + text).to(tl.int64)
    end_word = tl.load(cu_words_ptr + text + 1).to(tl.int64)
    first_type = tl.load(cu_types_ptr + text).to(tl.int64)
    types = tl.load(cu_types_ptr + text + 1).to(tl.int64) - first_type
    return (
        first_word,
        (first_word - word0).to(tl.int32),
        (end_word - word0).to(tl.int32),
        first_type,
        types.to(tl.int32),
    )


@triton.jit
def hidden_tile(a_ptr, b_ptr, start, end, inside, key, column, hidden, THRESHOLD: tl.constexpr):
    """keep * relu(a_start + b_end), zero where not inside: [rows, columns] in a's dtype.

    The caller multiplies by 1 / (1 - p). a_ptr and b_ptr point at the row of the tile's first word; start, end int32
    [rows] count from that word. The product needs the sum rounded to a's dtype in any case, so adding in that dtype
    rounds no more, and packs two half precision values per instruction. A word is read for up to K spans: ".ca" keeps
    its line in L1, which asynchronous copies of 16 bytes otherwise bypass.
    """
    mask = inside[:, None] & (column < hidden)[None, :]
    x = tl.load(a_ptr + (start * hidden)[:, None] + column[None, :], mask=mask, other=0.0, cache_modifier=".ca")
    y = tl.load(b_ptr + (end * hidden)[:, None] + column[None, :], mask=mask, other=0.0, cache_modifier=".ca")
    if INTERPRETED:  # as in product
        x = x.to(tl.float32)
        y = y.to(tl.float32)
    zero = tl.full((1, 1), 0.0, x.dtype)
    x = tl.maximum(x + y, zero, propagate_nan=tl.PropagateNan.ALL)
    if THRESHOLD > 0:
        x = tl.where(dropout_keep(key, column, THRESHOLD), x, zero)
    return x.to(a_ptr.dtype.element_ty)


@triton.jit
def positive_sum(x, y):
    """x + y > 0, by the same sum as hidden_tile's."""
    if INTERPRETED:  # as in product
        return x.to(tl.float32) + y.to(tl.float32) > 0.0
    else:
        return x + y > tl.full((1, 1), 0.0, x.dtype)


@triton.jit
def logit_tile(
    a_ptr,  # [*, H] from the row of the tile's first word
    b_ptr,  # [*, H] from the row of the tile's first word
    u_ptr,  # [*, H] from the row of the tile's first type
    c_ptr,  # [*] from the tile's first type
    start,  # int32 [ROWS] the spans' first words, from the tile's first word
    end,  # int32 [ROWS] the spans' last words, from the tile's first word
    inside,  # bool [ROWS]
    key,  # uint32 [ROWS]
    types,  # number of the tile's types that exist
    hidden,
    scale,
    THRESHOLD: tl.constexpr,
    ROWS: tl.constexpr,
    HIDDEN: tl.constexpr,
    TYPES: tl.constexpr,
):
    """fp32 [ROWS, TYPES] logits: one tile of hidden values after the other times u^T, accumulated in fp32."""
    type_id = tl.arange(0, TYPES)
    logits = tl.zeros((ROWS, TYPES), tl.float32)
    for first in range(0, hidden, HIDDEN):
        column = first + tl.arange(0, HIDDEN)
        x = hidden_tile(a_ptr, b_ptr, start, end, inside, key, column, hidden, THRESHOLD)
        mask = (column < hidden)[:, None] & (type_id < types)[None, :]
        u = tl.load(u_ptr + (type_id * hidden)[None, :] + column[:, None], mask=mask, other=0.0)
        logits = product(x, u, logits)
    c = tl.load(c_ptr + type_id, mask=type_id < types, other=0.0).to(tl.float32)
    return logits * scale + c[None, :]
