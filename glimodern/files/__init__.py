"""Atomic writes, downloads from the Hugging Face hub, and readers of tensor and tokenizer files."""
