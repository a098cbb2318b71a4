"""Checkpoints stored in int8 and bf16: the bits of the fp32 checkpoint in that dtype, and what is refused."""

import json
import math
import shutil
import warnings
from contextlib import contextmanager
from dataclasses import asdict, replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from glimodern import GLiModern, ops
from glimodern.checkpoint.fingerprint import read_fingerprint
from glimodern.checkpoint.folder import read_checkpoint
from glimodern.layers.packed_embedding import PackedEmbedding
from glimodern.layers.packed_linear import PackedLinear
from glimodern.model import loading, storing
from glimodern.model.precision import PrecisionReport
from glimodern.ops import PackedWeight
from tests.backends import extension, skip_unless_runs
from tests.bi_encoder_rows import model_of, save_encoder
from tests.conftest import WORDS, make_tiny_model, quietly_int8

LABELS = ["person", "place"]
INT8, FP32 = "model.int8.safetensors", "model.safetensors"
W1 = "span_rep_layer.span_rep_layer.out_project.0"
EMBEDDING = "token_rep_layer.bert_layer.model.embeddings.tok_embeddings"

pytestmark = pytest.mark.skipif(
    ops.backend_info("cpu")["linear_packed"]["isa"] in ("", "scalar"), reason="no vector kernels: nothing is packed"
)


@contextmanager
def quietly():
    """Without the warnings of random weights: they agree with nothing, and gliner does not know the mode ffn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


KINDS = ["markerV0", "marker", "ffn", "token_level", "bert", "deberta-v2", "deberta", "t5", "electra", "bi-encoder"]


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("stored") / "fp32"
    if request.param in ("markerV0", "marker", "ffn", "token_level"):
        model_of("modernbert", path, hidden_size=96, span_mode=request.param)
    elif request.param == "bi-encoder":
        save_encoder(path.parent / "labels", "bert", 96, 330)
        model_of("modernbert", path, hidden_size=64, labels_encoder=str(path.parent / "labels"))
    else:
        model_of(request.param, path)
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """One checkpoint in fp32, and in int8."""
    path = tmp_path_factory.mktemp("saved")
    model_of("modernbert", path / "fp32", hidden_size=96)
    with quietly():
        GLiModern.from_pretrained(path / "fp32", dtype="fp32").save_pretrained(path / "int8", dtype="int8", force=True)
    return path


def loaded(path, **options):
    with quietly():
        return GLiModern.from_pretrained(path, **options)


def scores(model):
    return model.scores(model.packer.pack([WORDS, WORDS[:3]], [LABELS, LABELS[:1]]))


def assert_equal(ours, theirs):
    assert all(torch.equal(a, b) for a, b in zip(scores(ours), scores(theirs), strict=True))


@pytest.mark.parametrize("native_bf16", [True, False], ids=["", "no-native-bf16"])
@pytest.mark.parametrize("dtype", ["int8", "bf16"])
def test_stored_so_or_loaded_so_is_one_model(folder, dtype, native_bf16, tmp_path, monkeypatch):
    monkeypatch.setattr("glimodern.model.loading.native_bf16", lambda device: native_bf16)
    for trainable in (False, True):
        with quietly():
            model = GLiModern.from_pretrained(folder, dtype="fp32", trainable=trainable)
            model.save_pretrained(tmp_path / dtype, dtype=dtype, force=True)
        again = loaded(tmp_path / dtype, dtype="auto" if dtype == "int8" or native_bf16 else dtype)
        assert again.dtype_name == dtype
        assert_equal(again, loaded(folder, dtype=dtype))
    assert (
        not {INT8, FP32} - {file.name for file in tmp_path.rglob("*.safetensors")} - {INT8 if dtype == "bf16" else FP32}
    )
    report = PrecisionReport(**again.config.precision)
    assert report.dtype == dtype and report.texts == 12 and 0.0 <= report.agreement <= 1.0


@pytest.mark.parametrize("isa", ["avx2", "avx512", "avx512_bf16", "amx"])
def test_the_file_does_not_depend_on_the_instruction_set(saved, isa, tmp_path):
    """But for the last bit of what the inputs' sizes were measured to be."""
    skip_unless_runs(f"cpp-{isa}")
    extension.set_isa(isa)
    try:
        with quietly():
            loaded(saved / "fp32", dtype="fp32").save_pretrained(tmp_path / "int8", dtype="int8", force=True)
        assert_equal(loaded(saved / "int8"), loaded(saved / "int8", dtype="int8"))
    finally:
        extension.set_isa("")
    ours, first = load_file(tmp_path / "int8" / INT8), load_file(saved / "int8" / INT8)
    assert ours.keys() == first.keys()
    for name, tensor in first.items():
        assert ours[name].dtype == tensor.dtype
        if tensor.dtype == torch.int8:
            assert (ours[name].int() - tensor.int()).abs().max() <= 1
        else:
            torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=0.0)


