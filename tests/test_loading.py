"""What is loaded, and what it predicts, depends on the files and the arguments alone: not on torch's defaults."""

import contextlib
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel

from glimodern.checkpoint.folder import to_public
from glimodern.encoder import load_encoder
from glimodern.layers.packed_linear import can_pack
from glimodern.layers.parameters import take_tensors, without_values
from glimodern.model.glimodern import GLiModern
from glimodern.model.loading import resolve_device
from tests.bi_encoder_rows import save_encoder
from tests.conftest import WORDS, make_tiny_model
from tests.encoder_rows import ROWS, config_of, make_tokenizer
from tests.test_bi_encoder import make_bi

TEXTS = [" ".join(WORDS), "Ada met Charles ."]
LABELS = ["person", "place"]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


STATES = {
    "bf16 by default": lambda: default_dtype(torch.bfloat16),
    "fp64 by default": lambda: default_dtype(torch.float64),
    "meta by default": lambda: default_device("meta"),
    "under device meta": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@contextmanager
def everything() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name in ("bf16 by default", "meta by default", "inference mode", "autocast"):
            stack.enter_context(STATES[name]())
        yield


def same_state(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(
        x.dtype == theirs[name].dtype and torch.equal(x, theirs[name]) for name, x in ours.items()
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model with an LSTM and a projection, saved."""
    model = make_tiny_model(dropout=0.0, max_width=6, hidden_size=24)
    path = tmp_path_factory.mktemp("loading") / "model"
    GLiModern(replace(model.config, num_rnn_layers=1), model.encoder, model.tokenizer).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def wanted(folder):
    """What loading it gives when nothing is set."""
    return GLiModern.from_pretrained(folder, trainable=True)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("trainable", [True, False])
def test_loading_under_any_state(folder, wanted, tmp_path, state, trainable):
    with STATES[state]():
        model = GLiModern.from_pretrained(folder, dtype="fp32", trainable=trainable)
        model.save_pretrained(tmp_path / "again")
    tensors = [*model.parameters(), *model.buffers()]
    assert not any(x.is_inference() or x.is_meta for x in tensors)
    assert all(x.requires_grad is trainable for x in model.parameters())
    stored, again = load_file(folder / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert stored.keys() == again.keys() and all(torch.equal(stored[name], again[name]) for name in stored)
    assert model.predict(TEXTS, LABELS, 0.0) == GLiModern.from_pretrained(
        folder, dtype="fp32", trainable=trainable
    ).predict(TEXTS, LABELS, 0.0)
    if trainable:
        assert same_state(model, wanted)
        model(model.packer.pack([WORDS], [LABELS], [[(0, 1, "person")]])).backward()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_encoder_under_all_states_at_once(row, tmp_path):
    """Loading and predicting, by transformers' modules too."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(row.tokenizer)
    GLiModern.from_encoder_config(config_of(row, tokenizer), tokenizer, dropout=0.0, max_width=4).save_pretrained(
        tmp_path / "model"
    )
    plain = GLiModern.from_pretrained(tmp_path / "model", dtype="fp32")
    expected = plain.predict(TEXTS, LABELS, 0.0)
    before = torch.get_rng_state()
    with everything():
        model = GLiModern.from_pretrained(tmp_path / "model", dtype="fp32")
        assert model.predict(TEXTS, LABELS, 0.0) == expected
    assert torch.equal(torch.get_rng_state(), before)
    assert same_state(model, plain)
    assert all(torch.equal(x, y) for x, y in zip(model.buffers(), plain.buffers(), strict=True))


@pytest.fixture(scope="module")
def bi_folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bi")
    save_encoder(path / "labels", "bert", 48, 330)
    make_bi(path / "labels").save_pretrained(path / "model")
    return path / "model"


def test_a_bi_encoder_under_all_states_at_once(bi_folder):
    plain = GLiModern.from_pretrained(bi_folder, dtype="fp32")
    vectors, expected = plain.encode_labels(LABELS).vectors, plain.predict(TEXTS, LABELS, 0.0)
    with everything():
        model = GLiModern.from_pretrained(bi_folder, dtype="fp32")
        assert torch.equal(model.encode_labels(LABELS).vectors, vectors)
        assert model.predict(TEXTS, LABELS, 0.0) == expected
        assert model.predict(TEXTS, label_vectors=model.encode_labels(LABELS), threshold=0.0) == expected
    assert same_state(model, plain) and model.label_encoder.fingerprint == plain.label_encoder.fingerprint


def test_int8_under_all_states_at_once(folder):
    if not can_pack():
        pytest.skip("int8 needs the C++ extension on a CPU with AVX2")
    expected = GLiModern.from_pretrained(folder, dtype="int8").predict(TEXTS, LABELS, 0.0)
    with everything():
        assert GLiModern.from_pretrained(folder, dtype="int8").predict(TEXTS, LABELS, 0.0) == expected


def test_a_model_in_training_follows_autocast(folder):
    """Its user chose mixed precision; of a model loaded for inference, the dtype was chosen when loading."""
    model = GLiModern.from_pretrained(folder, dtype="fp32", trainable=True)
    expected = model.predict(TEXTS, LABELS, 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.predict(TEXTS, LABELS, 0.0) != expected


@pytest.mark.parametrize("how", ["from scratch", "encoder", "bi-encoder"])
def test_fresh_models_under_all_states_at_once(how, tmp_path):
    """They draw from torch's generator, and the same numbers, whatever else is set."""
    tiny = make_tiny_model(dropout=0.0)
    encoder = make_bert(tmp_path / "encoder")
    options = {"labels_encoder": encoder} if how == "bi-encoder" else {}

    def make() -> GLiModern:
        torch.manual_seed(1)
        if how == "from scratch":
            return GLiModern.from_encoder_config(tiny.encoder.config, tiny.tokenizer, hidden_size=16)
        return GLiModern.from_encoder(encoder, hidden_size=16, **options)

    plain = make()
    with everything():
        model = make()
    assert same_state(model, plain) and {x.dtype for x in model.parameters()} == {torch.float32}
    assert not any(x.is_inference() or x.is_meta for x in (*model.parameters(), *model.buffers()))
    assert all(x.requires_grad for x in model.head.parameters())


def make_bert(folder):
    """A tiny BERT with its tokenizer, as transformers saves them."""
    tokenizer = make_tokenizer("wordpiece")
    row = next(row for row in ROWS if row.name == "BERT")
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(**config_of(row, tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_users_generators_are_left_alone(folder):
    torch.manual_seed(7)
    random.seed(7)
    before = torch.get_rng_state(), random.getstate()
    GLiModern.from_pretrained(folder).predict(TEXTS, LABELS, 0.0)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_stored_in_another_dtype(folder, tmp_path, stored):
    """They are trained in fp32, with their own values."""
    shutil.copytree(folder, tmp_path / "model")
    state = {name: x.to(stored) for name, x in load_file(folder / "model.safetensors").items()}
    save_file(state, tmp_path / "model" / "model.safetensors")
    model = GLiModern.from_pretrained(tmp_path / "model", trainable=True)
    assert {x.dtype for x in model.parameters()} == {torch.float32}
    for name, x in to_public(model.state_dict()).items():
        assert torch.equal(x, state[name].float()), name


# memory that is shared


@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("trainable", [True, False])
def test_a_loaded_model_outlives_its_files(folder, tmp_path, form, trainable):
    """Written over in place, which a mapped file shows to whoever maps it, or cut, which kills him."""
    shutil.copytree(folder, tmp_path / "model")
    if form == "pytorch_model.bin":
        torch.save(load_file(tmp_path / "model" / "model.safetensors"), tmp_path / "model" / form)
        (tmp_path / "model" / "model.safetensors").unlink()
    model = GLiModern.from_pretrained(tmp_path / "model", dtype="fp32", trainable=trainable)
    expected = model.predict(TEXTS, LABELS, 0.0)
    file = tmp_path / "model" / form
    with file.open("r+b") as opened:
        opened.write(b"\xff" * file.stat().st_size)
    with file.open("r+b") as opened:
        opened.truncate(10)
    assert model.predict(TEXTS, LABELS, 0.0) == expected


def test_an_encoder_outlives_its_files(tmp_path):
    encoder = load_encoder(make_bert(tmp_path / "bert"))
    before = {name: x.clone() for name, x in encoder.state_dict().items()}
    with (tmp_path / "bert" / "model.safetensors").open("r+b") as opened:
        opened.write(b"\xff" * 2000)
        opened.truncate(2000)
    assert all(torch.equal(x, before[name]) for name, x in encoder.state_dict().items())


def test_saved_over_itself(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    model = GLiModern.from_pretrained(tmp_path / "model", trainable=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    model.save_pretrained(tmp_path / "model")
    assert same_state(GLiModern.from_pretrained(tmp_path / "model", trainable=True), model)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.alone = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.other.weight = self.one.weight
        self.register_buffer("positions", torch.arange(4), persistent=False)
        self.register_buffer("scale", torch.ones(2))


def test_tied_weights_stay_tied_and_shared_memory_does_not():
    source = Tied().state_dict()
    source["alone.weight"] = source["one.weight"]  # the same memory, as safetensors' copies and pickles have it
    source["alone.bias"] = source["one.bias"].expand(3)
    state = dict(source)
    model = without_values(Tied)
    assert model.one.weight.is_meta and torch.equal(model.positions, torch.arange(4))
    take_tensors(model, state)
    assert not state
    assert model.other.weight is model.one.weight
    assert all(torch.equal(x, source[name]) for name, x in model.state_dict().items())
    memory = [x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())]
    assert len(set(memory)) == len(memory)
    with torch.no_grad():
        model.one.weight.zero_()
    assert bool(model.alone.weight.any()) and not bool(model.other.weight.any())


def test_slices_of_large_memory_are_copied():
    whole = torch.randn(100, 9)
    model = without_values(lambda: nn.Linear(9, 2))
    take_tensors(model, {"weight": whole[:2], "bias": whole[5:7, 3]})
    assert torch.equal(model.weight, whole[:2]) and torch.equal(model.bias, whole[5:7, 3])
    assert model.weight.untyped_storage().nbytes() == 72 and model.bias.is_contiguous()


def test_buffers_that_no_checkpoint_stores():
    """A module that makes one by torch.empty, which has no values on the meta device, is built again."""

    class Drawn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.register_buffer("table", torch.empty(3).fill_(2.0), persistent=False)

    before = torch.get_rng_state()
    model = without_values(Drawn)
    assert torch.equal(model.table, torch.full((3,), 2.0)) and torch.equal(torch.get_rng_state(), before)
    take_tensors(model, {"linear.weight": torch.ones(2, 2), "linear.bias": torch.ones(2)})
    assert bool((model.linear.weight == 1).all())


def test_t5_shares_one_embedding(tmp_path):
    row = next(row for row in ROWS if row.name == "T5")
    tokenizer = make_tokenizer(row.tokenizer)
    GLiModern.from_encoder_config(config_of(row, tokenizer), tokenizer).save_pretrained(tmp_path / "t5")
    model = GLiModern.from_pretrained(tmp_path / "t5", trainable=True).encoder.model
    assert model.shared.weight is model.encoder.embed_tokens.weight


# arguments


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"device": "gpu"}, ValueError, r"device: expected 'auto', 'cpu', 'cuda'.*, got 'gpu'; a GPU is 'cuda'"),
        ({"device": "cuda:x"}, ValueError, r"device: expected 'auto', .*, got 'cuda:x'"),
        ({"device": "mps"}, ValueError, r"device: expected a device of this machine, got 'mps': "),
        ({"device": "xpu"}, ValueError, r"device: expected a device of this machine, got 'xpu': "),
        ({"device": "hpu"}, ValueError, r"device: expected a device of this machine, got 'hpu': "),
        ({"device": "meta"}, ValueError, r"device: .* got 'meta': it holds no values; use 'cpu' or 'auto'"),
        ({"device": 0}, TypeError, r"device: expected a string or torch.device, got int"),
        ({"device": None}, TypeError, r"device: expected a string or torch.device, got NoneType"),
        ({"dtype": "float32"}, ValueError, r"dtype: expected one of \['fp32', .*\] or a float .*, got 'float32'"),
        ({"dtype": torch.int8}, ValueError, r"dtype: expected .*, got torch.int8"),
        ({"dtype": 16}, TypeError, r"dtype: expected a string or torch.dtype, got int"),
        ({"dtype": ["fp32"]}, TypeError, r"dtype: expected a string or torch.dtype, got list"),
        ({"dtype": "int8", "trainable": True}, ValueError, r"dtype: expected 'int8' on device 'cpu' with trainable=F"),
        (
            {"map_location": "cpu"},
            TypeError,
            r"argument 'map_location': expected dtype, .*; map_location is called d",
        ),
        ({"torch_dtype": "fp32"}, TypeError, r"argument 'torch_dtype': .*; torch_dtype is called dtype here"),
        ({"revison": "main"}, TypeError, r"unexpected keyword argument 'revison': .*; revison is called revision here"),
    ],
)
def test_bad_arguments_are_named(folder, options, error, message):
    with pytest.raises(error, match=message) as caught:
        GLiModern.from_pretrained(folder, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
def test_cuda_without_cuda(folder, monkeypatch):
    with pytest.raises(ValueError, match=r"device: .* got 'cuda:0': PyTorch .* finds no CUDA GPU; use 'cpu' or 'auto'"):
        GLiModern.from_pretrained(folder, device=torch.device("cuda", 0))
    assert GLiModern.from_pretrained(folder, device="auto").device == torch.device("cpu")
    assert GLiModern.from_pretrained(folder, device="cpu:0").device == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda")
    with pytest.raises(ValueError, match=r"device: .* got 'cuda:9': there are 2 GPUs, counted from 0"):
        resolve_device("cuda:9")


def test_options_of_a_fresh_head(tmp_path):
    tiny = make_tiny_model()
    with pytest.raises(TypeError, match=r"from_encoder_config: .* 'max_widht': .*; max_widht is called max_width here"):
        GLiModern.from_encoder_config(tiny.encoder.config, tiny.tokenizer, max_widht=4)
    with pytest.raises(TypeError, match=r"from_encoder: unexpected keyword argument 'map_location'"):
        GLiModern.from_encoder(tmp_path, map_location="cpu")
    with pytest.raises(ValueError, match="max_types: expected a whole number >= 1, got 0"):
        GLiModern.from_encoder_config(tiny.encoder.config, tiny.tokenizer, max_types=0)


@pytest.mark.parametrize("name", ["trainable", "cuda_graphs", "local_files_only"])
def test_flags_are_true_or_false(name, tmp_path):
    make_tiny_model().save_pretrained(tmp_path)
    with pytest.raises(TypeError, match=f"{name}: expected True or False, got str 'no'"):
        GLiModern.from_pretrained(tmp_path, **{name: "no"})


@pytest.mark.parametrize("name", ["hidden_size", "max_len"])
def test_zero_is_not_the_default(name):
    with pytest.raises(ValueError, match=f"{name}: expected a whole number >= 1.*, got 0"):
        make_tiny_model(**{name: 0})
