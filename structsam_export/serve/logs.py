"""Logs as one JSON object a line, on stderr, without what clients send: no pictures, names, prompts or tokens."""

from __future__ import annotations

import json
import logging
import time
import traceback
from typing import Any

NAME = "structsam_export.serve"


class JSONLines(logging.Formatter):
    """Time, level, event, and the record's `fields`; a traceback as one of them."""

    def format(self, record: logging.LogRecord) -> str:
        at = time.gmtime(record.created)
        line: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', at)}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(line, default=str)  # ASCII: no control characters reach a terminal


def configuration() -> dict[str, Any]:
    """For `logging.config.dictConfig`: ours and uvicorn's, without its lines for each request."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": f"{__name__}.JSONLines"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stderr"}},
        "loggers": {
            name: {"handlers": ["stderr"], "level": level, "propagate": False}
            for name, level in ((NAME, "INFO"), ("uvicorn", "WARNING"), ("uvicorn.error", "WARNING"))
        },
    }


def log(event: str, level: int = logging.INFO, error: BaseException | None = None, **fields: Any) -> None:
    """One line."""
    logging.getLogger(NAME).log(level, event, extra={"fields": fields}, exc_info=error)
