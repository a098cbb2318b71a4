"""The speedup of packed encoders by architecture: our encoder against transformers' padded run with the same weights.

    python bench/encoder_packing.py deberta-v3-small mpnet-base [--rounds 3] [--texts FOLDER]

Text lengths are those of 64 sentences with all labels of CrossNER politics (test), in batches of 2,048 tokens sorted by
length, as in `predict`. Weights and tokens are random. The sides run in turns: transformers padded; ours; ours with
packed linear layers in fp32 and int8. One sentence alone and a training step of 8 sentences are timed too. All figures
are medians. The script first asserts that the fp32 results are equal.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from glimodern.data import load_split
from glimodern.encoder import Encoder, build_encoder
from glimodern.inputs.words import split_words

_BERT = dict(hidden_size=768, num_hidden_layers=6, num_attention_heads=12, intermediate_size=3072)
_V3 = dict(
    model_type="deberta-v2", relative_attention=True, pos_att_type=["p2c", "c2p"], position_biased_input=False,
    position_buckets=256, share_att_key=True, norm_rel_ebd="layer_norm", type_vocab_size=0,
)  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "deberta-v3-small": {**_V3, **_BERT},
    "deberta-v3-base": {**_V3, **_BERT, "num_hidden_layers": 12},
    "mpnet-base": {"model_type": "mpnet", **_BERT, "num_hidden_layers": 12},
    "t5-small": {"model_type": "t5"},
    "eurobert-6-layers": {"model_type": "eurobert", **_BERT, "mask_token_id": 3},
    "distilbert": {"model_type": "distilbert"},
}
BATCH_TOKENS = 2048


def lengths_of(folder: Path) -> list[int]:
    """Tokens of each text with its prompt, longest first, at 1.2 tokens per word (MiniLM's tokenizer gives 4,499)."""
    data = load_split(str(folder), "test")
    prompt = 2 + sum(1 + len(split_words(label)) for label in data.types)
    return sorted((round(1.2 * len(example.words)) + prompt + 1 for example in data.examples[:64]), reverse=True)


def batches_of(lengths: list[int]) -> list[tuple[Tensor, Tensor, int]]:
    groups: list[list[int]] = []
    for length in lengths:
        if not groups or sum(groups[-1]) + length > BATCH_TOKENS:
            groups.append([])
        groups[-1].append(length)
    return [
        (torch.randint(5, 3999, (sum(group),)), torch.tensor([0, *group]).cumsum(0).int(), max(group))
        for group in groups
    ]


def asked(batch: tuple[Tensor, Tensor, int]) -> Tensor:
    """Rows that a span head requests for words and types, approximately every second token."""
    return torch.arange(len(batch[0]))[::2]


def padded(model: Any, batch: tuple[Tensor, Tensor, int]) -> Tensor:
    """Run transformers' model on padded texts and remove the padding from the result."""
    ids, cu_seqlens, _ = batch
    texts = ids.split(cu_seqlens.diff().tolist())
    rows = torch.nn.utils.rnn.pad_sequence(list(texts), batch_first=True)
    mask = torch.arange(rows.shape[1])[None] < cu_seqlens.diff()[:, None]
    hidden: Tensor = model(input_ids=rows, attention_mask=mask.long()).last_hidden_state[mask]
    return hidden


def encoder_of(shape: dict[str, Any], dtype: str | None = None) -> Encoder:
    torch.manual_seed(0)
    encoder = build_encoder({**shape, "vocab_size": 4000, "pad_token_id": 0}).eval()
    if dtype is not None:
        encoder.requires_grad_(False).pack(dtype)
    return encoder


def reference_of(encoder: Encoder) -> Any:
    from transformers import AutoModel, AutoModelForTextEncoding

    kind = AutoModelForTextEncoding if encoder.config.model_type == "t5" else AutoModel
    encoder.config._attn_implementation = None
    model = kind.from_config(encoder.config).eval()
    model.load_state_dict(encoder.model.state_dict())
    return model


def in_turns(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each side, after a warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, run in sides.items():
            began = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return {name: median(values) for name, values in seconds.items()}


def show(title: str, seconds: dict[str, float]) -> None:
    first = next(iter(seconds.values()))
    print(f"{title}: " + ", ".join(f"{name} {s:.3f} s ({first / s:.2f} x)" for name, s in seconds.items()), flush=True)


def bench(name: str, lengths: list[int], rounds: int) -> None:
    batches = batches_of(lengths)
    ours = encoder_of(SHAPES[name])
    theirs = reference_of(encoder_of(SHAPES[name]))
    packed = {dtype: encoder_of(SHAPES[name], dtype) for dtype in ("fp32", "int8")}
    with torch.inference_mode():
        for batch in batches:
            torch.testing.assert_close(
                ours(*batch, asked(batch)), padded(theirs, batch)[asked(batch)], rtol=0, atol=5e-5
            )
        runs = {
            "transformers, padded": lambda: [padded(theirs, batch) for batch in batches],
            "ours": lambda: [ours(*batch, asked(batch)) for batch in batches],
            **{
                f"linears {dtype}": lambda e=e: [e(*batch, asked(batch)) for batch in batches]
                for dtype, e in packed.items()
            },
        }
        show(f"{name}, {len(lengths)} texts, {sum(lengths)} tokens", in_turns(runs, rounds))
        one = batches_of(lengths[len(lengths) // 2 :][:1])[0]
        alone = {
            "transformers": lambda: padded(theirs, one),
            "ours": lambda: ours(*one, asked(one)),
            **{f"linears {dtype}": lambda e=e: e(*one, asked(one)) for dtype, e in packed.items()},
        }
        show(f"{name}, one text of {one[2]} tokens", in_turns(alone, 5 * rounds))
    generator = torch.Generator().manual_seed(0)
    eight = [lengths[i] for i in torch.randperm(len(lengths), generator=generator)[:8].tolist()]
    batch = batches_of(eight)[0]
    theirs.train()
    ours.train()
    steps = {
        "transformers, padded": lambda: padded(theirs, batch)[asked(batch)].square().mean().backward(),
        "ours": lambda: ours(*batch, asked(batch)).square().mean().backward(),
    }
    show(f"{name}, forward and backward of 8 texts, {sum(eight)} tokens", in_turns(steps, rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="+", choices=sorted(SHAPES))
    parser.add_argument("--rounds", type=int, default=3)
    texts = Path(__file__).resolve().parents[2] / "shared" / "data" / "crossner" / "politics"
    parser.add_argument("--texts", type=Path, default=texts)
    options = parser.parse_args()
    lengths = lengths_of(options.texts)
    for name in options.shapes:
        bench(name, lengths, options.rounds)


if __name__ == "__main__":
    main()
