"""fingerprint.json: saved with every model; what has changed since is named by its first stage."""

import json
import logging
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from glimodern import GLiModern
from glimodern.checkpoint.fingerprint import FINGERPRINT_FILE, SKETCH, Fingerprint, read_fingerprint
from glimodern.checkpoint.folder import write_checkpoint
from glimodern.doctor import examine, machine
from glimodern.inputs import splitters
from glimodern.layers.packed_linear import can_pack
from glimodern.model.fingerprinting import _sketch, take_fingerprint
from glimodern.model.verifying import BOUNDS, check_fingerprint, compare
from tests.backends import extension, skip_unless_runs
from tests.bi_encoder_rows import save_encoder
from tests.conftest import make_tiny_model, quietly_int8
from tests.fake_hub import in_place_of_the_hub
from tests.test_bi_encoder import make_bi

CONFIG, TOKENIZER, WEIGHTS = "gliner_config.json", "tokenizer.json", "model.safetensors"
START = "span_rep_layer.span_rep_layer.out_project.0.weight"  # [128, 64]: every second value is hashed


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The checkpoint of a tiny model with a projection, wide enough to be packed; tests must leave it as it is."""
    folder = tmp_path_factory.mktemp("fingerprint") / "model"
    make_tiny_model(dropout=0.3, hidden_size=96, max_width=6).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    """A checkpoint to change: a tiny model of width 32."""
    make_tiny_model(dropout=0.0, max_width=6).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def bi_folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("fingerprint-bi")
    save_encoder(base / "labels", "bert", 48, 330)
    make_bi(base / "labels").save_pretrained(base / "model")
    return base / "model"


def load(folder, **options):
    return GLiModern.from_pretrained(folder, **{"dtype": "fp32", "verify": True, **options})


def refused(folder, message, error=ValueError, **options):
    """Loading with verify=True raises one line with this message; loading without it does not look."""
    with pytest.raises(error, match=message) as caught:
        load(folder, **options)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{folder / FINGERPRINT_FILE}: ") and "; " in str(caught.value)
    load(folder, verify=False, **options)
    return str(caught.value)


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def edit_weights(folder, name, change):
    state = load_file(folder / WEIGHTS)
    change(state[name])
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


# the same model


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "int8"])
@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512", "avx512_bf16", "amx"])
def test_every_dtype_on_every_instruction_set(saved, isa, dtype):
    skip_unless_runs(f"cpp-{isa}")
    extension.set_isa(isa)
    try:
        if dtype == "int8" and not can_pack():
            pytest.skip("int8 needs a CPU with AVX2")
        model = quietly_int8(saved) if dtype == "int8" else GLiModern.from_pretrained(saved, dtype=dtype)
        agreement = check_fingerprint(model, saved)
    finally:
        extension.set_isa("")
    assert (agreement.texts, agreement.dtype) == (12, "fp32")
    assert max(agreement.hidden_states, agreement.scores) <= BOUNDS[dtype] / 2
    if dtype in ("bf16", "int8"):
        assert agreement.scores > 2 * BOUNDS["fp32"]  # so that each dtype needs a bound of its own


@pytest.mark.parametrize("saved_in", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("options", [{"dtype": "fp32"}, {"dtype": "bf16"}, {"trainable": True}], ids=str)
def test_saved_in_one_dtype_and_loaded_in_another(saved, tmp_path, saved_in, options):
    GLiModern.from_pretrained(saved, dtype=saved_in).save_pretrained(tmp_path / "again")
    assert read_fingerprint(tmp_path / "again").dtype == saved_in
    load(tmp_path / "again", **options)


def test_a_model_in_int8(saved):
    if not can_pack():
        pytest.skip("int8 needs the C++ extension on a CPU with AVX2")
    model = quietly_int8(saved)
    made = take_fingerprint(model, model.weights_fingerprint)
    assert (made.dtype, made.problem) == ("int8", "")
    exact = GLiModern.from_pretrained(saved, dtype="fp32")
    assert compare(made, take_fingerprint(exact, exact.weights_fingerprint, made)).scores > 0


def test_a_bi_encoder(bi_folder, tmp_path):
    for dtype in ("fp32", "bf16"):
        load(bi_folder, dtype=dtype)
    made = read_fingerprint(bi_folder)
    assert len(made.label_tokens) == len(made.labels)
    assert all(tokens[0] == 2 and tokens[-1] == 3 for tokens in made.label_tokens)  # [CLS] and [SEP]


def test_the_trained_checkpoint(shared, tmp_path):
    base = shared / "checkpoints" / "gliner-minilm-mix"
    if not base.is_dir():
        pytest.skip(f"no checkpoint at {base}")
    GLiModern.from_pretrained(base, trainable=True).save_pretrained(tmp_path / "model")
    spans = [span for text in read_fingerprint(tmp_path / "model").texts for span in text.computed.spans]
    assert max(span.probability for span in spans) > 0.9
    for dtype in ("fp32", "bf16", "int8") if can_pack() else ("fp32",):
        agreement = check_fingerprint(GLiModern.from_pretrained(tmp_path / "model", dtype=dtype), tmp_path / "model")
        assert max(agreement.hidden_states, agreement.scores) <= BOUNDS[dtype] / 2
    edit(tmp_path / "model" / CONFIG, lambda content: content["encoder_config"].update(layer_norm_eps=1e-3))
    with pytest.raises(ValueError, match="hidden states: expected the word vectors"):
        load(tmp_path / "model", trainable=True)
    edit(tmp_path / "model" / "tokenizer_config.json", lambda content: content.update(do_lower_case=False))
    with pytest.raises(
        ValueError, match="tokens: expected text 0 as .*; the tokenizer has lost its special tokens, or"
    ):
        load(tmp_path / "model", trainable=True)


# what changed


def drop_post_processor(content):
    content["post_processor"] = None


def drop_sep(content):
    content["post_processor"]["single"].pop()


def swap_two_ids(content):
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]


def lower(content):
    content["normalizer"] = {"type": "Lowercase"}


@pytest.mark.parametrize("change", [drop_post_processor, drop_sep, swap_two_ids, lower])
def test_a_changed_tokenizer(folder, change):
    edit(folder / TOKENIZER, change)
    message = refused(folder, r": tokens: expected text \d+ as \d+ tokens \(2, .*, got \d+ tokens \(")
    assert "special tokens" in message and "copy the tokenizer" in message and "(saved with" not in message


def test_special_tokens_that_a_tokenizer_lost(folder):
    """As transformers 5 forgets the bos and eos of some tokenizers: the tokens are known, but no text gets them."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = GLiModern.from_pretrained(folder).tokenizer
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    tokenizer.save_pretrained(folder)
    refused(folder, r"tokens: expected text 0 as (\d+) tokens \(2, .* with words at (\d+), ")


