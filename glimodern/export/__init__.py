"""ONNX: a checkpoint's folded model as a graph, `python -m glimodern.export`, and its prediction without torch."""
