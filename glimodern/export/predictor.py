"""OnnxPredictor: prediction by an exported model in ONNX Runtime, without torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glimodern.checkpoint.calibration_file import check_calibration, read_calibration
from glimodern.checkpoint.config import CONFIG_FILE, ModelConfig, read_config
from glimodern.data.calibration import Calibration
from glimodern.display import first_line
from glimodern.files.atomic import current_files, user_path
from glimodern.inference.checks import check_count
from glimodern.inference.compute import SpanModel, SpanScores
from glimodern.inference.decode import Candidates
from glimodern.inference.greedy import select_in_python
from glimodern.inference.passages import FloatArray
from glimodern.inference.request import Search
from glimodern.inference.stream import check_batch_tokens
from glimodern.inference.windows import IntArray
from glimodern.inputs.packer import Packer, PromptPacker
from glimodern.inputs.tokens import PackedArrays
from glimodern.inputs.words import word_splitter
from glimodern.model.prediction import TextPredictor

from .layouts import MODEL_FILE
from .session import Graph, open_graph

BATCH_TOKENS = 512  # measured (docs/LOG.md): the activations of more leave the caches, fewer make small products


class OnnxPredictor(TextPredictor):
    """Prediction by an exported model: `predict` and `predict_words` as `GLiModern` has them, without torch.

    It has no span vectors (`vectors`) and no label vectors (`label_vectors`), and runs on CPUs. Copies, and other
    processes that it is sent to, open the folder again.
    """

    def __init__(self, graph: Graph, config: ModelConfig, tokenizer: Any, calibration: Calibration | None) -> None:
        self.graph, self.config, self.calibration = graph, config, calibration
        self._opened: tuple[Path, int | None, str] = (graph.file.parent, None, config.words_splitter_type)
        self.packer: Packer[PackedArrays] = PromptPacker(
            tokenizer,
            as_batch=lambda arrays: arrays,
            ent_token=config.ent_token,
            sep_token=config.sep_token,
            embed_ent_token=config.embed_ent_token,
            max_width=config.max_width,
            max_words=config.max_len,
            max_tokens=graph.description.max_tokens,
            subtoken_pooling=config.subtoken_pooling,
        )

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], *, threads: int | None = None, splitter: str | None = None
    ) -> OnnxPredictor:
        """Load a folder that `python -m glimodern.export` wrote.

        threads: of one operator of ONNX Runtime; None: all cores. splitter: how texts are split into words; None: as
        the checkpoint's `words_splitter_type` says.

        Raises FileNotFoundError for missing files, and ValueError for broken ones, for a graph of another program and
        for files that are not of one model.
        """
        threads = None if threads is None else check_count("threads", threads, "a number of threads")
        if splitter is not None:
            word_splitter(splitter, "splitter")
        files = current_files(user_path(folder, "folder"))
        config = read_config(files)
        if splitter is not None:
            config = replace(config, words_splitter_type=splitter)
        graph = open_graph(files / MODEL_FILE, config.subtoken_pooling, threads)
        if graph.description.max_width != config.max_width:
            raise ValueError(
                f"{files / CONFIG_FILE}: max_width: expected {graph.description.max_width}, as {MODEL_FILE} beside it "
                f"says, got {config.max_width}; the files are not of one model, export it again"
            )
        calibration = check_calibration(read_calibration(files), graph.description.fingerprint, files)
        predictor = cls(graph, config, _read_tokenizer(files / "tokenizer.json", config), calibration)
        predictor._opened = (user_path(folder, "folder").absolute(), threads, config.words_splitter_type)
        return predictor

    def __reduce__(self) -> tuple[Any, ...]:
        # A session cannot be copied: a copy, or another process, opens the folder again.
        return _open, self._opened

    def _check_vectors(self, label_vectors: Any) -> None:
        raise ValueError("label_vectors: expected None, got vectors; an exported model reads labels with each text")

    def _search(self, threshold: Any, *options: Any) -> Search:
        search = super()._search(threshold, *options)
        if search.vectors:
            raise ValueError(
                "vectors: expected False, got True; an exported model computes no span vectors, use GLiModern"
            )
        return search

    def _batch_tokens(self, batch_tokens: int | str) -> int:
        return check_batch_tokens(batch_tokens) or BATCH_TOKENS

    def _span_model(self, label_vectors: Any) -> SpanModel:
        return SpanModel(self._candidates, self._score_spans, "span", select_in_python)

    def _candidates(self, arrays: PackedArrays, threshold: float | FloatArray) -> Candidates:
        """Return the spans and types of a batch with a probability above the threshold."""
        probabilities = _sigmoid(self.graph.logits(arrays))
        cu_words, cu_types = arrays.cu_words.astype(np.int64), arrays.cu_types.astype(np.int64)
        limits: Any = threshold
        if not isinstance(threshold, float):
            counts = np.diff(cu_types)
            limits = np.ones((len(counts), 1, 1, probabilities.shape[3]), dtype=np.float32)
            limits[:, 0, 0][np.arange(counts.max()) < counts[:, None]] = threshold
        text, word, width, kind = np.nonzero(probabilities > limits)  # 0 outside of a text, which is above no limit
        scores = probabilities[text, word, width, kind]
        return Candidates(word + cu_words[text], width, kind + cu_types[text], scores)

    def _score_spans(self, arrays: PackedArrays, spans: Sequence[IntArray], vectors: bool) -> SpanScores:
        """Score given spans of a batch, rows (first word in the text, width - 1) for each text."""
        probabilities, types = _sigmoid(self.graph.logits(arrays)), np.diff(arrays.cu_types)
        found = [
            text[rows[:, 0], rows[:, 1], :count] for text, rows, count in zip(probabilities, spans, types, strict=True)
        ]
        return SpanScores(found, None)


def _sigmoid(logits: npt.NDArray[np.float32]) -> FloatArray:
    """Return probabilities in fp32; 0 for -inf."""
    decay = np.exp(-np.abs(logits))
    probabilities: FloatArray = np.where(logits >= 0, 1, decay) / (1 + decay)
    return probabilities


def _open(folder: Path, threads: int | None, splitter: str) -> OnnxPredictor:
    return OnnxPredictor.from_pretrained(folder, threads=threads, splitter=splitter)


def _read_tokenizer(file: Path, config: ModelConfig) -> Any:
    """Read `tokenizer.json` with the tokenizers library alone, and compare it with the config.

    Raises FileNotFoundError or ValueError.
    """
    from tokenizers import Tokenizer

    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected the tokenizer of the exported model, got no such file; export again")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the tokenizers library raises a bare Exception for a file it cannot read
        raise ValueError(
            f"{file}: expected a tokenizer, got {file.stat().st_size} bytes that cannot be read ({first_line(error)}); "
            "export the model again"
        ) from error
    index, size = tokenizer.token_to_id(config.ent_token), tokenizer.get_vocab_size()
    if index != config.class_token_index or size > config.vocab_size:
        raise ValueError(
            f"{file}: expected {config.ent_token!r} as token {config.class_token_index} of at most "
            f"{config.vocab_size}, as {CONFIG_FILE} says, got {index} of {size}; the tokenizer is of another model, "
            "export it again"
        )
    return tokenizer