def test_what_is_stored(saved):
    tensors = load_file(saved / "int8" / INT8)
    assert tensors[f"{W1}.weight"].dtype == torch.int8
    assert tensors[f"{W1}.weight_scale"].shape == (len(tensors[f"{W1}.weight"]), 2)  # starts and ends
    assert tensors[f"{EMBEDDING}.weight"].dtype == torch.int8
    scale = tensors[f"{EMBEDDING}.weight_scale"]
    exact = load_file(saved / "fp32" / FP32)
    error = tensors[f"{EMBEDDING}.weight"] * scale[:, None] - exact[f"{EMBEDDING}.weight"]
    assert (error.abs() <= 0.51 * scale[:, None]).all()
    floats = {name for name, x in tensors.items() if x.is_floating_point() and not name.endswith("_scale")}
    assert all(torch.equal(tensors[name], exact[name]) for name in floats)
    assert {name for name in floats if tensors[name].ndim > 1} == {f"{W1[:-1]}3.weight"}  # for the fold
    quantised = {name for name, x in tensors.items() if x.dtype == torch.int8}
    assert tensors.keys() == exact.keys() | {f"{name}_scale" for name in quantised} | {
        f"{name.removesuffix('weight')}input_scale" for name in quantised if "embeddings" not in name
    }


