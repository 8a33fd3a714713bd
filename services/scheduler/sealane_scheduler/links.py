"""What is measured of a node's connection: round trip and jitter, speeds, and the rhythm of its signs of life. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Of a smoothed round trip so much is the last one; of its deviation, as in RFC 6298 section 2.
_RTT_WEIGHT, _JITTER_WEIGHT = 0.2, 0.25
#: What is smoothed is the middle one of so many round trips, of two the shorter.
_OF = 3
#: What speeds of links are at most, bytes a second: beyond it nobody could tell the difference.
_MOST_SPEED = 1e12

#: Signs of life by which a rhythm is known, and how much of it is the last one.
LEARNED, _RHYTHM_WEIGHT = 20, 0.05
#: Standard deviations of a normal distribution behind which one in 10**3 lies: phi 3 (Hayashibara and others 2004).
_PHI_3 = 3.0902


#: Share by which a speed has to change for decisions to look again.
_WORTH_TELLING = 0.1


@dataclass(slots=True)
class Link:
    """A connection; what is 0 was not measured yet."""

    rtt_ms: float = 0.0
    """Smoothed; one round trip alone that is far off, as when a machine stands still for a moment, moves nothing."""
    jitter_ms: float = 0.0
    down: float = 0.0
    """Bytes a second towards the node."""
    up: float = 0.0
    """Bytes a second from the node."""
    _last: tuple[float, ...] = ()

    def pinged(self, rtt_ms: float) -> None:
        """A round trip took so long."""
        if self._last:
            self.jitter_ms += _JITTER_WEIGHT * (abs(rtt_ms - self.rtt_ms) - self.jitter_ms)
        self._last = (*self._last, rtt_ms)[-_OF:]
        middle = sorted(self._last)[(len(self._last) - 1) // 2]
        known = len(self._last) == _OF
        self.rtt_ms += (_RTT_WEIGHT if known else 1.0) * (middle - self.rtt_ms)

    def carried(self, down: float, up: float) -> bool:
        """The node says how fast what it carried was; what it has not measured stays, and so does what is no speed.

        Returns:
            Whether decisions should be told: a speed is a tenth off what it was.
        """
        before = self.down, self.up
        self.down = min(down, _MOST_SPEED) if 0 < down < math.inf else self.down
        self.up = min(up, _MOST_SPEED) if 0 < up < math.inf else self.up
        return any(
            abs(now - then) > _WORTH_TELLING * then for now, then in zip((self.down, self.up), before, strict=True)
        )


@dataclass(slots=True)
class Rhythm:
    """How far apart a node's signs of life are: how long it may be silent before that is unlikely.

    Phi-accrual in Akka's form: the gaps are taken as normal, a pause of one heartbeat is acceptable. Mean and variance
    are smoothed in the place of a window.

    Args:
        pause: acceptable seconds beyond what is usual.
        least: seconds of silence that are always borne, and that hold while the rhythm is not known.
        most: the longest that a node which was silent again and again is borne.
    """

    pause: float
    least: float
    most: float
    signs: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def sign(self, gap: float) -> None:
        """A sign of life came, so many seconds after the one before."""
        self.signs += 1
        if self.signs == 1:
            self.mean = gap
            return
        off = gap - self.mean
        self.mean += _RHYTHM_WEIGHT * off
        self.variance = (1 - _RHYTHM_WEIGHT) * (self.variance + _RHYTHM_WEIGHT * off * off)

    @property
    def patience(self) -> float:
        """Seconds of silence at which phi is 3."""
        if self.signs < LEARNED:
            return self.least
        return min(max(self.mean + self.pause + _PHI_3 * math.sqrt(self.variance), self.least), self.most)
