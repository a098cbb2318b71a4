"""Exports in int8: products whose rows have scales of their own, stored weights, entities of a trained model."""

import warnings

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from glimodern import GLiModern, OnnxPredictor  # noqa: E402
from glimodern.export.quantise import input_sizes, quantise, quantise_weight  # noqa: E402
from glimodern.export.write import export_model  # noqa: E402
from tests.bi_encoder_rows import save_encoder  # noqa: E402
from tests.conftest import make_tiny_model  # noqa: E402

INPUTS, OUTPUTS, ROWS = 96, 80, 40


def graph_of(nodes, constants, outputs):
    """A graph of x [rows, INPUTS] and ids [rows]."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", INPUTS])
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["rows"])
    found = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", None]) for name in outputs]
    stored = [numpy_helper.from_array(values.astype(np.float32), name) for name, values in constants.items()]
    graph = helper.make_graph([helper.make_node(*node[:3], **node[3]) for node in nodes], "g", [x, ids], found, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def run(proto, feed):
    onnx.checker.check_model(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([node.name for node in session.get_outputs()], session.run(None, feed), strict=True))


@pytest.fixture(scope="module")
def feed():
    """Rows of very different sizes, one of zeros, and an input that is fifty times as large as the others."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(ROWS, INPUTS)).astype(np.float32)
    x[:, 7] *= 50
    x *= np.logspace(-3, 3, ROWS, dtype=np.float32)[:, None]
    x[5] = 0
    return {"x": x, "ids": generator.integers(0, 5000, ROWS)}


NODES = [
    ("Gemm", ["x", "w", "bias"], ["y"], {"transB": 1}),
    ("MatMul", ["x", "wt"], ["z"], {}),
    ("Gather", ["table", "ids"], ["e"], {}),
    ("MatMul", ["x", "narrow"], ["n"], {}),
]


@pytest.fixture(scope="module")
def constants():
    generator = np.random.default_rng(1)
    sizes = {"w": (OUTPUTS, INPUTS), "bias": (OUTPUTS,), "wt": (INPUTS, OUTPUTS), "table": (5000, 64)}
    return {name: generator.normal(size=size) for name, size in {**sizes, "narrow": (INPUTS, 3)}.items()}


def test_each_row_has_its_own_scale(feed, constants):
    proto = graph_of(NODES, constants, ["y", "z", "e", "n"])
    quantised = quantise(proto, input_sizes(proto, [feed]))
    wanted, got = run(proto, feed), run(quantised, feed)
    for name, bound in (("y", 0.03), ("z", 0.03), ("e", 0.015)):
        if name == "y":
            np.testing.assert_array_equal(got["y"][5], constants["bias"].astype(np.float32))
            wanted["y"], got["y"] = (values["y"] - constants["bias"] for values in (wanted, got))
        error, size = (np.sqrt((v**2).mean(1)) for v in (got[name] - wanted[name], wanted[name]))
        assert (error <= bound * size).all(), name
    np.testing.assert_array_equal(got["n"], wanted["n"])
    kinds = {t.name: t.data_type for t in quantised.graph.initializer}
    assert "narrow" in kinds and not {"w", "wt", "table"} & kinds.keys()


def test_what_shares_a_matrix_stores_it_once(feed, constants):
    nodes = [
        ("Relu", ["x"], ["r"], {}),
        ("MatMul", ["x", "wt"], ["y"], {}),
        ("MatMul", ["r", "wt"], ["z"], {}),
    ]
    proto = graph_of(nodes, {"wt": constants["wt"]}, ["y", "z"])
    quantised = quantise(proto, input_sizes(proto, [feed]))
    wanted, got = run(proto, feed), run(quantised, feed)
    for name in wanted:
        error, size = (np.sqrt((v**2).mean(1)) for v in (got[name] - wanted[name], wanted[name]))
        assert (error <= 0.03 * size).all()
    matrices = [t for t in quantised.graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) == 2]
    assert len(matrices) == 1


@pytest.mark.parametrize("inputs", (64, 65))
def test_pairs_of_weights_fit_16_bits(inputs):
    weight = np.random.default_rng(2).standard_cauchy((50, inputs)).astype(np.float32)
    weight[3] = 0
    integers, scale = quantise_weight(weight)
    pairs = np.pad(integers.astype(int), ((0, 0), (0, inputs % 2))).reshape(50, -1, 2)
    for sign in (1, -1):
        assert 255 * np.maximum(sign * pairs, 0).sum(2).max() < 2**15
    np.testing.assert_allclose(integers * scale[:, None], weight, atol=0.51 * scale.max())
    assert (np.abs(integers * scale[:, None] - weight) <= 0.501 * scale[:, None]).all()


def test_a_graph_without_wide_products_stays_as_it_is(tmp_path):
    make_tiny_model(dropout=0.0).save_pretrained(tmp_path / "model")  # all widths below 64, and 320 tokens
    written = export_model(tmp_path / "model", tmp_path / "onnx", dtype="int8")
    assert written.report.max_drift < 1e-6
    assert "MatMulInteger" not in {node.op_type for node in onnx.load(tmp_path / "onnx" / "model.onnx").graph.node}


def test_both_graphs_of_a_token_level_bi_encoder(tmp_path):
    save_encoder(tmp_path / "labels", "bert", 64, 330)
    options = {"labels_encoder": str(tmp_path / "labels"), "span_mode": "token_level", "hidden_size": 64}
    make_tiny_model(dropout=0.0, **options).save_pretrained(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*agreement")  # random weights find entities by chance
        written = export_model(tmp_path / "model", tmp_path / "onnx", layout="packed", dtype="int8")
    assert written.report.dtype == "int8" and 0 < written.report.max_drift < 0.02
    assert [file.name for file in written.files] == ["model.onnx", "labels.onnx"]
    for file in written.files:
        assert "MatMulInteger" in {node.op_type for node in onnx.load(file).graph.node}


def test_a_trained_model_finds_the_same(shared, tmp_path, recwarn):
    checkpoint = shared / "checkpoints" / "gliner-minilm-mix"
    written = export_model(checkpoint, tmp_path / "out", dtype="int8")
    assert written.report.agreement >= 0.97 and written.report.mean_drift < 0.015
    assert not [each for each in recwarn if "agreement" in str(each.message)]
    assert written.bytes < 0.28 * 111.7e6  # of the export in fp32
    text = "Angela Merkel met Emmanuel Macron in Berlin ."
    exported = OnnxPredictor.from_pretrained(tmp_path / "out", threads=1).predict(text, ["person", "location"])
    wanted = GLiModern.from_pretrained(checkpoint, dtype="fp32").predict(text, ["person", "location"])
    assert [(e["text"], e["label"]) for e in exported[0]] == [(e["text"], e["label"]) for e in wanted[0]]
