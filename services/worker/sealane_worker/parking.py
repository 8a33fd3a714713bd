"""Keeps a worker on one processor for as long as more of them would not answer more calls.

One inference crosses half a dozen threads, one after another. Waking each on another, sleeping processor costs more
than what it then does: in a virtual machine tens of microseconds each time, and the interpreter lets one thread of the
front compute at a time anyway. So the front and its model processes share one processor until that one is full; then
all of them are tried for a second, and kept where they answer more. A model that computes is spread within a second, a
small one stays. Somebody else's work on the same processor, and models that use several threads, end it at once.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sealane_worker import machine

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.1
#: Share of its processor above which a parked worker is full, and of all below which a spread one is not.
FULL, LOW = 0.85, 0.6
#: Share of one processor above which models alone are work for another one.
HEAVY = 0.5
#: A trial of all processors takes so long; its first part is not counted.
TRIAL_SECONDS, SETTLE_SECONDS = 1.0, 0.3
#: How many times as many calls make all processors worth their wake-ups.
BETTER = 1.1
#: Share of a parked worker's processor that others may use while it works itself.
FOREIGN, WORKING = 0.47, 0.05
CROWDED_LOOKS = 3
#: Seconds until what was not worth it is tried again; doubles each time.
FIRST_BACKOFF, LAST_BACKOFF = 1.0, 120.0
#: Others' work bars parking so long at most, and is forgotten after so many seconds without.
LONGEST_BAR, CALM_SECONDS = 8.0, 5.0
_SMOOTH = 0.3


@dataclass(frozen=True, slots=True)
class Load:
    """What was seen since the last look.

    Attributes:
        peak: most calls at the same time.
        rate: calls ended, per second.
        used: processor seconds of front and models, per second.
        models: the models' part of `used`.
        foreign: share of the processor to park on that others used.
        alone: whether every model runs on one thread.
    """

    peak: int
    rate: float
    used: float
    models: float
    foreign: float
    alone: bool


class Decision:
    """Whether to be parked. Pure: looks come in, the answer goes out."""

    def __init__(self) -> None:
        self.parked = False
        self._rate = self._used = 0.0
        self._crowded = 0
        self._barred = 0.0  # no parking before this time
        self._bar = FIRST_BACKOFF
        self._trial_due = 0.0  # no trial of all processors before this time
        self._trial = FIRST_BACKOFF
        self._trial_ends = 0.0  # of the trial under way; 0 without one
        self._parked_rate = 0.0

    def look(self, load: Load, now: float) -> bool:
        """Take in what was seen at `now` (seconds); whether to be parked from here."""
        settled = not self._trial_ends or now > self._trial_ends - TRIAL_SECONDS + SETTLE_SECONDS
        if settled:
            self._rate += _SMOOTH * (load.rate - self._rate)
            self._used += _SMOOTH * (load.used - self._used)
        if not load.alone:
            self.parked, self._trial_ends = False, 0.0
        elif self.parked and self._is_crowded(load):
            self.parked = False
            self._barred, self._bar = now + self._bar, min(self._bar * 2, LONGEST_BAR)
        elif self.parked:
            if now > self._barred + CALM_SECONDS:
                self._bar = FIRST_BACKOFF
            self._look_parked(load, now)
        elif self._trial_ends:
            self._look_at_trial(now)
        elif now >= self._barred and (self._used < LOW or load.peak <= 1):
            self.parked = True  # nothing to do for more processors: too little work, or one chain of it
        return self.parked

    def _is_crowded(self, load: Load) -> bool:
        """Whether others have wanted the processor for several looks: a program that starts wants it for one."""
        crowded = load.used > WORKING and load.foreign > FOREIGN
        self._crowded = self._crowded + 1 if crowded else 0
        return self._crowded >= CROWDED_LOOKS

    def _look_parked(self, load: Load, now: float) -> None:
        if load.peak > 1 and load.models > HEAVY:
            self.parked, self._used = False, 1.0  # nothing to try: models compute while the front goes on
        elif load.peak > 1 and self._used > FULL and now >= self._trial_due:
            self._parked_rate, self._trial_ends = self._rate, now + TRIAL_SECONDS
            self.parked = False

    def _look_at_trial(self, now: float) -> None:
        if now < self._trial_ends:
            return
        self._trial_ends = 0.0
        if self._rate > self._parked_rate * BETTER:
            self._trial = FIRST_BACKOFF
            return
        self.parked = True
        self._trial_due, self._trial = now + self._trial, min(self._trial * 2, LAST_BACKOFF)


class Parking:
    """Looks and moves, in a thread of its own.

    Args:
        counts: most calls at the same time, and calls that ended, since it was last asked.
        models: process ids of the models, and whether every one runs on one thread.
    """

    def __init__(self, counts: Callable[[], tuple[int, int]], models: Callable[[], tuple[list[int], bool]]) -> None:
        self._counts = counts
        self._models = models
        self._all = set(machine.processors())
        ordered = sorted(self._all)
        self._one = {ordered[os.getpid() % len(ordered)]}  # workers of one machine spread by chance
        self._decision = Decision()
        self._moved: set[int] = set()
        self._front = self._of_models = self._busy = 0.0
        self._looked = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="parking", daemon=True)

    @property
    def parked(self) -> bool:
        """Whether front and models share one processor now."""
        return self._decision.parked

    def start(self) -> None:
        """Begin to look; nothing to do on a machine of one processor."""
        if len(self._all) > 1:
            self._thread.start()

    def stop(self) -> None:
        """Spread for good."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2.0)
            self._move(_threads([os.getpid(), *self._models()[0]]), self._all)

    def _run(self) -> None:
        """Supervise the placement of all threads."""
        while not self._stop.wait(LOOK_SECONDS):
            pids, alone = self._models()
            pids = [os.getpid(), *pids]
            was = self._decision.parked
            parked = self._decision.look(self._load(pids, alone), time.monotonic())
            if parked != was:
                logger.debug("worker %s", "parked" if parked else "spread")
                self._moved.clear()
            if parked or was:
                threads = _threads(pids)
                self._move(threads - self._moved, self._one if parked else self._all)
                self._moved = threads

    def _load(self, pids: list[int], alone: bool) -> Load:
        now, front, models, busy = time.monotonic(), _used(pids[:1]), _used(pids[1:]), _busy(self._one)
        took, self._looked = max(now - self._looked, 1e-3), now
        # A model that has gone takes its time along: what is left counts from here.
        mine, theirs = max(front - self._front, 0.0), max(models - self._of_models, 0.0)
        others = max(busy - self._busy - mine - theirs, 0.0)
        self._front, self._of_models, self._busy = front, models, busy
        peak, ended = self._counts()
        return Load(peak, ended / took, (mine + theirs) / took, theirs / took, others / took, alone)

    def _move(self, threads: Iterable[int], processors: set[int]) -> None:
        for thread in threads:
            try:
                os.sched_setaffinity(thread, processors)
            except OSError:
                continue  # it has ended, or is another user's: the rest moves all the same


def _threads(pids: Iterable[int]) -> set[int]:
    found: set[int] = set()
    for pid in pids:
        try:
            found.update(int(name) for name in os.listdir(f"/proc/{pid}/task"))  # noqa: PTH208  # names alone
        except OSError:
            continue
    return found


def _used(pids: Iterable[int]) -> float:
    """Processor seconds used by these processes."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _busy(processors: Iterable[int]) -> float:
    """Seconds for which these processors were not idle (proc(5), ``/proc/stat``); 0 where that is not told."""
    names = {f"cpu{number}".encode() for number in processors}
    try:
        lines = Path("/proc/stat").read_bytes().splitlines()
    except OSError:
        return 0.0
    ticks = 0
    for fields in (line.split() for line in lines if line.split(b" ", 1)[0] in names):
        user, nice, system, _, _, interrupt, soft, steal = (int(value) for value in fields[1:9])
        ticks += user + nice + system + interrupt + soft + steal
    return ticks / os.sysconf("SC_CLK_TCK")
