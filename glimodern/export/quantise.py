"""int8 weights in an exported graph, with activations quantised as the graph runs, in operators of ONNX.

    y = x W^T + bias        s_i = `scale_inputs`, the sizes of x moved to W        r = max_i |x_i s_i| of each row
    q, scale, zero = DynamicQuantizeLinear(x s / r)       y = MatMulInteger(q, W / s in int8, zero) scale w r + bias

DynamicQuantizeLinear has one scale for all rows. Divided by their largest element first, all rows have the same size,
and so, nearly, scales of their own. w are the weight's scales, one for each output.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from glimodern.reference.linear_packed import scale_inputs

from .feeds import Feed
from .session import require_onnxruntime

Floats = npt.NDArray[np.float32]

_MOST = 127  # of a weight in int8, and of the sum of two neighbours of one sign
_LEAST_ROW = 1e-30  # least size of a row, so that a row of zeros is not divided by 0
_LEAST_WIDTH = 64  # inputs and outputs of a product that is quantised, as in `layers.packed_linear`
_LEAST_TABLE = 4096  # rows of an embedding that is quantised: a vocabulary has more, positions mostly fewer


class _Product(NamedTuple):
    """A product with a stored matrix. place: of its node. name: of the matrix. weight: [outputs, inputs]."""

    place: int
    node: Any
    name: str
    weight: Floats

    @property
    def input(self) -> str:
        name: str = self.node.input[0]
        return name


def _products(graph: Any) -> list[_Product]:
    """Return the graph's products with matrices of at least _LEAST_WIDTH inputs and outputs, in order."""
    from onnx import numpy_helper

    stored = {t.name: t for t in graph.initializer if len(t.dims) == 2 and min(t.dims) >= _LEAST_WIDTH}
    found = []
    for place, node in enumerate(graph.node):
        if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in stored:
            continue
        weight = numpy_helper.to_array(stored[node.input[1]])
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        found.append(_Product(place, node, node.input[1], weight if transposed else weight.T))
    return found


def input_sizes(proto: Any, feeds: Iterable[Feed]) -> dict[str, Floats]:
    """Measure the largest |x| of each input of the products of an fp32 graph: {name of x: fp32 [inputs]}.

    feeds: the graph's inputs, of the texts to measure by.
    """
    import onnx
    from onnx import TensorProto, helper

    measured = onnx.ModelProto()
    measured.CopyFrom(proto)
    names = list(dict.fromkeys(product.input for product in _products(proto.graph)))
    if not names:
        return {}  # a session that is asked for no output computes all
    outputs = [f"int8/size/{name}" for name in names]
    axis = _constant(measured.graph, "int8/size/axis", np.array([0]))
    for name, output in zip(names, outputs, strict=True):
        rows, sizes = f"{output}/rows", f"{output}/abs"
        measured.graph.node.extend(
            [
                helper.make_node("Abs", [name], [sizes]),
                helper.make_node("Flatten", [sizes], [rows], axis=-1),
                helper.make_node("ReduceMax", [rows, axis], [output], keepdims=0),
            ]
        )
        measured.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    runtime = require_onnxruntime()
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = runtime.InferenceSession(measured.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: dict[str, Floats] = {}
    for feed in feeds:
        for name, sizes in zip(names, session.run(outputs, feed), strict=True):
            found[name] = np.maximum(found[name], sizes) if name in found else sizes
    return found


def quantise(proto: Any, sizes: dict[str, Floats]) -> Any:
    """Return an fp32 graph with int8 weights, a scale for each output, as an `onnx.ModelProto`.

    sizes: see `input_sizes`. Embeddings of a vocabulary are int8 too, with a scale for each row. All other products and
    tables stay in fp32.
    """
    import onnx

    quantised = onnx.ModelProto()
    quantised.CopyFrom(proto)
    graph = quantised.graph
    replaced = _integer_tables(graph)
    for number, group in enumerate(_groups(_products(graph))):
        replaced |= _integer_products(graph, f"int8/{number}", group, sizes)
    nodes = [part for place, node in enumerate(graph.node) for part in replaced.get(place, [node])]
    nodes = [type(node).FromString(node.SerializeToString()) for node in nodes]  # those of the graph go with it
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in graph.node for name in node.input}
    stored = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(stored)
    return quantised


def _groups(products: list[_Product]) -> list[list[_Product]]:
    """Divide products into groups that share no input and no matrix with each other."""
    groups: list[list[_Product]] = []
    for product in products:
        near = [g for g in groups if any(one.input == product.input or one.name == product.name for one in g)]
        groups = [group for group in groups if group not in near]
        groups.append([one for group in near for one in group] + [product])
    return groups


