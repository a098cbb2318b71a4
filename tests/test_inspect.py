"""glimodern.inspect: its numbers are the model's, its decisions the decoder's, and its page holds what it was given."""

import inspect as standard_inspect
import json
import sys
from html.parser import HTMLParser

import pytest
import torch

from glimodern.inspect import __main__ as command
from glimodern.inspect import inspect
from glimodern.model.glimodern import GLiModern
from tests.conftest import make_tiny_model

TEXT = "Ada Lovelace met Charles Babbage in London and wrote about the Analytical Engine ."
LABELS = ["person", "place", "machine"]


def logits_of(model, text, labels):
    return model.scores(model.packer.pack([text.split()], [labels]))[0].detach()


def some_threshold(model, text=TEXT, labels=LABELS, quantile=0.9):
    logits = logits_of(model, text, labels)
    return float(torch.sigmoid(logits[torch.isfinite(logits)]).quantile(quantile))


def every_span(found):
    return [(kind.label, span) for kind in found.types for span in kind.spans]


def conflict(one, other, flat, multi_label):
    """Whether two (start, end, label) may not both be entities: decode.greedy_decode's rule, span by span."""
    if one[:2] == other[:2]:
        return not multi_label and one != other
    if one[0] > other[1] or other[0] > one[1]:
        return False
    nested = (one[0] >= other[0] and one[1] <= other[1]) or (other[0] >= one[0] and other[1] <= one[1])
    return flat or not nested


# numbers and decisions


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("multi_label", [True, False])
def test_spans_are_ranked_and_decided_as_predict_does(tiny_model, flat, multi_label):
    threshold = some_threshold(tiny_model)
    found = inspect(tiny_model, TEXT, LABELS, threshold=threshold, flat=flat, multi_label=multi_label, top=1000)
    assert found.entities == tiny_model.predict(TEXT, LABELS, threshold, flat, multi_label)[0]
    logits = logits_of(tiny_model, TEXT, LABELS)
    assert torch.equal(found.logits, logits)
    spans = every_span(found)
    assert len(spans) == int(torch.isfinite(logits).sum())  # every span of every type, once
    for column, kind in enumerate(found.types):
        assert [s.score for s in kind.spans] == sorted((s.score for s in kind.spans), reverse=True)
        for span in kind.spans:
            logit = logits[span.start, span.end - span.start, column]
            assert span.logit == float(logit)
            assert span.score == pytest.approx(float(torch.sigmoid(logit)), abs=1e-6)
            assert span.margin == span.score - threshold
    scores = {(span.start, span.end, label): span.score for label, span in spans}
    kept = {(span.start, span.end, label) for label, span in spans if span.decision == "kept"}
    assert len(kept) == len(found.entities) >= 2
    for label, span in spans:
        me = (span.start, span.end, label)
        assert (span.decision == "below") == (span.score <= threshold)
        among = kept if span.decision == "beaten" else scores
        strongest = max((scores[x] for x in among if conflict(me, x, flat, multi_label)), default=None)
        assert (span.rival and span.rival.score) == strongest
        if span.rival:
            rival = (span.rival.start, span.rival.end, span.rival.label)
            assert conflict(me, rival, flat, multi_label)
            assert scores[rival] == span.rival.score
        if span.decision == "beaten":
            assert span.rival.score >= span.score


def test_all_entities_are_shown_however_few_are_asked_for(tiny_model):
    threshold = some_threshold(tiny_model, quantile=0.5)
    found = inspect(tiny_model, TEXT, LABELS, threshold=threshold, top=1)
    shown = sorted((span.start, label) for label, span in every_span(found) if span.decision == "kept")
    entities = tiny_model.predict(TEXT, LABELS, threshold)[0]
    assert [label for _, label in shown] == [entity["label"] for entity in entities]
    assert [kind.kept for kind in found.types] == [sum(e["label"] == label for e in entities) for label in LABELS]
    assert any(kind.kept > 1 for kind in found.types)


