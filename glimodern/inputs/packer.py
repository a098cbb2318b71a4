"""Words and entity types in, one packed batch of tokens out: no padding, no mask.

One text becomes, as public GLiNER checkpoints expect it,

    [CLS] <<ENT>> label_1 <<ENT>> label_2 ... <<SEP>> words... [SEP]

and the texts of a batch stand one after the other in one row of tokens with `cu_seqlens`.
"""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from glimodern.runtime.forks import keep_to_own_threads

from .batch import IntArray, PackedBatch, PromptTokens, TextTokens, int32_offsets
from .plain_text import plain_tokenizer
from .words import Entity

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

_NONE = np.empty(0, dtype=np.int64)
_PROMPTS_KEPT = 64


class Packer:
    """Packs texts given as words: `[CLS] words... [SEP]`, one after the other; subclasses say where labels go.

    Words are read as plain text (`plain_tokenizer`): none becomes a special token. A pre-split word is tokenised by
    itself, whatever stands around it, so texts and prompts are tokenised apart.

    control: tokens that no text may become, beside the special ones. max_words: words read of a text (a checkpoint's
    `max_len`). max_tokens: tokens that the encoder takes, prompt and special tokens included; None for no limit.
    subtoken_pooling: the tokens of a word that make its vector (see glimodern.network.pooling). ids: added tokens from
    this id on are unknown to the encoder, and are text.
    """

    asks_in_text: bool  # whether labels stand in the text and take their share of its tokens

    def __init__(
        self,
        tokenizer: "Tokenizer",
        *,
        max_width: int,
        max_words: int,
        max_tokens: int | None,
        subtoken_pooling: str = "first",
        control: Sequence[str] = (),
        ids: int | None = None,
    ) -> None:
        self.tokenizer, self._names = plain_tokenizer(tokenizer, control, ids=ids)
        self.max_width = max_width
        self.max_words = max_words
        self.max_tokens = max_tokens
        self.subtoken_pooling = subtoken_pooling
        self._before, self._after = _frame_tokens(tokenizer)

    def prompt(self, types: Sequence[str]) -> PromptTokens:
        """The tokens before a text that ask these types."""
        raise NotImplementedError

    def label_lengths(self, labels: Sequence[str]) -> IntArray:
        """Tokens that each label takes in a prompt: int64 [labels]."""
        return np.diff(self.prompt(labels).bounds)

    def prompt_problem(self, types: Sequence[str]) -> str:
        """Why these labels leave no room for a text; empty if they do."""
        return ""

    def prompt_summary(self, types: Sequence[str]) -> str:
        """How much of a text's tokens these labels take, for a warning."""
        return f"{len(types)} labels take none of {self.max_tokens} tokens"

    def token_name(self, token: int) -> str:
        """The tokenizer's own name of a token id, "?" for an unknown one."""
        name = self.tokenizer.id_to_token(token) or "?"
        return self._names.get(name, name)

    def tokenize(self, texts: Sequence[Sequence[str]]) -> list[TextTokens]:
        """The sub-tokens of texts given as words, in one call of the tokenizer."""
        keep_to_own_threads()
        kept = [list(text[: self.max_words]) for text in texts]
        encodings = self.tokenizer.encode_batch(kept, is_pretokenized=True, add_special_tokens=False)
        return [
            TextTokens(np.array(encoding.ids, dtype=np.int64), _word_starts(encoding, len(words)), len(text))
            for encoding, words, text in zip(encodings, kept, texts, strict=True)
        ]

    def fits_alone(self, text: TextTokens) -> bool:
        """Whether all of a text would be read if no labels stood before it."""
        return len(text.starts) == text.words and (
            self.max_tokens is None or len(text.ids) + self._frame + len(self.prompt([]).ids) <= self.max_tokens
        )

    @property
    def tokens_before(self) -> int:
        """Special tokens before a text's prompt."""
        return len(self._before)

    @property
    def _frame(self) -> int:
        """Special tokens around a text."""
        return len(self._before) + len(self._after)

    def _room(self, prompt: PromptTokens) -> int:
        """Tokens left for a text; of an encoder with a limit."""
        return (self.max_tokens or 0) - self._frame - len(prompt.ids)

    def length(self, tokens: TextTokens, prompt: PromptTokens) -> int:
        """Tokens of a text with its prompt, as `pack` cuts it."""
        length = len(tokens.ids) + len(prompt.ids) + self._frame
        return length if self.max_tokens is None else min(length, self.max_tokens)

    def pack(
        self,
        texts: Sequence[Sequence[str]],
        types: Sequence[Sequence[str]],
        entities: Sequence[Sequence[Entity]] | None = None,
    ) -> PackedBatch:
        """Tokenise and pack: texts[i] is a list of words, types[i] the labels asked of it, entities[i] its gold.

        Gold of types that are not asked is left out. Raises ValueError when labels leave no room for a text.
        """
        if len(texts) != len(types):
            raise ValueError(f"types: expected one list of labels per text ({len(texts)}), got {len(types)} lists")
        return self.pack_tokens(self.tokenize(texts), types, entities)

    def pack_tokens(
        self,
        texts: Sequence[TextTokens],
        types: Sequence[Sequence[str]],
        entities: Sequence[Sequence[Entity]] | None = None,
        prompts: Sequence[PromptTokens] | None = None,
    ) -> PackedBatch:
        """`pack` of texts that are tokenised already; prompts: those of `types`, if they are at hand."""
        prompts = [self.prompt(labels) for labels in types] if prompts is None else prompts
        ids: list[IntArray] = [_NONE]
        token_counts, word_counts, type_counts = [], [], []
        word_index, type_index, words_cut = [_NONE], [_NONE], []
        subtoken_index, subtoken_counts = [_NONE], [_NONE]
        positives: set[tuple[int, int, int]] = set()
        first_token = first_word = first_type = lost = 0
        for i, (text, labels, prompt) in enumerate(zip(texts, types, prompts, strict=True)):
            body, starts = self._fit(text, prompt, labels)
            words, before = len(starts), len(self._before) + first_token
            ids += [self._before, prompt.ids, body, self._after]
            type_index.append(prompt.types + before)
            chosen = starts
            if self.subtoken_pooling != "first":
                counts = _subtoken_counts(starts, len(body))
                if self.subtoken_pooling == "last":
                    chosen = starts + np.maximum(counts - 1, 0)
                else:
                    subtoken_index.append(np.arange(len(body)) + before + len(prompt.ids))
                    subtoken_counts.append(counts)
            word_index.append(np.where(starts < 0, -1, chosen + before + len(prompt.ids)))
            words_cut.append(text.words - words)
            if entities is not None:
                lost += self._add_positives(positives, entities[i], labels, words, first_word, first_type)
            token_counts.append(len(prompt.ids) + len(body) + self._frame)
            word_counts.append(words)
            type_counts.append(len(labels))
            first_token += token_counts[-1]
            first_word += words
            first_type += len(labels)
        packed_words = np.concatenate(word_index)
        pooled = self.subtoken_pooling in ("mean", "max")
        return PackedBatch(
            input_ids=torch.from_numpy(np.concatenate(ids)),
            cu_seqlens=int32_offsets(token_counts),
            max_seqlen=max(token_counts, default=0),
            word_index=torch.from_numpy(packed_words),
            cu_words=int32_offsets(word_counts),
            type_index=torch.from_numpy(np.concatenate(type_index)),
            cu_types=int32_offsets(type_counts),
            positives=torch.tensor(sorted(positives), dtype=torch.int32, device="cpu").reshape(-1, 3),
            words_cut=tuple(words_cut),
            entities_lost=lost,
            has_missing_words=bool((packed_words < 0).any()),
            subtoken_index=torch.from_numpy(np.concatenate(subtoken_index)) if pooled else None,
            subtoken_counts=torch.from_numpy(np.concatenate(subtoken_counts)) if pooled else None,
        )

    def _fit(self, text: TextTokens, prompt: PromptTokens, labels: Sequence[str]) -> tuple[IntArray, IntArray]:
        """The ids and word starts of what the encoder takes of a text beside its prompt."""
        if self.max_tokens is None:
            return text.ids, text.starts
        room = self._room(prompt)
        if room < 0 or (room == 0 and len(text.ids)):
            raise ValueError(f"labels: {self.prompt_problem(labels)}")
        if len(text.ids) <= room:
            return text.ids, text.starts
        inside = np.flatnonzero((text.starts >= 0) & (text.starts < room))
        return text.ids[:room], text.starts[: inside[-1] + 1 if len(inside) else 0]

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


