"""Packing of texts and labels into one batch of tokens, without padding or masks.

The prompt format of public GLiNER checkpoints is

    [CLS] <<ENT>> label_1 <<ENT>> label_2 ... <<SEP>> words... [SEP]

The texts of a batch are concatenated in one row of tokens; `cu_seqlens` holds their offsets.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from glimodern.display import short
from glimodern.runtime.forks import keep_to_own_threads

from .plain_text import plain_tokenizer
from .tokens import IntArray, LabelGroup, PackedArrays, PromptTokens, TextTokens, offsets_of
from .words import Entity

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

Batch = TypeVar("Batch")

_NONE = np.empty(0, dtype=np.int64)
_CACHED_PROMPTS = 64
_SEGMENT_WORDS = 1024  # a long text is tokenised in segments, which the tokenizer spreads over its threads
_CALL_WORDS = 1 << 16  # words a call of the tokenizer, whose encodings take some hundred bytes a token


class Packer(Generic[Batch]):
    """Base of the packers: packs texts given as words as `[CLS] words... [SEP]`; subclasses place the labels.

    Words are read as plain text (`plain_tokenizer`): no word becomes a special token. The tokens of a pre-split word do
    not depend on its neighbours, so texts and prompts are tokenised separately.

    as_batch: turns packed arrays into the batches that `pack` returns: `batch.batch_of` for tensors.
    max_width: width of spans, in words, that windows of long texts must hold whole.
    any_width: whether the model finds entities wider than that.
    max_words: maximum words of a text (a checkpoint's `max_len`); later words are cut.
    max_tokens: maximum tokens of the encoder, with prompt and special tokens; None: no limit.
    subtoken_pooling: which tokens of a word make its vector (see glimodern.network.pooling).
    control: tokens, beside the special ones, that text must not become.
    first_unknown_id: added tokens with this id or a higher one are unknown to the encoder and are read as text.
    """

    asks_in_text: bool  # whether labels are part of the text's tokens and reduce the budget of its words

    def __init__(
        self,
        tokenizer: "Tokenizer",
        *,
        as_batch: Callable[[PackedArrays], Batch],
        max_width: int,
        max_words: int,
        max_tokens: int | None,
        subtoken_pooling: str = "first",
        control: Sequence[str] = (),
        first_unknown_id: int | None = None,
        any_width: bool = False,
    ) -> None:
        self.tokenizer, self._names = plain_tokenizer(tokenizer, control, first_unknown_id=first_unknown_id)
        self.as_batch = as_batch
        self.max_width = max_width
        self.widest_entity = None if any_width else max_width
        """Most words of an entity that the model can find; None: any number."""
        self.max_words = max_words
        self.max_tokens = max_tokens
        self.subtoken_pooling = subtoken_pooling
        self._before, self._after = _special_around(tokenizer)

    def prompt(self, types: Sequence[str]) -> PromptTokens:
        """Return the tokens that precede a text and name its types."""
        raise NotImplementedError

    def label_lengths(self, labels: Sequence[str]) -> IntArray:
        """Return the number of prompt tokens of each label: int64 [labels]."""
        return np.diff(self.prompt(labels).bounds)

    def label_groups(self, labels: tuple[str, ...], labels_per_prompt: int | None = None) -> tuple[LabelGroup, ...]:
        """Divide labels into groups that are asked one prompt each; one group unless prompts hold the labels.

        labels_per_prompt: most labels of a group; None: as many as half of the encoder's tokens hold.
        """
        return (LabelGroup(0, labels, self.prompt(labels)),)

    def prompt_problem(self, types: Sequence[str]) -> str:
        """Return an error message if these labels leave no token for a text, else an empty string."""
        return ""

    def label_problem(self, labels: Sequence[str]) -> str:
        """Return an error message if one of these labels alone leaves no token for a text, else an empty string."""
        return ""

    def prompt_summary(self, types: Sequence[str]) -> str:
        """Describe for a warning how many tokens these labels take."""
        return f"{len(types)} labels take none of {self.max_tokens} tokens"

    def token_name(self, token: int) -> str:
        """Return the original tokenizer's name of a token id, "?" for an unknown id."""
        name = self.tokenizer.id_to_token(token) or "?"
        return self._names.get(name, name)

    def tokenize(self, texts: Sequence[Sequence[str]], *, max_words: int | None = None) -> list[TextTokens]:
        """Tokenise texts given as words.

        max_words: words to read of a text, the first ones; None: `self.max_words`. `TextTokens.words` counts all words.
        """
        keep_to_own_threads()
        most = self.max_words if max_words is None else max_words
        cuts = [range(0, min(len(text), most), _SEGMENT_WORDS) for text in texts]
        segments = (
            list(text[first : min(first + _SEGMENT_WORDS, most)])
            for text, cut in zip(texts, cuts, strict=True)
            for first in cut
        )
        encoded = self._encode(segments)
        return [
            _joined(list(itertools.islice(encoded, len(cut))), len(text)) for text, cut in zip(texts, cuts, strict=True)
        ]

    def _encode(self, segments: Iterable[list[str]]) -> Iterator[TextTokens]:
        """Tokenise segments of texts, _CALL_WORDS words and more in one call of the tokenizer."""
        pending, words = list[list[str]](), 0
        for segment in itertools.chain(segments, [None]):
            if segment is not None:
                pending.append(segment)
                words += len(segment)
                if words < _CALL_WORDS:
                    continue
            encodings = self.tokenizer.encode_batch(pending, is_pretokenized=True, add_special_tokens=False)
            for encoding, tokenised in zip(encodings, pending, strict=True):
                starts = _word_starts(encoding, len(tokenised))
                yield TextTokens(np.array(encoding.ids, dtype=np.int64), starts, len(tokenised))
            pending, words = [], 0

    def fits_alone(self, text: TextTokens) -> bool:
        """Return whether a text without labels would be read whole."""
        budget = self.text_budget(self.prompt([]))
        return len(text.starts) == text.words and (budget is None or len(text.ids) <= budget)

    @property
    def tokens_before(self) -> int:
        """Number of special tokens before a text's prompt."""
        return len(self._before)

    @property
    def _num_special(self) -> int:
        """Number of special tokens around a text."""
        return len(self._before) + len(self._after)

    def text_budget(self, prompt: PromptTokens) -> int | None:
        """Return the tokens left for a text beside its prompt; None: no limit."""
        return None if self.max_tokens is None else self.max_tokens - self._num_special - len(prompt.ids)

    def groups_budget(self, groups: Sequence[LabelGroup]) -> int | None:
        """Return the tokens left for a text that is read beside each of these groups; None: no limit."""
        budgets = [self.text_budget(group.prompt) for group in groups]
        return min((budget for budget in budgets if budget is not None), default=None)

    def length(self, tokens: TextTokens, prompt: PromptTokens) -> int:
        """Return the number of tokens of a text with its prompt, after `pack` has cut it."""
        length = len(tokens.ids) + len(prompt.ids) + self._num_special
        return length if self.max_tokens is None else min(length, self.max_tokens)

    def pack(
        self,
        texts: Sequence[Sequence[str]],
        types: Sequence[Sequence[str]],
        entities: Sequence[Sequence[Entity]] | None = None,
    ) -> Batch:
        """Tokenise and pack texts: texts[i] is a list of words, types[i] its labels, entities[i] its gold entities.

        Gold entities with a label outside types[i] are ignored. Raises ValueError if labels leave no token for a text.
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
    ) -> Batch:
        """Pack tokenised texts, as `pack` does. prompts: the prompts of `types`, if already computed."""
        return self.as_batch(self.pack_arrays(texts, types, entities, prompts))

    def pack_arrays(
        self,
        texts: Sequence[TextTokens],
        types: Sequence[Sequence[str]],
        entities: Sequence[Sequence[Entity]] | None = None,
        prompts: Sequence[PromptTokens] | None = None,
    ) -> PackedArrays:
        """Pack tokenised texts, as `pack_tokens` does before `as_batch`."""
        prompts = [self.prompt(labels) for labels in types] if prompts is None else prompts
        ids: list[IntArray] = [_NONE]
        token_counts, word_counts, type_counts = [], [], []
        word_index, type_index, words_cut = [_NONE], [_NONE], []
        subtoken_index, subtoken_counts = [_NONE], [_NONE]
        positives: set[tuple[int, int, int]] = set()
        first_token = first_word = first_type = lost = 0
        for i, (text, labels, prompt) in enumerate(zip(texts, types, prompts, strict=True)):
            body, starts = self._cut(text, prompt, labels)
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
            token_counts.append(len(prompt.ids) + len(body) + self._num_special)
            word_counts.append(words)
            type_counts.append(len(labels))
            first_token += token_counts[-1]
            first_word += words
            first_type += len(labels)
        packed_words = np.concatenate(word_index)
        pooled = self.subtoken_pooling in ("mean", "max")
        return PackedArrays(
            input_ids=np.concatenate(ids),
            cu_seqlens=offsets_of(token_counts),
            max_seqlen=max(token_counts, default=0),
            word_index=packed_words,
            cu_words=offsets_of(word_counts),
            type_index=np.concatenate(type_index),
            cu_types=offsets_of(type_counts),
            positives=np.array(sorted(positives), dtype=np.int32).reshape(-1, 3),
            words_cut=tuple(words_cut),
            entities_lost=lost,
            has_missing_words=bool((packed_words < 0).any()),
            subtoken_index=np.concatenate(subtoken_index) if pooled else None,
            subtoken_counts=np.concatenate(subtoken_counts) if pooled else None,
        )

    def _cut(self, text: TextTokens, prompt: PromptTokens, labels: Sequence[str]) -> tuple[IntArray, IntArray]:
        """Return the ids and word starts of the part of a text that fits into the encoder beside its prompt."""
        budget = self.text_budget(prompt)
        if budget is not None and (budget < 0 or (budget == 0 and len(text.ids))):
            raise ValueError(f"labels: {self.prompt_problem(labels)}")
        if budget is None or len(text.ids) <= budget:
            return text.ids, text.starts
        return text.ids[:budget], text.starts[: text.words_within(budget)]

    def _add_positives(
        self,
        positives: set[tuple[int, int, int]],
        entities: Sequence[Entity],
        types: Sequence[str],
        words: int,
        first_word: int,
        first_type: int,
    ) -> int:
        """Add a text's gold entities to `positives`, as PackedArrays numbers them; return how many do not fit."""
        type_ids = {label: i for i, label in enumerate(types)}
        lost = 0
        for start, end, label in entities:
            if label not in type_ids:
                continue
            if end >= words or (self.widest_entity is not None and end - start >= self.widest_entity):
                lost += 1
                continue
            positives.add((first_word + start, end - start, first_type + type_ids[label]))
        return lost


class PromptPacker(Packer[Batch]):
    """Packer of labels before words: `[CLS] <<ENT>> label_1 <<ENT>> label_2 ... <<SEP>> words... [SEP]`.

    The two prompt tokens must be in the tokenizer's vocabulary. They are inserted by id: no label or word becomes one.
    Prompts are cached.

    embed_ent_token: read a type's vector at its <<ENT>>; otherwise at its label's first token.
    """

    asks_in_text = True

    def __init__(
        self, tokenizer: "Tokenizer", *, ent_token: str, sep_token: str, embed_ent_token: bool = True, **options: Any
    ) -> None:
        missing = [token for token in (ent_token, sep_token) if tokenizer.token_to_id(token) is None]
        if missing:
            raise ValueError(
                f"tokenizer: expected the prompt tokens {ent_token!r} and {sep_token!r} in its vocabulary, got one "
                f"without {missing}; add them as special tokens (and resize the encoder's embeddings)"
            )
        super().__init__(tokenizer, control=(ent_token, sep_token), **options)
        self.embed_ent_token = embed_ent_token
        self._ent, self._sep = (_split_special(tokenizer, token)[1] for token in (ent_token, sep_token))
        self._prompts: dict[tuple[str, ...], PromptTokens] = {}
        self._groups: dict[tuple[tuple[str, ...], int | None], tuple[LabelGroup, ...]] = {}

    def label_lengths(self, labels: Sequence[str]) -> IntArray:
        """Return the number of prompt tokens of each label, its <<ENT>> included: int64 [labels]."""
        return np.diff(self._build_prompt(tuple(labels)).bounds)

    def prompt(self, types: Sequence[str]) -> PromptTokens:
        """Return the prompt of these types; cached, because most texts have the same types."""
        key = tuple(types)
        prompt = self._prompts.get(key)
        if prompt is None:
            prompt = self._build_prompt(key)
            if len(self._prompts) >= _CACHED_PROMPTS:
                self._prompts.clear()
            self._prompts[key] = prompt
        return prompt

    def label_groups(self, labels: tuple[str, ...], labels_per_prompt: int | None = None) -> tuple[LabelGroup, ...]:
        """Divide labels into groups that are asked one prompt each; cached, because most texts have the same labels.

        labels_per_prompt: most labels of a group. A group takes at most half of the encoder's tokens, unless it is one
        label. Groups are of one size, if they fit so.
        """
        key = labels, labels_per_prompt
        groups = self._groups.get(key)
        if groups is None:
            bounds = self._group_bounds(labels, labels_per_prompt)
            groups = tuple(
                LabelGroup(first, labels[first:end], self.prompt(labels[first:end]))
                for first, end in itertools.pairwise(bounds)
            )
            if len(self._groups) >= _CACHED_PROMPTS:
                self._groups.clear()
            self._groups[key] = groups
        return groups

    def _group_bounds(self, labels: tuple[str, ...], labels_per_prompt: int | None) -> list[int]:
        """Return the first label of each group, and the number of labels."""
        most = len(labels) if labels_per_prompt is None else labels_per_prompt
        if len(labels) <= most and (self.max_tokens is None or len(self.prompt(labels).ids) <= self.max_tokens // 2):
            return [0, len(labels)]
        tokens = self._build_prompt(labels).bounds
        room = int(tokens[-1]) if self.max_tokens is None else self.max_tokens // 2 - len(self._sep)
        bounds = [0]
        while bounds[-1] < len(labels):
            first = bounds[-1]
            fitting = int(np.searchsorted(tokens, tokens[first] + room, side="right")) - 1
            bounds.append(min(max(fitting, first + 1), first + most, len(labels)))
        even = np.linspace(0, len(labels), len(bounds)).astype(np.int64)
        sizes = tokens[even[1:]] - tokens[even[:-1]]
        return even.tolist() if bool(((sizes <= room) | (np.diff(even) == 1)).all()) else bounds

    def _build_prompt(self, labels: tuple[str, ...]) -> PromptTokens:
        keep_to_own_threads()
        (encoding,) = self.tokenizer.encode_batch([list(labels)], is_pretokenized=True, add_special_tokens=False)
        label_ids = np.array(encoding.word_ids, dtype=np.int64)
        counts = np.bincount(label_ids, minlength=len(labels))
        parts = np.split(np.array(encoding.ids, dtype=np.int64), np.cumsum(counts))[: len(labels)]
        bounds = np.concatenate([[0], np.cumsum(counts + len(self._ent))]).astype(np.int64)
        ids = np.concatenate([*(tokens for part in parts for tokens in (self._ent, part)), self._sep])
        return PromptTokens(ids, bounds[:-1] + (0 if self.embed_ent_token else 1), bounds)

    def prompt_problem(self, types: Sequence[str]) -> str:
        """Return an error message if these labels leave no token for a text, else an empty string."""
        prompt = self.prompt(types)
        budget = self.text_budget(prompt)
        if self.max_tokens is None or budget is None or not len(types) or budget > 0:
            return ""
        lengths, room = np.diff(prompt.bounds), self.max_tokens - self._num_special - len(self._sep) - 1
        fit = int(np.searchsorted(prompt.bounds, room, side="right")) - 1
        longest = int(lengths.argmax())
        if lengths[longest] > room:
            remedy = f"{short(types[longest])} (index {longest}) alone has {lengths[longest]} tokens; shorten it"
        else:
            remedy = f"the first {fit} would fit; ask for fewer labels at a time"
        count = f"{len(types)} labels do" if len(types) > 1 else "1 label does"
        return (
            f"{count} not fit the prompt: the encoder takes {self.max_tokens} tokens, the labels need "
            f"{len(prompt.ids) + self._num_special} and leave none for the text; {remedy}"
        )

    def label_problem(self, labels: Sequence[str]) -> str:
        """Return an error message if one of these labels alone leaves no token for a text, else an empty string."""
        if self.max_tokens is None or not self.prompt_problem(labels):
            return ""
        longest = int(self.label_lengths(labels).argmax())
        if not self.prompt_problem([labels[longest]]):
            return ""
        return self.prompt_problem(labels)

    def prompt_summary(self, types: Sequence[str]) -> str:
        """Describe for a warning how many tokens these labels take."""
        prompt = self.prompt(types)
        lengths = np.diff(prompt.bounds)
        longest = int(lengths.argmax())
        return (
            f"{len(types)} labels take {len(prompt.ids)} of {self.max_tokens} tokens; the longest is "
            f"{short(types[longest])} (index {longest}) with {lengths[longest]}"
        )


def _special_around(tokenizer: "Tokenizer") -> tuple[IntArray, IntArray]:
    """Return the ids of the special tokens that a tokenizer puts before and after a text."""
    for word in itertools.chain("a0.", tokenizer.get_vocab()):
        before, inside, after = _split_special(tokenizer, word)
        if len(inside):
            return before, after
    raise ValueError(
        "tokenizer: expected one that encodes words, got one that encodes no word of its vocabulary; use the tokenizer "
        "of the encoder"
    )


def _split_special(tokenizer: "Tokenizer", word: str) -> tuple[IntArray, IntArray, IntArray]:
    """Encode a word with special tokens and return the ids (before, of, after) the word."""
    (encoding,) = tokenizer.encode_batch([[word]], is_pretokenized=True)
    real = np.array(encoding.attention_mask) == 1  # padding may be enabled in the caller's tokenizer
    word_ids = np.array([-1 if word_id is None else word_id for word_id in encoding.word_ids])[real]
    ids = np.array(encoding.ids, dtype=np.int64)[real]
    inside = np.flatnonzero(word_ids >= 0)
    if not len(inside):
        return ids, _NONE, _NONE
    return ids[: inside[0]], ids[inside], ids[inside[-1] + 1 :]


def _word_starts(encoding: "Encoding", words: int) -> IntArray:
    """Return each word's first token, -1 for a word without tokens: int64 [words].

    The encoding must have no special tokens, and its words must be in order.
    """
    word_ids = np.array(encoding.word_ids, dtype=np.int64)
    first = np.flatnonzero(np.diff(word_ids, prepend=-1))
    starts = np.full(words, -1, dtype=np.int64)
    starts[word_ids[first]] = first
    return starts


def _joined(segments: Sequence[TextTokens], words: int) -> TextTokens:
    """Join the segments of a text. words: number of words of the whole text."""
    if len(segments) == 1:
        return segments[0]._replace(words=words)
    firsts = itertools.accumulate((len(segment.ids) for segment in segments), initial=0)
    ids = [segment.ids for segment in segments]
    starts = [np.where(s.starts < 0, -1, s.starts + first) for s, first in zip(segments, firsts, strict=False)]
    return TextTokens(np.concatenate([_NONE, *ids]), np.concatenate([_NONE, *starts]), words)


def _subtoken_counts(starts: IntArray, tokens: int) -> IntArray:
    """Return the number of tokens of each word. starts: first tokens, -1 for none; tokens: total of all words."""
    counts = np.zeros(len(starts), dtype=np.int64)
    present = starts >= 0
    counts[present] = np.diff(np.append(starts[present], tokens))
    return counts
