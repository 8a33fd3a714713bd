"""The sessions that a worker keeps: in memory only, bounded in number, time and requests."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from sealane.clock import Clock
from sealane.errors import FailedPrecondition, ResourceExhausted
from sealane.security.sealed_session import LIFETIME_SECONDS, MAX_REQUESTS, SessionCiphers, SessionHash

MAX_SESSIONS = 4096
#: Of one sender; its oldest gives way, so that a client that never ends its sessions harms itself alone.
MAX_OF_SENDER = 16
#: A session is used for few deployments and methods.
_HASHES = 16


@dataclass(slots=True)
class KeptSession:
    """One session.

    Attributes:
        ciphers: made of the secret agreed with whoever opened it.
        sender: thumbprint of the key that opened it.
        ordered: whether its requests must come one after the other, as those of a stream do.
        until: monotonic time at which it ends.
    """

    ciphers: SessionCiphers = field(repr=False)
    sender: str
    ordered: bool
    until: float
    _next: int = 0
    _taken: bytearray = field(default_factory=bytearray, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _hashes: dict[tuple[str, ...], SessionHash] = field(default_factory=dict, repr=False)

    def hash_of(self, bound: tuple[str, ...], make: Callable[[], SessionHash]) -> SessionHash:
        """The hash of what requests are bound to; made where it is not kept."""
        found = self._hashes.get(bound)
        if found is None:
            if len(self._hashes) >= _HASHES:
                self._hashes.clear()
            found = self._hashes[bound] = make()
        return found

    def take(self, counter: int) -> bool:
        """Whether request `counter` may run: once, and where they are ordered, after those before it."""
        if not 0 <= counter < MAX_REQUESTS:
            return False
        with self._lock:
            if self.ordered:
                if counter != self._next:
                    return False
                self._next += 1
                return True
            at, bit = counter >> 3, 1 << (counter & 7)
            if at >= len(self._taken):
                self._taken.extend(bytes(at + 1 - len(self._taken)))
            if self._taken[at] & bit:
                return False
            self._taken[at] |= bit
            return True


class KeptSessions:
    """Session id -> session. May be called from any thread."""

    def __init__(self, clock: Clock, capacity: int = MAX_SESSIONS, of_sender: int = MAX_OF_SENDER) -> None:
        self._clock = clock
        self._capacity = capacity
        self._of_sender = of_sender
        self._kept: OrderedDict[bytes, KeptSession] = OrderedDict()
        self._senders: dict[str, OrderedDict[bytes, None]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Sessions kept."""
        return len(self._kept)

    def keep(self, session_id: bytes, ciphers: SessionCiphers, sender: str, *, ordered: bool) -> None:
        """Keep a session from now on.

        Raises:
            ResourceExhausted: too many of all senders (SEALED_SESSIONS).
        """
        now = self._clock.monotonic()
        with self._lock:
            while self._kept and next(iter(self._kept.values())).until <= now:
                self._drop(next(iter(self._kept)))
            own = self._senders.get(sender, OrderedDict())
            if len(own) >= self._of_sender:
                self._drop(next(iter(own)))
            if len(self._kept) >= self._capacity:
                raise ResourceExhausted(
                    "this worker keeps as many sealed sessions as it can; seal request by request, or wait",
                    reason="SEALED_SESSIONS",
                    retry_after=1.0,
                )
            self._kept[session_id] = KeptSession(ciphers, sender, ordered, now + LIFETIME_SECONDS)
            self._senders.setdefault(sender, OrderedDict())[session_id] = None

    def find(self, session_id: bytes) -> KeptSession:
        """A session.

        Raises:
            FailedPrecondition: it is not kept here, or not any more (STALE_SEALED_SESSION).
        """
        session = self._kept.get(session_id)
        if session is None or session.until <= self._clock.monotonic():
            raise FailedPrecondition(
                "this worker does not keep the sealed session; open another one and seal again",
                reason="STALE_SEALED_SESSION",
            )
        return session

    def end(self, session_id: bytes) -> None:
        """Forget a session."""
        with self._lock:
            if session_id in self._kept:
                self._drop(session_id)

    def _drop(self, session_id: bytes) -> None:
        sender = self._kept.pop(session_id).sender
        own = self._senders[sender]
        del own[session_id]
        if not own:
            del self._senders[sender]