def _integer_products(graph: Any, prefix: str, group: list[_Product], sizes: dict[str, Floats]) -> dict[int, list[Any]]:
    """Return the nodes in place of a group of products, {place: nodes}; adds their constants to the graph.

    The group's inputs have one scale s, as they or their matrices are shared.
    """
    from onnx import TensorProto, helper

    weights = {product.name: product.weight for product in group}
    largest = np.maximum.reduce([sizes[product.input] for product in group])
    stacked = torch.from_numpy(np.concatenate(list(weights.values())))
    factors = scale_inputs(stacked, torch.from_numpy(largest)).numpy()
    stored = {name: _stored(graph, f"{prefix}/weight{i}", w / factors) for i, (name, w) in enumerate(weights.items())}
    factor = _constant(graph, f"{prefix}/factors", factors)
    axis, least = (_constant(graph, f"{prefix}/{name}", np.array(value, dtype=kind)) for name, value, kind in (
        ("axis", [-1], np.int64), ("least", _LEAST_ROW, np.float32)
    ))  # fmt: skip
    replaced: dict[int, list[Any]] = {}
    inputs: dict[str, str] = {}
    for number, product in enumerate(group):
        nodes = []
        if product.input not in inputs:
            x = inputs[product.input] = f"{prefix}/x{len(inputs)}"
            nodes += [
                helper.make_node("Mul", [product.input, factor], [f"{x}/scaled"]),
                helper.make_node("Abs", [f"{x}/scaled"], [f"{x}/abs"]),
                helper.make_node("ReduceMax", [f"{x}/abs", axis], [f"{x}/largest"], keepdims=1),
                helper.make_node("Max", [f"{x}/largest", least], [f"{x}/size"]),
                helper.make_node("Reciprocal", [f"{x}/size"], [f"{x}/inverse"]),  # cheaper than to divide x
                helper.make_node("Mul", [f"{x}/scaled", f"{x}/inverse"], [f"{x}/even"]),
                helper.make_node("DynamicQuantizeLinear", [f"{x}/even"], [f"{x}/int8", f"{x}/scale", f"{x}/zero"]),
            ]
        x, y = inputs[product.input], f"{prefix}/y{number}"
        integers, steps, zero = stored[product.name]
        bias = list(product.node.input[2:])
        result = f"{y}/rows" if bias else product.node.output[0]
        nodes += [
            helper.make_node("MatMulInteger", [f"{x}/int8", integers, f"{x}/zero", zero], [f"{y}/int32"]),
            helper.make_node("Cast", [f"{y}/int32"], [f"{y}/sums"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{x}/scale", steps], [f"{y}/scale"]),
            helper.make_node("Mul", [f"{y}/sums", f"{y}/scale"], [f"{y}/even"]),
            helper.make_node("Mul", [f"{y}/even", f"{x}/size"], [result]),
        ]
        if bias:
            nodes.append(helper.make_node("Add", [result, *bias], list(product.node.output)))
        replaced[product.place] = nodes
    return replaced


def _stored(graph: Any, prefix: str, weight: Floats) -> tuple[str, str, str]:
    """Add a weight [o, i] in int8 to a graph; returns the names of the integers, their scales and their zeros."""
    integers, scale = quantise_weight(weight)
    return (
        _constant(graph, f"{prefix}/int8", integers.T.copy()),
        _constant(graph, f"{prefix}/scale", scale),
        _constant(graph, f"{prefix}/zero", np.zeros(len(scale), dtype=np.int8)),
    )


def quantise_weight(weight: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """Quantise a weight [o, i], symmetric: (int8 [o, i], scale [o]).

    Of two neighbours, the first at an even place, neither the positive nor the negative ones add up to more than _MOST
    and its rounding: then the sum of their products with numbers up to 255 fits 16 bits. vpmaddubsw, by which ONNX
    Runtime multiplies on CPUs without VNNI, saturates there.
    """
    pairs = np.pad(weight, ((0, 0), (0, weight.shape[1] % 2))).reshape(len(weight), -1, 2)
    largest = np.maximum(np.maximum(pairs, 0).sum(2), -np.minimum(pairs, 0).sum(2)).max(1)
    scale = np.where(largest > 0, largest / _MOST, 1).astype(np.float32)
    return np.round(weight / scale[:, None]).astype(np.int8), scale


def _integer_tables(graph: Any) -> dict[int, list[Any]]:
    """Return the nodes in place of reads of large embeddings, {place: nodes}; adds their constants to the graph."""
    from onnx import TensorProto, helper, numpy_helper

    large = {t.name: t for t in graph.initializer if len(t.dims) == 2 and t.dims[0] >= _LEAST_TABLE}
    replaced: dict[int, list[Any]] = {}
    tables: dict[str, tuple[str, str]] = {}
    for place, node in enumerate(graph.node):
        if (
            node.op_type != "Gather"
            or node.input[0] not in large
            or any(a.name == "axis" and a.i for a in node.attribute)
        ):
            continue
        name, y = node.input[0], f"int8/table{place}"
        if name not in tables:
            rows = numpy_helper.to_array(large[name])
            scale = np.abs(rows).max(1, keepdims=True) / _MOST
            scale = np.where(scale > 0, scale, 1).astype(np.float32)
            stored = f"int8/table/{name}"
            tables[name] = (
                _constant(graph, f"{stored}/int8", np.round(rows / scale).astype(np.int8)),
                _constant(graph, f"{stored}/scale", scale),
            )
        table, scales = tables[name]
        replaced[place] = [
            helper.make_node("Gather", [table, node.input[1]], [f"{y}/int8"]),
            helper.make_node("Gather", [scales, node.input[1]], [f"{y}/scale"]),
            helper.make_node("Cast", [f"{y}/int8"], [f"{y}/integers"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{y}/integers", f"{y}/scale"], list(node.output)),
        ]
    return replaced


def _constant(graph: Any, name: str, values: npt.NDArray[Any]) -> str:
    """Add a constant to a graph; returns its name."""
    from onnx import numpy_helper

    graph.initializer.append(numpy_helper.from_array(values, name))
    return name
