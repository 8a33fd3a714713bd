"""A model in a process of its own, kept alive: one model's crash, hang or leak is never another's.

A crashed model is started again after a back-off; after three crashes within five minutes it is quarantined and
refuses calls until it is deployed anew (a model that dies on some input would otherwise burn the machine).
"""

from __future__ import annotations

import enum
import logging
import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sealane.errors import MODEL_CRASHED, FailedPrecondition, SealaneError, Unavailable
from sealane.tensors import Signature
from sealane_worker.child import Child, LoadedModel
from sealane_worker.control import Disconnected
from sealane_worker.runtimes import require_runtime
from sealane_worker.spec import HostPolicy, ModelSpec, Ran, Run
from sealane_worker.warming import warm_up
from sealane_worker.watch import Verdict, Watch

if TYPE_CHECKING:
    import sealane_native

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BoxLimits:
    """When a box gives up. All in seconds but `crash_limit`.

    Attributes:
        load: longest load of a model.
        hang: a process that owes an answer so long after its caller's deadline is killed.
        idle_cpu: a process that uses a processor for so long while nobody asks anything is killed.
        look: how often the process is looked at.
        backoff_first: wait before the first restart; doubles with every crash in the window.
        backoff_most: longest wait before a restart.
        crash_limit: crashes within `crash_window` that quarantine the model.
        crash_window: see `crash_limit`.
        drain: longest wait for the running inferences when the box is closed.
    """

    load: float = 120.0
    hang: float = 30.0
    idle_cpu: float = 30.0
    look: float = 0.2
    backoff_first: float = 0.1
    backoff_most: float = 10.0
    crash_limit: int = 3
    crash_window: float = 300.0
    drain: float = 10.0


class BoxState(enum.Enum):
    """What a box does with a call."""

    READY = "ready"
    IDLE = "idle"
    """It gave way to others and is loaded by the next call."""
    RESTARTING = "restarting"
    QUARANTINED = "quarantined"
    CLOSED = "closed"


def closed() -> Unavailable:
    """For a caller whose model has left, or leaves, this worker."""
    return Unavailable("the model was taken off this worker; ask for a new route", reason="MODEL_CLOSED")


def crashed(retry_after: float) -> Unavailable:
    """For a caller whose request was in a process when it ended."""
    return Unavailable(
        "the model's process crashed while it ran this request; it is being restarted, try again",
        reason=MODEL_CRASHED,
        retry_after=retry_after,
    )


