"""linear_packed against the products of oneDNN, MKL and fbgemm on every linear layer of the encoders, on CPUs.

    PYTHONPATH=tests python bench/linear_table.py [--dtypes fp32 bf16 int8] [--rows 45 400 ...] [--layers 384x1536 ...]
        [--threads 2] [--seconds 0.3] [--rounds 7]

A line is one dtype, layer and number of rows: our median milliseconds and rate, the fastest rival, its median, and
that median divided by ours. The sides are timed in turns, after each has met the rule of tests/accuracy.py on the
first and the last rows, in int8 against the unquantised product within 64 times the error of ours. oneDNN's int8
product of an x that is in uint8 already does less work, so it has a column of its own. For lesser instruction sets set
GLIMODERN_ISA, ONEDNN_MAX_CPU_ISA and MKL_ENABLE_INSTRUCTIONS.
"""

import argparse
import math
import warnings
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from accuracy import assert_accurate
from measure import in_turns, session_info
from torch import Tensor

from glimodern import ops
from glimodern.ops import PackedWeight, linear_packed
from glimodern.reference.linear_packed import linear_int8, quantise_weight

LAYERS = {
    "MiniLM-L6": ("384x384", "384x1152", "384x1536", "1536x384"),
    "ModernBERT-base": ("768x768", "768x2304", "1152x768"),
    "DeBERTa-small and -base": ("768x3072", "3072x768"),
    "ModernBERT-large": ("1024x1024", "1024x3072", "1024x5248", "2624x1024"),
    "DeBERTa-large": ("1024x4096", "4096x1024"),
}
ROWS = (45, 400, 1000, 2048, 8192)
DTYPES = ("fp32", "bf16", "int8")
CHECKED_ROWS = 64  # at either end
OURS, ONLY_PRODUCT = "ours", "qlinear of uint8"
Call = Callable[[], Tensor]


def _float_sides(x: Tensor, weight: Tensor, bias: Tensor, packed: PackedWeight) -> dict[str, Call]:
    rows = len(x)
    mkldnn = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    sides: dict[str, Call] = {
        OURS: lambda: linear_packed(x, packed),
        "F.linear": lambda: F.linear(x, weight, bias),
        "oneDNN": lambda: torch.ops.mkldnn._linear_pointwise(x, mkldnn, bias, "none", [], ""),
    }
    if x.dtype == torch.float32:
        mkl = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
        sides["MKL"] = lambda: torch.ops.mkl._mkl_linear(x, mkl, weight, bias, rows)
    return sides


def _int8_sides(x: Tensor, weight: Tensor, bias: Tensor, packed: PackedWeight) -> dict[str, Call]:
    scale, zero = weight.abs().amax(1) / 127, torch.zeros(len(weight), dtype=torch.long)
    codes = (weight / scale[:, None]).round().to(torch.int8)
    onednn = torch.ops.onednn.qlinear_prepack(codes, list(x.shape))
    sides: dict[str, Call] = {OURS: lambda: linear_packed(x, packed)}
    quantised = torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8)
    for engine in {"fbgemm", "onednn"}.intersection(torch.backends.quantized.supported_engines):
        torch.backends.quantized.engine = engine
        # The packed weight decides which engine computes.
        sides[f"{engine} dynamic"] = partial(
            torch.ops.quantized.linear_dynamic, x, torch.ops.quantized.linear_prepack(quantised, bias), False
        )

    low, high = (value.item() for value in x.aminmax())
    x_scale = (high - low) / 255.0
    x_zero = round(-low / x_scale)
    uint8 = torch.quantize_per_tensor(x, x_scale, x_zero, torch.quint8).int_repr()
    sides[ONLY_PRODUCT] = lambda: torch.ops.onednn.qlinear_pointwise(
        uint8, x_scale, x_zero, onednn, scale, zero, bias, 1.0, 0, torch.float32, "none", [], ""
    )
    return sides


def _ends(x: Tensor) -> Tensor:
    return x if len(x) <= 2 * CHECKED_ROWS else torch.cat([x[:CHECKED_ROWS], x[-CHECKED_ROWS:]])


def _check(sides: dict[str, Call], x: Tensor, weight: Tensor, bias: Tensor, dtype: str) -> None:
    """AssertionError unless every side is as accurate as it claims; this also warms the sides up."""
    x = _ends(x)
    truth = F.linear(x.double(), weight.double(), bias.double())
    plain = linear_int8(x, *quantise_weight(weight), bias) if dtype == "int8" else F.linear(x, weight, bias)
    for name, call in sides.items():
        factor = 2.0 if name == OURS else 64.0
        assert_accurate(_ends(call()), truth, plain, c=factor, what=f"{name}, {dtype}")


def measure(dtype: str, layer: str, rows: int, seconds: float, rounds: int) -> dict[str, float]:
    """Median seconds of every side."""
    inputs, outputs = map(int, layer.split("x"))
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=generator) for s in ((rows, inputs), (outputs, inputs), (outputs,)))
    weight *= inputs**-0.5
    packed = PackedWeight.pack(weight, bias, dtype)
    if dtype == "bf16":
        x, weight, bias = x.bfloat16(), weight.bfloat16(), bias.bfloat16()
    sides = (_int8_sides if dtype == "int8" else _float_sides)(x, weight, bias, packed)
    _check(sides, x, weight, bias, dtype)
    return {name: median(times) for name, times in in_turns(sides, seconds, rounds).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, choices=DTYPES)
    parser.add_argument("--layers", nargs="+", default=[layer for layers in LAYERS.values() for layer in layers])
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.3, help="for a line")
    parser.add_argument("--rounds", type=int, default=7, help="at least")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    facts = session_info()
    isas = [ops.backend_info("cpu", dtype)["linear_packed"]["isa"] for dtype in (torch.float32, torch.bfloat16)]
    print(
        f"{facts['machine']}, fp32 by {isas[0]}, bf16 and int8 by {isas[1]}, "
        f"threads {arguments.threads}, torch {torch.__version__}, {facts['commit']}"
    )
    print(f"{'':4}  {'layer':>9}  {'rows':>5}  {'ours ms':>8}  {'GFLOP/s':>7}  {'rival ms':>8}  ratio  rival")
    for dtype in arguments.dtypes:
        ratios = []
        for layer in arguments.layers:
            for rows in arguments.rows:
                with torch.inference_mode(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # that torchao replaces quantised tensors
                    times = measure(dtype, layer, rows, arguments.seconds, arguments.rounds)
                ours, only = times.pop(OURS), times.pop(ONLY_PRODUCT, None)
                rival = min(times, key=times.__getitem__)
                ratios.append(times[rival] / ours)
                flops = 2 * rows * math.prod(map(int, layer.split("x")))
                print(
                    f"{dtype}  {layer:>9}  {rows:>5,}  {ours * 1e3:8.3f}  {flops / ours / 1e9:7.0f}  "
                    f"{times[rival] * 1e3:8.3f}  {ratios[-1]:5.2f}  {rival}"
                    + (f"; {ONLY_PRODUCT}: {only * 1e3:.3f} ms, {only / ours:.2f}" if only is not None else ""),
                    flush=True,
                )
        print(
            f"{dtype}: {sum(ratio >= 0.95 for ratio in ratios)} of {len(ratios)} lines at 0.95 or more, "
            f"lowest {min(ratios):.2f}"
        )


if __name__ == "__main__":
    main()
