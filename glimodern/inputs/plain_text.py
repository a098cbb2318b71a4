"""A tokenizer that reads whatever it is given as plain text.

A tokenizer finds its special tokens in any text: a word "[SEP]" ends the prompt, a label "<<ENT>>" asks for one more
type. In the copy made here no text can become such a token. Switching their search off
(`Tokenizer.encode_special_tokens`) does not suffice: tokens that are added but not flagged as special are found
still, and a Unigram or WordPiece model has "[SEP]" in its vocabulary and matches it there. So in the copy these tokens
have other names, which are drawn at random and occur in no text. All ids stay, and so do the ids of all other text.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def plain_tokenizer(
    tokenizer: Tokenizer, control: Iterable[str] = (), *, ids: int | None = None
) -> tuple[Tokenizer, dict[str, str]]:
    """A copy without padding and truncation that makes no special token of a text; and {name there: token's own name}.

    control: more tokens that no text may become, beside those flagged as special and those that the tokenizer puts
    around a text. These it still puts there. ids: added tokens from this id on are left out.
    """
    state = json.loads(tokenizer.to_str())
    state["truncation"] = state["padding"] = None
    added = [token for token in state["added_tokens"] if ids is None or token["id"] < ids]
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
    """Rename tokens of a tokenizer's model; a merge of BPE that would make one goes."""
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
