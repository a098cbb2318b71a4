"""Tokenizers of folders and hub names, and the prompt tokens they get."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


def load_tokenizer(path: str, *, add_bos_eos: bool = True, **hub_options: Any) -> Any:
    """transformers' fast tokenizer of a folder or hub name; its Rust half is `.backend_tokenizer`.

    It is as it is stored, but puts its bos and eos tokens, if it has such, around every text: transformers 5 forgets
    them for some tokenizers, and the public package asks for them (https://github.com/urchade/GLiNER/issues/324), but
    not for a bi-encoder's labels (add_bos_eos=False).
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


def token_limit(tokenizer: Any, positions: int | None) -> int | None:
    """Tokens of a text that an encoder of so many positions and its tokenizer take; None where neither has a limit."""
    limits = (positions, tokenizer.model_max_length)  # transformers writes 10^30 for "no limit"
    return min((limit for limit in limits if limit is not None and limit < 2**30), default=None)


def add_prompt_tokens(tokenizer: Any, tokens: Sequence[str]) -> int:
    """Make words of a list separate themselves as in running text, and add the prompt tokens; returns the new length.

    Tokenizers that know a word by the space before it glue pre-split words together ("Th is"), which costs about one
    F1 point: byte-level ones without `add_prefix_space`, and Gemma's (mmBERT's). They get that space in the stored
    tokenizer: by that option, or where the byte level comes after another stage (EuroBERT's) or the space is written
    as "\u2581", by a normalizer before all others.
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
        tokenizer.__class__ = PreTrainedTokenizerFast  # Gemma's would be built anew when loaded, without it
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True)
    return len(tokenizer)
