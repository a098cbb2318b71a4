"""Words and entity types in, one packed batch of tokens out: no padding, no mask.

One text becomes, as public GLiNER checkpoints expect it,

    [CLS] <<ENT>> label_1 <<ENT>> label_2 ... <<SEP>> words... [SEP]

and the texts of a batch stand one after the other in one row of tokens with `cu_seqlens`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

Entity = tuple[int, int, str]


@dataclass(frozen=True)
class PackedBatch:
    """b texts, N tokens, n words and m entity types, packed; tensors on one device.

    input_ids int64 [N]; cu_seqlens, cu_words, cu_types int32 [b + 1]; word_index int64 [n], the token whose hidden
    state is the word's vector, -1 for a word the tokenizer turns into nothing (its vector is zero); type_index int64
    [m]; positives int32 [P, 3], distinct rows (word, width - 1, type), counted in the whole batch.
    words_cut: per text, how many words at its end did not fit. entities_lost: gold entities that the batch cannot
    hold (wider than max_width, or cut off).
    """

    input_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    word_index: Tensor
    cu_words: Tensor
    type_index: Tensor
    cu_types: Tensor
    positives: Tensor
    words_cut: tuple[int, ...] = ()
    entities_lost: int = 0
    has_missing_words: bool = False

    def to(self, device: torch.device | str) -> "PackedBatch":
        moved: dict[str, Any] = {
            f.name: getattr(self, f.name).to(device, non_blocking=True)
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)


def _int32_offsets(lengths: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32))


class PromptPacker:
    """Builds packed batches with a `tokenizers.Tokenizer` that knows the two prompt tokens.

    max_words: a text's words beyond this are cut (a checkpoint's `max_len`). max_tokens: what the encoder takes, prompt
    and special tokens included; None for no limit.
    """

    def __init__(
        self,
        tokenizer: "Tokenizer",
        *,
        ent_token: str,
        sep_token: str,
        max_width: int,
        max_words: int,
        max_tokens: int | None,
        embed_ent_token: bool = True,
    ) -> None:
        missing = [token for token in (ent_token, sep_token) if tokenizer.token_to_id(token) is None]
        if missing:
            raise ValueError(
                f"tokenizer: wanted the prompt tokens {ent_token!r} and {sep_token!r} in its vocabulary, "
                f"{missing} not found; add them as special tokens (and resize the encoder's embeddings)"
            )
        self.tokenizer = type(tokenizer).from_str(
            tokenizer.to_str()
        )  # its own: whoever shares one can switch truncation
        self.ent_token = ent_token
        self.sep_token = sep_token
        self.max_width = max_width
        self.max_words = max_words
        self.max_tokens = max_tokens
        self.embed_ent_token = embed_ent_token
        self.tokenizer.no_padding()
        if max_tokens is None:
            self.tokenizer.no_truncation()
        else:
            self.tokenizer.enable_truncation(max_tokens)

    def prompt_words(self, types: Sequence[str]) -> list[str]:
        """[<<ENT>>, label_1, <<ENT>>, label_2, ..., <<SEP>>]; an empty label is its <<ENT>> alone."""
        words: list[str] = []
        for label in types:
            words.append(self.ent_token)
            if label:
                words.append(label)
        words.append(self.sep_token)
        return words

    def token_lengths(self, texts: Sequence[Sequence[str]]) -> list[int]:
        """Sub-tokens of each text's words, without prompt and special tokens (for token budgets)."""
        encodings = self.tokenizer.encode_batch(
            [list(text[: self.max_words]) for text in texts], is_pretokenized=True, add_special_tokens=False
        )
        return [len(encoding) for encoding in encodings]

    def pack(
        self,
        texts: Sequence[Sequence[str]],
        types: Sequence[Sequence[str]],
        entities: Sequence[Sequence[Entity]] | None = None,
    ) -> PackedBatch:
        """Tokenise and pack: texts[i] is a list of words, types[i] the labels asked of it, entities[i] its gold.

        Gold of types that are not asked is left out. Raises ValueError when a text's labels alone overflow max_tokens.
        """
        if len(texts) != len(types):
            raise ValueError(f"types: wanted one list of labels per text ({len(texts)}), got {len(types)} lists")
        prompts = [self.prompt_words(labels) for labels in types]
        kept = [list(text[: self.max_words]) for text in texts]
        encodings = self.tokenizer.encode_batch(
            [prompt + words for prompt, words in zip(prompts, kept, strict=True)], is_pretokenized=True
        )
        ids: list[int] = []
        token_counts, word_counts, type_counts = [], [], []
        word_index, type_index, words_cut = [], [], []
        positives: set[tuple[int, int, int]] = set()
        first_token = first_word = first_type = lost = 0
        for i, encoding in enumerate(encodings):
            starts = self._word_starts(encoding, len(prompts[i]) + len(kept[i]), len(prompts[i]), types[i])
            words = len(starts) - len(prompts[i])
            ent_positions = np.array([j for j, word in enumerate(prompts[i]) if word == self.ent_token], dtype=np.int64)
            shift = 0 if self.embed_ent_token else 1
            type_index.append(starts[ent_positions[: len(types[i])]] + shift + first_token)
            body = starts[len(prompts[i]) :]
            word_index.append(np.where(body < 0, -1, body + first_token))
            words_cut.append(len(texts[i]) - words)
            if entities is not None:
                lost += self._add_positives(positives, entities[i], types[i], words, first_word, first_type)
            ids.extend(encoding.ids)
            token_counts.append(len(encoding.ids))
            word_counts.append(words)
            type_counts.append(len(types[i]))
            first_token += token_counts[-1]
            first_word += words
            first_type += len(types[i])
        packed_words = np.concatenate([np.empty(0, np.int64), *word_index])
        return PackedBatch(
            input_ids=torch.tensor(ids, dtype=torch.int64),
            cu_seqlens=_int32_offsets(token_counts),
            max_seqlen=max(token_counts, default=0),
            word_index=torch.from_numpy(packed_words),
            cu_words=_int32_offsets(word_counts),
            type_index=torch.from_numpy(np.concatenate([np.empty(0, np.int64), *type_index])),
            cu_types=_int32_offsets(type_counts),
            positives=torch.tensor(sorted(positives), dtype=torch.int32).reshape(-1, 3),
            words_cut=tuple(words_cut),
            entities_lost=lost,
            has_missing_words=bool((packed_words < 0).any()),
        )

    def _word_starts(self, encoding: "Encoding", total: int, prompt: int, types: Sequence[str]) -> np.ndarray:
        """First token of each word (prompt words included), -1 for none; shortened where the text was cut."""
        owners = np.array([-1 if word is None else word for word in encoding.word_ids], dtype=np.int64)
        starts = np.full(total, -1, dtype=np.int64)
        positions = np.flatnonzero(owners >= 0)
        starts[owners[positions[::-1]]] = positions[::-1]  # assigned backwards, so the first token stays
        if not encoding.overflowing:
            return starts
        end = int(owners.max(initial=-1)) + 1
        if end < prompt:
            raise ValueError(
                f"labels: {len(types)} labels do not fit the prompt: the encoder takes {self.max_tokens} tokens and "
                "the labels alone need more; ask for fewer labels at a time"
            )
        return starts[:end]

    def _add_positives(
        self,
        positives: set[tuple[int, int, int]],
        entities: Sequence[Entity],
        types: Sequence[str],
        words: int,
        first_word: int,
        first_type: int,
    ) -> int:
        column = {label: i for i, label in enumerate(types)}
        lost = 0
        for start, end, label in entities:
            if label not in column:
                continue
            if end >= words or end - start >= self.max_width:
                lost += 1
                continue
            positives.add((first_word + start, end - start, first_type + column[label]))
        return lost


