"""Annotated text: examples, the readers of four formats, a validation report, and sampling for training."""

from .example import Dataset, Entity, Example, entity_types

__all__ = ["Dataset", "Entity", "Example", "entity_types"]
