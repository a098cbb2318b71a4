"""Inference pipeline: requests, batches of a stream, decoding, entities with character offsets."""
