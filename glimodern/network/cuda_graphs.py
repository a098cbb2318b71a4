"""CUDA graphs for small batches: the kernel launches of encoder and head, recorded once per size and replayed.

A small batch does not fill a GPU. Its time is that of about 300 kernel launches from Python. A graph launches them all
at once, but with the shapes and addresses of its recording. A batch is therefore padded to the next of a few sizes
(`Bucket`) in a buffer with a fixed address (`StaticBatch`), by one or more texts of filler tokens. Texts do not see
each other, so the results of the real texts do not change; the fillers' results are dropped. The search for entities
above the threshold depends on the texts' values and runs outside the graph.

Constraints of capture, with their sources:
- Host values are frozen at capture, text lengths included. Kernels therefore read cu_seqlens on the device and get the
  bucket's longest length (https://github.com/Dao-AILab/flash-attention/issues/1164). Unused entries of cu_seqlens
  repeat the last offset, which makes texts without tokens (https://github.com/pytorch/torchtitan/pull/4158).
- Static buffers are rewritten completely by every call, because stale offsets gave NaN
  (https://github.com/pytorch/torchtitan/pull/3776). Every token belongs to a text, because FlashAttention does not
  write the results of other tokens (https://github.com/sgl-project/sgl-flash-attn/pull/47).
- A function is warmed up on a side stream before its capture. Graphs that never run at the same time share one memory
  pool (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs). An event keeps them apart across streams.
- Work of other threads must not break a capture (https://github.com/vllm-project/vllm/pull/48053).
Buckets of sizes follow vLLM (https://docs.vllm.ai/en/latest/design/cuda_graphs/).

No GPU has run this yet. tests/test_graphs.py tests the padding, the reuse of buffers and the bookkeeping on CPUs, with
a recorder that calls the function again where `CudaRecorder` replays.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

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

from .base_head import Head, HeadRows

Outputs = tuple[Tensor, ...]

_LOGGER = logging.getLogger("glimodern")
# Four sizes per octave: at most a fifth of a batch is filler. At 2,048 tokens the matrix products of ModernBERT-base
# take an H100 about a millisecond, as long as 300 launches of 3 to 4 us each, so larger sizes gain little. Not
# measured.
SIZES = (*(octave * quarter // 4 for octave in (64, 128, 256, 512, 1024) for quarter in (4, 5, 6, 7)), 2048)
TEXTS = (2, 8, 32, 128)  # fillers included
MAX_GRAPHS = 32  # of one model; the least recently used one is dropped first
_WARM_UPS = 2


class Bucket(NamedTuple):
    """Key of a graph: its capacity in tokens and texts, fillers included, and the length of its longest text.

    The capacity in words is that of tokens, the capacity in entity types half of it.
    """

    tokens: int
    texts: int
    longest: int

    @property
    def types(self) -> int:
        return self.tokens // 2


def bucket_of(batch: PackedBatch, max_length: int | None) -> Bucket | None:
    """Return the smallest bucket that holds the batch; None if there is none.

    max_length: maximum tokens of one text that the encoder takes; None: no limit.
    """
    offsets = batch.token_offsets or (0,)
    tokens, texts = offsets[-1], len(offsets) - 1
    size = next((size for size in SIZES if size >= tokens), None)
    if size is None or not tokens:
        return None
    longest = min(size, max_length or size)
    fillers = math.ceil((size - tokens) / longest)
    capacity = next((count for count in TEXTS if count >= texts + fillers), None)
    if capacity is None or len(batch.word_index) > size or batch.max_seqlen > longest:
        return None
    bucket = Bucket(size, capacity, longest)
    return bucket if len(batch.type_index) <= bucket.types else None


class StaticBatch:
    """The inputs of a bucket's graph, at fixed addresses.

    batch: on the device, with input_ids and word_index int64 [tokens], type_index int64 [tokens / 2] and cu_seqlens
    int32 [texts + 1]. Its other fields are not filled; a `capturable` encoder does not read them.
    """

    def __init__(self, bucket: Bucket, device: torch.device) -> None:
        self.bucket = bucket
        indices = [Field((n,), torch.int64) for n in (bucket.tokens, bucket.tokens, bucket.types)]
        self.layout = Layout([*indices, Field((bucket.texts + 1,), torch.int32)])
        self.buffer = self.layout.buffer(device)
        input_ids, word_index, type_index, cu = self.layout.views(self.buffer)
        self.batch = PackedBatch(
            input_ids, cu, bucket.longest, word_index, cu, type_index, cu, positives=cu.new_empty(0, 3),
            has_missing_words=True, token_offsets=(), word_offsets=(),
        )  # fmt: skip

    @property
    def packing(self) -> Packing:
        """A new Packing at each access: its cached position_ids must be computed inside the recording."""
        return Packing(self.batch.cu_seqlens, self.bucket.longest, self.bucket.tokens)

    def fill(self, batch: PackedBatch) -> None:
        """Write a batch of this bucket, given on the host, and the padding: all bytes in one copy."""
        bucket, offsets = self.bucket, batch.token_offsets or (0,)
        staging = self.layout.buffer(torch.device("cpu"), pinned=self.buffer.device.type == "cuda")
        ids, words, types, cu = self.layout.arrays(staging)
        for target, source, padding in (
            (ids, batch.input_ids, 0),
            (words, batch.word_index, -1),  # -1 stands for no token; the word's vector is zero
            (types, batch.type_index, 0),
        ):
            target[: len(source)] = source.numpy()
            target[len(source) :] = padding
        cu[: len(offsets)] = offsets
        fillers = np.arange(1, len(cu) - len(offsets) + 1)
        cu[len(offsets) :] = np.minimum(offsets[-1] + bucket.longest * fillers, bucket.tokens)
        self.buffer.copy_(staging, non_blocking=True)


class Recordable(Protocol):
    """The part of a network that is recorded: `head.rows(*encode(batch, packing))`."""

    config: ModelConfig
    encoder: Encoder
    head: Head
    packed_dtype: str | None

    @property
    def rnn(self) -> nn.Module | None: ...

    def encode(self, batch: PackedBatch, packing: Packing | None = None) -> tuple[Tensor, Tensor]: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def modules(self) -> Iterator[nn.Module]: ...


class Recording(Protocol):
    """The recorded work of a function, which can be repeated on the same memory."""

    outputs: Outputs

    def replay(self) -> object:
        """Recompute `outputs` from the inputs' current values."""


