"""A tokenizer copy that reads all input as plain text.

A tokenizer matches its special tokens in any text: a word "[SEP]" would end the prompt, a label "<<ENT>>" would add one
more type. The copy made here never produces such a token from text. `Tokenizer.encode_special_tokens`, which disables
the matching, is not enough: added tokens that are not flagged as special still match, and a Unigram or WordPiece model
has "[SEP]" in its vocabulary and matches it there. The copy therefore renames these tokens to random names that occur
in no text. The ids of all tokens, and the encoding of all other text, are unchanged.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def plain_tokenizer(
    tokenizer: Tokenizer, control: Iterable[str] = (), *, first_unknown_id: int | None = None
) -> tuple[Tokenizer, dict[str, str]]:
    """Return a copy that never encodes text as a special token, and {name in the copy: original name} of those tokens.

    The copy has no padding and no truncation. Special are the tokens flagged as special, the tokens that the tokenizer
    puts around a text (the copy still puts them there), and `control`.

    control: further tokens that text must not become. first_unknown_id: added tokens with
    this id or a higher one are dropped.
    """
    state = json.loads(tokenizer.to_str())
    state["truncation"] = state["padding"] = None
    added = [token for token in state["added_tokens"] if first_unknown_id is None or token["id"] < first_unknown_id]
    encoding = tokenizer.encode("a")
    around = [token for token, mask in zip(encoding.tokens, encoding.special_tokens_mask, strict=True) if mask]
    special = {*control, *around, *(token["content"] for token in added if token["special"])}
    nonce = secrets.token_hex(16)
    names = {token: f"\ufdd0{nonce}{i}" for i, token in enumerate(sorted(special))}
    for token in added:
        token["content"] = names.get(token["content"], token["content"])
    state["added_tokens"] = added
    _rename(state["model"], names)
    return type(tokenizer).from_str(json.dumps(state)), {alias: token for token, alias in names.items()}


def _rename(model: dict[str, Any], names: dict[str, str]) -> None:
    """Rename tokens in the state of a tokenizer's model, and drop BPE merges that involve a renamed token."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # Unigram: [token, score], by id
        model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
        return
    model["vocab"] = {names.get(token, token): number for token, number in vocabulary.items()}
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    merges = model.get("merges")
    if merges:
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
        model["merges"] = [
            merge
            for merge, (left, right) in zip(merges, pairs, strict=True)
            if not {left, right, left + right} & names.keys()
        ]