@pytest.mark.parametrize("kind", ["full_attention", "sliding_attention"])
def test_another_rotary_base(tmp_path, kind):
    """Of global or window layers. Attention is made sharp, as training makes it: random weights attend to all alike."""
    model = make_tiny_model(dropout=0.0, max_width=6)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "Wqkv" in name:
                weight.mul_(20)
    model.save_pretrained(tmp_path)

    def change(content):
        content["encoder_config"]["rope_parameters"][kind]["rope_theta"] *= 16

    edit(tmp_path / CONFIG, change)
    message = refused(tmp_path, r"hidden states: expected the word vectors of text 0 within 0\.0002 of those saved")
    assert "rotary base" in message


def test_another_version_is_named(folder):
    edit(folder / FINGERPRINT_FILE, lambda content: content["versions"].update(transformers="4.1.2"))
    load(folder)  # another version alone is no difference
    edit(folder / TOKENIZER, drop_sep)
    refused(folder, rf"\(saved with transformers 4\.1\.2; here transformers {transformers.__version__}\)")


def test_another_weight(folder):
    """The hash of the weights reads a sample of a large tensor; what it does not read, the stages do."""
    whole = folder.with_name("whole")
    shutil.copytree(folder, whole)
    edit_weights(folder, START, lambda weight: weight.view(-1)[0::2].add_(0.5))
    refused(
        folder, "weights: expected [0-9a-f]{32}, as of the weights beside it, got [0-9a-f]{32}; it was made on another"
    )
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    edit_weights(folder, START, lambda weight: weight.view(-1)[1::2].add_(0.5))
    refused(folder, "scores: expected the logits of text 0 within 0.0002 .* got a distance of .*the head has")
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    name = "token_rep_layer.bert_layer.model.embeddings.tok_embeddings.weight"
    edit_weights(folder, name, lambda weight: weight.view(-1)[1::2].add_(0.5))
    refused(folder, "hidden states: expected the word vectors")


