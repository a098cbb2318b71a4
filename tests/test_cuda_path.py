"""What prediction does on a GPU, shown without one.

On "meta" tensors, which have no values: whoever reads one on the host raises, as capture in a CUDA graph would, and a
dtype or device that does not fit raises too. On CPU tensors in Triton's interpreter: the kernels that CUDA would run,
with a stand-in for FlashAttention, give what the CPU's own give.
"""

import contextlib
import copy
import importlib
import sys
import types
from dataclasses import replace

import pytest
import torch

from glimodern import GLiModern, ops
from glimodern.inference import budget, compute
from glimodern.inference.decode import decode_texts, text_spans
from glimodern.inputs.batch import PackedBatch
from glimodern.inputs.transfer import Field, Layout, to_device, to_host
from glimodern.model import glimodern as model_module
from glimodern.network import cuda_graphs as graphs
from glimodern.network.cuda_graphs import Bucket, StaticBatch, bucket_of
from glimodern.ops import dispatch
from tests.backends import poisoned, skip_unless_runs
from tests.conftest import make_tiny_model
from tests.recorder import calling, pack, serve, synthetic

META = torch.device("meta")


def flash_stand_in(q, k, v, cu, longest, scale, window):
    """What FlashAttention computes, and what it asks of its arguments; all from cu, as there on the device."""
    assert q.dtype in (torch.float16, torch.bfloat16) and cu.dtype == torch.int32 and type(longest) is int
    assert all(x.dtype == q.dtype and x.stride(-1) == 1 and x.device == cu.device for x in (q, k, v))
    if q.device == META:
        return torch.empty_like(q)
    out = torch.full_like(q, torch.nan)  # of tokens that belong to no text
    bounds = cu.tolist()
    for start, end in zip(bounds, bounds[1:], strict=False):
        assert end - start <= longest
        x, y, z = (part[start:end].float().transpose(0, 1) for part in (q, k, v))
        scores = x @ y.transpose(1, 2) * scale
        if window is not None:
            place = torch.arange(end - start)
            scores = scores.masked_fill((place[:, None] - place).abs() > window, -torch.inf)
        out[start:end] = (scores.softmax(-1) @ z).transpose(0, 1).to(q.dtype)
    return out


@contextlib.contextmanager
def as_on_cuda(monkeypatch):
    """Operators choose what they would on CUDA, for tensors elsewhere."""
    skip_unless_runs("triton")
    choose = dispatch.choose
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "choose", lambda op, device_type, dtype: choose(op, "cuda", dtype))
        patch.setattr(dispatch, "flash_attention", lambda: flash_stand_in)
        yield


@contextlib.contextmanager
def without_launches(monkeypatch):
    """The same, with kernels that leave their outputs as they were allocated; yields the names of those launched."""
    launched = []

    def launcher(name):
        def launch(*tensors, **options):
            launched.append(name)
            if name == "span_entities_forward":
                columns = torch.empty(3, 0, dtype=torch.int64, device=META).unbind(0)
                return *columns, torch.empty(0, device=META)
            return None

        return launch

    class Kernels(types.ModuleType):
        def __getattr__(self, name):
            return launcher(name)

    with as_on_cuda(monkeypatch), monkeypatch.context() as patch:
        for op, kernels in dispatch.OPERATORS.items():
            if kernels.triton:
                patch.setitem(sys.modules, f"glimodern.kernels.{op}", Kernels(op))
        patch.setattr(torch, "autocast", lambda device_type, enabled: contextlib.nullcontext())  # has none for meta
        yield launched


@pytest.fixture(scope="module")
def models(minilm):
    torch.manual_seed(0)
    return {
        "modernbert": make_tiny_model(dropout=0.0, hidden_size=48, max_width=6),
        "bert": GLiModern.from_encoder(minilm, hidden_size=64).eval(),
    }


