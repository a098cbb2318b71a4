"""Rates of matrix products on this machine in each dtype, the limit that bench_peers.py compares predictions with."""

import time
import warnings
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

SHAPES = ((2048, 768, 2304), (1536, 1536, 1536))  # rows, in, out: ModernBERT-base's widest product, and a large square
ROUNDS = 7
Call = Callable[[], object]
Rates = dict[str, dict[str, float]]


def _best_gflops(call: Call, flops: float) -> float:
    call()
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
        if best > 0.2:  # a path that the machine has no instructions for: once is enough
            break
    return flops / best / 1e9


def _floating(x: Tensor, weight: Tensor) -> Iterator[tuple[str, Call]]:
    yield "F.linear", lambda: F.linear(x, weight)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, x.shape[0])
    yield "oneDNN, weight packed", lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


def _int8(x: Tensor, weight: Tensor) -> Iterator[tuple[str, Call]]:
    rows, (outputs, inputs) = x.shape[0], weight.shape
    scale, zero = weight.abs().amax(1) / 127, torch.zeros(outputs, dtype=torch.long)
    codes = (weight / scale[:, None]).round().to(torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(codes, [rows, inputs])
    activations = torch.randint(0, 256, (rows, inputs), dtype=torch.uint8)
    yield (
        "oneDNN qlinear",
        lambda: torch.ops.onednn.qlinear_pointwise(
            activations, 0.02, 128, packed, scale, zero, None, 1.0, 0, torch.float32, "none", [], ""
        ),
    )
    engine = torch.backends.quantized.engine
    for name in ("fbgemm", "onednn"):
        if name in torch.backends.quantized.supported_engines:
            torch.backends.quantized.engine = name
            dynamic = torch.ops.quantized.linear_prepack(
                torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8), None
            )
            yield f"{name} linear_dynamic", lambda dynamic=dynamic: torch.ops.quantized.linear_dynamic(x, dynamic, True)
            torch.backends.quantized.engine = engine


def gemm_rates() -> tuple[Rates, list[str]]:
    """Measure GFLOP/s by dtype ("fp32", "bf16", "int8") and path, the best of all shapes.

    Returns (rates, reasons why paths did not run).
    """
    rates: Rates = {"fp32": {}, "bf16": {}, "int8": {}}
    missing: dict[str, str] = {}
    for rows, inputs, outputs in SHAPES:
        x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
        flops = 2 * rows * inputs * outputs
        families = (
            ("fp32", _floating(x, weight)),
            ("bf16", _floating(x.bfloat16(), weight.bfloat16())),
            ("int8", _int8(x, weight)),
        )
        for dtype, calls in families:
            try:
                with torch.inference_mode(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # quantised tensors are to leave torch, but still set a rate
                    for path, call in calls:
                        rates[dtype][path] = max(_best_gflops(call, flops), rates[dtype].get(path, 0.0))
            except (AttributeError, RuntimeError) as error:
                missing[dtype] = f"GEMM in {dtype}: some paths do not run here: {error}"
    return rates, [*missing.values()]


def rate_lines(rates: Rates) -> list[str]:
    """Format the rates, one line per dtype."""
    return [
        f"GEMM in {dtype}, GFLOP/s: " + ", ".join(f"{path} {rate:.0f}" for path, rate in paths.items())
        for dtype, paths in rates.items()
    ]


def limits(rates: Rates) -> dict[str, float]:
    """GFLOP/s limit of each dtype: its best path, or a wider dtype's if that is faster.

    A machine without bf16 arithmetic computes a bf16 model fastest in fp32.
    """
    best = {dtype: max(paths.values(), default=0.0) for dtype, paths in rates.items()}
    bf16 = max(best["fp32"], best["bf16"])
    return {"fp32": best["fp32"], "bf16": bf16, "int8": max(bf16, best["int8"])}