def test_another_max_width(folder):
    edit(folder / CONFIG, lambda content: content.update(max_width=5))
    refused(folder, "scores: .*max_width")


def test_a_wrong_score_beside_right_logits(folder):
    edit(folder / FINGERPRINT_FILE, lambda content: content["texts"][2]["computed"]["spans"][1].update(probability=0.9))
    refused(folder, r"scores: expected the probability 0\.9 of '\w+' for the words \d+ to \d+ of text 2 within 0\.0002")


TOKENS, COMPUTED = ("texts", 1, "tokens"), ("texts", 1, "computed")
EDITS = [
    ((*TOKENS, "count"), lambda value: value + 1),
    ((*TOKENS, "digest"), lambda value: value[::-1]),
    *(((*TOKENS, name, 0), lambda value: value + 1) for name in ("first", "word_index")),
    *(((*COMPUTED, name, "rms"), lambda value: 1.01 * value + 0.001) for name in ("words", "types", "logits")),
    *(((*COMPUTED, name, "rms"), lambda value: 1e30) for name in ("words", "types", "logits")),
    *(((*COMPUTED, name, "rms"), lambda value: 0.0) for name in ("words", "types", "logits")),
    *(((*COMPUTED, name, "projections", 7), lambda value: value + 0.01) for name in ("words", "types", "logits")),
    ((*COMPUTED, "spans", 0, "probability"), lambda value: 0.99 * value),
    (("label_tokens",), lambda value: [[1], [2], [3]]),
]


@pytest.mark.parametrize(("path", "change"), EDITS, ids=lambda x: ".".join(map(str, x)) if isinstance(x, tuple) else "")
def test_every_recorded_value_is_compared(folder, path, change):
    *outer, last = path

    def edit_one(content):
        for key in outer:
            content = content[key]
        content[last] = change(content[last])

    edit(folder / FINGERPRINT_FILE, edit_one)
    refused(folder, "tokens: |hidden states: |scores: ")


def test_a_bi_encoder_whose_tokens_of_labels_were_lost(bi_folder, tmp_path):
    shutil.copytree(bi_folder, tmp_path / "model")
    edit(tmp_path / "model" / FINGERPRINT_FILE, lambda content: content.update(label_tokens=None))
    refused(tmp_path / "model", "tokens: expected no tokens of labels, .* got tokens of each label")


def test_a_bi_encoder_whose_labels_lose_their_special_tokens(bi_folder, tmp_path):
    shutil.copytree(bi_folder, tmp_path / "model")
    edit(tmp_path / "model" / "labels_tokenizer" / TOKENIZER, drop_post_processor)
    refused(tmp_path / "model", r"tokens: expected the label 'person' as the ids \[2, .*3\], got \[")


def test_a_bi_encoder_with_another_label_encoder_names_the_types(bi_folder, tmp_path):
    shutil.copytree(bi_folder, tmp_path / "model")
    edit(tmp_path / "model" / CONFIG, lambda content: content["labels_encoder_config"].update(layer_norm_eps=1.0))
    refused(tmp_path / "model", "hidden states: expected the type vectors of text 0")


def test_rounding_of_bf16_hides_no_change(folder):
    edit(folder / TOKENIZER, drop_sep)
    refused(folder, "tokens: ", dtype="bf16")


# saving changes nothing else