class Recorder(Protocol):
    """Makes recordings: `CudaRecorder`, or a test's double."""

    def problem(self, model: Recordable) -> str:
        """Reason why this model cannot be recorded; empty if it can."""

    def record(self, run: Callable[[], Outputs]) -> Recording:
        """Run a function and record it. Raises RuntimeError if recording fails."""

    def turn(self) -> contextlib.AbstractContextManager[None]:
        """Context for all uses of the recordings' memory, for one thread at a time."""

    def synchronize(self) -> None:
        """Wait until nothing uses the recordings' memory."""


class CudaRecording:
    """A captured CUDA graph and its outputs."""

    def __init__(self, graph: torch.cuda.CUDAGraph, outputs: Outputs) -> None:
        self.outputs = outputs
        self.replay = graph.replay


class CudaRecorder:
    """Records graphs on one device. They share a memory pool, so only one of them may run at a time."""

    _capturing = threading.Lock()  # PyTorch allows one capture at a time in a process

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.used = torch.cuda.Event()

    def problem(self, model: Recordable) -> str:
        encoder, dtype = model.encoder, next(model.parameters()).dtype
        if takes_flash("cuda", dtype, encoder.hidden_size // encoder.heads):
            return ""
        return f"attention in {dtype} runs in plain PyTorch, which needs the text lengths on the host"

    def record(self, run: Callable[[], Outputs]) -> CudaRecording:
        with self._capturing, torch.cuda.device(self.device):
            current = torch.cuda.current_stream()
            self.stream.wait_stream(current)
            try:
                with torch.cuda.stream(self.stream):  # outermost, as a failing capture may leave its stream current
                    for _ in range(_WARM_UPS):  # compiles kernels and loads libraries, which a capture must not do
                        run()
                    # cuBLAS then takes its workspace from the pool, where clearing workspaces does not free it
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
            stream = torch.cuda.current_stream()  # each thread may have its own
            stream.wait_event(self.used)
            try:
                yield
            finally:
                self.used.record(stream)

    def synchronize(self) -> None:
        self.used.synchronize()


def _problem(model: Recordable) -> str:
    """Reason why no recorder can record this model; empty if there is none."""
    if not model.encoder.capturable:
        return f"{model.encoder.model_type} runs by transformers' own forward pass"
    if model.rnn is not None:
        return "the LSTM over words needs the number of words on the host"
    if model.config.subtoken_pooling in ("mean", "max"):
        return "pooling needs the number of sub-tokens of each word on the host"
    return "its linear layers are packed for CPUs" if model.packed_dtype is not None else ""


class _Graph(NamedTuple):
    """word_outputs: number of the outputs that have a row per word; the others have a row per type."""

    recorder: Recorder
    inputs: StaticBatch
    recording: Recording
    word_outputs: int


class GraphCache:
    """The graphs of a model by bucket. A bucket's graph is recorded at its second batch, so a rare size costs nothing.

    Thread-safe. All graphs are dropped when weights have moved, when modules have been replaced or hooked, and by
    `clear`. Weights that are changed in place are used with their new values. If a capture fails, a warning is given
    once and batches run without graphs. Copies of a model start without graphs.
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
        self._recorder: Recorder | None = None  # owns the memory pool, which cannot be reused once it is empty
        self._weights: Snapshot | None = None
        self._usable = False
        self._seen: set[Bucket] = set()
        self._graphs: OrderedDict[Bucket, _Graph] = OrderedDict()

    def __reduce__(self) -> tuple[type[GraphCache], tuple[Any, ...]]:
        return GraphCache, (self._make_recorder, self._device_type)

    def __len__(self) -> int:
        return len(self._graphs)

    def clear(self) -> None:
        """Drop all graphs and the record of seen buckets."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._graphs and self._recorder is not None:
            self._recorder.synchronize()
        self._forget()

    @torch.no_grad()
    def rows(self, model: Recordable, batch: PackedBatch, device: torch.device) -> HeadRows | None:
        """Compute `model.head.rows(*model.encode(batch))` by a graph; None if there is no graph for the batch.

        batch: on the host. device: the model's. The results are new tensors on the device.
        """
        if self._failed or device.type != self._device_type or torch.is_autocast_enabled(self._device_type):
            return None
        bucket = bucket_of(batch, model.encoder.max_length)
        if bucket is None:
            return None
        with self._lock:
            if bucket in self._graphs:
                self._graphs.move_to_end(bucket)
                rows = self._replay(self._graphs[bucket], batch)
                if self._weights is not None and self._weights.unchanged():  # checked while the GPU computes
                    return rows
            if self._weights is None or not self._weights.unchanged():
                self._start(model, device)
            graph = self._record(model, bucket, batch, device) if self._usable else None
            return None if graph is None else self._replay(graph, batch)

    def _replay(self, graph: _Graph, batch: PackedBatch) -> HeadRows:
        with graph.recorder.turn():
            graph.inputs.fill(batch)
            graph.recording.replay()
            outputs, words = graph.recording.outputs, graph.word_outputs
            return HeadRows(
                tuple(x[: len(batch.word_index)].clone() for x in outputs[:words]),
                tuple(x[: len(batch.type_index)].clone() for x in outputs[words:]),
            )

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
        """Record the bucket's graph; None at the bucket's first batch and if recording fails."""
        if bucket not in self._seen or self._recorder is None:
            self._seen.add(bucket)
            return None
        recorder, inputs = self._recorder, StaticBatch(bucket, device)

        word_outputs = 0

        def run() -> Outputs:
            nonlocal word_outputs
            words, types = model.head.rows(*model.encode(inputs.batch, inputs.packing))
            word_outputs = len(words)
            return *words, *types

        try:
            with recorder.turn():
                inputs.fill(batch)
                recording = recorder.record(run)
                graph = _Graph(recorder, inputs, recording, word_outputs)
        except RuntimeError as error:
            self._failed = True
            self._drop()
            warn_once(f"no CUDA graphs for small batches, which run slower: recording one failed: {error}")
            return None
        while len(self._graphs) >= MAX_GRAPHS:
            recorder.synchronize()
            self._graphs.popitem(last=False)
        self._graphs[bucket] = graph
        return graph
