"""What a model process says to a request that it does not answer: kind, reason, field, message, when to try again."""

from __future__ import annotations

import logging

from sealane.errors import SealaneError
from sealane_worker.model.queueing import Refused

logger = logging.getLogger(__name__)

Failure = tuple[str, str, str, str, float]
_BUSY = {
    "QUEUE_FULL": "the model's queue is full; send less at a time or add replicas",
    "QUEUE_WAIT": "the model cannot answer before the deadline, too much waits for it; allow more time or add replicas",
}
CANCELLED: Failure = ("CANCELLED", "CANCELLED", "", "the caller went away", 0.0)


def failure(error: Exception) -> Failure:
    """What its caller is told of a run that failed."""
    if isinstance(error, SealaneError):
        return error.kind, error.reason, error.field, error.message, error.retry_after or 0.0
    logger.error("model failed", exc_info=error)
    return "INTERNAL", "MODEL_FAILED", "", "the model failed; the worker's log says why", 0.0


def late() -> Failure:
    """Of a request whose time was over before it began."""
    message = "the deadline passed before the model could start; allow more time or add replicas"
    return "DEADLINE_EXCEEDED", "QUEUE_TIMEOUT", "", message, 0.0


def busy(refused: Refused) -> Failure:
    """Of a request that the queue does not take."""
    return "RESOURCE_EXHAUSTED", refused.reason, "", _BUSY[refused.reason], refused.retry_after
