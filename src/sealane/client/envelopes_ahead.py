"""Envelopes made ahead: while a caller waits for one answer, the envelope of the next call is wrapped and signed.

That takes two thirds of what a sealed call costs its client. What a prepared envelope is bound to is known before the
plaintext is; where it turns out to be something else, or too old, it is thrown away unused.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor

from sealane.security.envelope import Prepared

#: An envelope is good for 60 s from when it was made; one that waited so long is not used any more.
FRESH_SECONDS = 5.0
#: Kinds of calls that are made ahead for.
KINDS = 64
#: First the call itself must be on its way: the interpreter runs one thread at a time.
_LATER_SECONDS = 0.0002


class EnvelopesAhead:
    """At most one envelope for each kind of call. May be used from any thread."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[float, Prepared]] = {}
        self._making: set[Hashable] = set()
        self._pool: ThreadPoolExecutor | None = None

    def take(self, kind: Hashable) -> Prepared | None:
        """The envelope that was made for such a call; None where there is none, or none that is fresh."""
        made, prepared = self._kept.pop(kind, (0.0, None))
        return prepared if time.monotonic() - made <= FRESH_SECONDS else None

    def make(self, kind: Hashable, make: Callable[[], Prepared]) -> None:
        """Have one made for the next such call, unless there is one."""
        if kind in self._kept or kind in self._making or len(self._making) >= KINDS:
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="seal-ahead")
        self._making.add(kind)
        self._pool.submit(self._make, kind, make)

    def _make(self, kind: Hashable, make: Callable[[], Prepared]) -> None:
        try:
            time.sleep(_LATER_SECONDS)
            now = time.monotonic()
            for old in [each for each, (made, _) in list(self._kept.items()) if now - made > FRESH_SECONDS]:
                self._kept.pop(old, None)  # its secrets are of no use to anybody
            self._kept[kind] = (now, make())
        finally:
            self._making.discard(kind)
