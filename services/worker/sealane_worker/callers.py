"""Those who wait for a model: whether one is still there, and what wakes the thread that waits for him."""

from __future__ import annotations

import math
import os
import select
import socket
import threading
from collections.abc import Callable

from sealane.errors import Cancelled
from sealane_worker.spec import Run


class Bell:
    """Wakes the reader of a slot from any thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._lock = threading.Lock()
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._poll.register(self._descriptor, select.POLLIN)

    def ring(self) -> None:
        """Wake it; nothing after the end."""
        with self._lock:
            if self._descriptor >= 0:
                os.eventfd_write(self._descriptor, 1)

    def wait(self, seconds: float) -> None:
        """Until the socket has something, the bell rang, or the time is over."""
        rung = [descriptor for descriptor, _ in self._poll.poll(math.ceil(seconds * 1000))]
        with self._lock:
            if self._descriptor in rung:
                os.eventfd_read(self._descriptor)

    def close(self) -> None:
        """Nobody waits any more."""
        with self._lock:
            os.close(self._descriptor)
            self._descriptor = -1


class Caller:
    """Whether the caller of one run is still there."""

    def __init__(self, run: Run, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._gone = self._done = False
        if run.on_cancel is not None:
            run.on_cancel(self._leave)

    def _leave(self) -> None:
        self._gone = True
        if not self._done:  # a call that ended says so too
            self._wake()

    def check(self) -> None:
        """Raise where he has gone."""
        if self._gone:
            raise Cancelled("the caller does not wait for the answer any more")

    def end(self) -> None:
        """What he does from now on is of no interest."""
        self._done = True