# nothing is read on the host


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["modernbert", "bert"])
def test_a_forward_pass_reads_nothing_on_the_host(models, kind, dtype, monkeypatch):
    """fp32 too, whose attention must know the texts' lengths: they come from the host."""
    model = copy.deepcopy(models[kind]).to(device=META, dtype=dtype)
    batch = pack(models[kind], 7, 0, 3, 40).to(META)
    assert batch.input_ids.device == META and batch.token_offsets is not None
    with without_launches(monkeypatch) as launched, torch.no_grad():
        a, b, w2, _, q = factors = model.head.factors(*model.encode(batch))
        assert {x.device for x in factors} == {META} and {x.dtype for x in factors} == {dtype}
        assert a.shape == b.shape == (50, w2.shape[1]) and q.shape == (12, len(w2))
        found = ops.head_entities(*factors, batch.cu_words, batch.cu_types, 6, 0.5)
    assert [x.dtype for x in found] == [torch.int64] * 3 + [torch.float32]
    assert "span_entities_forward" in launched
    if kind == "modernbert":
        assert {"rotary", "geglu_forward", "add_layer_norm_forward"} < set(launched)


@pytest.mark.parametrize("kind", ["modernbert", "bert"])
def test_what_a_graph_records_reads_nothing_and_does_not_know_the_texts(models, kind, monkeypatch):
    model = copy.deepcopy(models[kind]).to(device=META, dtype=torch.bfloat16)
    bucket = bucket_of(pack(models[kind], 7, 0, 3, 40), model.encoder.max_length)
    inputs = StaticBatch(bucket, META)
    with without_launches(monkeypatch), torch.no_grad():
        words, types = model.head.rows(*model.encode(inputs.batch, inputs.packing))
    assert {len(x) for x in words} == {bucket.tokens} and {len(x) for x in types} == {bucket.types}


def test_the_texts_lengths_cannot_be_asked_of_what_a_graph_records(models, monkeypatch):
    """fp32 on CUDA has attention that must know them: the recorder refuses, and so does the batch."""
    model = copy.deepcopy(models["modernbert"]).to(META)
    inputs = StaticBatch(bucket_of(pack(models["modernbert"], 7), None), META)
    with (
        without_launches(monkeypatch),
        torch.no_grad(),
        pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"),
    ):
        model.encode(inputs.batch, inputs.packing)
    with pytest.raises(RuntimeError, match="known on the device only"):
        _ = inputs.packing.lengths


def test_offsets_must_be_those_of_the_batch(models):
    batch = pack(models["modernbert"], 7, 3)
    with pytest.raises(ValueError, match="offsets: expected the 3 elements of cu_seqlens, got 2"):
        models["modernbert"].encoder(
            batch.input_ids, batch.cu_seqlens, batch.max_seqlen, None, (0, len(batch.input_ids))
        )
    q = torch.randn(4, 2, 8, device=META)
    with pytest.raises(ValueError, match="cu_seqlens: expected offsets that rise from 0 to 4"):
        ops.attention_varlen(q, q, q, torch.empty(2, dtype=torch.int32, device=META), 5, offsets=(0, 5))


# CUDA's kernels give what the CPU's give


