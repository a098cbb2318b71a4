"""AsyncPredictor: `GLiModern.predict` for asyncio programs, whose concurrent calls share batches."""

import asyncio
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Literal

from typing_extensions import Self, Unpack

from glimodern.inference.entities import Entities
from glimodern.inference.windows import ReadingOptions
from glimodern.inputs.label_vectors import LabelVectors
from glimodern.inputs.labels import Labels, Spans, Thresholds

from .engine import MAX_CALLS, MAX_DELAY, Engine
from .entity_predictor import EntityPredictor


class AsyncPredictor:
    """Answers concurrent calls of `predict` from packed batches that they share.

        async with AsyncPredictor(model) as predictor:
            entities = await predictor.predict("Ada met Charles.", ["person"])

    Calls may have any labels and options. A call that comes alone is computed at once. Small calls do not wait for
    large ones to end. Cancel a call to give it up: nothing more is computed for it.

    max_delay: seconds that the texts in the queue may be expected to take when a call arrives; a call beyond it raises
    QueueFullError, with the seconds to wait as `retry_after`. max_calls: most calls in the queue. batch_tokens: tokens
    to compute at a time.

    Calls may come from several event loops. Create a new object in a forked process.
    """

    def __init__(
        self,
        model: EntityPredictor,
        *,
        max_delay: float = MAX_DELAY,
        max_calls: int = MAX_CALLS,
        batch_tokens: int | str = "auto",
    ) -> None:
        if not isinstance(model, EntityPredictor):
            raise TypeError(f"model: expected a GLiModern, got {type(model).__name__}; load one with from_pretrained")
        self.model = model
        self._engine = Engine(max_delay=max_delay, max_calls=max_calls, batch_tokens=batch_tokens)

    async def predict(
        self,
        texts: str | Sequence[str],
        labels: Labels | None = None,
        threshold: Thresholds = 0.5,
        flat: bool = True,
        multi_label: bool = False,
        *,
        label_vectors: LabelVectors | None = None,
        top_k: int | None = None,
        scores: Literal["found", "all"] = "found",
        spans: Spans | None = None,
        vectors: bool = False,
        **reading: Unpack[ReadingOptions],
    ) -> list[Entities]:
        """Find entities of the given types; arguments, results, warnings and errors are those of `GLiModern.predict`.

        texts: a string, or an iterable of strings with a length.

        Raises QueueFullError too, if there is no room in the queue.
        """
        future = self._engine.submit(
            self.model, texts, labels, threshold, flat, multi_label, label_vectors=label_vectors, top_k=top_k,
            scores=scores, spans=spans, vectors=vectors, **reading,
        )  # fmt: skip
        answers = await asyncio.wrap_future(future)
        for message in answers.messages:
            warnings.warn(message, stacklevel=2)
        return answers.entities()

    async def aclose(self) -> None:
        """Take no more calls, and wait until those in the queue are answered."""
        await asyncio.to_thread(self._engine.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
