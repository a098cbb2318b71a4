"""The public package's names for prediction, answered for programs written for `gliner.GLiNER`.

Everywhere else one thing has one name here. These three are the exception, in this one place: pipelines such as
gliner-spacy call them on whatever object they are given, and then run on this model as they are. Signatures and results
are those of gliner 0.2.29 (https://github.com/urchade/GLiNER); each is a call of `GLiModern.predict`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

LabelSet = str | Sequence[str] | Mapping[str, str]


class GlinerApi:
    """predict_entities, batch_predict_entities and inference of a model that has `predict`."""

    predict: Callable[..., Any]

    def inference(
        self,
        texts: str | Sequence[str],
        labels: LabelSet | Sequence[LabelSet],
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

        labels: of all texts, or a list or mapping a text; a mapping asks with its values, descriptions, and answers
        with its keys. batch_size changes nothing: batches are formed by tokens, and all inputs are packed. Raises
        ValueError for an option of gliner's that this package does not have, TypeError for one that gliner lacks too.
        """
        refused = {
            "packing_config": packing_config,
            "input_spans": input_spans,
            "return_class_probs": return_class_probs,
            "return_vectors": return_vectors,
            "return_label_vectors": return_label_vectors,
        }
        for name, value in refused.items():
            if value not in (None, False):
                raise ValueError(f"{name}: glimodern does not have this option of gliner, got {value!r}; leave it out")
        texts = [texts] if isinstance(texts, str) else texts
        per_text = not isinstance(labels, str) and any(isinstance(one, list | tuple | Mapping) for one in labels)
        sets = [_prompts(one) for one in labels] if per_text else [_prompts(labels)]
        asked = [prompts for prompts, _ in sets] if per_text else sets[0][0]
        results: list[Any] = self.predict(texts, asked, threshold, flat_ner, multi_label)
        for i, entities in enumerate(results):
            names = sets[i if per_text else 0][1]
            for entity in entities if names else ():
                entity["label"] = names[entity["label"]]
        return results

    def predict_entities(
        self,
        text: str,
        labels: LabelSet,
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
            [text],
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
        texts: Sequence[str],
        labels: LabelSet | Sequence[LabelSet],
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


def _prompts(labels: Any) -> tuple[list[str], dict[str, str]]:
    """What a text is asked for, and the name that each answer to it gets, {} where they are the same."""
    if not isinstance(labels, Mapping):
        return ([labels] if isinstance(labels, str) else list(labels)), {}
    names = {description: name for name, description in labels.items()}
    if len(names) < len(labels):
        raise ValueError(f"labels: wanted a description of its own for each label, got {dict(labels)!r}")
    return list(names), names
