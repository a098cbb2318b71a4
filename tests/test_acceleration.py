"""accelerate_gliner: a live gliner model with our encoder and head inside gives what it gave, and is given back."""

import ast
import copy
import importlib
import json
import logging
import pickle
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import WORDS, make_tiny_model

gliner = pytest.importorskip("gliner", reason="needs the extra peers (gliner)")

from glimodern import accelerate_gliner  # noqa: E402
from glimodern.integrations.gliner import spans  # noqa: E402
from glimodern.layers.packed_linear import PackedLinear, can_pack  # noqa: E402
from glimodern.layers.snapshot import Snapshot  # noqa: E402
from glimodern.ops import dispatch  # noqa: E402
from glimodern.train.demo import train_tokenizer  # noqa: E402

LABELS = ["person", "political party", "place", "machine"]
TEXTS = [
    " ".join(WORDS), "Ada met Taylor .", "London", " ".join(WORDS[3:12]), "", "He wrote to Babbage in 1843 and London",
    "Engine\u200b \u0301 Engine", " ".join(WORDS * 5), "the Analytical Engine , the Engine",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = train_tokenizer([WORDS] * 4, LABELS, vocab_size=400)
    tokenizer.model_max_length = 64  # the eighth text is cut by it: its last words have no token
    return tokenizer


def encoder_config(kind, size):
    from transformers import AutoConfig

    fields = {"vocab_size": size, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "pad_token_id": 0}
    fields |= {"num_attention_heads": 4, "max_position_embeddings": 128}
    if kind == "modernbert":
        fields |= {"global_attn_every_n_layers": 2, "local_attention": 16, "bos_token_id": 2, "eos_token_id": 3}
        fields |= {"cls_token_id": 2, "sep_token_id": 3}
    if kind == "albert":
        fields |= {"embedding_size": 32}
    return AutoConfig.for_model(kind, **fields)


def random_model(tokenizer, folder, kind="modernbert", labels_kind=None, **config):
    """A model of gliner's, with random weights, made by its own loader."""
    from gliner.config import GLiNERConfig

    fields = {"hidden_size": 64, "span_mode": "markerV0", "max_width": 5, "num_rnn_layers": 0, "dropout": 0.1}
    fields |= {"max_len": 100, **config}
    tokenizer.save_pretrained(folder)
    encoder = encoder_config(kind, len(tokenizer))
    encoder.save_pretrained(folder)
    if labels_kind is not None:
        fields |= {"labels_encoder": str(folder)}
        fields |= {"labels_encoder_config": encoder_config(labels_kind, len(tokenizer)).to_dict()}
    torch.manual_seed(3)
    made = gliner.GLiNER.from_config(
        GLiNERConfig(model_name=str(folder), encoder_config=encoder.to_dict(), **fields), backbone_from_pretrained=False
    )
    with torch.no_grad():  # logits of some size, so that a threshold divides them
        for parameter in made.model.prompt_rep_layer.parameters() if hasattr(made.model, "prompt_rep_layer") else ():
            parameter *= 4
    return made.eval()


@pytest.fixture(scope="module")
def models(tokenizer, tmp_path_factory):
    """Models by kind, made once; tests must leave them as they are."""
    made = {}

    def get(kind="modernbert", **config):
        key = (kind, *sorted(config.items()))
        if key not in made:
            made[key] = random_model(tokenizer, tmp_path_factory.mktemp("gliner"), kind, **config)
        return made[key]

    return get


@pytest.fixture
def said(caplog):
    """The messages of glimodern's logger, each said anew in every test."""
    dispatch.warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="glimodern"):
        yield lambda: [record.message for record in caplog.records if "accelerate_gliner" in record.message]


def run(model, texts=TEXTS, labels=LABELS):
    """gliner's output for a batch of texts."""
    prepared = model.prepare_batch(texts, labels)
    batch = model.collate_batch(prepared["input_x"], prepared["entity_types"])
    return model.run_batch(batch), batch


