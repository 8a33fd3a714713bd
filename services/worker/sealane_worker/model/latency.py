"""What a batch costs, learned while serving, and the batch size that follows from it. Pure: no clock, no I/O.

The time of a run is taken as ``a + c * rows`` (Clipper, NSDI'17), fitted by least squares over a sliding memory, and
inflated by the 99th percentile of what was seen over what was fitted. Until there is enough to fit, the size grows by
one while requests wait and shrinks to nine tenths when a deadline was missed (AIMD).
"""

from __future__ import annotations

#: Runs before the fit is trusted.
SAMPLES = 50
#: Runs of more than one size that a slope needs.
SAMPLES_OF_ANOTHER_SIZE = 8
#: Share of the best throughput that is given up for a smaller batch: a batch that gains less than a fifth does not pay.
WORTH = 1.2
_MEMORY = 0.99
_QUANTILE = 0.99
_STEP = 0.05


class LatencyModel:
    """Latency by rows of one model on this machine. Used by one thread at a time."""

    def __init__(self, max_rows: int, objective_s: float = 0.0) -> None:
        self._max_rows = max(max_rows, 1)
        self._objective = objective_s
        self._limit = 1.0
        self._weight = self._rows = self._rows2 = self._time = self._product = 0.0
        self._inflation = 1.0
        self._counts: dict[int, int] = {}

    @property
    def samples(self) -> int:
        """Runs seen."""
        return sum(self._counts.values())

    @property
    def trusted(self) -> bool:
        """Whether there is enough to predict from."""
        return self.samples >= SAMPLES

    def observe(self, rows: int, seconds: float, *, waiting: int = 0) -> None:
        """One run of `rows` took `seconds`; `waiting` rows were left in the queue behind it."""
        if rows < 1:
            return
        if self.samples >= 5 and self._weight > 0:
            self._see_ratio(seconds / max(self.mean(rows), 1e-9))
        self._weight = self._weight * _MEMORY + 1.0
        self._rows = self._rows * _MEMORY + rows
        self._rows2 = self._rows2 * _MEMORY + rows * rows
        self._time = self._time * _MEMORY + seconds
        self._product = self._product * _MEMORY + rows * seconds
        self._counts[rows] = self._counts.get(rows, 0) + 1
        if waiting and rows >= int(self._limit):
            self._limit = min(self._limit + 1.0, float(self._max_rows))

    def missed(self) -> None:
        """A deadline was missed in the queue: smaller batches, until the fit knows better."""
        self._limit = max(self._limit * 0.9, 1.0)

    def mean(self, rows: int) -> float:
        """Expected seconds of a run; 0 before the first."""
        if self._weight == 0.0:
            return 0.0
        fixed, slope = self._fit()
        return fixed + slope * rows

    def p99(self, rows: int) -> float:
        """Seconds that 99 of 100 runs of `rows` stay below, as far as it is known; 0 before the first run."""
        return self.mean(rows) * self._inflation

    def best_rows(self) -> int:
        """Rows to put into one run: the fewest that give nearly the best throughput within the objective."""
        if not self._known():
            return int(self._limit)
        allowed = [rows for rows in range(1, self._max_rows + 1) if not self._objective or self._fits(rows)] or [1]
        best = max(rows / self.mean(rows) for rows in allowed)
        return next(rows for rows in allowed if rows / self.mean(rows) * WORTH >= best)

    def _fits(self, rows: int) -> bool:
        return self.p99(rows) <= self._objective

    def _known(self) -> bool:
        if self.samples < SAMPLES:
            return False
        # Two sizes make a line; what always ran alone has had nobody to run with.
        often = sorted(self._counts.values(), reverse=True)
        return len(often) > 1 and often[1] >= SAMPLES_OF_ANOTHER_SIZE

    def _fit(self) -> tuple[float, float]:
        """Fixed part and slope; with one size seen all of it counts as slope, so that nothing is promised."""
        spread = self._weight * self._rows2 - self._rows * self._rows
        if spread <= 1e-9 * self._rows2 * self._weight:
            return 0.0, self._time / self._rows
        slope = (self._weight * self._product - self._rows * self._time) / spread
        fixed = (self._time - slope * self._rows) / self._weight
        if slope <= 0.0:  # larger batches are not slower, as far as the noise lets one see
            return self._time / self._weight, 0.0
        if fixed < 0.0:
            return 0.0, self._time / self._rows
        return fixed, slope

    def _see_ratio(self, ratio: float) -> None:
        """Follow the 99th percentile of seen over fitted (stochastic approximation of a quantile)."""
        if ratio > self._inflation:
            self._inflation += _STEP * _QUANTILE * min(ratio - self._inflation + 0.1, 4.0)
        else:
            self._inflation = max(self._inflation - _STEP * (1 - _QUANTILE), 1.0)
