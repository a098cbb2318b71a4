"""Structured logs: one JSON object a line on standard error, or plain text. No log has a text, a label or a token."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from typing import Literal

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}

LogFormat = Literal["json", "text"]


class _Formatter(logging.Formatter):
    """One line a record: time, level, event and the record's own fields.

    Of an exception it has the type and the places in the code. Its message may quote a text, so it is left out.
    """

    def __init__(self, form: LogFormat) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        created = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        fields = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info is not None and record.exc_info[0] is not None:
            fields["exception"] = record.exc_info[0].__name__
            places = traceback.extract_tb(record.exc_info[2])
            fields["traceback"] = [f"{place.filename}:{place.lineno} {place.name}" for place in places]
        line = {"time": created, "level": record.levelname.lower(), "event": record.getMessage(), **fields}
        if self._form == "json":
            return json.dumps(line, ensure_ascii=True, default=str)
        return " ".join([created, record.levelname, record.getMessage(), *(f"{k}={v}" for k, v in fields.items())])


def configure_logs(form: LogFormat, level: str) -> None:
    """Send the logs of the server, uvicorn and this package to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(form))
    for name in ("glimodern", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level.upper())
    logging.getLogger("uvicorn.access").disabled = True  # `access` logs each request
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").handlers = [handler]
