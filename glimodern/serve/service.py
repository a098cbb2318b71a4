"""Service: the models of a server, loaded and warm, and the one engine that computes for all of them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal

from glimodern.checkpoint.adapter import read_adapter
from glimodern.inference.compute import TextDoesNotFitError
from glimodern.inference.redaction import redact
from glimodern.model.engine import Answers, BatchReport, Engine, QueueFullError
from glimodern.model.glimodern import GLiModern

from .body import EntitiesBody, Limits
from .errors import AnswerError

_LOGGER = logging.getLogger("glimodern.serve")
_LOADING_RETRY = 5.0  # seconds
_WARM_WORDS = (4, 64, 512)  # words of the texts that warm a model: one sentence to several batches
_WARM_LABELS = ["person", "organization", "place"]

Status = Literal["loading", "ready", "draining"]


class Service:
    """Models by name, the first of which is the default.

    load: of each name, a function that loads the model. adapters: folders by name; each goes with the models that it
    was trained on, whose memory it shares. warm: whether to predict once with texts of several lengths before the
    service is ready. For max_delay and max_calls see `Engine`.
    """

    def __init__(
        self,
        load: Mapping[str, Callable[[], GLiModern]],
        *,
        warm: bool,
        max_delay: float,
        max_calls: int,
        pseudonym_key: bytes,
        on_batch: Callable[[BatchReport], None],
        adapters: Mapping[str, str] | None = None,
    ) -> None:
        self._load, self._warm, self._key = dict(load), warm, pseudonym_key
        self._adapters = dict(adapters or {})
        self.engine = Engine(max_delay=max_delay, max_calls=max_calls, on_batch=on_batch)
        self.models: dict[str, GLiModern] = {}
        self.adapted: dict[str, dict[str, GLiModern]] = {}  # model -> adapter -> the model with it
        self.status: Status = "loading"

    def load(self) -> None:
        """Load and warm all models; then the service is ready. Stops early if it drains. Raises what loading raises."""
        for name, load in self._load.items():
            if self.status != "loading":
                return
            model = load()
            if self._warm:
                self._warm_up(model)
            self.models[name] = model
            _LOGGER.info("model loaded", extra={"model": name, "dtype": model.dtype_name})
        self.adapted = {name: {} for name in self.models}
        for name, folder in self._adapters.items():
            self._load_adapter(name, folder)
        if self.status == "loading":
            self.status = "ready"

    def _load_adapter(self, name: str, folder: str) -> None:
        """Load an adapter on each model that is its base. Raises ValueError if none is."""
        base = read_adapter(folder).base_fingerprint
        fitting = [model for model in self.models if self.models[model].weights_fingerprint == base]
        for model in fitting or [next(iter(self.models))]:  # which says what does not fit
            if self.status != "loading":
                return
            adapted = self.models[model].with_adapter(folder)
            if self._warm:
                self._warm_up(adapted)
            self.adapted[model][name] = adapted
            _LOGGER.info("adapter loaded", extra={"model": model, "adapter": name})

    def _warm_up(self, model: GLiModern) -> None:
        """Run the model once on short and long texts: kernels are compiled, memory is allocated, the pace is known."""
        for words in 2 * _WARM_WORDS:  # the first run of a length has costs of its own
            if self.status != "loading":
                return
            self.engine.submit(model, [" ".join(["word"] * words)] * 2, _WARM_LABELS).result()

    def model_of(self, name: str | None) -> tuple[str, GLiModern]:
        """Return a model and its name; None: the default. Raises AnswerError."""
        if self.status != "ready":
            raise AnswerError(503, f"server: not ready, {self.status}; try again later", retry_after=_LOADING_RETRY)
        chosen = next(iter(self.models)) if name is None else name
        if chosen not in self.models:
            raise AnswerError.of("model", f"one of {', '.join(self.models)}", json.dumps(name)[:80])
        return chosen, self.models[chosen]

    def adapted_model(self, name: str | None, adapter: str | None) -> tuple[str, GLiModern]:
        """Return a model, with an adapter if one is named, and the model's name. Raises AnswerError."""
        chosen, model = self.model_of(name)
        if adapter is None:
            return chosen, model
        adapters = self.adapted[chosen]
        if adapter not in adapters:
            known = ", ".join(adapters) or "none"
            raise AnswerError.of("adapter", f"an adapter of {chosen} ({known})", json.dumps(adapter)[:80])
        return chosen, adapters[adapter]

    def describe(self) -> list[dict[str, Any]]:
        """Describe the models for `/v1/models`."""
        return [
            {
                "name": name,
                "default": number == 0,
                "dtype": model.dtype_name,
                "max_words": model.config.max_len,
                "max_width": model.packer.widest_entity,
                "max_types": model.config.max_types,
                "calibrated": model.calibration is not None,
                "adapters": list(self.adapted[name]),
            }
            for number, (name, model) in enumerate(self.models.items())
        ]

    def check_room(self) -> None:
        """Raise AnswerError if no request can be taken now."""
        self.model_of(None)
        try:
            self.engine.check_room()
        except QueueFullError as error:
            raise _busy(error) from error

    async def answer(self, body: EntitiesBody, limits: Limits, *, redacts: bool) -> dict[str, Any]:
        """Return the JSON value of the answer. Raises AnswerError; cancelling gives the request up."""
        name, model = self.adapted_model(body.model, body.adapter)
        try:
            answers = await asyncio.wrap_future(
                self.engine.submit(model, body.texts, body.labels, max_words=limits.max_words, **body.options)
            )
        except QueueFullError as error:
            raise _busy(error) from error
        except (TypeError, ValueError) as error:
            raise AnswerError.of_argument(error, one_text=body.one_text) from error
        if answers.found > limits.max_entities:
            raise AnswerError.of(
                "threshold", f"at most {limits.max_entities} entities", str(answers.found),
                "ask with a higher threshold, or for fewer texts", 413,
            )  # fmt: skip
        results = [self._result(answers, number, body, redacts=redacts) for number in range(len(answers.outcomes))]
        shared = {"model": name, "warnings": answers.messages}
        if not body.one_text:
            return {**shared, "results": [r.body() if isinstance(r, AnswerError) else r for r in results]}
        (result,) = results
        if isinstance(result, AnswerError):
            raise result
        return {**shared, **result}

    def _result(
        self, answers: Answers, number: int, body: EntitiesBody, *, redacts: bool
    ) -> dict[str, Any] | AnswerError:
        outcome = answers.outcomes[number]
        if isinstance(outcome, Exception):
            return error_of_text(outcome, one_text=body.one_text)
        entities = answers.entities_of(number)
        read = {"windows": entities.windows, "words_cut": entities.words_cut}
        if not redacts:
            return {"entities": list(entities), **read}
        redacted = redact(outcome.request.text, entities, body.style, key=self._key)
        return {"text": redacted.text, "entities": redacted.entities, **read}

    def drain(self) -> None:
        """Be not ready any more; the requests in the queue are still answered."""
        self.status = "draining"

    def close(self) -> None:
        """Cancel what is left, and end the engine's threads."""
        self.drain()
        self.engine.close(drain=False)


def _busy(error: QueueFullError) -> AnswerError:
    return AnswerError(429, str(error), retry_after=error.retry_after)


def error_of_text(error: Exception, *, one_text: bool) -> AnswerError:
    """Return the error of a text that failed alone."""
    if isinstance(error, ValueError) and str(error).startswith("texts["):
        return AnswerError.of_argument(error, one_text=one_text)
    if isinstance(error, TextDoesNotFitError):
        return AnswerError(413, str(error))
    _LOGGER.error("a text failed", extra={"error": type(error).__name__})
    return AnswerError(500, "the text could not be computed; see the server's log")