@pytest.mark.parametrize("dtype", ["fp32", "int8", "bf16"])
def test_packed_models(tiny_model, tmp_path, dtype):
    tiny_model.save_pretrained(tmp_path / "model")
    model = GLiModern.from_pretrained(tmp_path / "model", dtype=dtype)
    found = inspect(model, TEXT, LABELS, threshold=0.3)
    assert found.entities == model.predict(TEXT, LABELS, 0.3)[0]
    assert found.model["dtype"] == dtype
    assert torch.equal(found.logits, logits_of(model, TEXT, LABELS).float())
    assert ("linear_packed" in found.operators) == (model.packed_dtype is not None)


def test_trained_checkpoint(shared):
    model = GLiModern.from_pretrained(shared / "checkpoints" / "gliner-minilm-mix", dtype="fp32")
    text = "Dr. Amara Lindqvist of the World Bank met Ahmed Farouk in Cairo."
    found = inspect(model, text, ["person", "location"], threshold=0.3)
    assert found.entities == model.predict(text, ["person", "location"], 0.3)[0]
    assert {"Ahmed Farouk", "Cairo"} <= {entity["text"] for entity in found.entities}
    farouk = next(word for word in found.words if word.text == "Farouk")
    assert [t.text for t in found.tokens[farouk.first_token :][: farouk.token_count]] == ["far", "##ouk"]


def test_a_model_in_training_stays_in_training():
    model = make_tiny_model(dropout=0.5).train()
    first, second = (inspect(model, TEXT, LABELS) for _ in range(2))
    assert torch.equal(first.logits, second.logits)
    assert model.training
    assert not model.encoder._forward_hooks


# shapes, tokens, truncation


def test_shapes_of_every_stage(tiny_model):
    found = inspect(tiny_model, TEXT, LABELS)
    batch = tiny_model.packer.pack([TEXT.split()], [LABELS])
    shapes = {(stage.stage, stage.name): (stage.shape, stage.dtype) for stage in found.stages}
    assert shapes["PackedBatch", "input_ids"] == (tuple(batch.input_ids.shape), "int64")
    assert shapes["PackedBatch", "cu_words"] == ((2,), "int32")
    assert shapes["encoder", "hidden"] == ((14 + 3, 32), "float32")
    assert shapes["encode", "h"] == ((14, 32), "float32")
    assert shapes["head", "a"] == ((14, 128), "float32")
    assert shapes["scores", "logits"] == ((14, 6, 3), "float32")
    assert {"attention_varlen", "geglu", "rotary", "add_layer_norm", "span_scores"} <= set(found.operators)
    assert all(info["backend"] for info in found.operators.values())


def test_projection_and_lstm_are_stages():
    from dataclasses import replace

    model = make_tiny_model(dropout=0.0, hidden_size=16)
    model = GLiModern(replace(model.config, num_rnn_layers=1), model.encoder, model.tokenizer).eval()
    found = inspect(model, TEXT, LABELS)
    shapes = [(stage.name, stage.shape) for stage in found.stages if stage.stage == "projection"]
    assert shapes == [("words", (14, 16)), ("prompts", (3, 16))]
    assert [stage.note for stage in found.stages if stage.name == "h"] == ["word vectors, through the LSTM"]


def test_tokens_belong_to_their_words_and_labels(tiny_model):
    labels = ["person", "two words"]
    found = inspect(tiny_model, TEXT, labels)
    batch = tiny_model.packer.pack([TEXT.split()], [labels])
    assert [token.id for token in found.tokens] == batch.input_ids.tolist()
    vectors = [i for i, token in enumerate(found.tokens) if token.vector]
    assert vectors == [*batch.type_index.tolist(), *batch.word_index.tolist()]
    for i, word in enumerate(found.words):
        assert word.status == "read"
        assert word.first_token == int(batch.word_index[i])
        own = found.tokens[word.first_token : word.first_token + word.token_count]
        assert "".join(token.text for token in own).replace("Ġ", "") == word.text
        assert {(token.part, token.owner) for token in own} == {("word", i)}
    prompt = [token for token in found.tokens if token.part == "prompt"]
    assert "".join(token.text for token in prompt if token.owner == 1) == "<<ENT>>ĠtwoĠwords"
    assert [token.owner for token in prompt][-1] is None  # <<SEP>>
    assert [token.text for token in found.tokens if token.part == "special"] == ["[CLS]", "[SEP]"]


