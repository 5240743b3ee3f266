"""How the daemon's log lines look: one line an event, as text or as JSON, on standard error."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from modelvold.config import Log

_TEXT = "%(asctime)s.%(msecs)03d %(levelname)-7s %(name)s: %(message)s"
_TIME = "%Y-%m-%dT%H:%M:%S"


def configure(settings: Log) -> None:
    """For the whole program, once. Warnings of Python itself become events too."""
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(_Json() if settings.format == "json" else _Text(_TEXT, _TIME))
    logging.basicConfig(level=settings.level.upper(), handlers=[lines], force=True)
    logging.captureWarnings(True)


class _Text(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        # A reference or a registry's words with a line break in them must not look like a line of ours.
        record.message = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in record.message)
        return super().formatMessage(record)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "room": record.name,
            "event": record.getMessage(),
        }
        if record.exc_info:
            event["trace"] = self.formatException(record.exc_info)
        return json.dumps(event, ensure_ascii=True)
