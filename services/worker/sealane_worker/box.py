"""A model in a process of its own, kept alive: one model's crash, hang or leak is never another's.

A crashed model is started again after a back-off; after three crashes within five minutes it is quarantined and
refuses calls until it is deployed anew (a model that dies on some input would otherwise burn the machine).
"""

from __future__ import annotations

import enum
import logging
import subprocess
import threading
import time
from collections import deque
from dataclasses import dataclass

from sealane.errors import DeadlineExceeded, FailedPrecondition, SealaneError, Unavailable
from sealane.tensors import Signature
from sealane_worker.child import Child, ModelSpec, Ran, Run
from sealane_worker.frames import Disconnected
from sealane_worker.runtimes import require_runtime

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BoxLimits:
    """When a box gives up. All in seconds but `crash_limit`.

    Attributes:
        load: longest load of a model.
        hang: a process that owes an answer so long after its caller's deadline is killed.
        backoff_first: wait before the first restart; doubles with every crash in the window.
        backoff_most: longest wait before a restart.
        crash_limit: crashes within `crash_window` that quarantine the model.
        crash_window: see `crash_limit`.
        drain: longest wait for the running inference when the box is closed.
    """

    load: float = 120.0
    hang: float = 30.0
    backoff_first: float = 0.1
    backoff_most: float = 10.0
    crash_limit: int = 3
    crash_window: float = 300.0
    drain: float = 10.0


class BoxState(enum.Enum):
    """What a box does with a call."""

    READY = "ready"
    RESTARTING = "restarting"
    QUARANTINED = "quarantined"
    CLOSED = "closed"


class Box:
    """One loaded model. `run` may be called from any thread; runs go one after another."""

    def __init__(self, spec: ModelSpec, limits: BoxLimits | None = None) -> None:
        self._spec = spec
        self._limits = limits or BoxLimits()
        self._turn = threading.Lock()  # holds: the child's socket, and replacing the child
        self._closing = threading.Event()
        self._crashes: deque[float] = deque()
        self._state = BoxState.READY
        self._child, self._signatures = self._start_child()
        self._supervisor = threading.Thread(target=self._supervise, name=f"box-{self._child.process.pid}", daemon=True)
        self._supervisor.start()

    @classmethod
    def start(cls, spec: ModelSpec, limits: BoxLimits | None = None) -> Box:
        """Start a process, load the model, run it once; returns when it is ready.

        Raises:
            FailedPrecondition: the model cannot be loaded.
            Unimplemented: its runtime is not installed.
            Unavailable: loading took too long.
        """
        require_runtime(spec.runtime)
        return cls(spec, limits)

    @property
    def signatures(self) -> dict[str, Signature]:
        """Signature name -> signature, as the model told them."""
        return {signature.name: signature for signature in self._signatures}

    @property
    def state(self) -> BoxState:
        """What the box does with a call now."""
        return self._state

    @property
    def pid(self) -> int:
        """Process id of the model process; another after a restart."""
        return self._child.process.pid

    @property
    def crashes(self) -> int:
        """Crashes within the window that counts towards quarantine."""
        return len(self._crashes)

    def footprint_bytes(self) -> int:
        """Resident memory of the model process now."""
        return self._child.resident_bytes()

    def run(self, run: Run) -> Ran:
        """Run the model once; waits for its turn, never beyond the deadline.

        Raises:
            DeadlineExceeded: no turn, or no answer, by the deadline.
            Unavailable: the model crashed, is being restarted (MODEL_CRASHED, MODEL_RESTARTING) or was
                closed (MODEL_CLOSED).
            FailedPrecondition: quarantined (MODEL_QUARANTINED).
            SealaneError: what the model answered, InvalidArgument mostly.
        """
        if not self._turn.acquire(timeout=max(run.deadline - time.monotonic(), 0.0)):
            raise DeadlineExceeded(
                "the model was busy with other requests until the deadline; allow more time or add replicas",
                reason="QUEUE_TIMEOUT",
            )
        try:
            self._check_ready()
            return self._child.run(run)
        except Disconnected as error:
            self._child.kill()
            raise Unavailable(
                "the model's process crashed while it ran this request; it is being restarted, try again",
                reason="MODEL_CRASHED",
                retry_after=self._backoff(),
            ) from error
        finally:
            self._turn.release()

    def close(self) -> None:
        """Let the running inference finish, then end the process. Later calls get Unavailable."""
        if self._closing.is_set():
            return
        self._closing.set()
        took_turn = self._turn.acquire(timeout=self._limits.drain)
        try:
            self._state = BoxState.CLOSED
            self._child.end(grace=2.0)
        finally:
            if took_turn:
                self._turn.release()
        self._supervisor.join(timeout=5.0)

    def _check_ready(self) -> None:
        if self._state is BoxState.CLOSED or self._closing.is_set():
            raise Unavailable("the model was taken off this worker; ask for a new route", reason="MODEL_CLOSED")
        if self._state is BoxState.QUARANTINED:
            raise FailedPrecondition(
                f"the model crashed {self._limits.crash_limit} times within {self._limits.crash_window:.0f} s and is "
                "quarantined; deploy a version that does not",
                reason="MODEL_QUARANTINED",
            )
        if self._state is BoxState.RESTARTING:
            raise Unavailable(
                "the model is being restarted after a crash; try again",
                reason="MODEL_RESTARTING",
                retry_after=self._backoff(),
            )

    def _start_child(self) -> tuple[Child, tuple[Signature, ...]]:
        child, signatures = Child(self._spec), None
        try:
            signatures = child.load(self._limits.load)
        finally:
            if signatures is None:
                child.end(grace=0.0)
        return child, signatures

    def _backoff(self) -> float:
        wait: float = self._limits.backoff_first * 2 ** max(len(self._crashes) - 1, 0)
        return min(wait, self._limits.backoff_most)

    def _supervise(self) -> None:
        """Watch the process until the box is closed or quarantined."""
        while not self._closing.is_set():
            try:
                self._child.process.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                self._kill_if_hung()
                continue
            if self._closing.is_set():
                return
            self._state = BoxState.RESTARTING
            logger.warning(
                "model process ended", extra={"pid": self.pid, "exit_status": self._child.process.returncode}
            )
            if not self._restart():
                return

    def _kill_if_hung(self) -> None:
        if self._turn.acquire(blocking=False):
            try:
                self._child.take_late_answer()
            finally:
                self._turn.release()
        if self._child.overdue_seconds(time.monotonic()) > self._limits.hang:
            logger.warning("model process hangs", extra={"pid": self.pid})
            self._child.kill()

    def _restart(self) -> bool:
        """Start anew after a back-off, again and again; false once quarantined or closed."""
        while True:
            if self._quarantine_due():
                self._state = BoxState.QUARANTINED
                logger.error("model quarantined", extra={"path": str(self._spec.path)})
                return False
            if self._closing.wait(self._backoff()):
                return False
            try:
                child, signatures = self._start_child()
            except SealaneError as error:
                logger.warning("model restart failed", extra={"reason": error.reason})
                continue
            with self._turn:
                self._child.end(grace=0.0)
                self._child, self._signatures = child, signatures
                if self._closing.is_set():
                    child.end(grace=0.0)
                    return False
                self._state = BoxState.READY
            return True

    def _quarantine_due(self) -> bool:
        now = time.monotonic()
        self._crashes.append(now)
        while self._crashes[0] < now - self._limits.crash_window:
            self._crashes.popleft()
        return len(self._crashes) >= self._limits.crash_limit