class PromptPacker(Packer):
    """Packs texts with their labels before them: `[CLS] <<ENT>> label_1 <<ENT>> label_2 ... <<SEP>> words... [SEP]`.

    The tokenizer must know the two prompt tokens, which are put in by their ids: no label or word becomes one.
    embed_ent_token: a type's vector is read at its <<ENT>>, else at its label's first token. Prompts are kept.
    """

    asks_in_text = True

    def __init__(
        self, tokenizer: "Tokenizer", *, ent_token: str, sep_token: str, embed_ent_token: bool = True, **options: Any
    ) -> None:
        missing = [token for token in (ent_token, sep_token) if tokenizer.token_to_id(token) is None]
        if missing:
            raise ValueError(
                f"tokenizer: expected the prompt tokens {ent_token!r} and {sep_token!r} in its vocabulary, "
                f"{missing} not found; add them as special tokens (and resize the encoder's embeddings)"
            )
        super().__init__(tokenizer, control=(ent_token, sep_token), **options)
        self.embed_ent_token = embed_ent_token
        self._ent, self._sep = (_split_special(tokenizer, token)[1] for token in (ent_token, sep_token))
        self._prompts: dict[tuple[str, ...], PromptTokens] = {}

    def label_lengths(self, labels: Sequence[str]) -> IntArray:
        """Tokens that each label takes in a prompt, its <<ENT>> included: int64 [labels]."""
        return np.diff(self._prompt(tuple(labels)).bounds)

    def prompt(self, types: Sequence[str]) -> PromptTokens:
        """The prompt that asks these types; the last few are kept, as most texts are asked the same."""
        key = tuple(types)
        found = self._prompts.get(key)
        if found is None:
            found = self._prompt(key)
            if len(self._prompts) >= _PROMPTS_KEPT:
                self._prompts.clear()
            self._prompts[key] = found
        return found

    def _prompt(self, labels: tuple[str, ...]) -> PromptTokens:
        keep_to_own_threads()
        (encoding,) = self.tokenizer.encode_batch([list(labels)], is_pretokenized=True, add_special_tokens=False)
        owners = np.array(encoding.word_ids, dtype=np.int64)
        counts = np.bincount(owners, minlength=len(labels))
        parts = np.split(np.array(encoding.ids, dtype=np.int64), np.cumsum(counts))[: len(labels)]
        bounds = np.concatenate([[0], np.cumsum(counts + len(self._ent))]).astype(np.int64)
        ids = np.concatenate([*(piece for part in parts for piece in (self._ent, part)), self._sep])
        return PromptTokens(ids, bounds[:-1] + (0 if self.embed_ent_token else 1), bounds)

    def prompt_problem(self, types: Sequence[str]) -> str:
        """Why these labels leave no room for a text; empty if they do."""
        prompt = self.prompt(types)
        if self.max_tokens is None or not len(types) or self._room(prompt) > 0:
            return ""
        lengths, most = np.diff(prompt.bounds), self.max_tokens - self._frame - len(self._sep) - 1
        fit = int(np.searchsorted(prompt.bounds, most, side="right")) - 1
        longest = int(lengths.argmax())
        if lengths[longest] > most:
            remedy = f"{_shown(types[longest])} (number {longest}) alone is {lengths[longest]} tokens long; shorten it"
        else:
            remedy = f"the first {fit} would fit; ask for fewer labels at a time"
        many = f"{len(types)} labels do" if len(types) > 1 else "1 label does"
        return (
            f"{many} not fit the prompt: the encoder takes {self.max_tokens} tokens, the labels need "
            f"{len(prompt.ids) + self._frame} and leave none for the text; {remedy}"
        )

    def prompt_summary(self, types: Sequence[str]) -> str:
        """How much of a text's tokens these labels take, for a warning."""
        prompt = self.prompt(types)
        lengths = np.diff(prompt.bounds)
        longest = int(lengths.argmax())
        return (
            f"{len(types)} labels take {len(prompt.ids)} of {self.max_tokens} tokens, the longest, "
            f"{_shown(types[longest])} (number {longest}), {lengths[longest]}"
        )


