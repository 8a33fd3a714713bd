"""Counts calls, for those who scrape: plain numbers here, names and texts where they are read.

Names of models come from the routes alone, so a caller makes no series by asking for what is not there.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sealane.errors import SealaneError
from sealane.rpc.call import Call

#: Upper bounds in seconds; OpenTelemetry advises these for the duration of calls, and the first two suit models.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
#: Why calls are refused that would have been good at another time.
REFUSALS = frozenset(
    {"QUOTA_EXCEEDED", "OVERLOAD", "PUBLIC_STREAMS", "LANE_FULL", "QUEUE_FULL", "QUEUE_WAIT", "QUEUE_TIMEOUT"}
)
#: Most series; further ones are counted without a model.
CAPACITY = 10_000
#: Paths where nothing is served are callers' texts.
_UNSERVED = "unserved"

Model = tuple[str, str, str]
"""Project, deployment and version."""


@dataclass(frozen=True, slots=True)
class Key:
    """What calls have in common that are counted together."""

    method: str
    code: str
    model: Model | None
    http: bool


@dataclass(slots=True)
class Series:
    """Calls, the seconds that they took together, and how many of them took up to each bound; the last has none."""

    count: int = 0
    seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))


class CallMetrics:
    """Middleware, the outermost: what others refuse is counted too. For one event loop, so it takes no lock."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.refusals: Counter[str] = Counter()
        self._series: dict[tuple[str, str, Model | None, bool], Series] = {}

    def before(self, call: Call) -> None:
        """Count in."""
        self.in_flight += 1

    def after(self, call: Call, failure: SealaneError | None) -> None:
        """Count out."""
        self.in_flight -= 1
        code = "OK"
        if failure is not None:
            code = failure.kind
            if failure.reason in REFUSALS:
                self.refusals[failure.reason] += 1
        key = (
            call.method.path if call.method.served else _UNSERVED,
            code,
            call.model,
            (call.within or call).proves is not None,
        )
        series = self._series.get(key)
        if series is None:
            series = self._add(key)
        seconds = time.monotonic() - call.started
        series.count += 1
        series.seconds += seconds
        series.buckets[bisect_left(BOUNDS, seconds)] += 1

    def series(self, present: Iterable[Model]) -> Mapping[Key, Series]:
        """All series; those of models that are not present any more are forgotten."""
        kept = {None, *present}
        self._series = {key: series for key, series in self._series.items() if key[2] in kept}
        return {Key(*key): series for key, series in self._series.items()}

    def _add(self, key: tuple[str, str, Model | None, bool]) -> Series:
        if len(self._series) >= CAPACITY:
            key = (key[0], key[1], None, key[3])
        return self._series.setdefault(key, Series())
