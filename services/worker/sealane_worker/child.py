"""One running model process as the front sees it: start, load, run, end. Every method may be called from any thread.

Knows nothing of restarts: :mod:`sealane_worker.box` supervises.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sealane.errors import BY_KIND, FailedPrecondition, Internal, Unavailable
from sealane.tensors import Signature
from sealane_worker import machine
from sealane_worker.control import Disconnected, Header, Json, read_control, send_control
from sealane_worker.model import confine
from sealane_worker.model.loading import signature_from_json
from sealane_worker.rings import NATIVE_BYTES, RING_BYTES, FrontRings
from sealane_worker.runtimes import RuntimeInfo, entry_of
from sealane_worker.sandbox import policy_for
from sealane_worker.slots import Slots
from sealane_worker.spec import HostPolicy, ModelSpec, Ran, Run

if TYPE_CHECKING:
    import sealane_native

#: Of the front's environment only these reach a model process.
PASSED_VARIABLES = ("PYTHONPATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
#: glibc maps and unmaps every large tensor otherwise, which costs more than a small model.
MALLOC_VARIABLES = {
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "268435456",
    "MALLOC_TOP_PAD_": "1048576",
}
#: Requests under way in one model, as many as a worker takes in all.
SLOTS = 48


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What a model process told when it was ready.

    Attributes:
        signatures: what callers send and get.
        sandbox: level of the sandbox reached.
        load_seconds: time to load and to be warmed.
        warmed_rows: rows per call that were run.
        warmed_requests: recorded requests that were run.
    """

    signatures: tuple[Signature, ...]
    sandbox: str
    load_seconds: float
    warmed_rows: tuple[int, ...]
    warmed_requests: int = 0


