"""Threads that read a lane in turn, and run what they have read.

A call that is handed to another thread waits for that one to wake, which costs as much as the rest of its way here. So
whoever has read a message runs its last call itself, and another reader, woken meanwhile, reads on (leader and
followers, Schmidt 2000). Where no reader waits to read on, all calls go to the pool: somebody must always read.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

log = logging.getLogger("sealane.worker.lanes")

#: So many calls at once run on the threads that read them, less one.
READERS = 3

M = TypeVar("M")
Work = Callable[[], None]


class Readers(Generic[M]):
    """Reads one stream to its end.

    Args:
        messages: the stream; read by one thread at a time.
        pool: takes the work that no reader does.
        take: takes a message in, in the order of the stream, and returns the work that can be done now.
    """

    def __init__(self, messages: Iterator[M], pool: ThreadPoolExecutor, take: Callable[[M], list[Work]]) -> None:
        self._messages = messages
        self._pool = pool
        self._take = take
        self._turn = threading.Lock()  # holds while a message is read and taken in
        self._counting = threading.Lock()
        self._waiting = 0
        self._over = threading.Event()
        self._failure: Exception | None = None

    def run(self) -> None:
        """Return when the stream has ended, whatever work is still being done.

        Raises:
            SealaneError: the stream broke, or a message could not be taken in.
        """
        for number in range(READERS):
            threading.Thread(target=self._read, name=f"lane-reader-{number}", daemon=True).start()
        self._over.wait()
        if self._failure is not None:
            raise self._failure

    def _read(self) -> None:
        while not self._over.is_set():
            self._wait(1)
            with self._turn:
                self._wait(-1)
                work = self._next()
            if not work:
                continue
            *others, last = work
            for item in others:
                self._hand_over(item)
            if self._waiting > 0:
                try:
                    last()
                except Exception:  # supervisor: a reader that died would leave nobody to read in the end
                    log.exception("a call of a lane ended without an answer")
            else:
                self._hand_over(last)

    def _hand_over(self, work: Work) -> None:
        with contextlib.suppress(RuntimeError):  # the pool takes nothing any more: this worker is stopping
            self._pool.submit(work)

    def _wait(self, more: int) -> None:
        with self._counting:
            self._waiting += more

    def _next(self) -> list[Work]:
        """The work of the next message; none once the stream has ended."""
        if self._over.is_set():
            return []
        try:
            message = next(self._messages, None)
            if message is not None:
                return self._take(message)
        except Exception as error:  # supervisor: whatever ends a reader ends the stream, and is raised by run
            self._failure = error
        self._over.set()
        return []
