"""Checkpoints in the public GLiNER format."""
