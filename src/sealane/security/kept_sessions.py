"""The sessions that a worker keeps: in memory only, bounded in number, time and requests."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from sealane.clock import Clock
from sealane.errors import FailedPrecondition, ResourceExhausted
from sealane.security.sealed_session import LIFETIME_SECONDS, MAX_REQUESTS, SessionCiphers, SessionHash

MAX_SESSIONS = 4096
#: One project must not take them all.
PROJECT_SHARE = 0.5
#: Of one sender; the one that was not used for longest gives way, so that a client that ends none harms itself alone.
MAX_OF_SENDER = 64
#: A stream gives way only when nothing came over it for so long: what carried it may have ended without a word.
IDLE_SECONDS = 60.0
#: A session is used for few deployments and methods.
_HASHES = 16


@dataclass(frozen=True, slots=True)
class Owner:
    """Who opens a session: the thumbprint of the key, and the project of the token."""

    sender: str
    project: str


class Numbers(Protocol):
    """Counts the requests of a session."""

    def take(self, counter: int) -> bool:
        """Whether request `counter` may run: once."""
        ...

    @property
    def used(self) -> float:
        """Monotonic time at which requests went another way than through :meth:`KeptSessions.find` last."""
        ...


class Keeper(Protocol):
    """Keeps keys and numbers of sessions for those who open requests elsewhere."""

    def keep(self, session_id: bytes, keys: tuple[bytes, bytes], sender: str, until: float) -> Numbers:
        """Keep a session whose requests may come in any order."""
        ...

    def end(self, session_id: bytes) -> None:
        """Forget a session."""
        ...


class InAnyOrder:
    """Counts the requests of a session."""

    used = 0.0

    def __init__(self) -> None:
        self._taken = bytearray()
        self._lock = threading.Lock()

    def take(self, counter: int) -> bool:
        """Whether request `counter` may run: once."""
        if not 0 <= counter < MAX_REQUESTS:
            return False
        at, bit = counter >> 3, 1 << (counter & 7)
        with self._lock:
            if at >= len(self._taken):
                self._taken.extend(bytes(at + 1 - len(self._taken)))
            if self._taken[at] & bit:
                return False
            self._taken[at] |= bit
            return True


class InOrder:
    """The same for a stream: one after the other."""

    used = 0.0

    def __init__(self) -> None:
        self._next = 0
        self._lock = threading.Lock()

    def take(self, counter: int) -> bool:
        """Whether request `counter` may run: after those before it, once."""
        with self._lock:
            if counter != self._next or counter >= MAX_REQUESTS:
                return False
            self._next += 1
            return True


@dataclass(slots=True)
class KeptSession:
    """One session.

    Attributes:
        ciphers: made of the secret agreed with whoever opened it.
        sender: thumbprint of the key that opened it.
        project: of the token that opened it.
        ordered: whether its requests must come one after the other, as those of a stream do.
        until: monotonic time at which it ends.
        found: monotonic time at which it was looked for last.
        numbers: counts its requests.
    """

    ciphers: SessionCiphers = field(repr=False)
    sender: str
    project: str
    ordered: bool
    until: float
    found: float
    numbers: Numbers = field(repr=False)
    _hashes: dict[tuple[str, ...], SessionHash] = field(default_factory=dict, repr=False)

    def hash_of(self, bound: tuple[str, ...], make: Callable[[], SessionHash]) -> SessionHash:
        """The hash of what requests are bound to; made where it is not kept."""
        found = self._hashes.get(bound)
        if found is None:
            if len(self._hashes) >= _HASHES:
                self._hashes.clear()
            found = self._hashes[bound] = make()
        return found

    @property
    def used(self) -> float:
        """Monotonic time at which it was used last."""
        return max(self.found, self.numbers.used)


class KeptSessions:
    """Session id -> session. May be called from any thread.

    Args:
        clock: time.
        capacity: most sessions that are kept.
        of_sender: most of them of one sender.
        keeper: told of those whose requests may come in any order.
    """

    def __init__(
        self,
        clock: Clock,
        capacity: int = MAX_SESSIONS,
        of_sender: int = MAX_OF_SENDER,
        keeper: Keeper | None = None,
    ) -> None:
        self._keeper = keeper
        self._clock = clock
        self._capacity = capacity
        self._of_sender = of_sender
        self._kept: OrderedDict[bytes, KeptSession] = OrderedDict()
        self._senders: dict[str, OrderedDict[bytes, None]] = {}
        self._projects: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Sessions kept."""
        return len(self._kept)

    def keep(self, session_id: bytes, ciphers: SessionCiphers, owner: Owner, *, ordered: bool) -> bool:
        """Keep a session from now on; False where one of this id is kept already.

        Raises:
            ResourceExhausted: too many streams of the sender, or too many of the project or in all (SEALED_SESSIONS).
        """
        now = self._clock.monotonic()
        with self._lock:
            while self._kept and next(iter(self._kept.values())).until <= now:
                self._drop(next(iter(self._kept)))
            if session_id in self._kept:
                return False
            own = self._senders.get(owner.sender, OrderedDict())
            if len(own) >= self._of_sender:
                self._make_way(own, now)
            of_project = int(self._capacity * PROJECT_SHARE)
            if len(self._kept) >= self._capacity or self._projects[owner.project] >= of_project:
                raise _no_place()
            until = now + LIFETIME_SECONDS
            numbers: Numbers = InOrder() if ordered else InAnyOrder()
            if self._keeper is not None and not ordered:
                numbers = self._keeper.keep(session_id, ciphers.keys, owner.sender, until)
            self._kept[session_id] = KeptSession(ciphers, owner.sender, owner.project, ordered, until, now, numbers)
            self._senders.setdefault(owner.sender, OrderedDict())[session_id] = None
            self._projects[owner.project] += 1
            return True

    def find(self, session_id: bytes) -> KeptSession:
        """A session.

        Raises:
            FailedPrecondition: it is not kept here, or not any more (STALE_SEALED_SESSION).
        """
        session, now = self._kept.get(session_id), self._clock.monotonic()
        if session is None or session.until <= now:
            raise FailedPrecondition(
                "this worker does not keep the sealed session; open another one and seal again",
                reason="STALE_SEALED_SESSION",
            )
        session.found = now
        return session

    def end(self, session_id: bytes) -> None:
        """Forget a session."""
        with self._lock:
            if session_id in self._kept:
                self._drop(session_id)

    def _make_way(self, own: Iterable[bytes], now: float) -> None:
        """End the sender's session that was not used for longest; a stream only if that is long."""
        least = min(own, key=lambda item: (self._kept[item].ordered, self._kept[item].used))
        if self._kept[least].ordered and now - self._kept[least].used < IDLE_SECONDS:
            raise _no_place()
        self._drop(least)

    def _drop(self, session_id: bytes) -> None:
        session = self._kept.pop(session_id)
        if self._keeper is not None:
            self._keeper.end(session_id)
        own = self._senders[session.sender]
        del own[session_id]
        if not own:
            del self._senders[session.sender]
        self._projects[session.project] -= 1
        if not self._projects[session.project]:
            del self._projects[session.project]


def _no_place() -> ResourceExhausted:
    return ResourceExhausted(
        "this worker keeps as many sealed sessions as it can; seal request by request, end streams, or wait",
        reason="SEALED_SESSIONS",
        retry_after=1.0,
    )