def _frame_tokens(tokenizer: "Tokenizer") -> tuple[IntArray, IntArray]:
    """The ids that a tokenizer puts before and after a text."""
    for word in itertools.chain("a0.", tokenizer.get_vocab()):
        before, inside, after = _split_special(tokenizer, word)
        if len(inside):
            return before, after
    raise ValueError("tokenizer: expected one that makes tokens of some word, got one that makes none of any")


def _split_special(tokenizer: "Tokenizer", word: str) -> tuple[IntArray, IntArray, IntArray]:
    """The ids that a tokenizer puts before a word, makes of it, and puts after it."""
    (encoding,) = tokenizer.encode_batch([[word]], is_pretokenized=True)
    real = np.array(encoding.attention_mask) == 1  # the tokenizer's owner may have switched padding on
    owners = np.array([-1 if owner is None else owner for owner in encoding.word_ids])[real]
    ids = np.array(encoding.ids, dtype=np.int64)[real]
    inside = np.flatnonzero(owners >= 0)
    if not len(inside):
        return ids, _NONE, _NONE
    return ids[: inside[0]], ids[inside], ids[inside[-1] + 1 :]


def _shown(label: str) -> str:
    return repr(label) if len(label) <= 40 else repr(label[:37] + "...")


def _word_starts(encoding: "Encoding", words: int) -> IntArray:
    """First token of each word, -1 for none; of an encoding without special tokens, whose words follow each other."""
    owners = np.array(encoding.word_ids, dtype=np.int64)
    first = np.flatnonzero(np.diff(owners, prepend=-1))
    starts = np.full(words, -1, dtype=np.int64)
    starts[owners[first]] = first
    return starts


def _subtoken_counts(starts: IntArray, tokens: int) -> IntArray:
    """Tokens of each word, from their first ones (-1 for none) and the number of tokens that all words have."""
    counts = np.zeros(len(starts), dtype=np.int64)
    present = starts >= 0
    counts[present] = np.diff(np.append(starts[present], tokens))
    return counts
