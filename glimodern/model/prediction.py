"""TextPredictor: texts and labels in, entities out, whatever computes the scores; imports no torch."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from typing_extensions import Unpack

from glimodern.data.calibration import Calibration
from glimodern.display import console
from glimodern.inference.checks import check_flag
from glimodern.inference.compute import Result, SpanModel
from glimodern.inference.entities import Entities, warn_of_reading, with_offsets
from glimodern.inference.label_sets import CheckLabels
from glimodern.inference.request import ReadOptions, Request, Requests, Search, read_requests, read_word_requests
from glimodern.inference.stream import find_entities
from glimodern.inference.thresholds import CALIBRATED
from glimodern.inference.windows import Reading, ReadingOptions
from glimodern.inputs.labels import Labels, LabelSet, Spans, Thresholds
from glimodern.inputs.packer import Packer
from glimodern.inputs.words import word_splitter

from .keywords import refuse_keywords

if TYPE_CHECKING:
    from glimodern.checkpoint.config import ModelConfig
    from glimodern.inputs.label_vectors import LabelVectors

_READING_OPTIONS = ReadingOptions.__annotations__


class TextPredictor:
    """Prediction by a model of spans. Subclasses say what computes batches.

    config: the checkpoint's. packer: makes the batches. calibration: of these weights; None: the model is not
    calibrated.
    """

    config: ModelConfig
    packer: Packer[Any]
    calibration: Calibration | None = None

    def _check_vectors(self, label_vectors: LabelVectors) -> None:
        """Raise TypeError or ValueError for label vectors that are not this model's."""
        raise NotImplementedError

    def _label_check(self, label_vectors: LabelVectors | None) -> CheckLabels:
        """Return this model's check of a label set.

        It selects the labels from label_vectors, if these are given. It raises ValueError for a label that they lack,
        and for a prompt that leaves no room for a text.
        """

        def check(labels: LabelSet, where: str) -> LabelSet:
            if label_vectors is not None:
                labels = label_vectors.select(labels, where)
            if problem := self.packer.label_problem(labels.prompts):
                raise ValueError(f"{where}: {problem}")
            return labels

        return check

    def requests(
        self,
        texts: str | Iterable[str],
        labels: Labels | None,
        threshold: Thresholds = 0.5,
        label_vectors: LabelVectors | None = None,
        spans: Spans | None = None,
    ) -> Requests:
        """Read arguments of `predict` as requests (see `glimodern.inference.request`), split into words."""
        if label_vectors is not None:
            self._check_vectors(label_vectors)
            labels = label_vectors.labels if labels is None else labels
        splitter = word_splitter(self.config.words_splitter_type)
        options = self._read_options(threshold, label_vectors)._replace(
            spans=spans, max_width=self.packer.widest_entity
        )
        return read_requests(texts, labels, splitter, options)

    def _read_options(self, threshold: Thresholds, label_vectors: LabelVectors | None = None) -> ReadOptions:
        calibrated = None if self.calibration is None else self.calibration.threshold_of
        return ReadOptions(self._label_check(label_vectors), threshold, calibrated)

    def _search(self, threshold: Thresholds, *options: Any) -> Search:
        """Validate the options of `Search`, in their order. Calibrated thresholds go with calibrated scores."""
        search = Search.checked(*options)
        if self.calibration is None or not isinstance(threshold, str) or threshold != CALIBRATED:
            return search
        return search._replace(probability=self.calibration.probability)

    def _reading(self, function: str, options: ReadingOptions) -> Reading:
        if not options.keys() <= _READING_OPTIONS.keys():
            own = [name for name in inspect.signature(getattr(self, function)).parameters if name != "reading"]
            refuse_keywords(function, options, (*own, *_READING_OPTIONS))
        return Reading.checked(self.packer, self.config.max_types, **options)

    def _span_model(self, label_vectors: LabelVectors | None) -> SpanModel:
        """Return what computes batches. label_vectors: checked by `_check_vectors`."""
        raise NotImplementedError

    def _batch_tokens(self, batch_tokens: int | str) -> int:
        """Return the maximum tokens of a batch; "auto" is the model's own choice."""
        raise NotImplementedError

    def _find(
        self,
        requests: Requests,
        search: Search,
        reading: Reading,
        batch_tokens: int | str,
        label_vectors: LabelVectors | None = None,
    ) -> Iterator[tuple[Request, Result]]:
        """Yield each request with its result, in order; warn at the end of texts not read in one piece."""
        model, tokens = self._span_model(label_vectors), self._batch_tokens(batch_tokens)
        stream = find_entities(requests.stream, self.packer, model, search, reading, tokens)
        return warn_of_reading(stream, self.packer, reading, stacklevel=3 if requests.total is None else 4)

    @overload
    def predict_words(  # type: ignore[overload-overlap]
        self, texts: Sequence[Iterable[str]], labels: Labels, *, threshold: Thresholds = ..., flat: bool = ...,
        multi_label: bool = ..., batch_tokens: int | str = ..., top_k: int | None = ...,
        **reading: Unpack[ReadingOptions],
    ) -> list[Result]: ...  # fmt: skip

    @overload
    def predict_words(
        self, texts: Iterable[Iterable[str]], labels: Labels, *, threshold: Thresholds = ..., flat: bool = ...,
        multi_label: bool = ..., batch_tokens: int | str = ..., top_k: int | None = ...,
        **reading: Unpack[ReadingOptions],
    ) -> Iterator[Result]: ...  # fmt: skip

    def predict_words(
        self,
        texts: Iterable[Iterable[str]],
        labels: Labels,
        *,
        threshold: Thresholds = 0.5,
        flat: bool = True,
        multi_label: bool = False,
        batch_tokens: int | str = "auto",
        top_k: int | None = None,
        **reading: Unpack[ReadingOptions],
    ) -> list[Result] | Iterator[Result]:
        """Find entities in texts that are already split into words; otherwise like `predict`.

        texts: each a list, or another iterable, of strings. A result has `entities`, tuples (start, end, label, score)
        with inclusive word indices, and `words_cut`, the number of words at the text's end that were not read.
        """
        search, how = self._search(threshold, flat, multi_label, top_k), self._reading("predict_words", reading)
        requests = read_word_requests(texts, labels, self._read_options(threshold))
        results = (result for _, result in self._find(requests, search, how, batch_tokens))
        return results if requests.total is None else list(results)

    @overload
    def predict(  # type: ignore[overload-overlap]
        self, texts: str | Sequence[str], labels: Labels | None = ..., threshold: Thresholds = ..., flat: bool = ...,
        multi_label: bool = ..., batch_tokens: int | str = ..., progress: bool | None = ..., *,
        label_vectors: LabelVectors | None = ..., top_k: int | None = ..., scores: Literal["found", "all"] = ...,
        spans: Spans | None = ..., vectors: bool = ..., **reading: Unpack[ReadingOptions],
    ) -> list[Entities]: ...  # fmt: skip

    @overload
    def predict(
        self, texts: Iterable[str], labels: Labels | None = ..., threshold: Thresholds = ..., flat: bool = ...,
        multi_label: bool = ..., batch_tokens: int | str = ..., progress: bool | None = ..., *,
        label_vectors: LabelVectors | None = ..., top_k: int | None = ..., scores: Literal["found", "all"] = ...,
        spans: Spans | None = ..., vectors: bool = ..., **reading: Unpack[ReadingOptions],
    ) -> Iterator[Entities]: ...  # fmt: skip

    def predict(
        self,
        texts: str | Iterable[str],
        labels: Labels | None = None,
        threshold: Thresholds = 0.5,
        flat: bool = True,
        multi_label: bool = False,
        batch_tokens: int | str = "auto",
        progress: bool | None = None,
        *,
        label_vectors: LabelVectors | None = None,
        top_k: int | None = None,
        scores: Literal["found", "all"] = "found",
        spans: Spans | None = None,
        vectors: bool = False,
        **reading: Unpack[ReadingOptions],
    ) -> list[Entities] | Iterator[Entities]:
        """Find entities of the given types in texts.

        Returns one result per text: a list of dicts with the keys start, end, text, label and score, by ascending
        start. start and end are character offsets into the text, end exclusive. A text without words, or without
        labels, has no entities.

        texts: a string (one text), or an ordered iterable of strings. An iterable with a length (list, array, column)
        is checked first and gives a list. A stream gives an iterator of results, in order; it is read as results are
        consumed, and takes memory for a few batches of texts only.
        labels: strings, for all texts; or a mapping label -> description, whose descriptions the model reads and whose
        labels the results have; or one of these per text. Duplicates count once.
        threshold: minimum probability of an entity, exclusive; or a mapping label -> probability, in which "*" stands
        for all other labels; or one of these per text; or "calibrated": the model's calibrated thresholds, and
        calibrated probabilities as scores (`calibrate`).
        flat: no overlapping entities; if False, nested entities are allowed.
        multi_label: whether a span may have several labels.
        batch_tokens: tokens to compute at a time. Results do not depend on it. A batch that does not fit the memory is
        split.
        progress: whether to show a progress bar; None: for lists of more than 1,000 texts, on a terminal.
        label_vectors: from a bi-encoder's `encode_labels`. All its labels are used, or those that `labels` names.
        top_k: most entities of a text, those with the highest scores.
        scores: "all": an entity has the key scores too, {label: probability} of all labels for its span.
        spans: score these spans and no others, to type known spans: one list per text of (start, end), character
        offsets, or of dicts with these keys, such as entities. A span that begins or ends inside a word is widened to
        the word, with a warning. Those above the threshold are returned.
        vectors: an entity has the key vector too, its span's vector, fp32 [hidden_size]. scores and vectors take up to
        twice the time. A vector's last bits may depend on the batch.
        long_texts: what to do with a text that the encoder does not take whole. "windows": read it in overlapping
        windows of words, whose number is the result's `.windows`; one search over the whole text keeps the best
        entities. "cut": do not read its end; a warning and the result's `.words_cut` say so. "error": raise ValueError.
        window: most words of a window, at most the model's `max_len`. None: as many as the encoder takes.
        context: a span of at most `max_width` words is scored in a window with at least this many words on each side of
        it, or the text's end. None: 32, or fewer if windows are too small for that.
        labels_per_prompt: most labels to ask at a time; more are asked in groups, and all compete in one search. None:
        all at once, if a prompt in training may have had as many (the config's `max_types`), else groups of 10. Never
        more than half of the encoder's tokens hold. A bi-encoder asks any number at once.

        Raises TypeError and ValueError that name the argument and the item. An error in a stream is raised after the
        results of all earlier texts.
        """
        search = self._search(threshold, flat, multi_label, top_k, scores, vectors)
        how = self._reading("predict", reading)
        if progress is not None:
            progress = check_flag("progress", progress)
        requests = self.requests(texts, labels, threshold, label_vectors, spans)
        stream = self._find(requests, search, how, batch_tokens, label_vectors)
        results = (with_offsets(request, result) for request, result in stream)
        if progress or (progress is None and (requests.total or 0) > 1000 and sys.stderr.isatty()):
            from rich.progress import track

            results = track(results, "predicting", requests.total, console=console(stderr=True))  # type: ignore[assignment]
        return results if requests.total is None else list(results)