def test_saving_changes_nothing(tmp_path):
    """Modes, random numbers and torch's settings stay, and do not change the file; neither does the training mode."""
    model = make_tiny_model(dropout=0.5, max_width=6)
    model.save_pretrained(tmp_path / "eval")
    expected = (tmp_path / "eval" / FINGERPRINT_FILE).read_text()
    model.train()
    model.encoder.eval()
    modes = [module.training for module in model.modules()]
    generator, before = torch.get_rng_state(), {name: x.clone() for name, x in model.state_dict().items()}
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", torch.bfloat16), torch.enable_grad():
            model.save_pretrained(tmp_path / "train")
            assert torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(default)
    with torch.inference_mode():
        model.save_pretrained(tmp_path / "inference")
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    for name in ("train", "inference"):
        assert (tmp_path / name / FINGERPRINT_FILE).read_text() == expected
    assert {file.name for file in (tmp_path / "eval").iterdir()} == {
        CONFIG, TOKENIZER, WEIGHTS, "tokenizer_config.json", FINGERPRINT_FILE
    }  # fmt: skip


def test_a_splitter_whose_package_is_missing(tmp_path, monkeypatch):
    splitters._built.cache_clear()
    monkeypatch.setitem(sys.modules, "jieba", None)
    model = make_tiny_model(dropout=0.0)
    model.config = replace(model.config, words_splitter_type="jieba")
    model.save_pretrained(tmp_path / "model")
    assert read_fingerprint(tmp_path / "model").problem == ""
    load(tmp_path / "model")


def test_texts_longer_than_max_len(tmp_path):
    make_tiny_model(dropout=0.0, max_len=4).save_pretrained(tmp_path / "model")
    assert {len(text.tokens.word_index) for text in read_fingerprint(tmp_path / "model").texts} == {4}
    load(tmp_path / "model")


def test_an_encoder_too_short_for_any_label(tmp_path, caplog):
    """The weights are saved, with one warning; only verify=True needs the stages that are missing."""
    model = make_tiny_model(dropout=0.0)
    model.tokenizer.model_max_length = 8
    model = GLiModern(model.config, model.encoder, model.tokenizer)
    with caplog.at_level(logging.WARNING):
        model.save_pretrained(tmp_path / "model")
    (said,) = [record.getMessage() for record in caplog.records]
    assert "saved without hidden states and scores in fingerprint.json" in said and "8 tokens" in said
    made = read_fingerprint(tmp_path / "model")
    assert made.problem and all(text.tokens is None and text.computed is None for text in made.texts)
    refused(tmp_path / "model", "texts: expected tokens, hidden states and scores, got .*8 tokens")


def test_weights_that_are_not_finite(tmp_path, caplog):
    model = make_tiny_model(dropout=0.0)
    with torch.no_grad():
        model.head.prompt[0].bias.fill_(torch.nan)
    model.save_pretrained(tmp_path / "model")
    assert "logits: expected finite values, got NaN or infinity" in caplog.text
    made = read_fingerprint(tmp_path / "model")
    assert all(text.tokens is not None and text.computed is None for text in made.texts)
    refused(tmp_path / "model", "texts: expected .*got .*logits: expected finite values")


def test_a_model_that_computes_nan_here(folder):
    """Weights that became NaN where the hash does not look."""
    edit_weights(folder, START, lambda weight: weight.view(-1)[1::2].fill_(torch.nan))
    refused(folder, "texts: expected a model that can be run, got logits: expected finite values, got NaN or infinity")


# files


def test_a_missing_file(folder):
    (folder / FINGERPRINT_FILE).unlink()
    refused(
        folder,
        "expected a fingerprint to verify the model by, got no such file; save the model again",
        FileNotFoundError,
    )
    with pytest.raises(TypeError, match="verify: expected True or False, got str 'yes'"):
        load(folder, verify="yes")


def test_the_fingerprint_of_another_model(folder, saved):
    shutil.copy(saved / FINGERPRINT_FILE, folder)
    refused(folder, "weights: expected .*another model")


def example():
    return {
        "format": "glimodern fingerprint 1",
        "versions": {"glimodern": "1", "torch": "2", "transformers": "3", "tokenizers": "4"},
        "dtype": "fp32",
        "weights": "f00",
        "labels": ["person"],
        "label_tokens": None,
        "problem": "",
        "texts": [
            {
                "words": ["Ada", "met"],
                "tokens": {"count": 4, "digest": "0f", "first": [2, 7, 8, 3], "word_index": [1, -1]},
                "computed": {
                    **{name: {"rms": 1.5, "projections": [0.25] * SKETCH} for name in ("words", "types", "logits")},
                    "spans": [{"first": 0, "last": 1, "label": "person", "probability": 0.5}],
                },
            }
        ],
    }


