"""What the next call to each worker is expected to cost: peak-EWMA times the calls already there.

Peak-EWMA (Finagle): a slow answer counts at once, a fast one only bit by bit. On a fleet of cloud and
edge workers it keeps far more calls inside their objective than round robin or two random choices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sealane.clock import Clock

#: Seconds in which the memory of a slow answer falls to a third.
DECAY_SECONDS = 10.0
#: What a worker costs of which nothing is known: little, so that it is tried.
UNKNOWN_SECONDS = 0.001


@dataclass(slots=True)
class _Load:
    seconds: float = UNKNOWN_SECONDS
    measured: float = 0.0
    in_flight: int = 0


class Loads:
    """Cost of every node that was called."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._loads: dict[str, _Load] = {}

    def of(self, node: str) -> float:
        """Expected seconds of a call to `node`, including those of the calls before it."""
        load = self._loads.get(node)
        return UNKNOWN_SECONDS if load is None else load.seconds * (load.in_flight + 1)

    def begin(self, node: str) -> float:
        """Count a call in; returns what :meth:`end` wants."""
        self._loads.setdefault(node, _Load()).in_flight += 1
        return self._clock.monotonic()

    def end(self, node: str, begun: float) -> None:
        """Count a call out and remember how long it took."""
        load, now = self._loads[node], self._clock.monotonic()
        load.in_flight -= 1
        took = now - begun
        if took >= load.seconds:
            load.seconds = took
        else:
            weight = math.exp(-(now - load.measured) / DECAY_SECONDS)
            load.seconds = load.seconds * weight + took * (1 - weight)
        load.measured = now

    def forget(self, node: str) -> None:
        """Drop what is known of a node whose lane is gone, unless calls are still out."""
        load = self._loads.get(node)
        if load is not None and load.in_flight == 0:
            del self._loads[node]
