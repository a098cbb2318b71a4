"""OnnxPredictor: prediction by an exported model in ONNX Runtime, without torch."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from glimodern.checkpoint.calibration_file import check_calibration, read_calibration
from glimodern.checkpoint.config import CONFIG_FILE, ModelConfig, read_config
from glimodern.data.calibration import Calibration
from glimodern.display import first_line
from glimodern.files.atomic import current_files, user_path
from glimodern.files.tokenizer import LABELS_TOKENIZER, check_rows
from glimodern.inference.checks import check_count
from glimodern.inference.compute import SpanModel
from glimodern.inference.decode import Ties
from glimodern.inference.greedy import select_in_python
from glimodern.inference.packers import packer_of
from glimodern.inference.request import Search
from glimodern.inference.stream import check_batch_tokens
from glimodern.inputs.label_tokens import LabelTokens
from glimodern.inputs.packer import Packer
from glimodern.inputs.tokens import PackedArrays
from glimodern.inputs.words import word_splitter
from glimodern.model.prediction import TextPredictor
from glimodern.runtime.forks import watch_forks

from .layouts import LABEL_GRAPHS, LABELS_FILE, LAYOUTS, MODEL_FILE, is_bi_encoder
from .scores import Scores
from .session import Graph, check_same_model, open_graph

BATCH_TOKENS = 512  # measured (docs/LOG.md): the activations of more leave the caches, fewer make small products


class OnnxPredictor(TextPredictor):
    """Prediction by an exported model: `predict` and `predict_words` as `GLiModern` has them, without torch.

    It has no span vectors (`vectors`) and no label vectors (`label_vectors`), and runs on CPUs. Copies, and other
    processes that it is sent to, open the folder again.

    graph: the model. labels: the tokenizer of a bi-encoder's labels. label_graph: of a bi-encoder in the layout
    "packed". Both None otherwise.
    """

    def __init__(
        self,
        graph: Graph,
        config: ModelConfig,
        tokenizer: Any,
        calibration: Calibration | None,
        labels: LabelTokens | None = None,
        label_graph: Graph | None = None,
    ) -> None:
        watch_forks()
        self.graph, self.config, self.calibration = graph, config, calibration
        self._labels, self._label_graph = labels, label_graph
        self._opened: tuple[Path, int | None, str] = (graph.file.parent, None, config.words_splitter_type)
        self.packer: Packer[PackedArrays] = packer_of(
            config,
            tokenizer,
            as_batch=lambda arrays: arrays,
            max_tokens=graph.description.max_tokens,
            bi_encoder=labels is not None,
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
        graph = open_graph(files / MODEL_FILE, LAYOUTS, config, threads)
        labels = label_graph = None
        if is_bi_encoder(config):
            file = files / LABELS_TOKENIZER / "tokenizer.json"
            labels_tokenizer = _read_tokenizer(file)
            check_rows(labels_tokenizer, (config.labels_encoder_config or {}).get("vocab_size"), file)
            labels = LabelTokens(labels_tokenizer, graph.description.max_label_tokens)
            if graph.description.part == "packed":
                label_graph = open_graph(files / LABELS_FILE, LABEL_GRAPHS, config, threads)
                check_same_model(graph, label_graph)
        calibration = check_calibration(read_calibration(files), graph.description.fingerprint, files)
        tokenizer = _read_tokenizer(files / "tokenizer.json")
        if labels is None:
            _check_tokenizer(tokenizer, config, files / "tokenizer.json")
        else:
            check_rows(tokenizer, config.vocab_size, files / "tokenizer.json")
        predictor = cls(graph, config, tokenizer, calibration, labels, label_graph)
        predictor._opened = (user_path(folder, "folder").absolute(), threads, config.words_splitter_type)
        return predictor

    def __reduce__(self) -> tuple[Any, ...]:
        # A session cannot be copied: a copy, or another process, opens the folder again.
        return _open, self._opened

    def _check_vectors(self, label_vectors: Any) -> None:
        raise ValueError("label_vectors: expected None, got vectors; an exported model takes the labels themselves")

    def _search(self, threshold: Any, *options: Any) -> Search:
        search = super()._search(threshold, *options)
        if search.vectors:
            raise ValueError(
                "vectors: expected False, got True; an exported model computes no span vectors, use GLiModern"
            )
        return search

    def _batch_tokens(self, batch_tokens: int | str) -> int:
        return check_batch_tokens(batch_tokens) or BATCH_TOKENS

    def scores(self) -> Scores:
        """Return what scores the batches of one call."""
        return Scores(self.graph, self.packer.widest_entity, self._labels, self._label_graph, BATCH_TOKENS)

    def _span_model(self, label_vectors: Any) -> SpanModel:
        scores = self.scores()
        ties: Ties = "type" if self.config.any_width else "span"
        return SpanModel(scores.candidates, scores.of_spans, ties, select_in_python)


def _open(folder: Path, threads: int | None, splitter: str) -> OnnxPredictor:
    return OnnxPredictor.from_pretrained(folder, threads=threads, splitter=splitter)


def _read_tokenizer(file: Path) -> Any:
    """Read `tokenizer.json` with the tokenizers library alone. Raises FileNotFoundError or ValueError."""
    from tokenizers import Tokenizer

    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected the tokenizer of the exported model, got no such file; export again")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the tokenizers library raises a bare Exception for a file it cannot read
        raise ValueError(
            f"{file}: expected a tokenizer, got {file.stat().st_size} bytes that cannot be read ({first_line(error)}); "
            "export the model again"
        ) from error


def _check_tokenizer(tokenizer: Any, config: ModelConfig, file: Path) -> None:
    """Raise ValueError for a tokenizer without the prompt tokens of the config, or larger than its vocabulary."""
    index, size = tokenizer.token_to_id(config.ent_token), tokenizer.get_vocab_size()
    if index != config.class_token_index or size > config.vocab_size:
        raise ValueError(
            f"{file}: expected {config.ent_token!r} as token {config.class_token_index} of at most "
            f"{config.vocab_size}, as {CONFIG_FILE} says, got {index} of {size}; the tokenizer is of another model, "
            "export it again"
        )
