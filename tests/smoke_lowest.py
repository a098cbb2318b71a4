"""Imports every module, trains three steps, evaluates and predicts: `python tests/smoke_lowest.py`, without pytest.

`make test-lowest` runs it with the lowest versions that pyproject.toml allows.
"""

import importlib
import importlib.metadata
import json
import os
import pkgutil
import tempfile
from pathlib import Path

WORDS = "Ada Lovelace met Charles Babbage in London .".split()
# what extras bring
OPTIONAL = (
    "gliner", "haystack", "httpx", "onnx", "onnxruntime", "peft", "presidio_analyzer", "prometheus_client", "pyarrow",
    "ray", "spacy", "srsly", "starlette", "uvicorn",
)  # fmt: skip


def main() -> None:
    names = ("accelerate", "huggingface_hub", "numpy", "pyyaml", "regex", "rich", "safetensors", "tensorboard",
             "tokenizers", "torch", "transformers", "triton", "typing_extensions", "tyro")  # fmt: skip
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in names))

    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported
    import torch

    import glimodern
    from glimodern import ops

    a, b, u, c = (torch.randn(shape, requires_grad=True) for shape in ((5, 8), (5, 8), (2, 8), (2,)))
    bounds = torch.tensor([0, 5], dtype=torch.int32), torch.tensor([0, 2], dtype=torch.int32)
    losses = []
    for backend in ("reference", "triton"):
        with ops.use_backend(backend):
            loss = ops.span_loss(a, b, u, c, *bounds, torch.tensor([[0, 1, 1]]), 3)
            loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(*losses)
    linear = ops.backend_info()["linear_packed"]
    int8 = linear["backend"] == "cpp" and linear["isa"] != "scalar"
    print(f"linear_packed on this machine: {linear}")

    for module in pkgutil.walk_packages(glimodern.__path__, "glimodern."):
        try:
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name not in OPTIONAL:
                raise

    from glimodern import GLiModern, evaluate, predict
    from glimodern.train import __main__ as train

    with tempfile.TemporaryDirectory() as folder:
        data, run = Path(folder) / "data.jsonl", Path(folder) / "run"
        row = {"tokenized_text": WORDS, "ner": [[0, 1, "person"], [3, 4, "person"], [6, 6, "city"]]}
        data.write_text((json.dumps(row) + "\n") * 4)
        for encoder in ("demo", "demo-bert", "demo-deberta-v3"):
            train.main(
                ["--encoder", encoder, "--train-data", str(data), "--eval-data", str(data), "--max-steps", "3",
                 "--output-dir", str(run), "--overwrite", "--no-progress"]
            )  # fmt: skip
            evaluate.main([str(run / "model"), "--data", str(data)])
            predict.main([str(run / "model"), "--labels", "person,city", "--threshold", "0", " ".join(WORDS)])
            for dtype in ("fp32", "bf16", *(["int8"] if int8 else [])):
                (found,) = GLiModern.from_pretrained(run / "model", dtype=dtype).predict(
                    [" ".join(WORDS)], ["person", "city"], threshold=0.0
                )
                assert found, f"{encoder} in {dtype} finds nothing at threshold 0"
    print("all is well")


if __name__ == "__main__":
    main()
