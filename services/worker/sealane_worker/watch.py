"""Looks after one model process: its end, its memory, its answers, its idle processor time, what it prints."""

from __future__ import annotations

import enum
import logging
import os
import select
import time

from sealane.errors import ResourceExhausted
from sealane_worker.child import Child

logger = logging.getLogger("sealane.worker.model")

#: Lines a model process may print into the worker's log within `_NOTICE_SECONDS`; more are counted, not kept.
_NOTICES = 20
_NOTICE_SECONDS = 60.0
_NOTICE_BYTES = 500
_FLOOD_PAUSE = 0.02
#: Share of one processor that counts as busy.
_BUSY = 0.5


class Verdict(enum.Enum):
    """How a process stands."""

    FINE = "fine"
    ENDED = "ended"
    MEMORY = "memory"
    HANGS = "hangs"
    BUSY = "busy"
    LIES = "lies"


class Watch:
    """Used by one thread at a time.

    Args:
        child: the process.
        memory_limit: resident bytes above which it is killed; 0 sets none.
        hang: seconds after a caller's deadline at which a process that still owes the answer is killed.
        idle_cpu: seconds of processor use without any request after which it is killed.
    """

    def __init__(self, child: Child, *, memory_limit: int, hang: float, idle_cpu: float) -> None:
        self._child = child
        self._memory_limit = memory_limit
        self._hang = hang
        self._idle_cpu = idle_cpu
        self._pidfd = os.pidfd_open(child.process.pid)
        self._poll = select.poll()
        self._poll.register(self._pidfd, select.POLLIN)
        self._notices_fd = child.notices
        os.set_blocking(self._notices_fd, False)
        self._poll.register(self._notices_fd, select.POLLIN)
        self._verdict = Verdict.FINE
        self._idle_since, self._cpu_at = 0.0, 0.0
        self._told, self._told_since = 0, time.monotonic()

    def look(self, seconds: float) -> Verdict:
        """Wait up to `seconds` for something to happen, then judge; kills a process that is judged not fine."""
        ended = False
        for descriptor, _ in self._poll.poll(seconds * 1000):
            if descriptor == self._pidfd:
                ended = True
            else:
                self._notices()
        verdict = Verdict.ENDED if ended else self._judge(time.monotonic())
        if verdict is not Verdict.FINE and self._verdict is Verdict.FINE:
            self._verdict = verdict
            if verdict is not Verdict.ENDED:
                logger.warning("model process killed", extra={"pid": self._child.process.pid, "why": verdict.value})
                self._child.kill()
        return verdict

    def raise_verdict(self) -> None:
        """Raise what a killed process was killed for.

        Raises:
            ResourceExhausted: it took more memory than it may.
        """
        if self._verdict is Verdict.MEMORY:
            raise ResourceExhausted(
                f"the model took more than its {self._memory_limit >> 20} MiB of memory while it loaded; "
                "allow it more or use a smaller variant",
                reason="MODEL_MEMORY",
            )

    def close(self) -> None:
        """Close the descriptors; nothing is looked at any more."""
        for descriptor in (self._pidfd, self._notices_fd):
            if descriptor >= 0:
                os.close(descriptor)
        self._pidfd = self._notices_fd = -1

    def _judge(self, now: float) -> Verdict:
        self._child.reclaim()
        if self._memory_limit and self._child.resident_bytes() > self._memory_limit:
            return Verdict.MEMORY
        if self._child.lied:
            return Verdict.LIES
        if self._child.overdue_seconds(now) > self._hang:
            return Verdict.HANGS
        return self._judge_idle(now)

    def _judge_idle(self, now: float) -> Verdict:
        """A model that nobody asks anything has nothing to compute: looked at over whole idle stretches."""
        if self._child.in_flight:
            self._idle_since = 0.0
            return Verdict.FINE
        if not self._idle_since:
            self._idle_since, self._cpu_at = now, self._child.cpu_seconds()
            return Verdict.FINE
        stretch = now - self._idle_since
        if stretch < self._idle_cpu:
            return Verdict.FINE
        used = self._child.cpu_seconds() - self._cpu_at
        self._idle_since = 0.0
        return Verdict.BUSY if used > _BUSY * stretch else Verdict.FINE

    def _notices(self) -> None:
        """Pass on what the process printed, a bounded number of lines a minute."""
        try:
            text = os.read(self._notices_fd, 65536)
        except OSError:
            text = b""
        if not text:
            self._poll.unregister(self._notices_fd)
            return
        now = time.monotonic()
        if self._told > _NOTICES and now - self._told_since <= _NOTICE_SECONDS:
            time.sleep(_FLOOD_PAUSE)  # a model that prints without end may fill its pipe and wait, not this process
            return
        if now - self._told_since > _NOTICE_SECONDS:
            self._told, self._told_since = 0, now
        for line in text.decode(errors="replace").splitlines():
            self._told += 1
            if line.strip() and self._told <= _NOTICES:
                logger.info("model says", extra={"pid": self._child.process.pid, "text": line[:_NOTICE_BYTES]})
