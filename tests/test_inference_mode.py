"""What a call keeps is made of ordinary tensors: made in `torch.inference_mode()`, it serves later calls outside that
mode, training and files too, and the other way round."""

import contextlib
import copy
import pickle
import warnings
from collections.abc import Mapping

import pytest
import torch
from torch import nn

from glimodern import GLiModern, LabelVectors, accelerate_gliner, ops
from glimodern.layers.chained import Chained
from glimodern.ops import PackedWeight
from glimodern.runtime.ambient import lasting
from tests.bi_encoder_rows import encoder_config, save_encoder
from tests.conftest import WORDS, make_tiny_model
from tests.recorder import assert_as_eager, calling, pack, serve
from tests.test_bi_encoder import make_bi

LABELS = ["person", "place", "machine"]
TEXT = " ".join(WORDS)


@contextlib.contextmanager
def outside():
    yield


ORDERS = pytest.mark.parametrize(
    ("first", "then"), [(torch.inference_mode, outside), (outside, torch.inference_mode)], ids=["in-out", "out-in"]
)


def lazily_kept(model):
    """Every tensor that a model's modules and caches reach, parameters and buffers aside."""
    seen, found, todo = set(), [], [model]
    while todo:
        thing = todo.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            found.append(thing)
        elif isinstance(thing, Mapping):
            todo += [*thing.keys(), *thing.values()]
        elif isinstance(thing, list | tuple | set):
            todo += list(thing)
        elif isinstance(thing, nn.Module) or type(thing).__module__.startswith("glimodern"):
            todo += list(getattr(thing, "__dict__", {}).values())
    return found


def train_step(model):
    """One step as training takes it; the gradients' size."""
    model.train()
    model(model.packer.pack([WORDS], [LABELS], [[(0, 1, "person")]])).backward()
    model.eval()
    total = sum(float(p.grad.abs().sum()) for p in model.parameters() if p.grad is not None)
    model.zero_grad()
    return total


def test_tensors_of_a_lasting_block_are_ordinary_and_the_mode_comes_back():
    with torch.inference_mode():
        with lasting():
            kept = torch.ones(2)
            assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
    assert not kept.is_inference()
    with lasting():
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


@ORDERS
@pytest.mark.parametrize("seen_first", [False, True])
def test_graphs_of_one_mode_serve_the_other(first, then, seen_first):
    """Their buffer, their outputs; the size seen in one mode and recorded in the other too."""
    model = make_tiny_model(dropout=0.0)
    cache, calls = calling()
    batch, other = pack(model, 9), pack(model, 4, 3)
    if seen_first:
        with then():
            serve(cache, model, batch)
    with first():
        assert seen_first or serve(cache, model, batch) is None
        assert serve(cache, model, batch) is not None
    for again in (batch, other, batch):
        with then():
            serve(cache, model, again)
            factors = serve(cache, model, again)
        assert_as_eager(model, again, factors)
    assert calls.replayed >= 4
    assert train_step(model) > 0
    with first():
        serve(cache, model, batch)
        assert_as_eager(model, batch, serve(cache, model, batch))


@ORDERS
def test_factors_of_a_graph_belong_to_the_callers_mode(first, then):
    model = make_tiny_model(dropout=0.0)
    cache, _ = calling()
    batch = pack(model, 9)
    for mode in (first, then, first, then):
        with mode():
            factors = serve(cache, model, batch)
    assert factors.words[0].is_inference() == (then is torch.inference_mode)


KINDS = ("modernbert", "bert", "deberta-v2", "t5", "mpnet", "distilbert")


def plain(kind, width=32):
    from glimodern.train.demo import train_tokenizer

    tokenizer = train_tokenizer([WORDS] * 4, LABELS, vocab_size=320)
    torch.manual_seed(0)
    return GLiModern.from_encoder_config(encoder_config(kind, width, len(tokenizer)), tokenizer, dropout=0.0).eval()


