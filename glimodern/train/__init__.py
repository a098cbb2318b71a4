"""Training: `python -m glimodern.train` (see `glimodern.train.loop`)."""