def test_json_keeps_everything(saved):
    text = json.dumps(example())
    made = Fingerprint.from_json(text, "f.json")
    assert json.loads(made.to_json()) == example() and Fingerprint.from_json(made.to_json(), "x") == made
    stored = (saved / FINGERPRINT_FILE).read_text()
    assert Fingerprint.from_json(stored, "x").to_json() == stored


def fields(content, path=()):
    """The paths of all values of the example."""
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from fields(value, (*path, key))


MAY_BE_NONE = {("label_tokens",), ("texts", 0, "computed")}


VALUES = ["missing", None, {}, float("nan"), float("inf"), -3.5]
CASES = [
    (path, value) for path in fields(example()) for value in VALUES if isinstance(path[-1], str) or value != "missing"
]


@pytest.mark.parametrize(("path", "value"), CASES, ids=str)
def test_damaged_fields(path, value):
    content = example()
    *outer, last = path
    place = content
    for key in outer:
        place = place[key]
    if value == "missing":
        del place[last]
    else:
        place[last] = value
    if (value is None and path in MAY_BE_NONE) or (value == -3.5 and "projections" in path and isinstance(last, int)):
        Fingerprint.from_json(json.dumps(content), "f.json")
        return
    with pytest.raises(ValueError, match=r"^f\.json: ") as caught:
        Fingerprint.from_json(json.dumps(content), "f.json")
    said = str(caught.value)
    assert "\n" not in said and said.endswith("; save the model again with save_pretrained")
    assert "NaN" in said or "Infinity" in said or str(last) in said


