"""linear_packed: ours in fp32, bf16 and int8 against PyTorch's linear layers, on CPUs.

Layers of ModernBERT-base and of BERT, with one sentence (45 tokens) and with 1,000 tokens. Every int8 side is compared
with the unquantised product. The error of a peer may be 64 times ours. The share of the FMA ceiling can exceed 100 %.
"""

import warnings

import pytest
import torch
import torch.nn.functional as F
from measure import DEVICE
from roofline import Linear
from sides import FORWARD, Function, Problem, Wanted, costs
from torch import Tensor, nn

from glimodern.ops import PackedWeight, linear_packed
from glimodern.reference.linear_packed import linear_int8, quantise_weight

SHAPES = [(45, 768, 2304), (1000, 768, 2304), (45, 384, 1536), (1000, 384, 1536)]
NO_COMPILED = "Inductor calls the same product as eager"


def dynamic_int8(weight: Tensor, bias: Tensor, engine: str) -> Function | str:
    """Build torch.ao's dynamic int8 layer on one of PyTorch's quantised engines."""
    if engine not in torch.backends.quantized.supported_engines:
        return f"this PyTorch has no engine {engine}"
    layer = nn.Linear(*reversed(weight.shape))
    layer.load_state_dict({"weight": weight, "bias": bias})
    torch.backends.quantized.engine = engine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torchao replaces it
        quantised = torch.ao.quantization.quantize_dynamic(nn.Sequential(layer), {nn.Linear}, dtype=torch.qint8)

    def run(x: Tensor) -> Tensor:
        torch.backends.quantized.engine = engine
        y: Tensor = quantised(x)
        return y

    return run


def onednn_packed(weight: Tensor, bias: Tensor, rows: int) -> Function | str:
    if not torch.backends.mkldnn.is_available():
        return "this PyTorch has no oneDNN"
    if weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "oneDNN packs bf16 only for CPUs with AVX-512"
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def layer(request):
    """(n, i, o), x, weight, bias."""
    n, i, o = request.param
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=generator) for s in ((n, i), (o, i), (o,)))
    return request.param, x, weight * i**-0.5, bias


@pytest.mark.skipif(DEVICE.type != "cpu", reason="packed weights are for CPUs")
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def bench_linear_packed(compare, layer, dtype):
    (n, i, o), x, weight, bias = layer
    packed = PackedWeight.pack(weight, bias, dtype)
    if dtype == "bf16":
        x, weight, bias = (tensor.bfloat16() for tensor in (x, weight, bias))
    q, scale = quantise_weight(weight)
    peers: dict[str, Function | str] = {"oneDNN, prepacked": onednn_packed(weight, bias, n)}
    if dtype == "int8":
        engines = ("fbgemm", "onednn")
        peers = {f"dynamic int8, {engine}": dynamic_int8(weight, bias, engine) for engine in engines}
        peers["F.linear, fp32"] = lambda x: F.linear(x, weight, bias)
    problem = Problem(
        "linear_packed",
        f"{dtype}, {n:,} x {i:,} -> {o:,}",
        (x,),
        lambda x: linear_packed(x, packed),
        (lambda x: linear_int8(x, q, scale, bias))
        if dtype == "int8"
        else (lambda x: F.linear(x, weight.to(x), bias.to(x))),
        costs("linear_packed", Linear(n, i, o, x.itemsize, {"int8": 1, "bf16": 2, "fp32": 4}[dtype])),
        peers,
        NO_COMPILED,
        oracle=lambda x: F.linear(x, weight.double(), bias.double()),
    )
    best = [name for name in peers if name.startswith("dynamic int8") and not isinstance(peers[name], str)]
    wanted = [Wanted("time", name, 1.1) for name in best] if dtype == "int8" else []
    compare(problem, FORWARD, wanted)