class Child:
    """A model process with its sockets and rings."""

    def __init__(self, spec: ModelSpec, info: RuntimeInfo, policy: HostPolicy) -> None:
        self._spec, self._info, self._policy = spec, info, policy
        self._rings = FrontRings(NATIVE_BYTES if policy.native else 0)
        self._ended = threading.Lock()
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            # Ours are closed where the process cannot be started; theirs in any case, once it has them.
            theirs.callback(self._rings.close_passed)
            self._control, control = _pair(ours, theirs, socket.SOCK_STREAM)
            count = 2 * SLOTS if policy.native else SLOTS
            slots = [_pair(ours, theirs, socket.SOCK_SEQPACKET) for _ in range(count)]
            self.notices, notices = os.pipe()
            """What the process writes to its standard error; its watch closes it."""
            ours.callback(os.close, self.notices)
            theirs.callback(os.close, notices)
            self._passed = [slot.fileno() for _, slot in slots]
            self._ring_fds = self._rings.passed_fds()
            self.process = self._spawn(control.fileno(), notices)
            self._slots = Slots([slot for slot, _ in slots[:SLOTS]], self._rings)
            self.native: sealane_native.Slots | None = self._native([slot for slot, _ in slots[SLOTS:]])
            """Those of the native front; none without it."""
            ours.pop_all()

    def _native(self, slots: list[socket.socket]) -> sealane_native.Slots | None:
        if not slots:
            return None
        import sealane_native

        descriptors, rings = [slot.detach() for slot in slots], self._rings
        return sealane_native.Slots(descriptors, SLOTS, rings.requests, rings.replies, RING_BYTES - NATIVE_BYTES)

    def _spawn(self, control: int, notices: int) -> subprocess.Popen[bytes]:
        python = self._policy.pythons.get(self._info.name, sys.executable)
        process = subprocess.Popen(
            # -P: the working directory is no place to import from.
            [python, "-P", "-m", "sealane_worker.model", str(control)],
            env=_environment(self._spec),
            pass_fds=(control, *self._passed, *self._ring_fds),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=notices,
            # A session of its own: Ctrl-C reaches the front, which drains before it hangs up.
            start_new_session=True,
        )
        with contextlib.suppress(ProcessLookupError):
            # Not where the front may be parked just now: loading is work for every processor.
            os.sched_setaffinity(process.pid, machine.processors())
        return process

    def load(self, timeout: float) -> LoadedModel:
        """Load the model and run it once on zeros.

        Raises:
            FailedPrecondition: the model cannot be loaded, or took its process down.
            Unimplemented: its runtime is not installed.
            Unavailable: not done within `timeout` seconds.
        """
        try:
            send_control(self._control, self._message())
            answer = read_control(self._control, time.monotonic() + timeout)
        except Disconnected as error:
            raise FailedPrecondition(
                f"the model process ended while it loaded the model (exit status {self.kill()}); see its log",
                reason="MODEL_LOAD_CRASHED",
            ) from error
        except TimeoutError as error:
            raise Unavailable(
                f"the model did not load within {timeout:.0f} s; allow more time or use a smaller model",
                reason="MODEL_LOAD_TIMEOUT",
            ) from error
        if answer.get("ok") is not True:
            told = {key: str(answer.get(key, "")) for key in ("kind", "reason", "field", "message")}
            raise BY_KIND.get(told["kind"], Internal)(told["message"], reason=told["reason"], field=told["field"])
        try:
            return LoadedModel(
                signatures=tuple(signature_from_json(value) for value in cast(list[Json], answer["signatures"])),
                sandbox=self._sandbox(str(answer.get("sandbox"))),
                load_seconds=float(cast(float, answer["load_s"])),
                warmed_rows=tuple(int(rows) for rows in cast(list[int], answer["warmed"])),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Internal("the model process sent an answer to its load that cannot be read") from error

    def run(self, run: Run) -> Ran:
        """Run the model once.

        Raises:
            Disconnected: the process is gone.
            DeadlineExceeded: no free slot, or no answer, by the deadline.
            SealaneError: whatever the model process answered.
        """
        return self._slots.run(run)

    @property
    def in_flight(self) -> int:
        """Requests that the process owes an answer to."""
        return self._slots.in_flight + (self.native.in_flight if self.native is not None else 0)

    @property
    def lied(self) -> bool:
        """Whether the process sent what it cannot have been asked for."""
        return self._slots.lied or (self.native is not None and self.native.lied)

    def overdue_seconds(self, now: float) -> float:
        """How long after its caller's deadline the process still owes its oldest answer."""
        overdue = self._slots.overdue_seconds(now)
        return overdue if self.native is None else max(overdue, self.native.overdue_seconds(now))

    def shut(self) -> None:
        """Take nothing more of the native front, which asks nobody before it sends."""
        if self.native is not None:
            self.native.shut()

    def reclaim(self) -> None:
        """Take the answers that came after their callers had gone."""
        self._slots.reclaim()

    def resident_bytes(self) -> int:
        """Memory the process holds now (resident set); 0 when it is gone."""
        try:
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    def cpu_seconds(self) -> float:
        """Processor time the process has used; 0 when it is gone."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self, grace: float) -> None:
        """Hang up, which ends the process; kill it where that takes longer than `grace` seconds."""
        self._control.close()
        try:
            self.process.wait(grace)
        except subprocess.TimeoutExpired:
            self.kill()
        with self._ended:
            self._slots.close()
            if self.native is not None:
                self.native.close()

    def kill(self) -> int:
        """End the process now; returns its exit status (negative: the signal)."""
        if self.process.poll() is None:
            self.process.kill()
        return self.process.wait()

    def _sandbox(self, level: str) -> str:
        wanted = self._policy.sandbox
        if level not in confine.LEVELS or confine.LEVELS.index(level) < confine.LEVELS.index(wanted):
            raise FailedPrecondition(
                f"this worker runs models at sandbox level {wanted!r} and its kernel gives {level!r}; "
                "use a kernel with seccomp and Landlock (5.13 or later) or set SEALANE_WORKER_SANDBOX",
                reason="SANDBOX_LEVEL",
            )
        return level

    def _message(self) -> Header:
        spec, serving = self._spec, self._spec.serving
        policy = policy_for(spec, self._info, self._policy)
        return {
            "runtime": entry_of(self._info),
            "path": str(spec.path),
            "threads": serving.threads or spec.threads,
            "instances": max(serving.instances, 1),
            "device": serving.device,
            "settings": dict(self._policy.settings),
            "batching": cast(Json, _plain(asdict(serving.batching))),
            "before": [dict(step) for step in serving.before],
            "after": [dict(step) for step in serving.after],
            "executable": self._policy.executable,
            "policy": cast(Json, _plain(asdict(policy))),
            "slots": cast(list[Json], self._passed),
            "rings": cast(list[Json], list(self._ring_fds)),
        }


def _pair(
    ours: contextlib.ExitStack, theirs: contextlib.ExitStack, kind: socket.SocketKind
) -> tuple[socket.socket, socket.socket]:
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    return ours.enter_context(one), theirs.enter_context(other)


def _plain(fields: Mapping[str, object]) -> dict[str, object]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def _environment(spec: ModelSpec) -> dict[str, str]:
    passed = {name: os.environ[name] for name in PASSED_VARIABLES if name in os.environ}
    threads = str(spec.serving.threads or spec.threads)
    return {
        **passed,
        **MALLOC_VARIABLES,
        "LANG": "C.UTF-8",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "OMP_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
    }
