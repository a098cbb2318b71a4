"""CUDA graphs for small batches: padding, reuse of buffers and bookkeeping, with calls in the place of replays.

What only a GPU can show (the capture itself, its memory, other streams) is in the tests marked `gpu`.
"""

import copy
import logging
import threading
from dataclasses import replace

import pytest
import torch

from glimodern import GLiModern
from glimodern.network import cuda_graphs as graphs
from glimodern.network import span_network
from glimodern.network.cuda_graphs import SIZES, Bucket, GraphCache, StaticBatch, bucket_of
from tests.conftest import WORDS, make_tiny_model
from tests.recorder import LABELS, assert_as_eager, calling, eager, pack, serve, synthetic

CPU = torch.device("cpu")


@pytest.fixture
def recorded(monkeypatch):
    """The cache of the models that a test makes, of graphs on the CPU that are made of calls, and its recorder."""
    cache, calls = calling()
    monkeypatch.setattr(span_network, "GraphCache", lambda: cache)
    return cache, calls


@pytest.fixture
def cache(recorded):
    return recorded[0]


@pytest.fixture
def calls(recorded):
    return recorded[1]


@pytest.fixture
def model(recorded):
    return make_tiny_model(dropout=0.0, max_width=6)


# buckets


def test_sizes_rise_and_waste_at_most_a_fifth():
    assert list(SIZES) == sorted(set(SIZES))
    assert all(size % 16 == 0 for size in SIZES)
    assert all((larger - smaller - 1) / larger < 0.2 for smaller, larger in zip(SIZES, SIZES[1:], strict=False))


