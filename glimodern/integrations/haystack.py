"""The Haystack component `GLiModernEntityExtractor`, which writes entities into the meta of Documents.

    pipeline.add_component("entities", GLiModernEntityExtractor("runs/demo/model", ["person", "city"]))

The annotations have the form and the place of Haystack's own named entity extractors:
https://docs.haystack.deepset.ai/docs/namedentityextractor
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict

from glimodern.cli.reading import DEFAULT_THRESHOLD
from glimodern.display import typed

from .asking import AskedLabels, AskedThreshold, LazyModel, check_labels_and_threshold

META_KEY = "named_entities"


@dataclass
class NamedEntityAnnotation:
    """An entity of a Document.

    entity: its label. start, end: offsets in characters of the content, end exclusive. score: its probability.
    """

    entity: str
    start: int
    end: int
    score: float | None = None


@component
class GLiModernEntityExtractor:
    """Finds the entities of all Documents in one call of `GLiModern.predict`.

    The checkpoint is loaded by `warm_up`, or by the first Documents. Documents without content have no entities.
    """

    def __init__(
        self,
        model: str,
        labels: list[str] | dict[str, str],
        threshold: AskedThreshold = DEFAULT_THRESHOLD,
        *,
        flat: bool = True,
        multi_label: bool = False,
        dtype: str = "auto",
        device: str = "cpu",
        revision: str | None = None,
        reading: Mapping[str, Any] | None = None,
    ) -> None:
        """Create the component.

        model, dtype, device, revision: see `GLiModern.from_pretrained`. labels: a list, or a mapping label ->
        description. threshold, flat, multi_label: see `predict`. reading: a mapping with any of `predict`'s
        long_texts, window, context and labels_per_prompt. Raises ValueError and TypeError.
        """
        check_labels_and_threshold(labels, threshold)
        self._labels = _plain(labels)
        self._threshold = dict(threshold) if isinstance(threshold, Mapping) else threshold
        self._model = LazyModel(
            model, flat=flat, multi_label=multi_label, dtype=dtype, device=device, revision=revision, reading=reading
        )

    def warm_up(self) -> None:
        """Load the checkpoint. Later calls do nothing."""
        self._model.load()

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document], labels: list[str] | dict[str, str] | None = None) -> dict[str, Any]:
        """Return the Documents, with their entities in meta["named_entities"]; the Documents given stay as they are.

        labels: asked instead of the component's. Raises ValueError and TypeError.
        """
        for index, document in enumerate(documents):
            if not isinstance(document, Document):
                raise TypeError(f"documents[{index}]: expected a Document, got {typed(document)}")
        if labels is not None:
            check_labels_and_threshold(labels, self._threshold)
        texts = [document.content or "" for document in documents]
        found = self._model.find(texts, self._labels if labels is None else labels, self._threshold) if texts else []
        annotated = []
        for document, entities in zip(documents, found, strict=True):
            annotations = [
                NamedEntityAnnotation(entity["label"], entity["start"], entity["end"], entity["score"])
                for entity in entities
            ]
            annotated.append(replace(document, meta={**document.meta, META_KEY: annotations}))
        return {"documents": annotated}

    @classmethod
    def get_stored_annotations(cls, document: Document) -> list[NamedEntityAnnotation] | None:
        """Return the annotations of a Document; None if it was not annotated."""
        annotations: list[NamedEntityAnnotation] | None = document.meta.get(META_KEY)
        return annotations

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, from which `from_dict` makes the same component."""
        settings: dict[str, Any] = default_to_dict(
            self, model=self._model.name, labels=self._labels, threshold=self._threshold, **self._model.options()
        )
        return settings

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "GLiModernEntityExtractor":
        """Create the component that `to_dict` wrote."""
        made: GLiModernEntityExtractor = default_from_dict(cls, data)
        return made


def _plain(labels: AskedLabels) -> list[str] | dict[str, str]:
    """Return labels as YAML can hold them."""
    return dict(labels) if isinstance(labels, Mapping) else list(labels)
