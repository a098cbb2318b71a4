"""CUDA graphs for small batches: the launches of encoder and head, recorded once a size, replayed as one.

A small batch does not fill a GPU: its time is that of some 300 kernel launches from Python. A graph launches them as
one, but always with the shapes and addresses it was recorded with. So a batch is padded to the next of a few sizes
(`Bucket`) in a buffer that stays where it is (`StaticBatch`), with one more text, or some, of filler tokens. Texts do
not see each other, so what is computed for the real ones does not change, and the rest is cut off. What depends on the
texts (the search for entities above the threshold) runs outside.

The traps, and where their answers were seen:
- What the host knows is frozen at capture, lengths included, so kernels get the device's cu_seqlens and the bucket's
  longest text (https://github.com/Dao-AILab/flash-attention/issues/1164). Unused entries of cu_seqlens repeat the end,
  texts of no tokens (https://github.com/pytorch/torchtitan/pull/4158).
- Static buffers are written whole at every call (offsets that stayed gave NaN:
  https://github.com/pytorch/torchtitan/pull/3776), and every token belongs to a text, as FlashAttention leaves the
  result of others unwritten (https://github.com/sgl-project/sgl-flash-attn/pull/47).
- Warm-up on a side stream before capture; one memory pool for graphs that never run at once
  (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs), which an event ensures across streams.
- Work of other threads must not break a capture (https://github.com/vllm-project/vllm/pull/48053).
Sizes in buckets are as in vLLM (https://docs.vllm.ai/en/latest/design/cuda_graphs/).

No GPU has run this yet: the padding, the reuse of buffers and the bookkeeping are tested on CPUs (tests/test_graphs.py)
with a recorder that calls the function again where `CudaRecorder` replays.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from glimodern.checkpoint.config import ModelConfig
from glimodern.encoder import Encoder
from glimodern.inputs.batch import PackedBatch
from glimodern.inputs.transfer import Field, Layout
from glimodern.layers.attention import Packing, takes_flash
from glimodern.layers.snapshot import Snapshot
from glimodern.ops.dispatch import warn_once
from glimodern.runtime.ambient import lasting

from .head import SpanFactors, SpanHead

Outputs = tuple[Tensor, ...]

_LOGGER = logging.getLogger("glimodern")
# Four sizes an octave: at most a fifth of a batch is filler. At 2,048 tokens ModernBERT-base's products alone need
# an H100 a millisecond, as long as some 300 launches of 3 to 4 us: more has little to gain. Not measured.
SIZES = (*(octave * quarter // 4 for octave in (64, 128, 256, 512, 1024) for quarter in (4, 5, 6, 7)), 2048)
TEXTS = (2, 8, 32, 128)  # fillers included
MOST_GRAPHS = 32  # of one model; the one that was not used for longest goes first
_WARM_UPS = 2


class Bucket(NamedTuple):
    """What graphs are told apart by: the tokens and texts that one takes, fillers included, and the longest text.

    It takes up to as many words as tokens, and half as many entity types.
    """

    tokens: int
    texts: int
    longest: int

    @property
    def types(self) -> int:
        return self.tokens // 2


def bucket_of(batch: PackedBatch, max_length: int | None) -> Bucket | None:
    """The smallest bucket that holds the batch, for an encoder of so many positions; None where none does."""
    offsets = batch.token_offsets or (0,)
    tokens, texts = offsets[-1], len(offsets) - 1
    size = next((size for size in SIZES if size >= tokens), None)
    if size is None or not tokens:
        return None
    longest = min(size, max_length or size)
    fillers = -(-(size - tokens) // longest)
    capacity = next((count for count in TEXTS if count >= texts + fillers), None)
    if capacity is None or len(batch.word_index) > size or batch.max_seqlen > longest:
        return None
    bucket = Bucket(size, capacity, longest)
    return bucket if len(batch.type_index) <= bucket.types else None


class StaticBatch:
    """The inputs of a bucket's graph, at addresses that stay.

    batch: on the device, input_ids and word_index int64 [tokens], type_index int64 [tokens / 2], cu_seqlens int32
    [texts + 1]; nothing else of it is filled, nor read by an encoder that is `capturable`.
    """

    def __init__(self, bucket: Bucket, device: torch.device) -> None:
        self.bucket = bucket
        numbers = [Field((n,), torch.int64) for n in (bucket.tokens, bucket.tokens, bucket.types)]
        self.layout = Layout([*numbers, Field((bucket.texts + 1,), torch.int32)])
        self.buffer = self.layout.buffer(device)
        input_ids, word_index, type_index, cu = self.layout.views(self.buffer)
        self.batch = PackedBatch(
            input_ids, cu, bucket.longest, word_index, cu, type_index, cu, positives=cu.new_empty(0, 3),
            has_missing_words=True, token_offsets=(), word_offsets=(),
        )  # fmt: skip

    @property
    def packing(self) -> Packing:
        """A new one each time: what it keeps of a batch must be computed where it is recorded."""
        return Packing(self.batch.cu_seqlens, self.bucket.longest, self.bucket.tokens)

    def fill(self, batch: PackedBatch) -> None:
        """Write a batch of this bucket, on the host, and the padding; every byte, in one copy."""
        bucket, offsets = self.bucket, batch.token_offsets or (0,)
        staging = self.layout.buffer(torch.device("cpu"), pinned=self.buffer.device.type == "cuda")
        ids, words, types, cu = self.layout.arrays(staging)
        for target, source, padding in (
            (ids, batch.input_ids, 0),
            (words, batch.word_index, -1),  # no word: its vector is zero
            (types, batch.type_index, 0),
        ):
            target[: len(source)] = source.numpy()
            target[len(source) :] = padding
        cu[: len(offsets)] = offsets
        fillers = np.arange(1, len(cu) - len(offsets) + 1)
        cu[len(offsets) :] = np.minimum(offsets[-1] + bucket.longest * fillers, bucket.tokens)
        self.buffer.copy_(staging, non_blocking=True)


class Recordable(Protocol):
    """What of a network is recorded: `head.factors(*encode(batch, packing))`."""

    config: ModelConfig
    encoder: Encoder
    head: SpanHead
    packed_dtype: str | None

    @property
    def rnn(self) -> nn.Module | None: ...

    def encode(self, batch: PackedBatch, packing: Packing | None = None) -> tuple[Tensor, Tensor]: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def modules(self) -> Iterator[nn.Module]: ...


class Recording(Protocol):
    """A function's work, to be done again on the same memory."""

    outputs: Outputs

    def replay(self) -> object:
        """Compute `outputs` anew from what the inputs hold now."""


