"""What int8 knows of the inputs of its layers: every layer's were measured, whether it is called or its weight read."""

import pytest
import torch
from torch import nn

from glimodern import ops
from glimodern.checkpoint.config import SPAN_HEADS
from glimodern.layers.packed_linear import PackedLinear, input_sizes, measured_inputs, watch_inputs
from glimodern.network.head import SpanHead
from tests.bi_encoder_rows import model_of, save_encoder
from tests.conftest import WORDS, quietly_int8

LABELS = ["person", "place", "machine"]

pytestmark = pytest.mark.skipif(
    ops.backend_info("cpu")["linear_packed"]["isa"] in ("", "scalar"), reason="no vector kernels: nothing is packed"
)


def assert_calibrated(model, least):
    layers = {n: x.packed for n, x in model.named_modules() if isinstance(x, PackedLinear) and x.packed.dtype == "int8"}
    assert len(layers) >= least
    assert [name for name, packed in layers.items() if packed.input_scale.shape != (packed.inputs,)] == []


@pytest.mark.parametrize("span_mode", SPAN_HEADS)
@pytest.mark.parametrize("hidden_size", [64, 96], ids=["", "projected"])
def test_every_layer_of_every_head(span_mode, hidden_size, tmp_path):
    model_of("modernbert", tmp_path / "model", hidden_size=hidden_size, span_mode=span_mode)
    heads = {"markerV0": 8, "marker": 6, "ffn": 4}[span_mode]
    assert_calibrated(quietly_int8(tmp_path / "model"), 8 + heads + (hidden_size != 64))


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "deberta", "t5", "mpnet", "distilbert", "nomic_bert"])
def test_every_layer_of_every_encoder(kind, tmp_path):
    model_of(kind, tmp_path / "model")
    assert_calibrated(quietly_int8(tmp_path / "model"), 16)


@pytest.mark.parametrize("width", [64, 96], ids=["", "projected"])
def test_both_encoders_of_a_bi_encoder(width, tmp_path):
    save_encoder(tmp_path / "labels", "bert", width, 330)
    model_of("modernbert", tmp_path / "model", hidden_size=64, labels_encoder=str(tmp_path / "labels"))
    model = quietly_int8(tmp_path / "model")
    assert_calibrated(model.encoder, 8)
    assert_calibrated(model.label_encoder, 12 + (width != 64))
    assert_calibrated(model.head, 8)


def test_labels_asked_before_packing_are_not_kept(tmp_path, monkeypatch):
    """int8 is checked on some labels while the model is exact; where it goes on in fp32 their vectors were kept."""
    monkeypatch.setattr("glimodern.model.loading.native_bf16", lambda device: False)
    save_encoder(tmp_path / "labels", "bert", 64, 330)
    model_of("modernbert", tmp_path / "model", hidden_size=64, labels_encoder=str(tmp_path / "labels"))
    model = quietly_int8(tmp_path / "model")
    asked = ["person", "organization"]  # of the check
    found = model.predict(" ".join(WORDS), asked, 0.0, flat=False, multi_label=True)
    vectors = model.encode_labels(asked)
    assert found == model.predict(" ".join(WORDS), threshold=0.0, flat=False, multi_label=True, label_vectors=vectors)


@pytest.mark.parametrize("span_mode", ["markerV0", "ffn"])
def test_the_halves_of_w1_know_what_they_are_given(span_mode):
    torch.manual_seed(0)
    head = SpanHead(64, 0.0, span_mode, 12).eval()
    words, prompts = torch.randn(9, 64) * torch.linspace(0.1, 30, 64), torch.randn(3, 64)
    with torch.no_grad(), measured_inputs(head):
        head.factors(words[:5], prompts)
        head.factors(words[5:], prompts[:0])
    first = head.span.get_submodule("0")
    with torch.no_grad():
        starts, ends, *_ = head.parts(words, prompts)
    torch.testing.assert_close(input_sizes(first), torch.cat([starts, ends], 1).abs().amax(0))
    head.pack("int8", "fp32")
    halves = head.span.get_submodule("0")
    for half in (halves.start, halves.end):
        assert half.packed.input_scale.shape == (64,)
        assert float(half.packed.input_scale.max() / half.packed.input_scale.min()) > 1.5  # it made a difference


def test_only_what_is_watched_is_measured():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    x = torch.tensor([[1.0, -2.0, 0.0, 0.5], [-3.0, 1.0, 0.0, 0.0]])
    watch_inputs(model[0], x)
    assert input_sizes(model[0]) is None
    with pytest.raises(KeyError), measured_inputs(model):
        watch_inputs(model[0], x[:1, :1], x[:1, 1:])
        watch_inputs(model[0], x[1:])
        watch_inputs(model[0], x[:0])
        raise KeyError
    watch_inputs(model[0], 100 * x)
    model[0](100 * x)
    assert input_sizes(model[0]).tolist() == [3.0, 2.0, 0.0, 0.5]
    assert input_sizes(model[1]) is None