def changed(change):
    content = example()
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected JSON, got 0 characters"),
        (json.dumps(example())[:-90], "expected JSON"),
        ("[1]", r"expected an object of fields, got \[1\]"),
        ('{"format": "glimodern fingerprint 0"}', "format: expected 'glimodern fingerprint 1', got '.* 0'"),
        (changed(lambda c: c.update(extra=1)), "extra: expected one of versions, .*, got another field"),
        (changed(lambda c: c.update(label_tokens=[])), "label_tokens: expected the tokens of 1 labels, got those of 0"),
        (
            changed(lambda c: c["texts"][0]["computed"]["spans"][0].update(last=2)),
            r"texts\[0\]\.computed\.spans\[0\]: expected a span of the text's 2 words, got 0 to 2",
        ),
        (
            changed(lambda c: c["texts"][0]["computed"]["spans"][0].update(label="city")),
            r"spans\[0\]\.label: expected one of the labels, got 'city'",
        ),
        (
            changed(lambda c: c["texts"][0]["computed"]["types"].update(projections=[1.0])),
            r"texts\[0\]\.computed\.types\.projections: expected 8 numbers, got 1",
        ),
        (changed(lambda c: c["texts"][0].update(words=["Ada"])), r"texts\[0\]\.tokens\.word_index: expected at most 1"),
        (changed(lambda c: c["texts"][0].update(tokens=None)), r"texts\[0\]\.tokens: expected a value beside"),
        (
            changed(lambda c: c["texts"][0]["computed"]["spans"][0].update(probability=1.5)),
            r"texts\[0\]\.computed\.spans\[0\]\.probability: expected a number >= 0 and <= 1, got 1.5",
        ),
    ],
)  # fmt: skip
def test_damaged_files(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        Fingerprint.from_json(text, "f.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"null", b""])
def test_damaged_bytes(folder, content):
    (folder / FINGERPRINT_FILE).write_bytes(content)
    refused(folder, "expected .*save the model again")


def test_an_unknown_dtype(folder):
    edit(folder / FINGERPRINT_FILE, lambda content: content.update(dtype="fp4"))
    refused(folder, "dtype: expected one of .*, got 'fp4'")


def test_no_text(folder):
    edit(folder / FINGERPRINT_FILE, lambda content: content.update(texts=[]))
    refused(folder, "texts: expected tokens, hidden states and scores")


def test_it_is_a_file_of_the_checkpoint(folder, tmp_path, tiny_model):
    model = GLiModern.from_pretrained(folder, trainable=True)
    write_checkpoint(folder, model.config, model.state_dict(), model.tokenizer)
    assert not (folder / FINGERPRINT_FILE).exists()  # stale beside other weights
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / FINGERPRINT_FILE).write_text("{}")
    with pytest.raises(ValueError, match=r"got files of another model \(fingerprint\.json\)"):
        tiny_model.save_pretrained(tmp_path / "other")


def test_after_a_crash(folder):
    """A crash while a checkpoint was replaced leaves its files in a commit folder, which is then the current one."""
    (folder / ".glimodern-new").mkdir()
    for file in [file for file in folder.iterdir() if file.is_file()]:
        shutil.copy(file, folder / ".glimodern-new")
    (folder / FINGERPRINT_FILE).write_text("half")
    load(folder)


# the sketch


def test_sketches_measure_distances():
    """The distance of two sketches estimates the root mean square of the tensors' difference (SKETCH signs: 25 %)."""
    draw = torch.Generator().manual_seed(0)
    ratios = []
    for _ in range(50):
        x, noise = (torch.randn(17, 48, generator=draw) for _ in range(2))
        a, b = (np.array(_sketch("x", y).projections) for y in (x, x + 0.01 * noise))
        ratios.append(float(np.sqrt(np.mean((a - b) ** 2))) / float(0.01 * noise.square().mean().sqrt()))
    assert 0.9 <= np.mean(ratios) <= 1.1 and 0.3 <= min(ratios) and max(ratios) <= 2.0


def test_the_signs_are_the_same_everywhere():
    """Stored sketches are compared with those of other machines and later versions."""
    made = _sketch("x", torch.arange(1.0, 7.0))
    assert made.rms == pytest.approx((91 / 6) ** 0.5)
    assert [round(value * 6**0.5) for value in made.projections] == [-3, -3, 11, -1, 3, -11, 3, -19]
    assert _sketch("x", torch.zeros(0)).projections == (0.0,) * SKETCH


# the doctor and the hub


def row(folder):
    (check,) = [check for check in examine(str(folder)).checks if check.name == "fingerprint"]
    return check


def test_the_doctor(folder, monkeypatch):
    monkeypatch.setattr(machine, "check_machine", lambda checks: None)
    check = row(folder)
    assert check.ok and "tokens of 12 texts as saved, hidden states within 0.0e+00" in check.detail
    edit(folder / CONFIG, lambda content: content.update(max_width=5))
    check = row(folder)
    assert check.ok is False and "fingerprint.json: scores: " in check.detail and check.remedy
    (folder / FINGERPRINT_FILE).unlink()
    check = row(folder)
    assert check.ok and "no fingerprint.json to compare with" in check.detail


def lose_special_tokens(tokenizer, monkeypatch):
    """A tokenizer that is saved without the special tokens around a text."""
    save = tokenizer.save_pretrained

    def broken(folder, *arguments, **options):
        saved = save(folder, *arguments, **options)
        edit(folder / TOKENIZER, drop_post_processor)
        return saved

    monkeypatch.setattr(tokenizer, "save_pretrained", broken)


def test_nothing_is_uploaded_that_computes_otherwise(folder, tmp_path, monkeypatch):
    model = GLiModern.from_pretrained(folder, dtype="fp32")
    with in_place_of_the_hub(tmp_path / "cache") as hub:
        with monkeypatch.context() as patch:
            lose_special_tokens(model.tokenizer, patch)
            with pytest.raises(ValueError, match=r"fingerprint\.json: tokens: "):
                model.push_to_hub("me/new")
        edit(folder / FINGERPRINT_FILE, lambda content: content["texts"][0]["tokens"].update(count=7))
        with pytest.raises(ValueError, match=r"model.fingerprint\.json: tokens: expected text 0 as 7 tokens"):
            model.push_to_hub("me/new")
        assert hub.repositories == {}
        edit(folder / FINGERPRINT_FILE, lambda content: content.update(weights="f00"))  # of weights of another time
        model.push_to_hub("me/new")
        assert FINGERPRINT_FILE in hub.repositories["me/new"]["main"]
        load("me/new")
