"""The public package's names for prediction, answered for programs written for `gliner.GLiNER`.

Everywhere else one thing has one name here. These three are the exception, in this one place: pipelines such as
gliner-spacy call them on whatever object they are given, and then run on this model as they are. Signatures and results
are those of gliner 0.2.29 (https://github.com/urchade/GLiNER); each is a call of `GLiModern.predict`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from glimodern.inference.request import check_count, check_flag, check_string

LabelArgument = str | Iterable[str] | Mapping[str, str]


class GlinerApi:
    """predict_entities, batch_predict_entities and inference of a model that has `predict`."""

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
        input_spans: None = None,
        return_class_probs: bool = False,
        *,
        return_vectors: bool = False,
        return_label_vectors: bool = False,
    ) -> list[Any]:
        """Entities of texts: a list per text of dicts start, end, text, label, score.

        Always a list, as gliner gives. texts and labels: as of predict, and one label may be a string. batch_size
        changes nothing: batches are formed by tokens, and all inputs are packed. Raises ValueError for an option of
        gliner's that this package does not have, TypeError for one that gliner lacks too.
        """
        refused = {
            "packing_config": packing_config,
            "input_spans": input_spans,
            "return_class_probs": return_class_probs,
            "return_vectors": return_vectors,
            "return_label_vectors": return_label_vectors,
        }
        for name, value in refused.items():
            if value is not None and value is not False:
                raise ValueError(f"{name}: glimodern does not have this option of gliner, got {value!r}; leave it out")
        flat = check_flag("flat_ner", flat_ner)
        check_count("batch_size", batch_size, "a number of texts")
        asked = [labels] if isinstance(labels, str) else labels
        return list(self.predict(texts, asked, threshold, flat, multi_label))

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
        """The entities of one text; kwargs: of `inference`."""
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
        """`inference` under its older name, which gliner calls deprecated; kwargs: of `inference`."""
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
