"""Annotated text: examples, the readers of four formats, a validation report, and sampling for training."""

from .example import Dataset, Entity, Example, entity_types
from .labels import CROSSNER_LABELS, natural_label
from .load import load_dataset
from .report import ValidationReport, validate
from .sampling import sample_types, token_batches

__all__ = [
    "CROSSNER_LABELS",
    "Dataset",
    "Entity",
    "Example",
    "ValidationReport",
    "entity_types",
    "load_dataset",
    "natural_label",
    "sample_types",
    "token_batches",
    "validate",
]