def load_tokenizer(path: str, **hub_options: Any) -> Any:
    """transformers' fast tokenizer of a folder or hub name, as it is stored; its Rust half is `.backend_tokenizer`."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, **hub_options)
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"tokenizer of {path!r}: wanted a fast tokenizer (tokenizer.json), got {type(tokenizer).__name__}; "
            "convert it once with transformers' convert_slow_tokenizer and save it"
        )
    return tokenizer


def add_prompt_tokens(tokenizer: Any, tokens: Sequence[str]) -> int:
    """Make words of a list separate themselves as in running text, and add the prompt tokens; returns the new length.

    A byte-level tokenizer without `add_prefix_space` glues pre-split words together ("Th is"), which costs about one
    F1 point, so it is switched on in the stored tokenizer.
    """
    import json

    from tokenizers import AddedToken, pre_tokenizers

    backend = tokenizer.backend_tokenizer
    state = json.loads(backend.to_str())["pre_tokenizer"] or {}
    stages = state.get("pretokenizers", [state])
    if any(stage.get("type") == "ByteLevel" and not stage["add_prefix_space"] for stage in stages):
        if state["type"] != "ByteLevel":
            raise ValueError(
                "tokenizer: wanted a plain ByteLevel pre-tokenizer to switch on add_prefix_space, "
                f"got {state['type']}; save the tokenizer with add_prefix_space=true first"
            )
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(
            add_prefix_space=True, trim_offsets=state["trim_offsets"], use_regex=state["use_regex"]
        )
        tokenizer.add_prefix_space = True
        if "add_prefix_space" in tokenizer.init_kwargs:
            tokenizer.init_kwargs["add_prefix_space"] = True
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True)
    return len(tokenizer)
