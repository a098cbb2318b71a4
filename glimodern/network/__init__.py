"""Encoder and span head as one module: packed batches in; loss, logits or candidate entities out."""
