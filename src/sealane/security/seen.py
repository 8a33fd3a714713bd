"""Which sealed requests a worker has seen: each runs at most once, and none is forgotten while it could still open."""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import dataclass, field

from sealane.clock import Clock
from sealane.errors import ResourceExhausted

#: Twice the time for which a request may be old or from the future, so that no clock within it reopens the window.
KEEP_SECONDS = 120.0
#: Ids are forgotten by the tenth of the window, all of a tenth at once.
BUCKET_SECONDS = KEEP_SECONDS / 10
#: 1,985 requests a second, some 25 MB; a worker runs about half as many.
CAPACITY = 1 << 18
#: One project must not fill the memory for all.
PROJECT_SHARE = 0.5


@dataclass(slots=True)
class _Bucket:
    """The ids of a tenth of the window."""

    until: float
    latest_ms: int = 0
    ids: set[bytes] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)


class SeenRequests:
    """Remembers request ids for :data:`KEEP_SECONDS` and a little more; may be called from any thread.

    Args:
        clock: time.
        capacity: most ids that are kept; beyond it requests are refused, because to forget one early would let it run
            twice.
        project_capacity: most of them of one project; default: half.
    """

    def __init__(self, clock: Clock, capacity: int = CAPACITY, project_capacity: int | None = None) -> None:
        self._clock = clock
        self._capacity = capacity
        self._of_project = share_of(capacity) if project_capacity is None else project_capacity
        self._buckets: deque[_Bucket] = deque()
        self._size = 0
        self._forgotten_ms = 0
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Ids kept."""
        return self._size

    def add(self, request_id: bytes, project: str, issued_at_ms: int) -> bool:
        """Remember an id; False where it was there already, or may have been.

        Args:
            request_id: the id.
            project: whose memory it takes.
            issued_at_ms: time that the request says. What is no later than a request that is forgotten may have been
                here too: a clock was set back since.

        Raises:
            ResourceExhausted: too many ids of the project, or in all (REPLAY_MEMORY).
        """
        now = self._clock.monotonic()
        with self._lock:
            self._forget(now)
            if issued_at_ms <= self._forgotten_ms:
                return False
            if any(request_id in bucket.ids for bucket in self._buckets):
                return False
            if self._size >= self._capacity or self._counts[project] >= self._of_project:
                raise no_room(self._buckets[0].until - now)
            if not self._buckets or self._buckets[-1].until < now + KEEP_SECONDS:
                self._buckets.append(_Bucket(now + KEEP_SECONDS + BUCKET_SECONDS))
            bucket = self._buckets[-1]
            bucket.ids.add(request_id)
            bucket.latest_ms = max(bucket.latest_ms, issued_at_ms)
            bucket.counts[project] += 1
            self._counts[project] += 1
            self._size += 1
            return True

    def _forget(self, now: float) -> None:
        while self._buckets and self._buckets[0].until < now:
            over = self._buckets.popleft()
            self._size -= len(over.ids)
            self._forgotten_ms = max(self._forgotten_ms, over.latest_ms)
            self._counts -= over.counts  # drops what has come to nothing


def share_of(capacity: int) -> int:
    """Ids that one project may take."""
    return int(capacity * PROJECT_SHARE)


def no_room(seconds: float) -> ResourceExhausted:
    """The error for a request that cannot be remembered for so long."""
    return ResourceExhausted(
        "too many sealed requests to remember; slow down, or open a session, which is remembered once",
        reason="REPLAY_MEMORY",
        retry_after=max(0.1, round(seconds, 1)),
    )