def threshold_of(model, share=0.1):
    """A probability that this share of the spans and labels is above."""
    output, batch = run(model)
    return float(torch.sigmoid(output.logits[batch["span_mask"].view(output.logits.shape[:3])]).quantile(1 - share))


def assert_same_entities(wanted, got):
    assert sum(map(len, wanted)) > 0
    for theirs, ours in zip(wanted, got, strict=True):
        assert [(e["start"], e["end"], e["text"], e["label"]) for e in ours] == [
            (e["start"], e["end"], e["text"], e["label"]) for e in theirs
        ]
        assert [e["score"] for e in ours] == pytest.approx([e["score"] for e in theirs], abs=1e-4)


PER_TEXT = [LABELS[: 1 + i % 4] for i in range(len(TEXTS))]
CALLS = {
    "batch 1": {"batch_size": 1},
    "batch 4": {"batch_size": 4},
    "all at once": {"batch_size": 64},
    "nested": {"flat_ner": False},
    "multi-label": {"multi_label": True},
    "nested, multi-label": {"flat_ner": False, "multi_label": True},
    "labels of each text": {"labels": PER_TEXT, "batch_size": 3},
    "described labels": {"labels": {"human": "person", "city": "place"}},
    "probabilities": {"return_class_probs": True},
    "label vectors": {"return_label_vectors": True},
    "spans given": {"input_spans": [[{"start": 0, "end": 3}, {"start": 0, "end": 12}]] * len(TEXTS), "share": 0.9},
    "another threshold": {"share": 0.3},
}
CASES = {
    "modernbert": {},
    "modernbert, projected": {"hidden_size": 32},
    "bert": {"kind": "bert"},
    "roberta, the label's own token, last sub-token": {
        "kind": "roberta", "embed_ent_token": False, "subtoken_pooling": "last",
    },
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("case", ["modernbert", "bert"])
def test_same_entities(models, said, case, call):
    model = models(**CASES[case])
    options = dict(CALLS[call])
    labels = options.pop("labels", LABELS)
    options["threshold"] = threshold_of(model, options.pop("share", 0.1))
    wanted = model.inference(TEXTS, labels, **options)
    with accelerate_gliner(model) as acceleration:
        assert set(acceleration.swapped) == {"encoder", "span head"} and not acceleration.left
        layers = model.model.forward.__self__.encoder.current().modules()
        assert any(isinstance(layer, PackedLinear) for layer in layers) == can_pack()
        got = model.inference(TEXTS, labels, **options)
    assert_same_entities(wanted, got)
    for theirs, ours in zip(sum(wanted, []), sum(got, []), strict=True):
        assert theirs.get("class_probs") == pytest.approx(ours.get("class_probs"), abs=1e-4)
        if "label_vector" in theirs:
            torch.testing.assert_close(*(torch.as_tensor(e["label_vector"]) for e in (ours, theirs)))
    assert not said()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("pack", [True, False])
def test_same_logits(models, said, case, pack):
    model = models(**CASES[case])
    wanted, batch = run(model, labels=PER_TEXT)
    with accelerate_gliner(model, pack=pack):
        got, _ = run(model, labels=PER_TEXT)
    assert not said()
    inside = batch["span_mask"].view(wanted.logits.shape[:3])
    asked = wanted.prompts_embedding_mask.bool()
    assert got.logits.shape == wanted.logits.shape
    both = inside[..., None] & asked[:, None, None, :]
    torch.testing.assert_close(got.logits[both], wanted.logits[both], atol=1e-4, rtol=0)
    assert torch.isneginf(got.logits[~both]).all()
    assert torch.equal(got.mask, wanted.mask) and torch.equal(got.prompts_embedding_mask, wanted.prompts_embedding_mask)
    torch.testing.assert_close(got.words_embedding, wanted.words_embedding, atol=1e-4, rtol=0)
    torch.testing.assert_close(got.prompts_embedding[asked], wanted.prompts_embedding[asked], atol=1e-4, rtol=0)


def test_other_calls(models):
    model = models()
    threshold = threshold_of(model)
    rows = [
        {"tokenized_text": WORDS, "ner": [[0, 1, "person"]]},
        {"tokenized_text": WORDS[:4], "ner": [[3, 3, "place"]]},
    ]

    def answers():
        with pytest.warns(FutureWarning):
            batches = model.batch_predict_entities(TEXTS, LABELS, threshold=threshold)
        one = model.predict_entities(TEXTS[0], LABELS[:2], threshold=threshold)
        score = model.evaluate(rows * 3, threshold=threshold, batch_size=2, entity_types=LABELS)
        return [*batches, one], score

    wanted, wanted_score = answers()
    with accelerate_gliner(model):
        got, score = answers()
    assert_same_entities(wanted, got)
    assert score == wanted_score


def test_small_batches_are_computed_together(models, monkeypatch):
    model = models()
    counts = []
    encode = spans.SpanForward.run
    monkeypatch.setattr(
        spans.SpanForward, "run", lambda self, batches: counts.append(len(batches)) or encode(self, batches)
    )
    with accelerate_gliner(model):
        model.inference(TEXTS, LABELS, batch_size=2)
        assert counts == [4]
        monkeypatch.setattr(spans, "resolve_batch_tokens", lambda *_: 100)
        model.inference(TEXTS, LABELS, batch_size=1)
    assert len(counts) > 3 and sum(counts[1:]) == 8


def test_restored_exactly(models, tmp_path):
    model = models()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    addresses = [value.data_ptr() for value in model.state_dict().values()]
    grads = [p.requires_grad for p in model.parameters()]
    attributes = [set(vars(module)) for module in (model, *model.modules())]
    model.save_pretrained(tmp_path / "before", safe_serialization=True)
    acceleration = accelerate_gliner(model)
    model.inference(TEXTS, LABELS)
    model.save_pretrained(tmp_path / "during", safe_serialization=True)
    assert [p.requires_grad for p in model.parameters()] == grads
    acceleration.restore()
    acceleration.restore()
    assert [set(vars(module)) for module in (model, *model.modules())] == attributes
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert [value.data_ptr() for value in after.values()] == addresses
    names = ("model.safetensors", "gliner_config.json")
    assert all((tmp_path / "before" / n).read_bytes() == (tmp_path / "during" / n).read_bytes() for n in names)


@pytest.mark.parametrize("kind", ["modernbert", "bert"])
def test_without_packing_all_memory_is_shared(models, kind):
    model = models(kind)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with accelerate_gliner(model, pack=False):
        head = model.model.forward.__self__.shadow.current().head
        encoder = model.model.token_rep_layer.bert_layer.forward.__self__.shadow.current()
        shared = [*head.parameters(), *encoder.parameters()]
        assert len(shared) > 20 and {p.untyped_storage().data_ptr() for p in shared} <= own
        assert not any(p.requires_grad for p in shared)


@pytest.mark.parametrize("change", ["written", "loaded", "cast"])
def test_weights_that_change_are_seen(models, change):
    model = copy.deepcopy(models())
    changed = copy.deepcopy(model)
    with accelerate_gliner(model):
        run(model)
        for one in (model, changed):
            if change == "written":
                with torch.no_grad():
                    one.model.prompt_rep_layer[0].weight.mul_(1.5)
                    one.model.token_rep_layer.bert_layer.model.layers[1].mlp.Wo.weight.mul_(1.5)
            elif change == "loaded":
                one.load_state_dict({name: 1.25 * value for name, value in one.state_dict().items()})
            else:
                one.double()
        wanted, got = run(changed)[0].logits, run(model)[0].logits
    inside = torch.isfinite(got)
    assert got.dtype == wanted.dtype and inside.sum() > 100
    assert (wanted - run(models())[0].logits).abs().max() > (1e-3 if change != "cast" else -1)
    torch.testing.assert_close(got[inside], wanted[inside], atol=1e-4, rtol=0)


def test_training_is_left_to_gliner(models, said):
    model = copy.deepcopy(models())
    rows = [{"tokenized_text": WORDS, "ner": [[0, 1, "person"], [6, 6, "place"]]}] * 2
    collator = model.data_collator_class(model.config, data_processor=model.data_processor, prepare_labels=True)
    batch = collator(rows)

    def gradients():
        torch.manual_seed(3)
        model.zero_grad()
        loss = model.train()(**batch, reduction="sum").loss
        loss.backward()
        return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    wanted_loss, wanted = gradients()
    with accelerate_gliner(model):
        loss, got = gradients()
        assert loss == wanted_loss and len(got) > 20
        assert got.keys() == wanted.keys() and all(torch.equal(got[n], wanted[n]) for n in wanted)
        assert sorted(message.split(":")[1] for message in said()) == [
            " gliner's own encoder runs", " gliner's own span head runs",
        ]  # fmt: skip
        gradients()
        assert len(said()) == 2
        model.eval()(**{**batch, "labels": None})
        assert "gradients are asked for" in said()[-1]


def test_span_vectors_are_left_to_gliner(models, said):
    model = models()
    threshold = threshold_of(model)
    wanted = model.inference(TEXTS, LABELS, threshold=threshold, return_vectors=True)
    with accelerate_gliner(model):
        got = model.inference(TEXTS, LABELS, threshold=threshold, return_vectors=True)
    assert_same_entities(wanted, got)
    torch.testing.assert_close(*(torch.as_tensor(e[0][0]["vector"]) for e in (got, wanted)), atol=1e-4, rtol=0)
    assert "span vectors are asked for" in said()[0] and len(said()) == 1


PARTLY = {
    "LSTM over words": ({"num_rnn_layers": 1}, {"encoder", "span head"}, None),
    "mean of sub-tokens": ({"subtoken_pooling": "mean"}, {"encoder", "span head"}, None),
    "padded encoder": ({"kind": "deberta"}, {"span head"}, "encoder"),
    "packed through transformers": ({"kind": "albert"}, {"encoder", "span head"}, None),
    "another head": ({"span_mode": "marker"}, {"encoder"}, "span head"),
    "token level": ({"span_mode": "token_level"}, {"encoder"}, "span head"),
    "two encoders": ({"labels_kind": "bert"}, {"encoder", "label encoder", "span head"}, None),
}


@pytest.mark.parametrize("case", PARTLY)
def test_what_can_be_is_replaced(models, said, case, recwarn):
    config, swapped, left = PARTLY[case]
    model = models(**config)
    wanted = model.inference(TEXTS, LABELS, threshold=0.3, batch_size=4)
    with accelerate_gliner(model) as acceleration:
        assert set(acceleration.swapped) == swapped and set(acceleration.left) == ({left} if left else set())
        messages = [str(w.message) for w in recwarn if "accelerate_gliner" in str(w.message)]
        assert len(messages) == (left is not None) and all(f"{left} is left to gliner: " in m for m in messages)
        got = model.inference(TEXTS, LABELS, threshold=0.3, batch_size=4)
    assert_same_entities(wanted, got)
    assert not said()


def test_copies_are_accelerated_too(models):
    model = models()
    wanted = run(model)[0].logits
    with accelerate_gliner(model):
        copied, read = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    assert "forward" not in vars(model.model)
    for other in (copied, read):
        assert other.model.forward.__self__.core is other.model
        assert other._process_batches.__self__.gliner is other
        logits = run(other)[0].logits
        inside = torch.isfinite(logits)
        torch.testing.assert_close(logits[inside], wanted[inside], atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization:DeprecationWarning", "ignore:torch.quantize_per_tensor")
def test_quantised_later_falls_back_and_says_so(models, said):
    """gliner's quantize("int8") puts a quantised copy in the model's place."""
    model, plain = copy.deepcopy(models()), copy.deepcopy(models())
    plain.quantize("int8")
    with accelerate_gliner(model):
        model.quantize("int8")
        got, wanted = run(model)[0].logits, run(plain)[0].logits
        assert torch.equal(got, wanted)
        assert len(said()) == 2 and all("parameters: expected " in message for message in said())
    assert torch.equal(run(model)[0].logits, wanted) and "forward" not in vars(model.model)


def test_left_padding_and_spans_of_its_own(models, said):
    model = models()
    batch = run(model)[1]
    fewer = {**batch, "span_mask": batch["span_mask"] & (batch["span_idx"][..., 0] != 1)}
    padded = {
        name: torch.cat([torch.zeros_like(batch[name][:, :2]), batch[name]], 1)
        for name in ("input_ids", "attention_mask", "words_mask")
    }
    with torch.no_grad():
        wanted = [model(**fewer).logits, model(**{**batch, **padded}).logits]
        with accelerate_gliner(model):
            torch.testing.assert_close(model(**fewer).logits, wanted[0], atol=1e-4, rtol=0)
            assert "spans of its own" in said()[-1]
            got = model(**{**batch, **padded}).logits
            assert "left" in said()[-1]
    inside = torch.isfinite(got)
    torch.testing.assert_close(got[inside], wanted[1][inside], atol=1e-4, rtol=0)


def test_errors(models):
    with pytest.raises(TypeError, match="expected a gliner.GLiNER, got torch.nn.modules.linear.Linear"):
        accelerate_gliner(torch.nn.Linear(2, 2))
    model = models()
    with accelerate_gliner(model), pytest.raises(ValueError, match="replaced already; restore"):
        accelerate_gliner(model)
    with pytest.raises(ValueError, match="nothing to replace: encoder: padded: deberta .*; span head: "):
        accelerate_gliner(models("deberta", span_mode="token_level"))
    compiled = copy.deepcopy(model)
    compiled.model = torch.nn.Module()
    compiled.model._orig_mod = model.model  # as torch.compile has it
    with pytest.raises(ValueError, match="expected one that is not compiled, got a compiled one"):
        accelerate_gliner(compiled)
    compiled.runtime_model = True
    with pytest.raises(ValueError, match="ONNX"):
        accelerate_gliner(compiled)


def test_a_snapshot_sees_every_kind_of_change():
    module = torch.nn.Linear(2, 2)

    def write():
        with torch.no_grad():
            module.weight.add_(1)

    def move():
        module.weight.data = module.weight.data.clone()

    def replace():
        module.bias = torch.nn.Parameter(module.bias.detach().clone())

    for change in (write, move, replace, module.bfloat16, lambda: module.register_forward_hook(print), module.eval):
        before, memory = Snapshot(module, values=True), Snapshot(module)
        assert before.unchanged() and memory.unchanged()
        change()
        assert not before.unchanged()
        assert memory.unchanged() is (change is write)  # which the memory itself shows


def test_nothing_imports_gliner_at_its_top():
    for file in Path(spans.__file__).parents[1].rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in getattr(node, "names", [])]
            assert not any((name or "").split(".")[0] == "gliner" for name in names), file


def test_the_benchmark_runs(tmp_path, monkeypatch, capsys):
    """bench/bench_accelerate.py on a tiny checkpoint: it compares before it times."""
    make_tiny_model(dropout=0.0, max_width=6).save_pretrained(tmp_path / "tiny")
    (tmp_path / "texts.txt").write_text(
        "Ada Lovelace met Charles Babbage in London .\nTaylor wrote about the Engine .\n"
    )
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    bench = importlib.import_module("bench_accelerate")
    asked = ["--models", tmp_path / "tiny", "--checkpoint", tmp_path / "none", "--texts", tmp_path / "texts.txt"]
    asked += ["--batches", "1,2", "--rounds", "2", "--json", tmp_path / "out.json"]
    monkeypatch.setattr(sys, "argv", ["bench_accelerate.py", *map(str, asked)])
    assert bench.main() == 0
    results = json.loads((tmp_path / "out.json").read_text())
    (batches,) = results["models"].values()
    assert all(len(batches[batch]["seconds"][side]) == 2 for batch in "12" for side in ("gliner", "accelerated"))
    assert "accelerated, s" in capsys.readouterr().out
    monkeypatch.setattr(bench, "agreement", lambda *_: {"same": False})
    assert bench.main() == 1 and "nothing was timed" in capsys.readouterr().err
