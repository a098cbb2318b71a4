"""Training of models: `python -m glimodern.train` (see `glimodern.train.loop`)."""
