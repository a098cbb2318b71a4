"""The process of one row of bench_peers.py: it loads one model, then computes only on request.

A line of JSON on stdin is a request, a line on stdout its answer. Libraries print to stderr. Every library uses its
default thread pool. The module imports only the standard library at the top, because fast_gliner's interpreter need not
have other packages.
"""

import contextlib
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

Entities = list[list[dict[str, Any]]]


ONNX_FILES = {"fp32": "model.onnx", "int8": "model_quantized.onnx"}


class Gliner:
    """The public package: PyTorch in fp32 or bf16, or with its quantize("int8")."""

    def __init__(self, folder: str, dtype: str) -> None:
        from gliner import GLiNER

        self.model = GLiNER.from_pretrained(folder, dtype="bf16" if dtype == "bf16" else None)
        if dtype == "int8":
            self.model.quantize("int8")

    def predict(self, texts: list[str], labels: list[str], threshold: float, batch: int) -> Entities:
        return self.model.inference(texts, labels, threshold=threshold, batch_size=batch)


class GlinerOnnx(Gliner):
    """The public package on ONNX Runtime, with its own export in fp32 or int8."""

    def __init__(self, folder: str, dtype: str) -> None:
        from gliner import GLiNER

        self.model = GLiNER.from_pretrained(folder, load_onnx_model=True, onnx_model_file=ONNX_FILES[dtype])


class FastGliner:
    """fast_gliner (Rust, ONNX Runtime) on gliner's export.

    Version 0.3.2 has no arguments for the threshold, which is 0.5, and for the number of threads.
    """

    THRESHOLD = 0.5

    def __init__(self, folder: str, dtype: str) -> None:
        from fast_gliner import FastGLiNER

        self.model = FastGLiNER(folder, ONNX_FILES[dtype])

    def predict(self, texts: list[str], labels: list[str], threshold: float, batch: int) -> Entities:
        if threshold != self.THRESHOLD:
            raise ValueError(f"threshold: expected {self.THRESHOLD}, fast_gliner's only threshold, got {threshold}")
        groups = (texts[i : i + batch] for i in range(0, len(texts), batch))
        return [found for group in groups for found in self.model.predict_entities(group, labels)]


class Ours:
    """GLiModern, which forms its own batches. `hidden` runs its encoder only."""

    def __init__(self, folder: str, dtype: str) -> None:
        from glimodern import GLiModern

        self.model = GLiModern.from_pretrained(folder, dtype=dtype)

    def predict(self, texts: list[str], labels: list[str], threshold: float, batch: int) -> Entities:
        return [list(found) for found in self.model.predict(texts, labels, threshold)]

    def count(self, texts: list[str], labels: list[str]) -> dict[str, int]:
        """Count tokens, words and types of the packed texts."""
        from glimodern.inputs.words import split_words

        words = [[word.text for word in split_words(text)] for text in texts]
        packed = self.model.packer.pack(words, [labels] * len(texts))
        return {"tokens": len(packed.input_ids), "words": len(packed.word_index), "types": len(packed.type_index)}

    def hidden(self, tokens: int) -> Any:
        import torch

        ids = _token_ids(tokens, self.model.config.vocab_size)
        with torch.inference_mode():
            return self.model.encoder(ids, torch.tensor([0, tokens], dtype=torch.int32), tokens)


class Transformers:
    """transformers' encoder, with SDPA where it has it, and the encoder weights of a GLiNER checkpoint."""

    PREFIX = "token_rep_layer.bert_layer.model."

    def __init__(self, folder: str, dtype: str) -> None:
        import torch
        from safetensors.torch import load_file
        from transformers import AutoConfig, AutoModel

        stored = json.loads((Path(folder) / "gliner_config.json").read_text())
        options = {**stored["encoder_config"], "vocab_size": stored["vocab_size"]}
        self.config = AutoConfig.for_model(options.pop("model_type"), **options)
        self.model = AutoModel.from_config(self.config)
        state = load_file(Path(folder) / "model.safetensors")
        self.model.load_state_dict({k.removeprefix(self.PREFIX): v for k, v in state.items() if self.PREFIX in k})
        self.model.to({"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]).eval()

    def hidden(self, tokens: int) -> Any:
        import torch

        with torch.inference_mode():
            return self.model(_token_ids(tokens, self.config.vocab_size)[None]).last_hidden_state[0]


SIDES: dict[str, Any] = {
    "gliner": Gliner,
    "gliner onnx": GlinerOnnx,
    "fast_gliner": FastGliner,
    "ours": Ours,
    "transformers": Transformers,
}


def _token_ids(tokens: int, vocab_size: int) -> Any:
    import torch

    return torch.randint(vocab_size // 2, vocab_size, (tokens,), generator=torch.Generator().manual_seed(tokens))


def _timed(call: Any, calls: int) -> list[float]:
    gc.collect()
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def _peak_mib(call: Any) -> float:
    """The peak MiB of the resident set during a call beyond its size before; only Linux tells it."""

    def field(name: str) -> int:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{name}:"))

    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts at the present size
    before = field("VmRSS")
    call()
    return (field("VmHWM") - before) / 1024


def answer(side: Any, request: dict[str, Any]) -> Any:
    """Answer one request. side: the loaded model; None before the request "load"."""
    do = request.pop("do")
    calls = request.pop("calls", 1)
    if do == "load":
        return SIDES[request["side"]](request["folder"], request["dtype"])
    if do == "predict":
        return side.predict(**request)
    if do == "time":
        return _timed(lambda: side.predict(**request), calls)
    if do == "count":
        return side.count(**request)
    if do == "hidden":
        return side.hidden(**request).float()[:: max(request["tokens"] // 64, 1), :16].tolist()
    if do == "time hidden":
        return _timed(lambda: side.hidden(**request), calls)
    if do == "peak hidden":
        return _peak_mib(lambda: side.hidden(**request))
    raise ValueError(f"do: expected load, predict, time, count, hidden, time hidden or peak hidden, got {do!r}")


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    side = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            result = answer(side, dict(request))
            if request["do"] == "load":
                side, result = result, True
            reply = {"result": result}
        except Exception as error:  # any error of a library is the reason why the row does not run
            reply = {"error": f"{type(error).__name__}: {error}"}
        with contextlib.suppress(BrokenPipeError):
            replies.write(json.dumps(reply, default=float) + "\n")
            replies.flush()


if __name__ == "__main__":
    main()
