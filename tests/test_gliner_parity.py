"""Checkpoints of the public package load here and give its logits and entities; what is saved here loads there."""

import json

import pytest
import torch
from accuracy import assert_accurate

from tests.conftest import WORDS

gliner = pytest.importorskip("gliner", reason="needs the extra peers (gliner)")

LABELS = ["person", "political party", "country", "election"]


def public_logits(model, texts, labels):
    batch = model.collate_batch(
        [{"tokenized_text": words, "ner": None} for words in texts], labels, model.create_collator()
    )
    with torch.no_grad():
        logits = model.model(**{k: v for k, v in batch.items() if isinstance(v, torch.Tensor)}).logits
    return [logits[i, : len(words), :, : len(labels)] for i, words in enumerate(texts)]


def our_logits(model, texts, labels):
    with torch.no_grad():
        return model.scores(model.packer.pack(texts, [labels] * len(texts)))


def spans_inside(words, logits):
    """[words, widths]: the spans that end in the text."""
    return (torch.arange(len(words))[:, None] + torch.arange(logits.shape[1])) < len(words)


def assert_same_logits(public, ours, texts, labels):
    for words, wanted, got in zip(
        texts, public_logits(public, texts, labels), our_logits(ours, texts, labels), strict=True
    ):
        inside = spans_inside(words, wanted)
        assert got.shape == wanted.shape
        assert (got - wanted)[inside].abs().max() <= 1e-4
        assert torch.isneginf(got[~inside]).all()


def assert_same_entities(public, ours, texts, labels, threshold, **options):
    theirs = public.inference(
        texts,
        labels,
        threshold=threshold,
        flat_ner=options.get("flat", True),
        multi_label=options.get("multi_label", False),
    )
    found = ours.predict(texts, labels, threshold, **options)
    assert sum(map(len, theirs)) > 0
    for wanted, got in zip(theirs, found, strict=True):
        assert [(e["start"], e["end"], e["text"], e["label"]) for e in got] == [
            (e["start"], e["end"], e["text"], e["label"]) for e in wanted
        ]
        assert [e["score"] for e in got] == pytest.approx([e["score"] for e in wanted], abs=1e-5)
        assert all(set(e) == {"start", "end", "text", "label", "score"} for e in got)


def sentences(shared, count):
    from glimodern.data import load_dataset

    return [example.words for example in load_dataset(shared / "data" / "crossner" / "politics", split="test")][:count]


def random_public_model(folder, kind, tmp_path, hidden_size):
    """A gliner model with random weights on a tiny encoder, built offline and saved by its own save_pretrained."""
    from gliner.config import GLiNERConfig
    from transformers import BertConfig, ModernBertConfig

    from glimodern.train.demo import train_tokenizer

    tokenizer = train_tokenizer([WORDS] * 4, LABELS, vocab_size=400)
    tokenizer.model_max_length = 512
    encoder = {
        "modernbert": lambda: ModernBertConfig(
            vocab_size=len(tokenizer), hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
            global_attn_every_n_layers=2, local_attention=16, pad_token_id=0, bos_token_id=2, eos_token_id=3,
            cls_token_id=2, sep_token_id=3,
        ),
        "bert": lambda: BertConfig(
            vocab_size=len(tokenizer), hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        ),
    }[kind]()  # fmt: skip
    base = tmp_path / "encoder"
    tokenizer.save_pretrained(base)
    encoder.save_pretrained(base)
    config = GLiNERConfig(
        model_name=str(base), encoder_config=encoder.to_dict(), hidden_size=hidden_size, span_mode="markerV0",
        max_width=12, num_rnn_layers=0, dropout=0.1, max_len=384,
    )  # fmt: skip
    torch.manual_seed(1)
    model = gliner.GLiNER.from_config(config, backbone_from_pretrained=False)
    with torch.no_grad():  # spread scores: those of random weights lie so near that rounding puts them in order
        model.model.prompt_rep_layer[-1].weight.mul_(10.0)
    model.save_pretrained(folder, safe_serialization=True)
    return model.eval()


@pytest.mark.parametrize(("kind", "hidden_size"), [("modernbert", 48), ("modernbert", 32), ("bert", 48)])
def test_random_public_checkpoint(shared, tmp_path, kind, hidden_size):
    from glimodern import GLiModern

    public = random_public_model(tmp_path / "public", kind, tmp_path, hidden_size)
    ours = GLiModern.from_pretrained(tmp_path / "public", dtype="fp32")
    texts = sentences(shared, 12) + [["one"]]
    assert_same_logits(public, ours, texts, LABELS)
    logits = torch.cat([t[torch.isfinite(t)] for t in our_logits(ours, texts, LABELS)])
    threshold = float(torch.sigmoid(logits).quantile(0.98))
    joined = [" ".join(words) for words in texts[:4]]
    assert_same_entities(public, ours, joined, LABELS, threshold)
    assert_same_entities(public, ours, joined, LABELS, threshold, flat=False)
    assert_same_entities(public, ours, joined, LABELS, threshold, multi_label=True)

    ours.save_pretrained(tmp_path / "saved")
    again = gliner.GLiNER.from_pretrained(str(tmp_path / "saved"), strict=True)
    assert_same_logits(again, ours, texts, LABELS)


def test_trained_public_checkpoint(shared):
    """A checkpoint that nobody here wrote gives gliner's entities on real sentences."""
    from glimodern import GLiModern

    folder = shared / "checkpoints" / "gliner-minilm-mix"
    public = gliner.GLiNER.from_pretrained(str(folder)).eval()
    public64 = gliner.GLiNER.from_pretrained(str(folder)).eval().double()
    ours = GLiModern.from_pretrained(folder, dtype="fp32")
    ours64 = GLiModern.from_pretrained(folder, dtype=torch.float64, trainable=True).eval()
    texts = sentences(shared, 24)

    def inside(logits):
        return torch.cat([z[spans_inside(words, z)] for words, z in zip(texts, logits, strict=True)])

    # Logits as large as 95 differ in fp32 by 1e-4, which is rounding: the models are the same in fp64.
    truth = inside(public_logits(public64, texts, LABELS))
    torch.testing.assert_close(inside(our_logits(ours64, texts, LABELS)), truth, rtol=0.0, atol=1e-10)
    eager = inside(public_logits(public, texts, LABELS))
    assert_accurate(inside(our_logits(ours, texts, LABELS)), truth, eager, what="logits")
    assert_same_entities(public, ours, [" ".join(words) for words in texts], LABELS, 0.2)
    assert_same_entities(public, ours, [" ".join(words) for words in texts], LABELS, 0.2, flat=False, multi_label=True)


def test_saved_config_is_read_by_the_public_package(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "m")
    fields = json.loads((tmp_path / "m" / "gliner_config.json").read_text())
    loaded = gliner.GLiNER.from_pretrained(str(tmp_path / "m"), strict=True)
    assert loaded.config.max_width == fields["max_width"] == 6
    assert_same_logits(loaded, tiny_model, [WORDS, WORDS[:2]], ["person", "place"])