@pytest.mark.parametrize("kind", ["modernbert", "bert"])
def test_the_cuda_path_finds_what_the_cpu_finds(models, kind, monkeypatch):
    model, batch = copy.deepcopy(models[kind]), synthetic(9, 2, 6)
    if kind == "bert":
        del model.encoder.model.encoder.layer[1:]  # the interpreter is slow
    model.config = replace(model.config, max_width=3)
    wanted = model._candidates(batch, 0.5)
    with as_on_cuda(monkeypatch), poisoned():
        got = model._candidates(batch, 0.5)
    assert len(wanted.score) > 5
    for one, other in zip(got[:3], wanted[:3], strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(got.score, wanted.score, rtol=0, atol=1e-5)
    found = text_spans(got, batch.cu_words, batch.cu_types)
    assert decode_texts([found], batch.cu_words.diff().tolist()).keys() <= {0, 2}


def test_the_cuda_path_in_bf16_with_and_without_graphs(models, monkeypatch):
    """Padded, by what reads the texts on the device alone, and not padded."""
    model = copy.deepcopy(models["modernbert"])
    del model.encoder.model.layers[1:]  # the interpreter is slow
    monkeypatch.setattr(graphs, "SIZES", (16,))
    batches = [synthetic(4, 5, 6), synthetic(1, 9, 2)]
    assert {bucket_of(batch, 128) for batch in batches} == {Bucket(16, 8, 16)}
    with torch.no_grad():
        exact = [model.head.rows(*model.encode(batch)) for batch in batches]
    model.to(torch.bfloat16)
    cache, calls = calling()
    with as_on_cuda(monkeypatch), poisoned(), torch.no_grad():
        alone = [model.head.rows(*model.encode(batch)) for batch in batches]
        serve(cache, model, batches[0])
        padded = [serve(cache, model, batch) for batch in batches]
    assert calls.replayed == 2
    for ours, same, truth in zip(padded, alone, exact, strict=True):
        for got, wanted, sure in zip(*((*rows.words, *rows.types) for rows in (ours, same, truth)), strict=True):
            assert (got - wanted).abs().max() <= 2**-6 * wanted.abs().max()
            assert (got.float() - sure).square().mean() < 1e-3 * sure.square().mean()


# transfers


def test_tensors_travel_in_one_aligned_buffer():
    tensors = [torch.arange(5), torch.empty(0, 3, dtype=torch.int32), torch.arange(6, dtype=torch.int32).view(2, 3)]
    layout = Layout([Field(tuple(x.shape), x.dtype) for x in tensors])
    views = layout.views(layout.buffer(torch.device("cpu")))
    for view, x in zip(views, tensors, strict=True):
        assert view.shape == x.shape and view.dtype == x.dtype
        view.copy_(x)
    assert all(torch.equal(view, x) for view, x in zip(views, tensors, strict=True))
    assert {view.data_ptr() % 16 for view in views if view.numel()} == {views[0].data_ptr() % 16}
    there = to_device(tensors, META)
    assert [(x.shape, x.dtype, x.device) for x in there] == [(x.shape, x.dtype, META) for x in tensors]
    assert len({x.untyped_storage()._cdata for x in there}) == 1
    assert to_device(there, META)[0].device == META  # already there
    assert all(torch.equal(x, y) for x, y in zip(to_host(tensors), tensors, strict=True))


def test_a_batch_keeps_what_the_host_knows_of_it(models):
    batch = pack(models["modernbert"], 7, 0, 3)
    assert list(batch.token_offsets) == batch.cu_seqlens.tolist()
    assert list(batch.word_offsets) == batch.cu_words.tolist() == [0, 7, 7, 10]
    there = batch.to("meta")
    assert isinstance(there, PackedBatch) and there.positives.shape == (0, 3)
    assert (there.token_offsets, there.word_offsets) == (batch.token_offsets, batch.word_offsets)
    back = batch.to("cpu")
    assert torch.equal(back.input_ids, batch.input_ids) and torch.equal(back.cu_types, batch.cu_types)


# choices


def test_bf16_is_chosen_only_where_it_is_native(monkeypatch):
    """Turing emulates it, many times slower, and PyTorch calls that supported unless it is asked again."""
    asked = []

    def supported(including_emulation=True):
        asked.append(including_emulation)
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    assert model_module.resolve_dtype("auto", torch.device("cuda", 1)) == torch.float32
    assert asked == [False]


def test_batch_tokens_count_what_pytorch_keeps_as_free_and_ask_once_a_second(monkeypatch):
    asked, free, now = [], [10 << 20], [100.0]
    budget._free_bytes.cache_clear()
    monkeypatch.setattr(budget.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (asked.append(device) or free[0], 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 30 << 20)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20 << 20)
    try:
        for _ in range(3):
            assert budget.resolve_batch_tokens("auto", torch.device("cuda", 0), 1024) == 10 << 10
        assert len(asked) == 1
        assert budget.resolve_batch_tokens("auto", torch.device("cuda", 0), 1) == 65_536
        assert budget.resolve_batch_tokens("auto", torch.device("cuda", 0), 1 << 30) == 4096
        free[0], now[0] = 30 << 20, 101.5  # another model has gone
        assert budget.resolve_batch_tokens("auto", torch.device("cuda", 0), 1024) == 20 << 10
        assert len(asked) == 2
    finally:
        budget._free_bytes.cache_clear()


@pytest.mark.parametrize(
    ("message", "full"),
    [
        ("CUDA error: out of memory", True),
        ("Triton Error [CUDA]: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("CUDA error: device-side assert triggered", False),
    ],
)
def test_what_counts_as_out_of_memory(message, full):
    assert compute.out_of_memory(RuntimeError(message)) == full


@pytest.fixture
def attention_packages(monkeypatch):
    """Sets what flash-attn and PyTorch offer (None: not importable), and asks which is taken."""
    dispatch.flash_attention.cache_clear()

    def taken(flash_attn, varlen_attn):
        for name, attribute, function in (
            ("flash_attn", "flash_attn_varlen_func", flash_attn),
            ("torch.nn.attention.varlen", "varlen_attn", varlen_attn),
        ):
            module = None if function is None else types.SimpleNamespace(**{attribute: function})
            monkeypatch.setitem(sys.modules, name, module)
        dispatch.flash_attention.cache_clear()
        dispatch.flash_drops.cache_clear()
        return dispatch.flash_attention()

    yield taken
    dispatch.flash_attention.cache_clear()
    dispatch.flash_drops.cache_clear()


def test_flash_attn_goes_first_and_pytorch_stands_in(attention_packages):
    def flash_attn(q, k, v, cu_q, cu_k, max_q, max_k, dropout_p=0.0, softmax_scale=None, window_size=(-1, -1)):
        return "flash_attn", softmax_scale, window_size, dropout_p

    def varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
        return "PyTorch", scale, window_size

    def without_windows(q, k, v, cu_q, cu_k, max_q, max_k, is_causal=False):
        raise AssertionError

    arguments = (None, None, None, None, 7, 0.25)
    assert attention_packages(flash_attn, varlen_attn)(*arguments, 3) == ("flash_attn", 0.25, (3, 3), 0.0)
    assert attention_packages(flash_attn, None)(*arguments, 3, dropout_p=0.1) == ("flash_attn", 0.25, (3, 3), 0.1)
    assert dispatch.flash_drops()
    assert attention_packages(None, varlen_attn)(*arguments, None) == ("PyTorch", 0.25, (-1, -1))
    assert not dispatch.flash_drops()
    assert attention_packages(None, without_windows) is None
    assert attention_packages(None, None) is None


def test_flash_attention_needs_ampere(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(dispatch, "flash_attention", lambda: flash_stand_in)
    dispatch._has_ampere.cache_clear()
    try:
        backend, why = dispatch.choose("attention_varlen", "cuda", torch.float16)
        assert backend == "reference" and "compute capability 8.0" in why
    finally:
        dispatch._has_ampere.cache_clear()


def test_pytorchs_own_attention_takes_our_arguments():
    """The signature of this PyTorch's varlen_attn, whose kernel needs CUDA."""
    pytest.importorskip("torch.nn.attention.varlen", reason="this PyTorch has no varlen_attn")
    attend = dispatch.flash_attention()
    assert attend is not None
    q = torch.empty(6, 2, 8, dtype=torch.bfloat16, device=META)
    cu = torch.empty(3, dtype=torch.int32, device=META)
    assert importlib.util.find_spec("flash_attn") or attend(q, q, q, cu, 4, 0.5, 3).shape == q.shape