class Largest(TorchDispatchMode):
    """The most elements of a float tensor that a function of torch returned."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (list, tuple)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32 and not tensor.is_meta:
                self.elements = max(self.elements, tensor.numel())
        return out


def test_int8_is_packed_without_making_floats(saved, monkeypatch):
    whole = max(x.numel() for x in load_file(saved / "int8" / INT8).values() if x.dtype == torch.int8)
    with quietly(), Largest() as seen:
        GLiModern.from_pretrained(saved / "fp32", dtype="int8")
    assert seen.elements >= whole
    monkeypatch.setattr(PackedWeight, "pack", _only_small(PackedWeight.pack, whole))
    with Largest() as seen:
        model = loaded(saved / "int8")
    fold = model.head.get_submodule("span.3").packed.panels.numel()
    assert seen.elements <= fold < whole
    assert isinstance(model.encoder.get_submodule("model.embeddings.tok_embeddings"), PackedEmbedding)


def _only_small(pack, elements):
    def checked(weight, *args, **options):
        assert weight.dtype != torch.int8 and weight.numel() < elements
        return pack(weight, *args, **options)

    return checked


def test_bf16_is_packed_without_making_floats(saved, tmp_path):
    with quietly():
        loaded(saved / "fp32", dtype="fp32").save_pretrained(tmp_path / "bf16", dtype="bf16", force=True)
    assert all(
        x.dtype == (torch.bfloat16 if x.ndim > 1 else torch.float32)
        for x in load_file(tmp_path / "bf16" / FP32).values()
    )
    with Largest() as seen:
        loaded(tmp_path / "bf16", dtype="bf16")
    assert seen.elements < 10_000


def test_in_other_dtypes_it_is_dequantised(saved):
    exact = load_file(saved / "int8" / INT8)
    for options in ({"dtype": "fp32"}, {"trainable": True}):
        model = loaded(saved / "int8", **options)
        assert model.dtype_name == "fp32"
        state = model.state_dict()
        weight, scale = exact[f"{W1}.weight"].float(), exact[f"{W1}.weight_scale"]
        half = weight.shape[1] // 2
        wanted = torch.cat([weight[:, :half] * scale[:, :1], weight[:, half:] * scale[:, 1:]], 1)
        assert torch.equal(state["head.span.0.weight"], wanted * exact[f"{W1}.input_scale"])
        assert not [name for name in state if name.endswith("_scale")]
    int8 = loaded(saved / "int8")
    for wanted, got in zip(scores(model), scores(int8), strict=True):
        inside = torch.isfinite(wanted)
        error = (wanted - got.float())[inside]
        assert error.square().mean().sqrt() < 0.4 * wanted[inside].square().mean().sqrt()
    again = model.train()
    again(again.packer.pack([WORDS], [LABELS], [[(0, 1, "person")]])).backward()
    assert again.get_parameter("head.span.0.weight").grad.abs().sum() > 0


def test_without_a_vector_kernel_it_runs_slowly(saved, monkeypatch):
    monkeypatch.setattr(loading, "native_bf16", lambda device: False)
    fast = scores(loaded(saved / "int8"))
    monkeypatch.setattr(loading, "can_pack", lambda: False)
    with pytest.warns(UserWarning, match=r"model.int8.safetensors: expected the C\+\+ extension .* computed slowly"):
        model = GLiModern.from_pretrained(saved / "int8")
    with ops.use_backend("reference"):
        for wanted, got in zip(fast, scores(model), strict=True):
            inside = torch.isfinite(wanted)  # the reference's gelu differs in last bits, which may round a step of int8
            assert (got - wanted)[inside].abs().max() < 0.02 * wanted[inside].abs().max()


def test_it_is_saved_again_as_it_is(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "native_bf16", lambda device: False)
    model = loaded(saved / "int8")
    with monkeypatch.context() as stricter:
        stricter.setattr(storing, "LEAST_AGREEMENT", 1.01)
        with pytest.raises(
            ValueError, match="dtype: expected at least 101 % agreement on some entities, got int8 against"
        ):
            model.save_pretrained(tmp_path / "again")
    with quietly():
        model.save_pretrained(tmp_path / "again", force=True)
    ours, theirs = load_file(tmp_path / "again" / INT8), load_file(saved / "int8" / INT8)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (tmp_path / "again" / "gliner_config.json").read_text() == (
        saved / "int8" / "gliner_config.json"
    ).read_text()
    with quietly():
        loaded(saved / "int8", dtype="fp32").save_pretrained(tmp_path / "again")  # takes the older one's place
    assert not (tmp_path / "again" / INT8).exists()
    assert loaded(tmp_path / "again").config.precision is None
    with quietly():
        model.save_pretrained(tmp_path / "again", dtype="int8", force=True)
    assert not (tmp_path / "again" / FP32).exists()


@pytest.mark.parametrize("dtype", ["fp16", "bf16", torch.float64])
def test_without_a_dtype_it_is_stored_as_it_computes(saved, dtype, tmp_path):
    model = loaded(saved / "fp32", dtype=dtype)
    model.save_pretrained(tmp_path / "as_it_is")
    wanted = loading.DTYPES.get(dtype, dtype)
    stored = load_file(tmp_path / "as_it_is" / FP32)
    assert {x.dtype for x in stored.values() if x.ndim > 1} == {wanted}
    assert loaded(tmp_path / "as_it_is").config.precision is None


def test_trained_weights_have_no_agreement(saved, tmp_path):
    model = loaded(saved / "int8", trainable=True)
    assert model.config.precision is not None
    model.save_pretrained(tmp_path / "trained")
    assert loaded(tmp_path / "trained").config.precision is None


def test_agreement_is_measured_on_the_users_texts(saved, tmp_path, monkeypatch):
    model = loaded(saved / "fp32", dtype="fp32")
    asked = {"texts": [" ".join(WORDS), "London"], "labels": LABELS}
    with quietly():
        model.save_pretrained(tmp_path / "own", dtype="int8", force=True, **asked)
        own = loaded(tmp_path / "own").config.precision
        assert own["texts"] == 2
        wanted = loaded(saved / "fp32", dtype="int8").check_precision(**asked)
    assert own == asdict(wanted) or own["max_drift"] == pytest.approx(wanted.max_drift, abs=0.05)
    with quietly():
        model.save_pretrained(tmp_path / "fine", dtype="int8", force=True)
    assert json.loads((tmp_path / "fine" / "gliner_config.json").read_text())["precision"]["dtype"] == "int8"
    monkeypatch.setattr(storing, "LEAST_AGREEMENT", 1.01)
    with pytest.raises(
        ValueError, match=r"^dtype: expected at least 101 % agreement on .*, got bf16 against fp32.*force=True$"
    ):
        model.save_pretrained(tmp_path / "refused", dtype="bf16")
    assert not (tmp_path / "refused").exists()
    with pytest.warns(UserWarning, match="expected at least 101 % agreement, got int8 .*own texts"):
        GLiModern.from_pretrained(tmp_path / "fine")


def test_saving_leaves_the_model_as_it_is(saved, tmp_path):
    model = loaded(saved / "fp32", trainable=True).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.random.get_rng_state()
    with quietly():
        model.save_pretrained(tmp_path / "int8", dtype="int8", force=True)
    assert model.training and all(parameter.requires_grad for parameter in model.head.parameters())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.config.precision is None


def test_calibration_goes_along(saved, tmp_path):
    from tests.test_calibrate import example

    model = loaded(saved / "fp32", dtype="fp32")
    model.calibration = made = replace(example(), fingerprint=model.weights_fingerprint)
    with quietly():
        model.save_pretrained(tmp_path / "int8", dtype="int8", force=True)
    again = loaded(tmp_path / "int8")
    assert again.weights_fingerprint != model.weights_fingerprint
    for options in ({}, {"dtype": "fp32"}, {"trainable": True}):
        again = loaded(tmp_path / "int8", **options)
        assert again.calibration == replace(made, fingerprint=again.weights_fingerprint)


@pytest.mark.parametrize("dtype", ["int8", "bf16"])
def test_the_fingerprint_is_of_what_is_stored(saved, dtype, tmp_path):
    with quietly():
        loaded(saved / "fp32", dtype="fp32").save_pretrained(tmp_path / "m", dtype=dtype, force=True)
    assert read_fingerprint(tmp_path / "m").dtype == dtype
    for options in ({}, {"dtype": dtype}, {"dtype": "fp32"}, {"trainable": True}):
        loaded(tmp_path / "m", verify=True, **options)


def test_the_public_package_does_not_take_int8_for_floats(saved):
    gliner = pytest.importorskip("gliner", reason="needs the extra peers")
    with quietly(), pytest.raises(FileNotFoundError):
        gliner.GLiNER.from_pretrained(str(saved / "int8"), local_files_only=True)


@pytest.mark.parametrize(
    ("dtype", "options", "error", "match"),
    [
        (
            "fp32",
            {"dtype": "int4"},
            ValueError,
            r"dtype: expected one of \('fp32', 'bf16', 'int8'\) or None, got 'int4'",
        ),
        (
            "bf16",
            {"dtype": "int8"},
            ValueError,
            "dtype: expected a model in fp32 to save in int8, got one in bf16; load",
        ),
        (
            "int8",
            {"dtype": "fp32"},
            ValueError,
            "dtype: expected a model in fp32 to save in fp32, got one in int8; load",
        ),
        ("fp32", {"dtype": "int8", "texts": ["x"]}, ValueError, "texts, labels: expected both, .*, got texts only"),
        ("fp32", {"dtype": "int8", "labels": ["x"]}, ValueError, "texts, labels: expected both, .*, got labels only"),
        ("fp32", {"dtype": "int8", "texts": [], "labels": ["x"]}, ValueError, "texts: expected at least one text"),
        (
            "int8",
            {"texts": ["x"], "labels": ["x"]},
            ValueError,
            "texts, labels: expected None for a model that is stored",
        ),
        ("fp32", {"dtype": "int8", "force": 1}, TypeError, "force: expected True or False, got int 1"),
    ],
)
def test_bad_arguments(saved, dtype, options, error, match, tmp_path):
    model = loaded(saved / "fp32", dtype=dtype)
    with pytest.raises(error, match=match) as caught:
        model.save_pretrained(tmp_path / "refused", **options)
    assert "\n" not in str(caught.value) and not (tmp_path / "refused").exists()


def changed(**tensors):
    """Change tensors of the int8 file; None takes one out."""

    def change(folder):
        with safe_open(folder / INT8, framework="pt") as opened:
            metadata = opened.metadata()
        state = load_file(folder / INT8)
        for name, new in tensors.items():
            if new is None:
                del state[name]
            else:
                state[name] = new(state.get(name))
        save_file(state, folder / INT8, metadata=metadata)

    return change


def cut(folder):
    whole = (folder / INT8).read_bytes()
    (folder / INT8).write_bytes(whole[: len(whole) // 2])


def precision(value):
    def change(folder):
        file = folder / "gliner_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "precision": value}))

    return change


NORM = "token_rep_layer.bert_layer.model.final_norm.weight"
BAD_FILES = {
    "half": (cut, "model.int8.safetensors: not a whole safetensors file: expected .* bytes by its header, got"),
    "no-scale": (
        changed(**{f"{W1}.weight_scale": None}),
        r"int8.safetensors: tensor head.span.0.weight_scale: .* got none",
    ),
    "lone-scale": (changed(**{f"{W1}.weight": lambda x: x.float()}), "model.int8.safetensors: expected .* 2 unknown"),
    "short-scale": (
        changed(**{f"{W1}.weight_scale": lambda x: x[:-1].clone()}),
        r"weight_scale: expected fp32 \(\d+, 2\), got torch.float32 \(\d+, 2\)",
    ),
    "no-axis": (
        changed(**{f"{W1}.weight_scale": lambda x: torch.tensor(1.0)}),
        r"weight_scale: expected .*, got .* \(\)",
    ),
    "other-parts": (
        changed(**{f"{EMBEDDING}.weight_scale": lambda x: torch.stack([x, x], 1)}),
        r"tok_embeddings.weight_scale: expected fp32 \(\d+,\), got torch.float32 \(\d+, 2\)",
    ),
    "integers": (changed(**{f"{W1}.weight_scale": lambda x: x.long()}), "expected fp32 .*, got torch.int64"),
    "negative": (changed(**{f"{W1}.weight_scale": lambda x: -x}), "weight_scale: expected positive numbers"),
    "nan-scale": (changed(**{f"{W1}.weight_scale": lambda x: x * math.nan}), "weight_scale: expected positive numbers"),
    "zero-input": (changed(**{f"{W1}.input_scale": lambda x: x * 0}), "input_scale: expected positive numbers"),
    "norm": (changed(**{NORM: lambda x: x.to(torch.int8)}), "final_norm.weight: expected a matrix in int8, got shape"),
    "wide": (changed(**{f"{W1}.weight": lambda x: x[:, :-2].clone()}), r"input_scale: expected fp32 \(\d+,\), got"),
    "precision": (precision({"dtype": "int8"}), "precision: expected dtype, texts, entities, .*, got"),
    "precision-type": (precision(3), "precision: expected an object or null, got 3"),
}


@pytest.mark.parametrize("options", [{}, {"dtype": "fp32"}, {"trainable": True}], ids=["int8", "fp32", "trainable"])
@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(saved, name, options, tmp_path):
    if name == "precision" and options:
        pytest.skip("read where it is warned of: in int8")
    change, match = BAD_FILES[name]
    shutil.copytree(saved / "int8", tmp_path / "bad")
    change(tmp_path / "bad")
    with quietly(), pytest.raises(ValueError, match=match) as caught:
        GLiModern.from_pretrained(tmp_path / "bad", **options)
    assert "\n" not in str(caught.value) and "expected" in str(caught.value) and str(tmp_path) in str(caught.value)


def test_finding_nothing_is_no_agreement(saved, tmp_path):
    model = loaded(saved / "fp32", dtype="fp32")
    for asked in ({"texts": [""], "labels": LABELS}, {"texts": ["Ada met Charles"], "labels": []}):
        with pytest.raises(ValueError, match=r"dtype: expected at least 97 % agreement on some entities, got .* on 0"):
            model.save_pretrained(tmp_path / "int8", dtype="int8", **asked)
    with pytest.warns(UserWarning, match="saved because of force=True"):
        model.save_pretrained(tmp_path / "int8", dtype="int8", force=True, **asked)


def test_the_doctor_reads_it(saved):
    from glimodern.doctor import examine

    with quietly():
        report = examine(str(saved / "int8"))
    assert [check for check in report.checks if check.ok is False and check.name not in ("memory", "threads")] == []
    assert "int8" in next(check.detail for check in report.checks if check.name == "weights")


def test_a_copy_of_the_checkpoint_is_in_int8(saved, tmp_path):
    """As spaCy's component makes one."""
    stored = read_checkpoint(saved / "int8")
    from glimodern.checkpoint.folder import write_checkpoint

    write_checkpoint(tmp_path / "copy", stored.config, stored.state, stored.tokenizer)
    assert_equal(loaded(tmp_path / "copy"), loaded(saved / "int8"))


