"""The public package's prediction methods, for programs written for `gliner.GLiNER`.

No other method of this package has an alias. Pipelines such as gliner-spacy call them on any object
they are given, and so run on this model unchanged. Signatures and results are those of gliner 0.2.29
(https://github.com/urchade/GLiNER). Each method calls `GLiModern.predict`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from glimodern.inference.checks import check_count, check_flag, check_string
from glimodern.inputs.labels import Spans

_CLASS_PROBS = 5  # labels, as in gliner
_ONE_PROMPT = sys.maxsize  # gliner asks all labels in one prompt

LabelArgument = str | Iterable[str] | Mapping[str, str]


def _with_class_probs(entities: Any) -> Any:
    """Rename the entities' scores of all labels as gliner names them, and keep the highest ones."""
    for entity in entities:
        best = sorted(entity.pop("scores").items(), key=lambda item: -item[1])
        entity["class_probs"] = dict(best[:_CLASS_PROBS])
    return entities


class GlinerApi:
    """The methods predict_entities, batch_predict_entities and inference, for a class with the method `predict`."""

    predict: Callable[..., Any]

    def inference(
        self,
        texts: str | Iterable[str],
        labels: LabelArgument | Iterable[LabelArgument],
        flat_ner: bool = True,
        threshold: float = 0.5,
        multi_label: bool = False,
        batch_size: int = 8,
        packing_config: None = None,
        input_spans: Spans | None = None,
        return_class_probs: bool = False,
        *,
        return_vectors: bool = False,
        return_label_vectors: bool = False,
        long_texts: Literal["windows", "cut", "error"] = "cut",
    ) -> list[Any]:
        """Find entities: one list per text of dicts with the keys start, end, text, label and score.

        The result is always a list, as in gliner. texts, labels: see `predict`; a single label may be a string.
        batch_size: has no effect, because batches are formed by tokens and all inputs are packed. long_texts: see
        `predict`; by default a long text is cut with a warning, as gliner cuts it. input_spans: see `predict`, spans; a
        span that begins or ends inside a word is widened with a warning, where gliner leaves it out.
        return_class_probs: an entity has the key class_probs too, the probabilities of its span's five best labels.

        Raises ValueError for an option of gliner that this package does not have, TypeError for an unknown option.
        """
        unsupported = {
            "packing_config": packing_config,
            "return_vectors": return_vectors,
            "return_label_vectors": return_label_vectors,
        }
        for name, value in unsupported.items():
            if value is not None and value is not False:
                raise ValueError(
                    f"{name}: expected no value, because glimodern lacks this option of gliner, got {value!r}; leave "
                    "it out"
                )
        flat = check_flag("flat_ner", flat_ner)
        check_count("batch_size", batch_size, "a number of texts")
        label_set = [labels] if isinstance(labels, str) else labels
        results = self.predict(
            texts, label_set, threshold, flat, multi_label, long_texts=long_texts, labels_per_prompt=_ONE_PROMPT,
            spans=input_spans, scores="all" if check_flag("return_class_probs", return_class_probs) else "found",
        )  # fmt: skip
        if not return_class_probs:
            return list(results)
        return [_with_class_probs(entities) for entities in results]

    def predict_entities(
        self,
        text: str,
        labels: LabelArgument,
        flat_ner: bool = True,
        threshold: float = 0.5,
        multi_label: bool = False,
        return_class_probs: bool = False,
        *,
        return_vectors: bool = False,
        return_label_vectors: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Find the entities of one text. kwargs: further options of `inference`."""
        return self.inference(
            [check_string(text, "text")],
            labels,
            flat_ner,
            threshold,
            multi_label,
            return_class_probs=return_class_probs,
            return_vectors=return_vectors,
            return_label_vectors=return_label_vectors,
            **kwargs,
        )[0]

    def batch_predict_entities(
        self,
        texts: Iterable[str],
        labels: LabelArgument | Iterable[LabelArgument],
        flat_ner: bool = True,
        threshold: float = 0.5,
        multi_label: bool = False,
        *,
        return_vectors: bool = False,
        return_label_vectors: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Call `inference` by its older name, which gliner deprecates. kwargs: further options of `inference`."""
        return self.inference(
            texts,
            labels,
            flat_ner,
            threshold,
            multi_label,
            return_vectors=return_vectors,
            return_label_vectors=return_label_vectors,
            **kwargs,
        )