def test_cut_words(tiny_model):
    """A word cut short is told from words not read at all; labels that leave no room for a text are refused."""
    found = inspect(tiny_model, TEXT + " x" * 200, ["person"], threshold=0.0)
    statuses = [word.status for word in found.words]
    assert found.words_cut == statuses.count("cut") > 0
    assert sum(token.part == "word" for token in found.tokens) == sum(word.token_count for word in found.words)
    (short,) = [
        w for w in inspect(tiny_model, "Ada " + "z" * 5000 + " end", ["person"]).words if w.status == "cut short"
    ]
    assert short.start == 4
    full = ["person", "z"]
    while len(tiny_model.packer.pack([[]], [full]).input_ids) < tiny_model.packer.max_tokens:
        full[1] += "z"
    with pytest.raises(ValueError, match="labels: 2 labels do not fit the prompt"):
        inspect(tiny_model, TEXT, full)
    while len(tiny_model.packer.pack([[]], [full]).input_ids) >= tiny_model.packer.max_tokens:
        full[1] = full[1][:-1]
    nothing = inspect(tiny_model, TEXT, full)
    assert nothing.words_cut >= len(nothing.words) - 1
    assert "NOT read" in nothing.to_html()


def test_missing_words():
    """A word that the tokenizer turns into nothing is marked; its neighbours keep their places."""
    from tokenizers import normalizers

    model = make_tiny_model(dropout=0.0)
    backend = model.packer.tokenizer
    backend.normalizer = normalizers.Replace("§", "")
    found = inspect(model, "Ada § London", ["person"], threshold=0.0)
    assert [word.status for word in found.words] == ["read", "missing", "read"]
    assert found.words[1].token_count == 0
    assert found.tokens[found.words[2].first_token].owner == 2


@pytest.mark.parametrize(
    ("text", "labels", "options", "message"),
    [
        (" \n", LABELS, {}, "text: expected at least one word"),
        (TEXT, [], {}, "labels: expected at least one type"),
        (TEXT, [""], {}, r"labels\[0\]: expected a name"),
        (TEXT, LABELS, {"threshold": 2.0}, "threshold: expected a probability"),
        (TEXT + "\ud800", LABELS, {}, "text: expected Unicode text, got a lone surrogate"),
        (TEXT, LABELS, {"top": 0}, "top: expected a number of spans"),
        (TEXT, [f"label number {i}" for i in range(80)], {}, "labels do not fit the prompt"),
    ],
)
def test_bad_arguments(tiny_model, text, labels, options, message):
    with pytest.raises(ValueError, match=message):
        inspect(tiny_model, text, labels, **options)


# the page


VOID = {"meta", "input", "br", "link"}


class Page(HTMLParser):
    """Checks that tags nest, and collects marks (text, label and score), attributes and the data of scripts."""

    def __init__(self, html):
        super().__init__()
        self.open, self.marks, self.entities, self.scripts, self.addresses = [], [], [], [], []
        self.ids = set()
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.ids.update(value for name, value in attributes if name == "id")
        self.addresses += [value for name, value in attributes if name in ("src", "href", "action")]
        assert not [name for name, _ in attributes if name.startswith("on")]
        if tag in VOID:
            return
        self.open.append(tag)
        if tag == "mark":
            self.marks.append([[], []])
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "mark":
            text, note = map("".join, self.marks.pop())
            self.entities.append((text, *note.rsplit(" ", 1)))

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        for mark in self.marks[-1:] if "small" in self.open else self.marks:
            mark["small" in self.open].append(data)


HOSTILE = "</script><script>alert(1)</script>"