def test_the_embedding_is_read_by_rows():
    torch.manual_seed(0)
    plain = torch.nn.Embedding(40, 24)
    with torch.no_grad():
        plain.weight[7] = 0.0
        plain.weight[8] *= 1e4
    packed = PackedEmbedding(plain)
    ids = torch.tensor([[7, 8], [0, 39]])
    scale = plain.weight.abs().amax(1)[ids][..., None] / 127
    assert packed(ids).shape == (2, 2, 24) and not packed(ids)[0, 0].any()
    assert ((packed(ids) - plain(ids)).abs() <= 0.501 * scale).all()
    exact = packed(ids)
    half = packed.to(torch.bfloat16)
    assert half(ids).dtype == torch.bfloat16 and torch.equal(half(ids), exact.bfloat16())
    assert torch.equal(half.float()(ids), exact)  # its scales have not lost a bit
    assert {x.dtype for x in packed.state_dict().values()} == {torch.int8, torch.float32}


def test_precision_of_the_trained_checkpoint(shared, tmp_path):
    """Stored in int8 it finds what fp32 finds, without force and without a warning."""
    model = GLiModern.from_pretrained(shared / "checkpoints" / "gliner-minilm-mix", dtype="fp32")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for dtype in ("int8", "bf16"):
            model.save_pretrained(tmp_path / dtype, dtype=dtype)
            assert GLiModern.from_pretrained(tmp_path / dtype).config.precision["agreement"] >= 0.97
    sizes = {
        dtype: sum(f.stat().st_size for f in (tmp_path / dtype).glob("*.safetensors")) for dtype in ("int8", "bf16")
    }
    assert sizes["int8"] < 0.56 * sizes["bf16"]


def test_layers_that_run_packed_are_those_of_fp32(saved):
    kinds = [
        {name: m.packed.dtype for name, m in loaded(path, dtype="int8").named_modules() if isinstance(m, PackedLinear)}
        for path in (saved / "fp32", saved / "int8")
    ]
    assert kinds[0] == kinds[1] and "int8" in kinds[0].values()


def test_a_model_from_nowhere_is_stored(tmp_path):
    """One that was not loaded, so that its weights are in memory only."""
    with quietly():
        model = make_tiny_model(hidden_size=96)
        model.save_pretrained(tmp_path / "int8", dtype="int8", force=True)
        model.save_pretrained(tmp_path / "fp32")
    assert_equal(loaded(tmp_path / "int8"), quietly_int8(tmp_path / "fp32"))
