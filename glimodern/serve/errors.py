"""AnswerError: an answer that says what was wrong, with its status and the field."""

from __future__ import annotations

import math
import re
from typing import Any

_TEXT_ERROR = re.compile(r"(?P<field>[^\s:][^:]*): expected (?P<expected>.*?), got (?P<got>.*?)(?:; .*)?", re.DOTALL)


class AnswerError(Exception):
    """An error answer: `message` is "field: expected X, got Y; remedy" where that can be said.

    status: of HTTP. retry_after: seconds, for the header of that name. close: whether to close the connection.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        field: str | None = None,
        expected: str | None = None,
        got: str | None = None,
        retry_after: float | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.close = status, message, close
        self.field, self.expected, self.got = field, expected, got
        self.retry_after = retry_after

    @classmethod
    def of(cls, field: str, expected: str, got: str, remedy: str = "", status: int = 422, **how: Any) -> AnswerError:
        """Return the fault of a field."""
        message = f"{field}: expected {expected}, got {got}" + (f"; {remedy}" if remedy else "")
        return cls(status, message, field=field, expected=expected, got=got, **how)

    @classmethod
    def of_argument(cls, error: Exception, *, one_text: bool) -> AnswerError:
        """Return the fault of an argument of `predict`, from its TypeError or ValueError.

        one_text: whether the request has a `text`, which is `texts[0]` in messages.
        """
        message = str(error)
        if one_text:
            message = re.sub(r"^texts(\[0\])?(?=:)", "text", message)
        match = _TEXT_ERROR.fullmatch(message)
        if match is None:
            field = message.partition(":")[0] if ": " in message and " " not in message.partition(":")[0] else None
            return cls(422, message, field=field)
        return cls(422, message, field=match["field"], expected=match["expected"], got=match["got"])

    def body(self) -> dict[str, Any]:
        """Return the answer's JSON value."""
        fields = {"status": self.status, "field": self.field, "expected": self.expected, "got": self.got}
        return {"error": {**fields, "message": self.message}}

    def headers(self) -> dict[str, str]:
        headers = {}
        if self.retry_after is not None:
            headers["retry-after"] = str(max(math.ceil(self.retry_after), 1))
        if self.close:
            headers["connection"] = "close"
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers
