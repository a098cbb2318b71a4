"""The batches of a training run, as a function of the seed and the position in the run."""

import itertools
import math
import random
from collections.abc import Iterator
from functools import cached_property

from glimodern.data import Dataset, Example, sample_types, token_batches
from glimodern.inputs.batch import PackedBatch
from glimodern.inputs.packer import Packer

from .config import TrainConfig
from .windows import training_budgets, windowed


class TrainingBatches:
    """The batches of a run: shuffled epochs, token budgets and sampled types, as a function of seed and position.

    dataset: the sentences; with long_texts "windows", long ones are replaced by their windows (`train.windows`).
    lengths: estimated tokens of each sentence with its prompt. types_left_out: number of negative types (types of other
    sentences) that were dropped because the prompt had no room for them. fixed_types: whether a sentence is asked the
    same types in every epoch (or every `cache_variants` epochs), so that its encoder's input repeats: with
    cache_encoder, if the types stand in the text.

    Raises ValueError for a sentence whose own types may not fit the prompt.
    """

    def __init__(self, dataset: Dataset, packer: Packer, config: TrainConfig, rank: int = 0, world: int = 1) -> None:
        self.packer = packer
        self.config = config
        self.rank = rank
        self.world = world
        self.types_left_out = 0
        self.fixed_types = config.model.cache_encoder and packer.asks_in_text
        self._drawn: dict[tuple[int, int], list[str]] = {}
        self._sizes = dict(zip(dataset.types, packer.label_lengths(dataset.types).tolist(), strict=True))
        room = self._prompt_room(dataset)
        if config.data.long_texts == "windows":
            self.dataset, tokens, self._rooms = self._windows(dataset)
        else:
            self.dataset, tokens, self._rooms = dataset, None, None if room is None else [room] * len(dataset)
        self.lengths = [1] * len(self.dataset)  # without a token budget the lengths have no effect
        if config.run.batch_tokens is not None:
            if tokens is None:
                tokens = [len(text.ids) for text in packer.tokenize([example.words for example in dataset])]
            label_tokens = sum(self._sizes.values()) / max(len(self._sizes), 1) if packer.asks_in_text else 0.0
            self.lengths = [
                count + 3 + round(label_tokens * self._types_asked(example))  # 3: [CLS], <<SEP>>, [SEP]
                for count, example in zip(tokens, self.dataset, strict=True)
            ]

    def _windows(self, dataset: Dataset) -> tuple[Dataset, list[int], list[int] | None]:
        """Replace long texts by their windows. Return the data set, its texts' tokens, and their prompts' rooms.

        A prompt's room is what its text leaves of the encoder's tokens; None: no limit.
        """
        packer = self.packer
        budgets = training_budgets(dataset, packer, self.config.data)
        parts, tokens, budgets = windowed(dataset, packer, budgets)
        empty = packer.text_budget(packer.prompt([]))
        if empty is None or not packer.asks_in_text:
            return parts, tokens, None
        # one word alone may exceed its budget; the prompt's room then cuts it
        read = [count if budget is None else min(count, budget) for count, budget in zip(tokens, budgets, strict=True)]
        return parts, tokens, [empty - max(count, 1) for count in read]

    def _prompt_room(self, dataset: Dataset) -> int | None:
        """Maximum tokens of the labels of a prompt; None if any max_types labels of the data set fit."""
        packer, max_types = self.packer, self.config.data.max_types
        if packer.max_tokens is None or not packer.asks_in_text:
            return None
        (bare,) = packer.tokenize([[]])
        sizes = self._sizes
        room = packer.max_tokens - packer.length(bare, packer.prompt([])) - 1  # a text keeps its first token
        if sum(sorted(sizes.values())[-max_types:]) <= room:
            return None
        for number, example in enumerate(dataset):
            own = {label for _, _, label in example.entities} | set(example.types or ())
            need = sum(sorted(sizes[label] for label in own)[-max_types:])
            if need > room:
                raise ValueError(
                    f"max_types: expected types of at most {room} tokens, the room in the prompt, got up to {need} "
                    f"for the {min(len(own), max_types)} types of {example.id or f'sentence {number}'}; lower max_types"
                )
        return room

    def _fitted(self, number: int, types: list[str]) -> list[str]:
        """Drop the last types that are not the sentence's own until the prompt has room for the rest."""
        if self._rooms is None:
            return types
        example, kept = self.dataset[number], list(types)
        own = {label for _, _, label in example.entities} | set(example.types or ())
        while sum(self._sizes[label] for label in kept) > self._rooms[number]:
            del kept[max(index for index, label in enumerate(kept) if label not in own)]
        self.types_left_out += len(types) - len(kept)
        return kept

    def _types_asked(self, example: Example) -> float:
        """Expected number of types that `sample_types` asks of a sentence."""
        data = self.config.data
        gold = {label for _, _, label in example.entities}
        return min(len(gold | set(example.types or ())) + data.negative_ratio * max(len(gold), 1), data.max_types)

    def epoch(self, number: int) -> list[list[int]]:
        """Group an epoch's sentence indices into batches, for all ranks. Their number is a multiple of the ranks'."""
        run = self.config.run
        rng = random.Random(f"{run.seed} epoch {number}")
        groups = token_batches(self.lengths, batch_tokens=run.batch_tokens, batch_size=run.batch_size, rng=rng)
        return groups + list(itertools.islice(itertools.cycle(groups), -len(groups) % self.world))

    def steps(self) -> int:
        """Number of optimizer steps of the run."""
        run = self.config.run
        if run.max_steps is not None:
            return run.max_steps
        whole = sum(len(self.epoch(number)) for number in range(math.floor(run.epochs)))
        part = (run.epochs % 1) * len(self.epoch(math.floor(run.epochs))) if run.epochs % 1 else 0
        return max(1, math.floor((whole + part) / self.world / run.accumulation))

    def starting_at(self, first: int) -> Iterator[tuple[int, list[int], PackedBatch]]:
        """Yield (position, sentence indices, batch) of this rank, from a position on, without end."""
        position = number = 0
        while True:
            groups = self.epoch(number)[self.rank :: self.world]
            for current, group in enumerate(groups, start=position):
                if current >= first:
                    yield current, group, self.pack(group, current, number)
            position += len(groups)
            number += 1

    def pack(self, group: list[int], position: int, epoch: int) -> PackedBatch:
        """Pack the sentences of a group, with types sampled by the seed, the position and the rank.

        With `fixed_types` they are sampled by the seed, the sentence and the epoch's variant.
        """
        examples = [self.dataset[i] for i in group]
        if self.fixed_types:
            variant = epoch % self.config.model.cache_variants
            types = [self._types_of(number, variant) for number in group]
        else:
            rng = random.Random(f"{self.config.run.seed} batch {position} of {self.rank}")
            types = self._sampled(examples, len(examples), rng)
        types = [self._fitted(number, sampled) for number, sampled in zip(group, types, strict=True)]
        return self.packer.pack([e.words for e in examples], types, [e.entities for e in examples])

    def _types_of(self, number: int, variant: int) -> list[str]:
        """Draw a sentence's types beside as many random sentences as a batch has on average."""
        drawn = self._drawn.get((number, variant))
        if drawn is None:
            rng = random.Random(f"{self.config.run.seed} types of {number}, variant {variant}")
            others = rng.sample(range(len(self.dataset)), min(self._sentences_per_batch, len(self.dataset)))
            beside = [self.dataset[i] for i in others if i != number][: self._sentences_per_batch - 1]
            (drawn,) = self._sampled([self.dataset[number], *beside], 1, rng)
            self._drawn[number, variant] = drawn
        return drawn

    @cached_property
    def _sentences_per_batch(self) -> int:
        """Sentences of a batch, the mean of the first epoch, rounded."""
        return round(len(self.dataset) / len(self.epoch(0)))

    def _sampled(self, examples: list[Example], count: int, rng: random.Random) -> list[list[str]]:
        """Sample the types of the first `count` of some sentences."""
        data = self.config.data
        return sample_types(
            examples,
            max_types=data.max_types,
            negative_ratio=data.negative_ratio,
            shuffle=data.shuffle_types,
            drop=data.type_drop,
            count=count,
            rng=rng,
        )

    def rows(self) -> int:
        """Number of tokens of an epoch whose hidden states the head reads, about: those of words and of types."""
        packer, examples = self.packer, self.dataset.examples
        if packer.subtoken_pooling in ("mean", "max"):
            words = sum(len(text.ids) for text in packer.tokenize([example.words for example in examples]))
        else:
            words = sum(min(len(example.words), packer.max_words) for example in examples)
        return words + round(sum(self._types_asked(example) for example in examples) if packer.asks_in_text else 0)
