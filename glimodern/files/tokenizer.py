"""Tokenizers: loading, token limits and the prompt tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

LABELS_TOKENIZER = "labels_tokenizer"  # folder of a bi-encoder's second tokenizer
# The files that transformers writes and reads for any tokenizer. It reads vocabularies (vocab.txt, spiece.model) only
# without a tokenizer.json, and checkpoints are always written with one.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
LABELS_TOKENIZER_FILES = tuple(f"{LABELS_TOKENIZER}/{name}" for name in TOKENIZER_FILES)


def load_tokenizer(path: str, *, add_bos_eos: bool = True, **hub_options: Any) -> Any:
    """Load transformers' fast tokenizer of a folder or hub name; `.backend_tokenizer` is the Rust tokenizer.

    add_bos_eos: put the tokenizer's bos and eos tokens, if it has them, around every text. transformers 5 forgets them
        for some tokenizers, and the public package adds them (https://github.com/urchade/GLiNER/issues/324), except
        for a bi-encoder's labels.

    Raises ValueError for a slow tokenizer.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, **hub_options)
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"tokenizer of {path!r}: expected a fast tokenizer (tokenizer.json), got {type(tokenizer).__name__}; "
            "convert it once with transformers' convert_slow_tokenizer and save it"
        )
    for name in ("bos", "eos") if add_bos_eos else ():
        if getattr(tokenizer, f"{name}_token_id") is not None and hasattr(tokenizer, f"add_{name}_token"):
            setattr(tokenizer, f"add_{name}_token", True)
    return tokenizer


def check_rows(tokenizer: Any, rows: int | None, file: Path) -> None:
    """Raise ValueError for a bi-encoder's Rust tokenizer with more tokens than its encoder has rows; None: not known.

    Added tokens do not count: public checkpoints have some that their encoder does not know. file: the tokenizer's.
    """
    size = tokenizer.get_vocab_size(with_added_tokens=False)
    if rows is not None and size > rows:
        raise ValueError(
            f"{file}: expected at most {rows} tokens, the rows of the encoder in gliner_config.json, got {size}; the "
            "tokenizer is of another model, copy the one of this model"
        )


def token_limit(tokenizer: Any, positions: int | None) -> int | None:
    """Return the maximum tokens of a text for an encoder with `positions` positions; None if there is no limit."""
    limits = (positions, tokenizer.model_max_length)  # transformers sets 10^30 for "no limit"
    return min((limit for limit in limits if limit is not None and limit < 2**30), default=None)


def add_prompt_tokens(tokenizer: Any, tokens: Sequence[str]) -> int:
    """Add the prompt tokens and tokenise pre-split words as in running text; return the new vocabulary size.

    Some tokenizers mark a word by the space before it: byte-level ones without `add_prefix_space`, and Gemma's
    (mmBERT's). They treat pre-split words as parts of one word ("Th is"), which costs about one F1 point. This function
    makes them prepend the space: with `add_prefix_space`, or with a first normalizer if the byte level follows another
    stage (EuroBERT's) or the space is written as "\u2581". The stored tokenizer keeps the change.
    """
    import json

    from tokenizers import AddedToken, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = tokenizer.backend_tokenizer
    whole = json.loads(backend.to_str())
    state, normalizer = whole["pre_tokenizer"] or {}, whole["normalizer"] or {}
    stages = state.get("pretokenizers", [state])
    steps = normalizer.get("normalizers", [normalizer])
    glued = any(stage.get("type") == "ByteLevel" and not stage["add_prefix_space"] for stage in stages)
    if glued and state["type"] == "ByteLevel":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(
            add_prefix_space=True, trim_offsets=state["trim_offsets"], use_regex=state["use_regex"]
        )
        tokenizer.add_prefix_space = True
        if "add_prefix_space" in tokenizer.init_kwargs:
            tokenizer.init_kwargs["add_prefix_space"] = True
    elif glued or (
        any((step.get("pattern"), step.get("content")) == ({"String": " "}, "\u2581") for step in steps)
        and not any(part.get("type") in ("Prepend", "Metaspace") for part in [*steps, *stages])
    ):
        before = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(" "), *before])
        tokenizer.__class__ = PreTrainedTokenizerFast  # Gemma's class drops the normalizer on loading
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True)
    return len(tokenizer)