@pytest.mark.parametrize(("flat", "multi_label"), [(True, False), (False, True)])
def test_page_holds_every_entity_and_escapes(tiny_model, flat, multi_label):
    text = f'Ada "Lovelace" & <b>Babbage</b> {HOSTILE} <!-- in London \u2028 {{{{data}}}} \\u003c'
    labels = ["person", HOSTILE, "<img src=x onerror=alert(1)>", "{{text}}"]
    threshold = some_threshold(tiny_model, "Ada Lovelace Babbage in London", labels, 0.7)
    found = inspect(tiny_model, text, labels, threshold=threshold, flat=flat, multi_label=multi_label)
    html = found.to_html()
    page = Page(html)
    wanted = [(e["text"], e["label"], f"{e['score']:.2f}") for e in found.entities]
    assert len(wanted) > 1
    assert sorted(page.entities) == sorted(wanted)
    assert {f"type-{i}" for i in range(4)} <= page.ids
    assert len(page.scripts) == 2  # the data and the template's own
    assert all(address.startswith("#") for address in page.addresses)
    data = json.loads(page.scripts[0])
    assert (data["text"], data["labels"]) == (text, labels)
    assert "http" not in html.replace("http-equiv", "")


def test_page_draws_the_scores_of_the_model(tiny_model):
    page = Page(inspect(tiny_model, TEXT, LABELS).to_html())
    data = json.loads(page.scripts[0])
    logits = logits_of(tiny_model, TEXT, LABELS)
    words, widths, types = logits.shape
    got = torch.tensor(data["scores"]).view(types, widths, words).permute(2, 1, 0)
    assert torch.equal(got == -1, logits == -torch.inf)
    inside = got >= 0
    assert (got[inside] / 10_000 - torch.sigmoid(logits)[inside]).abs().max() <= 0.5001e-4


def test_page_of_a_text_shorter_than_a_span(tiny_model):
    data = json.loads(Page(inspect(tiny_model, "Ada", ["person"]).to_html()).scripts[0])
    assert (data["widths"], len(data["scores"][0])) == (1, 1)


def test_page_lets_only_its_own_script_run(tiny_model):
    import base64
    import hashlib
    import re

    html = inspect(tiny_model, TEXT, LABELS).to_html()
    digest = hashlib.sha256(Page(html).scripts[1].encode()).digest()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    assert f"script-src 'sha256-{base64.b64encode(digest).decode()}'" in policy
    assert "default-src 'none'" in policy


# the command


def test_command_writes_json_and_html(tiny_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    tiny_model.save_pretrained(tmp_path / "model")
    arguments = [str(tmp_path / "model"), TEXT + " [bold]x", "--labels", "person, place", "--threshold", "0.4"]
    files = ["--json", str(tmp_path / "found.json"), "--html", str(tmp_path / "found.html"), "--dtype", "fp32"]
    command.main([*arguments, *files])
    printed = capsys.readouterr().out
    for wanted in ("input_ids", "attention_varlen", "<<ENT>>", "runner-up", "nothing was cut", "[bold"):
        assert wanted in printed
    data = json.loads((tmp_path / "found.json").read_text())
    model = GLiModern.from_pretrained(tmp_path / "model", dtype="fp32")
    text = TEXT + " [bold]x"
    assert data["entities"] == model.predict(text, ["person", "place"], 0.4)[0]
    words = [word["text"] for word in data["words"]]
    logits = model.scores(model.packer.pack([words], [["person", "place"]]))[0]
    for column, kind in enumerate(data["types"]):
        assert kind["spans"]
        for span in kind["spans"]:
            assert span["logit"] == float(logits[span["start"], span["end"] - span["start"], column])
    assert Page((tmp_path / "found.html").read_text()).ids


def test_command_wants_labels(tmp_path):
    with pytest.raises(ValueError, match="--labels: expected at least one type"):
        command.main([str(tmp_path), "text"])


def test_the_standard_module_is_not_shadowed():
    """test_readme.py runs `python -m glimodern.inspect`; here both modules live in one process."""
    assert "text" in standard_inspect.signature(inspect).parameters
    assert sys.modules["inspect"] is standard_inspect is not sys.modules["glimodern.inspect"]
