"""Envelopes made ahead: while a caller waits for one answer, the envelope of the next call is wrapped and signed.

A caller that is alone waits for less then, and its client works a little more in all: ``python -m bench.sealed cost``
prints both. The native library makes them in a thread of its own; without it a thread of Python does. What a prepared
envelope is bound to is known before the plaintext is; where it turns out to be something else, or too old, it is thrown
away unused.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sealane.security.native_envelope import AnyPrepared

#: An envelope is good for 60 s from when it was made; one that waited so long is not used any more.
FRESH_SECONDS = 5.0
#: Kinds of calls that are made ahead for.
KINDS = 64
#: First the call itself must be on its way: the interpreter runs one thread at a time.
_LATER_SECONDS = 0.0002


@dataclass(frozen=True, slots=True)
class _Made:
    """When and by whom. Monotonic time stands still while a machine sleeps, and the other may be set."""

    monotonic: float
    time: float
    process: int

    def fresh(self) -> bool:
        """Whether it is good still, and this process's: a process that was forked off would seal with the same keys."""
        late = max(time.monotonic() - self.monotonic, abs(time.time() - self.time))
        return late <= FRESH_SECONDS and self.process == os.getpid()


class EnvelopesAhead:
    """At most one envelope for each kind of call. May be used from any thread."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[_Made, AnyPrepared]] = {}
        self._making: set[Hashable] = set()
        self._pool: ThreadPoolExecutor | None = None
        self._process = os.getpid()

    def take(self, kind: Hashable) -> AnyPrepared | None:
        """The envelope that was made for such a call; None where there is none, or none that is fresh."""
        made, prepared = self._kept.pop(kind, (None, None))
        return prepared if made is not None and made.fresh() else None

    def make(self, kind: Hashable, make: Callable[[], AnyPrepared], *, at_once: bool = False) -> None:
        """Have one made for the next such call, unless there is one.

        Args:
            kind: of the call.
            make: makes it.
            at_once: `make` takes hardly any time, because the work is done elsewhere.
        """
        if kind in self._kept or kind in self._making or len(self._making) >= KINDS:
            return
        if at_once:
            self._keep(kind, make)
            return
        if self._pool is None or self._process != os.getpid():
            self._process = os.getpid()
            self._making.clear()
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="seal-ahead")
        self._making.add(kind)
        self._pool.submit(self._make, kind, make)

    def _make(self, kind: Hashable, make: Callable[[], AnyPrepared]) -> None:
        try:
            time.sleep(_LATER_SECONDS)
            self._keep(kind, make)
        finally:
            self._making.discard(kind)

    def _keep(self, kind: Hashable, make: Callable[[], AnyPrepared]) -> None:
        for old in [each for each, (made, _) in list(self._kept.items()) if not made.fresh()]:
            self._kept.pop(old, None)  # its secrets are of no use to anybody
        if len(self._kept) >= KINDS:
            return
        made = _Made(time.monotonic(), time.time(), os.getpid())
        self._kept[kind] = (made, make())
