"""One run for equal requests that are under way at the same time, of models that are declared deterministic.

Only requests of the same caller are equal: what one caller may see says nothing about another. A request joins another
one within its own deadline, and as long as its caller waits; where that one fails for a reason of its own caller, one
of those that joined runs, and the others join it.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from sealane.errors import MODEL_CRASHED, Cancelled, DeadlineExceeded, Internal, SealaneError
from sealane.protocols.elements import byte_elements
from sealane.tensors import Array
from sealane_worker.spec import OnCancel, Ran

#: Failures that are about the inputs, and so about every equal request.
_SHARED_FAILURES = frozenset({"INVALID_ARGUMENT", "FAILED_PRECONDITION"})
#: What killed the model once would kill it once for each of those that joined.
_SHARED_REASONS = frozenset({MODEL_CRASHED})

Key = tuple[object, ...]


def key_of(caller: tuple[str, ...], what: tuple[object, ...], inputs: Mapping[str, Array]) -> Key:
    """Equal for equal requests of the same caller; tensors are compared by their SHA-256."""
    digest = hashlib.sha256()
    for name in sorted(inputs):
        array = inputs[name]
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        if array.dtype.kind == "O":
            for element in byte_elements(array):
                digest.update(f"{len(element)}\0".encode())
                digest.update(element)
        else:
            digest.update(array.data if array.flags.c_contiguous else array.tobytes())
    return (*caller, *what, digest.digest())


@dataclass(slots=True, eq=False)
class Waiter:
    """Who asks: until when, and who tells where nobody waits for the answer any more."""

    deadline: float
    on_cancel: OnCancel | None = None
    _woken: threading.Event = field(default_factory=threading.Event)
    _left: bool = False
    _asked: bool = False

    def join(self, flight: Future[Ran]) -> None:
        """Wait until an equal request has ended.

        Raises:
            DeadlineExceeded: it did not in time.
            Cancelled: nobody waits any more.
        """
        if self.on_cancel is not None and not self._asked:
            self._asked = True
            self.on_cancel(self._leave)
        self._woken.clear()
        flight.add_done_callback(lambda _: self._woken.set())
        if not self._left:  # after the clearing: who leaves from here on wakes it
            self._woken.wait(max(self.deadline - time.monotonic(), 0.0))
        if self._left:
            raise Cancelled("nobody waits for the answer any more")
        if not flight.done():
            raise DeadlineExceeded("an equal request did not end before the deadline; allow more time")

    def _leave(self) -> None:
        self._left = True
        self._woken.set()


class SingleFlight:
    """Runs that others may join. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[Key, Future[Ran]] = {}

    def run(self, key: Key, waiter: Waiter, run: Callable[[], Ran]) -> tuple[Ran, bool]:
        """The answer of an equal request under way, or of `run`; and whether it was joined.

        Raises:
            DeadlineExceeded: the one that was joined did not end in time.
            Cancelled: nobody waits any more.
            SealaneError: what `run` raises, or raised for an equal request.
        """
        while True:
            with self._lock:
                flight = self._flights.get(key)
                leads = flight is None
                if flight is None:
                    flight = self._flights[key] = Future()
            if leads:
                return self._lead(key, flight, run), False
            waiter.join(flight)
            try:
                return flight.result(), True
            except SealaneError as error:
                if error.kind in _SHARED_FAILURES or error.reason in _SHARED_REASONS:
                    raise

    def _lead(self, key: Key, flight: Future[Ran], run: Callable[[], Ran]) -> Ran:
        # A defect is no SealaneError: those who joined must not wait for ever.
        failure: SealaneError = Internal("the model's run ended without an answer")
        ran: Ran | None = None
        try:
            ran = run()
            return ran
        except SealaneError as error:
            failure = error
            raise
        finally:
            # Off the table first: who is woken by a failure must not find this flight again.
            with self._lock:
                del self._flights[key]
            if ran is not None:
                flight.set_result(ran)
            else:
                flight.set_exception(failure)