class Recorder(Protocol):
    """What makes recordings; `CudaRecorder`, or a test's double."""

    def problem(self, model: Recordable) -> str:
        """Why this model cannot be recorded; empty if it can."""

    def record(self, run: Callable[[], Outputs]) -> Recording:
        """Run and record. RuntimeError where that fails."""

    def turn(self) -> contextlib.AbstractContextManager[None]:
        """What uses the recordings' memory goes inside, one thread at a time."""

    def finish(self) -> None:
        """Wait until nothing uses the recordings' memory."""


class CudaRecording:
    def __init__(self, graph: torch.cuda.CUDAGraph, outputs: Outputs) -> None:
        self.outputs = outputs
        self.replay = graph.replay


class CudaRecorder:
    """Graphs on one device that share a memory pool, so that only one of them may run at a time."""

    _capturing = threading.Lock()  # PyTorch allows one capture at a time in a process

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.used = torch.cuda.Event()

    def problem(self, model: Recordable) -> str:
        heads, dtype = model.encoder.config.num_attention_heads, next(model.parameters()).dtype
        if takes_flash("cuda", dtype, model.encoder.hidden_size // heads):
            return ""
        return f"attention in {dtype} runs in plain PyTorch, which must know the texts' lengths"

    def record(self, run: Callable[[], Outputs]) -> CudaRecording:
        with self._capturing, torch.cuda.device(self.device):
            current = torch.cuda.current_stream()
            self.stream.wait_stream(current)
            try:
                with torch.cuda.stream(self.stream):  # outermost: a failing capture may leave its stream current
                    for _ in range(_WARM_UPS):  # compile kernels and load libraries, which a capture may not
                        run()
                    # cuBLAS then takes its workspace from the pool, where whoever clears workspaces cannot give it away
                    getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)()
                    graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
                        outputs = run()
            finally:
                current.wait_stream(self.stream)
        return CudaRecording(graph, outputs)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        with torch.cuda.device(self.device):
            stream = torch.cuda.current_stream()  # threads may have their own
            stream.wait_event(self.used)
            try:
                yield
            finally:
                self.used.record(stream)

    def finish(self) -> None:
        self.used.synchronize()