@ORDERS
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_predicts_and_trains_after_predicting(kind, first, then):
    """Attention's packing and groups, position tables, rotary tables, prompts."""
    model = plain(kind)
    with first():
        wanted = model.predict(TEXT, LABELS, 0.3)
    with then():
        assert model.predict(TEXT, LABELS, 0.3) == wanted
    assert not any(x.is_inference() for x in lazily_kept(model))
    with first():
        model.predict(TEXT, LABELS, 0.3)
    assert train_step(model) > 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(2):
        model(model.packer.pack([WORDS], [LABELS], [[(0, 1, "person")]])).backward()
        optimizer.step()
        with first():
            model.predict(TEXT, LABELS, 0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A uni-encoder under uni/, a label encoder under labels/ and a bi-encoder under bi/."""
    folder = tmp_path_factory.mktemp("kept")
    plain("modernbert", 64).save_pretrained(folder / "uni")
    save_encoder(folder / "labels", "bert", 48, 330)
    make_bi(folder / "labels").save_pretrained(folder / "bi")
    return folder


needs_kernels = pytest.mark.skipif(
    ops.backend_info("cpu")["linear_packed"]["isa"] in ("", "scalar"), reason="no vector kernels: nothing is packed"
)


@needs_kernels
@ORDERS
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_packed_weights_and_chains(folder, dtype, first, then):
    """Made in one mode (the chain at the first prediction), used, moved, copied and pickled in the other."""
    with first(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights agree with nothing in int8
        model = GLiModern.from_pretrained(folder / "uni", dtype=dtype)
        wanted = model.predict(TEXT, LABELS, 0.3)
    chained = next(x for m in model.modules() for x in vars(m).values() if isinstance(x, Chained))
    assert chained._built is not None and chained._built.chain is not None
    with then():
        assert model.predict(TEXT, LABELS, 0.3) == wanted
        assert copy.deepcopy(model).predict(TEXT, LABELS, 0.3) == wanted
        assert pickle.loads(pickle.dumps(model)).predict(TEXT, LABELS, 0.3) == wanted
        assert model.to("cpu").share_memory().predict(TEXT, LABELS, 0.3) == wanted


@ORDERS
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_a_packed_weight(dtype, first, then):
    """What it unpacks to can be trained on."""
    with first():
        packed = PackedWeight.pack(torch.randn(8, 16), torch.randn(8), dtype, torch.rand(16)).to("cpu")
    assert not any(x.is_inference() for x in packed.tensors)
    with then():
        assert ops.linear_packed(torch.randn(3, 16), packed).shape == (3, 8)
    weight = nn.Parameter(packed.unpack().float())
    (torch.randn(3, 16) @ weight.T).square().sum().backward()
    assert weight.grad.abs().sum() > 0


@ORDERS
@pytest.mark.parametrize("sealed", [True, False])
def test_labels_that_a_bi_encoder_keeps(folder, sealed, first, then):
    """Type vectors with their fold, of labels and of label vectors; more labels join them in the other mode."""
    options = {"dtype": "fp32"} if sealed else {"trainable": True}
    model = GLiModern.from_pretrained(folder / "bi", **options)
    with first():
        vectors = model.encode_labels(LABELS)
        wanted = model.predict(TEXT, LABELS, 0.3)
        assert model.predict(TEXT, threshold=0.3, label_vectors=vectors) == wanted
    assert not any(x.is_inference() for x in lazily_kept(model))
    with then():
        assert model.predict(TEXT, LABELS, 0.3) == wanted
        assert model.predict(TEXT, threshold=0.3, label_vectors=vectors) == wanted
        model.predict(TEXT, [*LABELS, "ship"], 0.3)
        assert copy.deepcopy(model).predict(TEXT, LABELS, 0.3) == wanted
    with first():
        model.predict(TEXT, [*LABELS, "town"], 0.3)
    if not sealed:
        assert train_step(model) > 0


def test_label_vectors_are_trained_on_written_and_saved(folder, tmp_path):
    model = GLiModern.from_pretrained(folder / "bi", trainable=True)
    with torch.inference_mode():
        made = model.encode_labels(LABELS)
        made.save(tmp_path / "labels.safetensors")
        read = LabelVectors.load(tmp_path / "labels.safetensors")
        given = LabelVectors(tuple(LABELS), made.vectors + 0, made.model, made.fingerprint)
    weight = torch.randn(32, 1, requires_grad=True)
    for vectors in (made, read, given):
        assert torch.equal(vectors.vectors, made.vectors)
        (vectors.vectors @ weight).sum().backward()
        (vectors.of(LABELS[:2]) @ weight).sum().backward()
        vectors.save(tmp_path / "again.safetensors")
        vectors.vectors.add_(0.0)
    ordinary = torch.ones(3, 32)
    assert LabelVectors(tuple(LABELS), ordinary, "", "").vectors is ordinary


@ORDERS
def test_shadows_of_a_live_model(folder, first, then):
    gliner = pytest.importorskip("gliner", reason="needs the extra parity")
    live = gliner.GLiNER.from_pretrained(str(folder / "uni"))
    with torch.no_grad():
        wanted = live.predict_entities(TEXT, LABELS, threshold=0.3)
    handle = accelerate_gliner(live)
    for mode in (first, then, first):
        with mode(), torch.no_grad():
            found = live.predict_entities(TEXT, LABELS, threshold=0.3)
        assert [{**e, "score": pytest.approx(e["score"], abs=1e-4)} for e in wanted] == found
    for swap in vars(live.model).values():
        if hasattr(swap, "__self__"):
            assert not any(x.is_inference() for x in lazily_kept(swap.__self__.shadow.current()))
    handle.restore()
    layer = live.model.prompt_rep_layer
    layer.train()(torch.randn(2, 64)).sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())