class Box:
    """One loaded model. `run` may be called from any thread, many at a time."""

    def __init__(self, spec: ModelSpec, limits: BoxLimits | None = None, policy: HostPolicy | None = None) -> None:
        self._spec = spec
        self._limits = limits or BoxLimits()
        self._policy = policy or HostPolicy()
        self._info = require_runtime(spec.runtime, self._policy.pythons)
        self._closing = threading.Event()
        self._changing = threading.Lock()  # holds while the child is replaced
        self._crashes: deque[float] = deque()
        self._state = BoxState.READY
        self._child, self._watch, self._loaded = self._start_child()
        self._supervisor = threading.Thread(target=self._supervise, name=f"box-{self._child.process.pid}", daemon=True)
        self._supervisor.start()

    @classmethod
    def start(cls, spec: ModelSpec, limits: BoxLimits | None = None, policy: HostPolicy | None = None) -> Box:
        """Start a process, load the model, run it once; returns when it is ready.

        Raises:
            FailedPrecondition: the model cannot be loaded.
            Unimplemented: its runtime is not installed.
            ResourceExhausted: it takes more memory than it may.
            Unavailable: loading took too long.
        """
        return cls(spec, limits, policy)

    @property
    def signatures(self) -> dict[str, Signature]:
        """Signature name -> signature, as the model told them."""
        return {signature.name: signature for signature in self._loaded.signatures}

    @property
    def loaded(self) -> LoadedModel:
        """What the model process told when it was ready."""
        return self._loaded

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

    @property
    def in_flight(self) -> int:
        """Requests that the model owes an answer to."""
        return self._child.in_flight

    @property
    def native(self) -> sealane_native.Slots | None:
        """The slots of the native front; another object after a restart, none without it."""
        return self._child.native

    def footprint_bytes(self) -> int:
        """Resident memory of the model process now."""
        return self._child.resident_bytes()

    def cpu_seconds(self) -> float:
        """Processor time of the model process so far."""
        return self._child.cpu_seconds()

    def run(self, run: Run) -> Ran:
        """Run the model once.

        Raises:
            DeadlineExceeded: no answer by the deadline.
            Unavailable: the model crashed, is being restarted (MODEL_CRASHED, MODEL_RESTARTING) or was
                closed (MODEL_CLOSED).
            ResourceExhausted: too much waits for it already.
            FailedPrecondition: quarantined (MODEL_QUARANTINED).
            SealaneError: what the model answered, InvalidArgument mostly.
        """
        if self._state is not BoxState.READY:
            self._refuse()
        child = self._child
        try:
            return child.run(run)
        except Disconnected as error:
            if self._closing.is_set():
                self._refuse()
            child.kill()
            raise self.crashed() from error

    def crashed(self) -> Unavailable:
        """For a caller whose request was in the process when it ended."""
        return crashed(self._backoff())

    def close(self) -> None:
        """Let the running inferences finish, then end the process. Later calls get Unavailable."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._state = BoxState.CLOSED
        self._child.shut()
        until = time.monotonic() + self._limits.drain
        while self._child.in_flight and self._child.process.poll() is None and time.monotonic() < until:
            self._child.reclaim()  # what callers left behind is fetched by nobody else any more
            time.sleep(0.002)
        with self._changing:
            self._child.end(grace=2.0)
        self._supervisor.join(timeout=5.0)
        self._watch.close()

    def _refuse(self) -> None:
        """Raise what the state says."""
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
        raise closed()

    def _start_child(self) -> tuple[Child, Watch, LoadedModel]:
        limit = self._spec.serving.memory_limit_bytes or self._policy.memory_limit_bytes
        child, loaded = Child(self._spec, self._info, self._policy), None
        watch, loading = None, threading.Event()
        try:
            watch = Watch(child, memory_limit=limit, hang=self._limits.hang, idle_cpu=self._limits.idle_cpu)
            guard = threading.Thread(target=self._guard_load, args=(watch, loading), name="box-load", daemon=True)
            guard.start()
            try:
                told = child.load(self._limits.load)
                loaded = warm_up(child, told, self._spec, self._limits.load)
            except FailedPrecondition:
                watch.raise_verdict()
                raise
            finally:
                loading.set()
                guard.join()
        finally:
            if loaded is None:
                child.end(grace=0.0)
                if watch is None:
                    os.close(child.notices)
                else:
                    watch.close()
        return child, watch, loaded

    def _guard_load(self, watch: Watch, done: threading.Event) -> None:
        """Watch memory while the model loads: a hostile one allocates before it answers anything."""
        while not done.is_set():
            if watch.look(0.05) is not Verdict.FINE:
                return

    def _backoff(self) -> float:
        wait: float = self._limits.backoff_first * 2 ** max(len(self._crashes) - 1, 0)
        return min(wait, self._limits.backoff_most)

    def _supervise(self) -> None:
        """Watch the process until the box is closed or quarantined."""
        while not self._closing.is_set():
            try:
                verdict = self._watch.look(self._limits.look)
            except Exception:  # supervisor: whatever a process does to its watch, it is ended and started anew
                logger.exception("watching a model process failed")
                verdict = Verdict.LIES
            if verdict is Verdict.FINE:
                continue
            if self._closing.is_set():
                return
            self._state = BoxState.RESTARTING
            logger.warning(
                "model process ended",
                extra={"pid": self.pid, "exit_status": self._child.kill(), "verdict": verdict.value},
            )
            if not self._restart():
                return

    def _restart(self) -> bool:
        """Start anew after a back-off, again and again; false once quarantined or closed."""
        self._child.end(grace=0.0)
        self._watch.close()
        while True:
            if self._quarantine_due():
                self._state = BoxState.QUARANTINED
                logger.error("model quarantined", extra={"path": str(self._spec.path)})
                return False
            if self._closing.wait(self._backoff()):
                return False
            try:
                child, watch, loaded = self._start_child()
            except (SealaneError, OSError) as error:
                logger.warning("model restart failed", extra={"error": str(error)})
                continue
            with self._changing:
                self._child, self._watch, self._loaded = child, watch, loaded
                if self._closing.is_set():
                    child.end(grace=0.0)
                    watch.close()
                    return False
                self._state = BoxState.READY
            return True

    def _quarantine_due(self) -> bool:
        now = time.monotonic()
        self._crashes.append(now)
        while self._crashes[0] < now - self._limits.crash_window:
            self._crashes.popleft()
        return len(self._crashes) >= self._limits.crash_limit
