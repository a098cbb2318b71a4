"""Comparison of encoders under one budget: `python -m glimodern.compare` (see `glimodern.compare.loop`)."""
