"""One run for equal requests that are under way at the same time, of models that are declared deterministic.

Only requests of the same caller are equal: what one caller may see says nothing about another. A request joins another
one within its own deadline; where that one fails for a reason of its own caller, those that joined run for themselves.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout

from sealane.errors import DeadlineExceeded, Internal, SealaneError
from sealane.protocols.elements import byte_elements
from sealane.tensors import Array
from sealane_worker.spec import Ran

#: Failures that are about the inputs, and so about every equal request.
_SHARED_FAILURES = frozenset({"INVALID_ARGUMENT", "FAILED_PRECONDITION"})

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


class SingleFlight:
    """Runs that others may join. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[Key, Future[Ran]] = {}

    def run(self, key: Key, deadline: float, run: Callable[[], Ran]) -> tuple[Ran, bool]:
        """The answer of an equal request under way, or of `run`; and whether it was joined.

        Raises:
            DeadlineExceeded: the one that was joined did not end in time.
            SealaneError: what `run` raises, or raised for an equal request.
        """
        with self._lock:
            flight = self._flights.get(key)
            leads = flight is None
            if flight is None:
                flight = self._flights[key] = Future()
        if leads:
            return self._lead(key, flight, run), False
        try:
            return flight.result(max(deadline - time.monotonic(), 0.0)), True
        except FutureTimeout:
            raise DeadlineExceeded("an equal request did not end before the deadline; allow more time") from None
        except SealaneError as error:
            if error.kind in _SHARED_FAILURES:
                raise
        return run(), False

    def _lead(self, key: Key, flight: Future[Ran], run: Callable[[], Ran]) -> Ran:
        try:
            ran = run()
        except SealaneError as error:
            flight.set_exception(error)
            raise
        else:
            flight.set_result(ran)
            return ran
        finally:
            if not flight.done():  # a defect: those who joined must not wait for ever
                flight.set_exception(Internal("the model's run ended without an answer"))
            self._land(key)

    def _land(self, key: Key) -> None:
        with self._lock:
            del self._flights[key]