def _problem(model: Recordable) -> str:
    """Why no recorder can record this model; empty if one might."""
    if not model.encoder.capturable:
        return f"{model.encoder.config.model_type} runs by transformers' own forward pass"
    if model.rnn is not None:
        return "the LSTM over words must know their number"
    if model.config.subtoken_pooling in ("mean", "max"):
        return "sub-tokens are pooled by their number in each word"
    return "its linear layers are packed for CPUs" if model.packed_dtype is not None else ""


class _Graph(NamedTuple):
    recorder: Recorder
    inputs: StaticBatch
    recording: Recording


class GraphCache:
    """A model's graphs by bucket, recorded at a bucket's second batch, so that a rare size costs nothing.

    Safe for threads. Graphs are dropped when the model's weights have moved or modules have been replaced or hooked
    (weights changed in place are read as they are), and by `clear`. Where a capture fails, that is said once, and all
    runs as it would without graphs. A copy of a model starts without graphs.
    """

    def __init__(
        self, make_recorder: Callable[[torch.device], Recorder] = CudaRecorder, device_type: str = "cuda"
    ) -> None:
        self._make_recorder = make_recorder
        self._device_type = device_type
        self._lock = threading.Lock()
        self._failed = False
        self._forget()

    def _forget(self) -> None:
        self._recorder: Recorder | None = None  # with its memory pool, which cannot be used again once it is empty
        self._weights: Snapshot | None = None
        self._usable = False
        self._seen: set[Bucket] = set()
        self._graphs: OrderedDict[Bucket, _Graph] = OrderedDict()

    def __reduce__(self) -> tuple[type[GraphCache], tuple[Any, ...]]:
        return GraphCache, (self._make_recorder, self._device_type)

    def __len__(self) -> int:
        return len(self._graphs)

    def clear(self) -> None:
        """Drop all graphs, and forget what was seen."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._graphs and self._recorder is not None:
            self._recorder.finish()
        self._forget()

    @torch.no_grad()
    def factors(self, model: Recordable, batch: PackedBatch, device: torch.device) -> SpanFactors | None:
        """`model.head.factors(*model.encode(batch))` of a batch on the host, by a graph on the model's device; None
        where no graph serves it."""
        if self._failed or device.type != self._device_type or torch.is_autocast_enabled(self._device_type):
            return None
        bucket = bucket_of(batch, model.encoder.max_length)
        if bucket is None:
            return None
        with self._lock:
            if bucket in self._graphs:
                self._graphs.move_to_end(bucket)
                factors = self._replay(self._graphs[bucket], batch)
                if self._weights is not None and self._weights.unchanged():  # asked while the GPU is at work
                    return factors
            if self._weights is None or not self._weights.unchanged():
                self._start(model, device)
            graph = self._record(model, bucket, batch, device) if self._usable else None
            return None if graph is None else self._replay(graph, batch)

    def _replay(self, graph: _Graph, batch: PackedBatch) -> SpanFactors:
        with graph.recorder.turn():
            graph.inputs.fill(batch)
            graph.recording.replay()
            a, b, w2, b2, q = graph.recording.outputs
            words, types = len(batch.word_index), len(batch.type_index)
            return SpanFactors(a[:words].clone(), b[:words].clone(), w2, b2, q[:types].clone())

    def _start(self, model: Recordable, device: torch.device) -> None:
        self._drop()
        self._weights = Snapshot(model)
        self._recorder = self._make_recorder(device)
        problem = _problem(model) or self._weights.problem() or self._recorder.problem(model)
        if problem:
            _LOGGER.info("no CUDA graphs for small batches: %s", problem)
        self._usable = not problem

    @lasting()
    def _record(self, model: Recordable, bucket: Bucket, batch: PackedBatch, device: torch.device) -> _Graph | None:
        """The bucket's graph, recorded; None at the bucket's first batch and where recording fails."""
        if bucket not in self._seen or self._recorder is None:
            self._seen.add(bucket)
            return None
        recorder, inputs = self._recorder, StaticBatch(bucket, device)

        def run() -> Outputs:
            factors = model.head.factors(*model.encode(inputs.batch, inputs.packing))
            return cast(Outputs, factors)  # nothing is packed on a GPU

        try:
            with recorder.turn():
                inputs.fill(batch)
                graph = _Graph(recorder, inputs, recorder.record(run))
        except RuntimeError as error:
            self._failed = True
            self._drop()
            warn_once(f"no CUDA graphs for small batches, which run slower: recording one failed: {error}")
            return None
        while len(self._graphs) >= MOST_GRAPHS:
            recorder.finish()
            self._graphs.popitem(last=False)
        self._graphs[bucket] = graph
        return graph