@pytest.mark.parametrize("max_length", [None, 128, 512])
def test_every_small_batch_has_a_bucket_that_holds_it(model, max_length):
    for lengths in ([1], [3, 0, 9], [18] * 7, [1] * 30, [60, 2], [18] * 20):
        batch = pack(model, *lengths)
        bucket = bucket_of(batch, max_length)
        assert bucket is not None
        tokens, texts = batch.token_offsets[-1], len(lengths)
        assert tokens <= bucket.tokens < max(1.25 * tokens + 16, 65)
        assert bucket.longest >= batch.max_seqlen and bucket.longest <= (max_length or bucket.tokens)
        assert texts + -(-(bucket.tokens - tokens) // bucket.longest) <= bucket.texts


def test_what_no_bucket_holds(model):
    assert bucket_of(pack(model), None) is None
    assert bucket_of(pack(model, *[60] * 40), None) is None  # tokens
    assert bucket_of(replace(pack(model, 2), type_index=torch.zeros(40, dtype=torch.int64)), None) is None
    assert bucket_of(replace(pack(model, 2), word_index=torch.zeros(70, dtype=torch.int64)), None) is None
    assert bucket_of(pack(model, 60), 20) is None  # a text longer than positions: the encoder says so


@pytest.mark.parametrize("max_length", [70, 128])
@pytest.mark.parametrize("lengths", [[1], [64], [3, 1, 9], [40] * 7, [60, 2], [70] * 15])
def test_a_filled_batch_covers_every_token_with_texts_that_fit(lengths, max_length):
    batch = synthetic(*lengths)
    bucket = bucket_of(batch, max_length)
    static = StaticBatch(bucket, CPU)
    address = static.buffer.data_ptr()
    static.buffer.fill_(255)  # of a batch before
    static.fill(batch)
    n, words, types = len(batch.input_ids), len(batch.word_index), len(batch.type_index)
    assert torch.equal(static.batch.input_ids[:n], batch.input_ids) and not static.batch.input_ids[n:].any()
    assert (
        torch.equal(static.batch.word_index[:words], batch.word_index) and (static.batch.word_index[words:] == -1).all()
    )
    assert torch.equal(static.batch.type_index[:types], batch.type_index) and not static.batch.type_index[types:].any()
    cu = static.packing.cu_seqlens
    assert torch.equal(cu[: len(lengths) + 1], batch.cu_seqlens)
    assert cu[-1] == bucket.tokens and cu.diff().min() >= 0 and cu.diff().max() <= bucket.longest
    assert static.buffer.data_ptr() == address == static.batch.input_ids.data_ptr()


# results


@pytest.mark.parametrize("kind", ["modernbert", "projection", "bert"])
def test_padded_results_are_those_of_the_batch_alone(kind, minilm):
    if kind == "bert":
        torch.manual_seed(0)
        model = GLiModern.from_encoder(minilm, hidden_size=64).eval()
    else:
        model = make_tiny_model(hidden_size=48 if kind == "projection" else None)
    cache, _ = calling()
    buckets = set()
    for lengths in ([1], [7, 3], [2, 0, 5, 1, 4], [40, 3], [17] * 6):
        batch = pack(model, *lengths)
        if bucket_of(batch, model.encoder.max_length) not in buckets:
            assert serve(cache, model, batch) is None  # a size that is seen once is not recorded
        buckets.add(bucket_of(batch, model.encoder.max_length))
        for _ in range(2):
            assert_as_eager(model, batch, serve(cache, model, batch))
    assert 3 <= len(cache) == len(buckets)


def test_a_shorter_batch_after_a_longer_one_sees_nothing_of_it(model, cache, calls):
    batches = [synthetic(*lengths) for lengths in ([40, 40, 46], [20, 20, 21, 20, 17, 16], [60, 61], [113, 2])]
    assert {bucket_of(batch, 128) for batch in batches} == {Bucket(128, 8, 128)}
    serve(cache, model, batches[0])
    kept = [(batch, serve(cache, model, batch)) for batch in batches * 2]
    assert len(cache) == 1 and calls.recorded == 1 and calls.replayed == 8
    for batch, factors in kept:  # after all: no result lies in a buffer that later calls wrote
        assert_as_eager(model, batch, factors)


def test_words_that_are_no_tokens_have_no_vector(model, cache):
    batch = model.packer.pack([[*WORDS[:3], "\u200b", "", *WORDS[3:5]]], [LABELS])
    if not batch.has_missing_words:
        batch = replace(batch, word_index=batch.word_index.clone().index_fill_(0, torch.tensor([2]), -1))
        batch = replace(batch, has_missing_words=True)
    serve(cache, model, batch)
    assert_as_eager(model, batch, serve(cache, model, batch))


def test_predict_finds_the_same_with_graphs(model, calls):
    texts = [" ".join((WORDS * 4)[:n]) for n in (1, 5, 0, 18, 40, 7)]
    model.cuda_graphs = False
    wanted = [model.predict(text, LABELS, 0.5)[0] for text in texts]
    assert sum(map(len, wanted)) > 10 and calls.replayed == 0
    model.cuda_graphs = True
    for _ in range(3):
        for text, entities in zip(texts, wanted, strict=True):
            (found,) = model.predict(text, LABELS, 0.5)
            assert [{**e, "score": pytest.approx(e["score"], abs=1e-5)} for e in entities] == found
    assert calls.replayed >= 10
    before = calls.replayed
    model.cuda_graphs = False
    model.predict(texts, LABELS, 0.5)
    assert calls.replayed == before


def test_threads_take_turns(model, cache):
    batches = [synthetic(*lengths) for lengths in ([40, 40, 46], [20, 20, 21, 20, 17, 16], [60, 61], [9], [128, 3])]
    for batch in batches * 2:
        serve(cache, model, batch)
    results = {}

    def run(name):
        results[name] = [(batch, serve(cache, model, batch)) for batch in batches[name:] * 10]

    threads = [threading.Thread(target=run, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for pairs in results.values():
        for batch, factors in pairs:
            assert_as_eager(model, batch, factors)


# bookkeeping


@pytest.fixture
def batch(model, cache):
    """A batch for which the model has a graph, its only one."""
    batch = pack(model, 9)
    assert serve(cache, model, batch) is None and serve(cache, model, batch) is not None
    assert len(cache) == 1
    return batch


def test_the_graph_that_was_not_used_for_longest_goes_first(model, batch, cache, calls, monkeypatch):
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 2)
    first, second, third = batch, synthetic(100), synthetic(70, 80)
    for other in (second, second, first, third, third):
        serve(cache, model, other)
    assert len(cache) == 2 and calls.recorded == 3 and calls.finished == 1
    assert all(serve(cache, model, other) is not None for other in (first, third))
    assert calls.recorded == 3
    assert_as_eager(model, second, serve(cache, model, second))
    assert calls.recorded == 4 and len(cache) == 2


def moved(model):
    model.to(torch.float64).to(torch.float32)


def moved_in_part(model):
    model.encoder.to(torch.float64).to(torch.float32)


def trained(model):
    model.train().eval()


def reassigned(model):
    model.load_state_dict({name: 2 * x for name, x in model.state_dict().items()}, assign=True)


def replaced(model):
    model.head.prompt = copy.deepcopy(model.head.prompt)
    with torch.no_grad():
        model.head.prompt[0].weight.mul_(3.0)


def resized(model):
    model.encoder.resize_token_embeddings(500)


def given_other_data(model):
    model.head.prompt[0].weight.data = 2 * model.head.prompt[0].weight.data


@pytest.mark.parametrize(
    "change", [moved, moved_in_part, trained, reassigned, replaced, resized, given_other_data], ids=lambda f: f.__name__
)
def test_graphs_go_when_the_weights_are_elsewhere(model, batch, cache, calls, change):
    change(model)
    assert serve(cache, model, batch) is None
    assert len(cache) == 0 and calls.finished == 1  # nothing runs on memory that is given back
    assert_as_eager(model, batch, serve(cache, model, batch))
    assert calls.recorded == 2


def test_weights_changed_in_place_are_read(model, batch, cache, calls):
    model.load_state_dict({name: 2 * x for name, x in model.state_dict().items()})
    assert len(cache) == 1
    assert_as_eager(model, batch, serve(cache, model, batch))
    assert calls.recorded == 1


def test_no_graphs_in_training_or_autocast(model, batch, cache):
    with torch.autocast("cpu", torch.bfloat16):
        assert serve(cache, model, batch) is None
    assert serve(cache, model, batch) is not None
    model.head.train()
    assert serve(cache, model, batch) is None and serve(cache, model, batch) is None
    model.train()
    model.predict(" ".join(WORDS), LABELS)
    assert len(cache) == 0


def test_hooks_are_called(model, batch, cache):
    """A replay would not call them."""
    called = []
    hook = model.head.prompt.register_forward_hook(lambda *arguments: called.append(1))
    assert [serve(cache, model, batch) for _ in range(3)] == [None] * 3
    called.clear()
    model.predict(" ".join(WORDS[:9]), LABELS)
    assert called == [1]
    hook.remove()
    assert serve(cache, model, batch) is None and len(cache) == 0
    assert_as_eager(model, batch, serve(cache, model, batch))


def test_a_capture_that_fails_is_said_once_and_all_goes_on(model, cache, calls, caplog):
    batch = pack(model, 9)
    serve(cache, model, batch)
    calls.error = RuntimeError("operation not permitted when stream is capturing (test)")
    with caplog.at_level(logging.WARNING, "glimodern"):
        assert model.predict(" ".join(WORDS[:9]), LABELS, 0.5) == model.predict(" ".join(WORDS[:9]), LABELS, 0.5)
        cache.clear()
        assert serve(cache, model, batch) is None and serve(cache, model, batch) is None
    assert [r.message for r in caplog.records if "recording one failed" in r.message] == [
        "no CUDA graphs for small batches, which run slower: recording one failed: operation not permitted when stream "
        "is capturing (test)"
    ]


def test_models_that_cannot_be_recorded_say_why(model, caplog):
    from transformers import T5Config

    from glimodern.train.demo import train_tokenizer

    with_lstm = GLiModern(replace(model.config, num_rnn_layers=1), model.encoder, model.tokenizer).eval()
    tokenizer = train_tokenizer([WORDS], ["person"], vocab_size=300)
    config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    padded = GLiModern.from_encoder_config(config, tokenizer).eval()
    for other, why in ((with_lstm, "the LSTM"), (padded, "t5 runs by transformers' own forward pass")):
        cache, calls = calling()
        with caplog.at_level(logging.INFO, "glimodern"):
            assert [serve(cache, other, pack(other, 3)) for _ in range(3)] == [None] * 3
        assert calls.recorded == 0
        assert [why in record.message for record in caplog.records] == [True]
        caplog.clear()


def test_a_copy_of_a_model_has_graphs_of_its_own(model, batch, cache, calls):
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.head.prompt[0].weight.mul_(3.0)
    text = " ".join(WORDS[:9])
    wanted = twin.predict(text, LABELS, 0.3)
    assert wanted[0] and wanted != model.predict(text, LABELS, 0.3)
    assert calls.recorded == 1  # the copy saw the size once, the model replays
    found = twin.predict(text, LABELS, 0.3)  # of a padded batch, whose products PyTorch rounds by the number of rows
    assert [e["score"] for e in found[0]] == pytest.approx([e["score"] for e in wanted[0]], abs=1e-6)
    assert [e["text"] for e in found[0]] == [e["text"] for e in wanted[0]] and calls.recorded == 2
    assert len(cache) == 1
    assert_as_eager(model, batch, serve(cache, model, batch))
    assert calls.recorded == 2


def test_models_on_a_cpu_have_none():
    made = []
    cache, model = GraphCache(made.append), make_tiny_model()
    assert [serve(cache, model, pack(model, 9)) for _ in range(3)] == [None] * 3
    assert made == [] and len(cache) == 0


def test_the_switch(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    assert GLiModern.from_pretrained(tmp_path / "model").cuda_graphs
    assert not GLiModern.from_pretrained(tmp_path / "model", cuda_graphs=False).cuda_graphs


def test_out_of_memory_gives_the_graphs_memory_back(model, batch, cache, monkeypatch):
    def cramped(*arguments):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("glimodern.ops.head_entities", cramped)
    with pytest.raises(RuntimeError, match="does not fit the memory"):
        model.predict("Ada", LABELS)
    assert len(cache) == 0


# on a GPU


on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def cuda_cache(monkeypatch):
    """The cache of the models that a test makes."""
    cache = GraphCache()
    monkeypatch.setattr(span_network, "GraphCache", lambda: cache)
    return cache


@pytest.fixture
def on_cuda(cuda_cache):
    """A model in bf16 on the GPU, whose attention FlashAttention takes."""
    model = make_tiny_model(dropout=0.0, max_width=6).to("cuda", torch.bfloat16)
    if problem := graphs.CudaRecorder(model.device).problem(model):
        pytest.skip(problem)
    return model


def assert_as_eager_on_cuda(model, batch, factors):
    rows = eager(model, batch.to("cuda"))
    for got, wanted in zip((*factors.words, *factors.types), (*rows.words, *rows.types), strict=True):
        assert (got - wanted).abs().max() <= 2**-6 * wanted.abs().max()


@pytest.mark.gpu
@on_a_gpu
def test_replays_of_all_sizes_are_the_eager_results(on_cuda, cuda_cache):
    batches = [synthetic(*lengths) for lengths in ([40, 40, 46], [20, 20, 21, 20, 17, 16], [9], [128, 3], [100] * 15)]
    for batch in batches:
        serve(cuda_cache, on_cuda, batch)
    kept = [(batch, serve(cuda_cache, on_cuda, batch)) for _ in range(5) for batch in (*batches, *batches[::-1])]
    assert len(cuda_cache) == len({bucket_of(batch, 128) for batch in batches})
    for batch, factors in kept:
        assert_as_eager_on_cuda(on_cuda, batch, factors)


def spans(entities):
    return {(e["start"], e["end"], e["label"]): e["score"] for e in entities}


@pytest.mark.gpu
@on_a_gpu
def test_predict_on_a_gpu_is_the_same_with_graphs_and_in_two_threads(on_cuda, cuda_cache):
    texts = [" ".join((WORDS * 4)[:n]) for n in (1, 5, 18, 40, 7)] * 12

    def predict():
        return [spans(on_cuda.predict(text, LABELS, 0.4, flat=False, multi_label=True)[0]) for text in texts]

    on_cuda.cuda_graphs = False
    wanted = predict()
    on_cuda.cuda_graphs = True
    results = {}

    def run(name):
        with torch.cuda.stream(torch.cuda.Stream() if name else torch.cuda.default_stream()):
            results[name] = predict()

    threads = [threading.Thread(target=run, args=(name,)) for name in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(cuda_cache) > 1 and len(results) == 2
    for found in results.values():
        for one, other in zip(found, wanted, strict=True):
            assert all(abs(one[key] - other[key]) < 0.02 for key in one.keys() & other.keys())
            assert all(abs((one | other)[key] - 0.4) < 0.02 for key in one.keys() ^ other.keys())  # at the threshold


@pytest.mark.gpu
@on_a_gpu
def test_graphs_take_no_more_memory_with_time_and_give_it_back(on_cuda, cuda_cache, monkeypatch):
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 3)
    batches = [synthetic(*lengths) for lengths in ([9], [128, 3], [70, 70], [100] * 5, [100] * 15)]

    def allocated_after(rounds):
        for batch in batches * 2 * rounds:
            serve(cuda_cache, on_cuda, batch)
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    before = torch.cuda.memory_allocated()
    allocated_after(2)
    first = allocated_after(2)
    assert allocated_after(20) <= first + (1 << 20)
    assert len(cuda_cache) == 3
    cuda_cache.clear()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() <= before + (64 << 20)  # cuBLAS keeps workspaces


@pytest.mark.gpu
@on_a_gpu
def test_a_failing_capture_leaves_the_gpu_as_it_was(on_cuda, cuda_cache, monkeypatch, caplog):
    whole = GLiModern.encode

    def reading(model, batch, packing=None):
        words, prompts = whole(model, batch, packing)
        return words + float(words[0, 0]), prompts  # waits for the device, which a capture may not

    stream = torch.cuda.current_stream()
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "glimodern"):
        patch.setattr(GLiModern, "encode", reading)
        assert [serve(cuda_cache, on_cuda, synthetic(9)) for _ in range(3)] == [None] * 3
    assert any("recording one failed" in record.message for record in caplog.records)
    assert torch.cuda.current_stream() == stream
    assert on_cuda.predict("Ada met Charles", LABELS, 0.0)[0]
