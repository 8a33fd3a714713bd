"""Named points at which a test can make a service fail.

Active only with ``SEALANE_FAILPOINTS="name=panic,other=sleep:0.5"``: `panic` ends the process as kill -9
would, `sleep:S` waits, `error` raises Unavailable. Every change that is audited has two of them: ``<action>.recorded``
inside its transaction, ``<action>.committed`` after its commit and before its answer.
"""

from __future__ import annotations

import os
import time

from sealane.errors import Unavailable

_POINTS = dict(item.partition("=")[::2] for item in os.environ.get("SEALANE_FAILPOINTS", "").split(",") if item)


def armed() -> bool:
    """Whether a test asked for any failure."""
    return bool(_POINTS)


def failpoint(name: str) -> None:
    """Fail here if a test asked for it."""
    if not _POINTS:
        return
    mode, _, argument = _POINTS.get(name, "").partition(":")
    if mode == "panic":
        os._exit(137)
    if mode == "sleep":
        time.sleep(float(argument or 1))
    if mode == "error":
        raise Unavailable(f"failpoint {name}; a test asked for this")
