"""Annotated text: examples, readers of training formats, validation report, metrics, and sampling for training."""

from glimodern.inputs.words import Entity

from .example import Dataset, Example, entity_types
from .load import load_dataset, load_split, load_table
from .report import ValidationReport, validate
from .sampling import asked_types, sample_types, token_batches, with_asked_types
from .tags import CROSSNER_LABELS, natural_label

__all__ = [
    "CROSSNER_LABELS",
    "Dataset",
    "Entity",
    "Example",
    "ValidationReport",
    "asked_types",
    "entity_types",
    "load_dataset",
    "load_split",
    "load_table",
    "natural_label",
    "sample_types",
    "token_batches",
    "validate",
    "with_asked_types",
]
