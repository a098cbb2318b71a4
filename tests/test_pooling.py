"""Word vectors from sub-tokens: the first, the last, their mean or maximum; packed, with empty and with cut words."""

import pytest
import torch

from glimodern.checkpoint.config import POOLINGS
from glimodern.network.pooling import pool_subtokens
from tests.checkpoint_rows import LABELS as PUBLIC_LABELS
from tests.checkpoint_rows import ROWS, public_logits, public_model
from tests.conftest import WORDS, make_tiny_model

LABELS = ["person", "place"]
COUNTS = [2, 0, 3, 1, 0]


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_against_a_loop(pooling):
    """Values and gradients, of words without sub-tokens too."""
    torch.manual_seed(0)
    subtokens = torch.randn(sum(COUNTS), 4, dtype=torch.float64, requires_grad=True)

    def loop(rows):
        words = rows.split(COUNTS)
        reduce = torch.Tensor.mean if pooling == "mean" else torch.Tensor.amax
        return torch.stack([reduce(word, dim=0) if len(word) else rows.new_zeros(4) for word in words])

    upstream = torch.randn(len(COUNTS), 4, dtype=torch.float64)
    got, wanted = pool_subtokens(subtokens, torch.tensor(COUNTS), pooling), loop(subtokens)
    torch.testing.assert_close(got, wanted)
    (one,), (other,) = (torch.autograd.grad(words, subtokens, upstream) for words in (got, wanted))
    torch.testing.assert_close(one, other)


def test_a_shared_maximum_divides_its_gradient():
    subtokens = torch.tensor([[1.0], [1.0], [0.0]], requires_grad=True)
    pool_subtokens(subtokens, torch.tensor([3]), "max").backward(torch.ones(1, 1))
    assert subtokens.grad.flatten().tolist() == [0.5, 0.5, 0.0]


def test_nothing_to_pool():
    empty = torch.zeros(0, dtype=torch.int64)
    assert pool_subtokens(torch.zeros(0, 3), empty, "mean").shape == (0, 3)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_rows_that_are_read(pooling):
    """The packer asks the encoder for the rows of the pooling, and for no others."""
    model = make_tiny_model(dropout=0.0, subtoken_pooling=pooling)
    texts = [WORDS, [], ["Lovelace", "Babbage"]]
    batch = model.packer.pack(texts, [LABELS, LABELS, ["machine"]])
    tokens = [model.packer.tokenizer.encode([word], is_pretokenized=True, add_special_tokens=False).ids
              for words in texts for word in words]  # fmt: skip
    assert max(map(len, tokens)) > 1
    if pooling in ("first", "last"):
        assert batch.subtoken_index is None and batch.subtoken_counts is None
        end = 0 if pooling == "first" else -1
        assert batch.input_ids[batch.word_index].tolist() == [word[end] for word in tokens]
    else:
        assert batch.subtoken_counts.tolist() == list(map(len, tokens))
        assert batch.input_ids[batch.subtoken_index].tolist() == sum(tokens, [])
    rows = []
    encoder = model.encoder.forward
    model.encoder.forward = lambda *args: rows.append(len(args[3])) or encoder(*args)
    model.encode(batch)
    read = sum(map(len, tokens)) if pooling in ("mean", "max") else len(tokens)
    assert rows == [read + len(batch.type_index)]


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
def test_a_word_without_tokens_is_zero(minilm, pooling):
    from glimodern.model.glimodern import GLiModern

    model = GLiModern.from_encoder(minilm, subtoken_pooling=pooling).eval()
    with torch.no_grad():
        words, _ = model.encode(model.packer.pack([["London", "\u200b", "Lovelace"]], [["x"]]))
        without, _ = model.encode(model.packer.pack([["London", "Lovelace"]], [["x"]]))
    assert torch.equal(words[1], torch.zeros_like(words[1]))
    torch.testing.assert_close(words[[0, 2]], without)


@pytest.mark.parametrize("row", [ROWS[2], ROWS[5]], ids=["last", "mean"])
def test_a_cut_text_is_gliners(row, tmp_path):
    """Of a text that the encoder does not take, the words that are read, a cut one too, have gliner's vectors."""
    pytest.importorskip("gliner", reason="needs the extra peers (gliner)")
    from glimodern import GLiModern

    words = ["antidisestablishmentarianism", "in", "internationally"] * 30
    public = public_model(tmp_path, row)
    ours = GLiModern.from_pretrained(tmp_path / "public", dtype="fp32")
    batch = ours.packer.pack([words], [PUBLIC_LABELS])
    kept = int(batch.cu_words[-1])
    assert 0 < kept < len(words)
    public.data_processor.transformer_tokenizer.model_max_length = ours.packer.max_tokens
    wanted = public_logits(public, [words])[0][:kept]
    with torch.no_grad():
        (got,) = ours.scores(batch)
    single = (got[:, 0] - wanted[:, 0]).abs().max()  # each word as a span
    assert single <= 1e-4


def test_results_do_not_depend_on_the_batch():
    model = make_tiny_model(dropout=0.0, subtoken_pooling="mean", span_mode="marker")
    texts = [" ".join(WORDS), "Lovelace met Babbage .", "", "London"]
    together = model.predict(texts, LABELS, 0.5)
    alone = [model.predict(text, LABELS, 0.5, batch_tokens=1)[0] for text in texts]
    assert sum(map(len, together)) > 0
    for one, other in zip(together, alone, strict=True):
        assert [{**e, "score": pytest.approx(e["score"], abs=1e-5)} for e in one] == other


@pytest.mark.parametrize(("span_mode", "pooling"), [("marker", "mean"), ("marker", "max"), ("markerV0", "last")])
def test_such_a_model_learns_and_is_saved(span_mode, pooling, tmp_path):
    from glimodern import GLiModern

    model = make_tiny_model(dropout=0.1, span_mode=span_mode, subtoken_pooling=pooling).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    gold = [[(0, 1, "person"), (3, 4, "person"), (6, 6, "place")]]
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = model(model.packer.pack([WORDS], [LABELS], gold))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    model.eval().save_pretrained(tmp_path / "model")
    again = GLiModern.from_pretrained(tmp_path / "model", trainable=True)
    assert (again.config.span_mode, again.config.subtoken_pooling) == (span_mode, pooling)
    text = " ".join(WORDS)
    assert again.predict(text, LABELS, 0.3) == model.predict(text, LABELS, 0.3)


def test_unknown_pooling():
    with pytest.raises(ValueError, match="subtoken_pooling: expected one of .*got 'first_last'"):
        make_tiny_model(subtoken_pooling="first_last")
