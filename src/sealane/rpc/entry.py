"""What every service's ``__main__`` does: read the configuration, run, give an exit code."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Coroutine
from typing import TypeVar

from sealane import config
from sealane.errors import SealaneError

T = TypeVar("T", bound=config.Dataclass)

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}


class JsonLines(logging.Formatter):
    """A JSON object per line: time, level, logger, constant message, fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        fields = {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
        line: dict[str, object] = {
            "time": round(time.time(), 3),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **fields,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def run_async(kind: type[T], prefix: str, serve: Callable[[T], Coroutine[None, None, None]]) -> int:
    """Run an asyncio service with its configuration; 2 for bad settings, 1 for a failed start."""
    return run_sync(kind, prefix, lambda settings: asyncio.run(serve(settings)))


def run_sync(kind: type[T], prefix: str, serve: Callable[[T], None]) -> int:
    """The same for a synchronous one."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=os.environ.get("SEALANE_LOG_LEVEL", "WARNING"))
    try:
        settings = config.read(kind, prefix, os.environ)
    except SealaneError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2
    try:
        serve(settings)
    except (SealaneError, OSError) as error:
        logging.getLogger("sealane").error("start failed", extra={"cause": str(error)})
        return 1
    return 0
