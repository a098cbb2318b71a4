"""A Microsoft Presidio recognizer: personal data of any kind that can be named, found by a checkpoint.

    analyzer.registry.add_recognizer(GLiModernRecognizer("runs/demo/model", {"PERSON": "person", "CLINIC": "hospital"}))

Source of the interface: https://microsoft.github.io/presidio/analyzer/adding_recognizers/
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from presidio_analyzer import AnalysisExplanation, LocalRecognizer, RecognizerResult

from glimodern.cli.reading import DEFAULT_THRESHOLD
from glimodern.display import typed

from .asking import AskedThreshold, LazyModel, check_labels_and_threshold

PresidioLabels = Mapping[str, str | Sequence[str]]
"""What the model reads for each Presidio entity: a label or description, or several."""

_LABELS = "a mapping of Presidio entity -> label, such as {'PERSON': 'person'}"


class GLiModernRecognizer(LocalRecognizer):
    """Finds Presidio entities by asking `GLiModern.predict` for the label or description of each.

    The checkpoint is loaded by the first text, or by `load`. A text is asked only the entities that the caller wants,
    so what is found of one may depend on which others are asked. Long texts are read whole, in windows.
    """

    name: str
    _made = False  # the base class's constructor calls load, which must not load the checkpoint yet

    def __init__(
        self,
        model: str,
        labels: PresidioLabels,
        threshold: AskedThreshold = DEFAULT_THRESHOLD,
        *,
        flat: bool = True,
        multi_label: bool = False,
        dtype: str = "auto",
        device: str = "cpu",
        revision: str | None = None,
        reading: Mapping[str, Any] | None = None,
        supported_entities: Sequence[str] | None = None,
        supported_language: str = "en",
        name: str = "GLiModernRecognizer",
        version: str = "0.0.1",
        context: Sequence[str] | None = None,
        **presidio: Any,
    ) -> None:
        """Create the recognizer.

        model, dtype, device, revision: see `GLiModern.from_pretrained`. labels: what the model reads for each Presidio
        entity; several labels of one entity are asked side by side. threshold: a probability; a mapping Presidio
        entity -> probability, in which "*" stands for all others; or "calibrated". flat, multi_label: see `predict`.
        reading: a mapping with any of `predict`'s long_texts, window, context and labels_per_prompt.
        supported_entities: those of `labels` to find; None: all. supported_language, name, version, context and
        presidio (country_code, score_thresholds): see Presidio's EntityRecognizer; context are its words, which raise
        a score nearby.

        Raises ValueError and TypeError.
        """
        self._labels = _read_labels(labels)
        self._entities: dict[str, str] = {}  # of each label that the model reads
        for entity, texts in self._labels.items():
            for text in texts:
                other = self._entities.setdefault(text, entity)
                if other != entity:
                    raise ValueError(
                        f"labels: expected each label for one entity, got {text!r} for {other!r} and {entity!r}; "
                        "change one"
                    )
        check_labels_and_threshold(list(self._labels), threshold)
        check_labels_and_threshold(list(self._entities), DEFAULT_THRESHOLD)
        self._threshold = dict(threshold) if isinstance(threshold, Mapping) else threshold
        self._model = LazyModel(
            model, flat=flat, multi_label=multi_label, dtype=dtype, device=device, revision=revision, reading=reading
        )
        unknown = [entity for entity in supported_entities or () if entity not in self._labels]
        if unknown:
            raise ValueError(
                f"supported_entities: expected entities that labels names, got {unknown}; add their labels"
            )
        self._ahead: dict[tuple[str, tuple[str, ...]], list[dict[str, Any]]] = {}
        super().__init__(
            supported_entities=list(self._labels if supported_entities is None else supported_entities),
            name=name,
            supported_language=supported_language,
            version=version,
            context=None if context is None else list(context),
            **presidio,
        )
        self._made = True
        self.is_loaded = False  # Presidio's engine calls load before the first text

    def load(self) -> None:
        """Load the checkpoint, unless the constructor calls. Later calls do nothing."""
        if self._made:
            self._model.load()
            self.is_loaded = True

    def analyze(self, text: str, entities: Sequence[str] | None, nlp_artifacts: Any = None) -> list[RecognizerResult]:
        """Find the entities of one text.

        entities: Presidio entities to find; None or empty: all supported ones. Those of other recognizers are left to
        them. nlp_artifacts: not used.
        """
        return self.analyze_batch([text], entities)[0]

    def analyze_batch(
        self, texts: Iterable[str], entities: Sequence[str] | None = None
    ) -> list[list[RecognizerResult]]:
        """Find the entities of several texts, in one call of the model. entities: see `analyze`."""
        texts = list(texts)
        asked = self._asked(entities)
        if not asked:
            return [[] for _ in texts]
        known = [self._ahead.get((text, asked)) for text in texts]
        found = iter(self._find([text for text, result in zip(texts, known, strict=True) if result is None], asked))
        return [[self._result(one) for one in (next(found) if result is None else result)] for result in known]

    @contextmanager
    def read_ahead(self, texts: Iterable[str], entities: Sequence[str] | None = None) -> Iterator[None]:
        """Compute several texts in one call of the model, for a BatchAnalyzerEngine, which asks for one at a time.

        Within the block these texts are not computed again where the same entities are asked. entities: see `analyze`.
        """
        asked = self._asked(entities)
        distinct = list(dict.fromkeys(texts))
        keys = [(text, asked) for text in distinct]
        before = self._ahead
        self._ahead = {**before, **dict(zip(keys, self._find(distinct, asked), strict=True))} if asked else before
        try:
            yield
        finally:
            self._ahead = before

    def _asked(self, entities: Sequence[str] | None) -> tuple[str, ...]:
        """Return the labels that the model reads for the entities, in the order of `labels`."""
        wanted = set(self.supported_entities)
        if entities:
            wanted &= set(entities)
        return tuple(text for text, entity in self._entities.items() if entity in wanted)

    def _find(self, texts: list[str], asked: tuple[str, ...]) -> list[Any]:
        threshold = self._threshold
        if isinstance(threshold, dict):
            others = {"*": threshold["*"]} if "*" in threshold else {}
            entities = self._entities
            named = {text: threshold[entities[text]] for text in asked if entities[text] in threshold}
            threshold = {**others, **named}
        return list(self._model.find(texts, list(asked), threshold)) if texts else []

    def _result(self, found: Mapping[str, Any]) -> RecognizerResult:
        entity = self._entities[found["label"]]
        explanation = AnalysisExplanation(
            recognizer=self.name,
            original_score=found["score"],
            textual_explanation=f"{self._model.name} found {found['label']!r}",
        )
        return RecognizerResult(
            entity_type=entity,
            start=found["start"],
            end=found["end"],
            score=found["score"],
            analysis_explanation=explanation,
            recognition_metadata={
                RecognizerResult.RECOGNIZER_NAME_KEY: self.name,
                RecognizerResult.RECOGNIZER_IDENTIFIER_KEY: self.id,
            },
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, from which `from_dict` makes the same recognizer; JSON and YAML can hold them."""
        thresholds = {"score_thresholds": self.score_thresholds} if getattr(self, "score_thresholds", None) else {}
        return {
            **super().to_dict(),
            **thresholds,
            "context": list(self.context),
            "model": self._model.name,
            "labels": {entity: texts[0] if len(texts) == 1 else list(texts) for entity, texts in self._labels.items()},
            "threshold": self._threshold,
            **self._model.options(),
        }


def _read_labels(labels: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(labels, Mapping):
        raise TypeError(f"labels: expected {_LABELS}, got {typed(labels)}")
    read = {}
    for entity, texts in labels.items():
        texts = (texts,) if isinstance(texts, str) else texts
        if not isinstance(texts, Sequence) or not texts:
            raise TypeError(f"labels[{entity!r}]: expected a label or a list of labels, got {typed(texts)}")
        read[entity] = tuple(texts)
    return read
