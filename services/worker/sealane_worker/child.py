"""One running model process as the front sees it: start, load, run, end. Used under its owner's lock.

Knows nothing of restarts: :mod:`sealane_worker.box` supervises.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from sealane.errors import BY_KIND, DeadlineExceeded, FailedPrecondition, Internal, Unavailable
from sealane.tensors import Array, Signature
from sealane_worker.frames import Disconnected, Frame, FrameReader, Header, send_frame
from sealane_worker.model_process import signature_from_json

#: Of the front's environment only these reach a model process.
PASSED_VARIABLES = ("PYTHONPATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
#: glibc maps and unmaps every large tensor otherwise, which costs more than a small model.
MALLOC_VARIABLES = {
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "268435456",
    "MALLOC_TOP_PAD_": "67108864",
}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What to load.

    Attributes:
        runtime: ``litert`` or ``tensorflow``.
        path: the model's file or folder on this machine.
        threads: processor threads for one inference.
    """

    runtime: str
    path: Path
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Run:
    """One inference to run.

    Attributes:
        inputs: tensors by name, already checked against the signature.
        signature: signature name.
        deadline: ``time.monotonic()`` value.
        outputs: names wanted; empty for all.
    """

    inputs: Mapping[str, Array]
    signature: str
    deadline: float
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run gave: tensors by name, and the seconds the model took."""

    outputs: dict[str, Array]
    seconds: float


class Child:
    """A model process and its socket."""

    def __init__(self, spec: ModelSpec) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                # -P: the working directory is no place to import from.
                [sys.executable, "-P", "-m", "sealane_worker.model_process", str(theirs.fileno())],
                env=_environment(spec),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # A session of its own: Ctrl-C reaches the front, which drains before it hangs up.
                start_new_session=True,
            )
        self._spec = spec
        self._sock = ours
        self._reader = FrameReader(ours, reuse=False)
        self._last_id = 0
        self._unanswered = 0
        self._due = 0.0

    def load(self, timeout: float) -> tuple[Signature, ...]:
        """Load the model and run it once on zeros.

        Raises:
            FailedPrecondition: the model cannot be loaded, or took its process down.
            Unimplemented: its runtime is not installed.
            Unavailable: not done within `timeout` seconds.
        """
        spec = self._spec
        header: Header = {"op": "load", "runtime": spec.runtime, "path": str(spec.path), "threads": spec.threads}
        try:
            frame = self._exchange(header, {}, time.monotonic() + timeout)
        except Disconnected as error:
            raise FailedPrecondition(
                f"the model process ended while it loaded the model (exit status {self.kill()}); see its log",
                reason="MODEL_LOAD_CRASHED",
            ) from error
        except DeadlineExceeded as error:
            raise Unavailable(
                f"the model did not load within {timeout:.0f} s; allow more time or use a smaller model",
                reason="MODEL_LOAD_TIMEOUT",
            ) from error
        return tuple(signature_from_json(value) for value in cast(list[Header], frame.header["signatures"]))

    def run(self, run: Run) -> Ran:
        """Run the model once; what an earlier caller no longer waits for is thrown away first.

        Raises:
            Disconnected: the process is gone.
            DeadlineExceeded: not done by the deadline.
            SealaneError: whatever the model process answered.
        """
        header: Header = {
            "op": "run",
            "signature": run.signature,
            "outputs": list(run.outputs),
            "deadline": run.deadline,
        }
        frame = self._exchange(header, run.inputs, run.deadline)
        return Ran(frame.arrays, cast(float, frame.header["run_s"]))

    def overdue_seconds(self, now: float) -> float:
        """How long after its caller's deadline the process still owes an answer. Needs no lock; may be stale."""
        return now - self._due if self._unanswered else 0.0

    def take_late_answer(self) -> None:
        """Throw away the answer of a caller that no longer waits, where it has come."""
        try:
            self._take_unanswered(time.monotonic())
        except (TimeoutError, Disconnected):
            return

    def resident_bytes(self) -> int:
        """Memory the process holds now (resident set); 0 when it is gone."""
        try:
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    def end(self, grace: float) -> None:
        """Hang up, which ends the process; kill it where that takes longer than `grace` seconds."""
        self._sock.close()
        try:
            self.process.wait(grace)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> int:
        """End the process now; returns its exit status (negative: the signal)."""
        if self.process.poll() is None:
            self.process.kill()
        return self.process.wait()

    def _exchange(self, header: Header, arrays: Mapping[str, Array], deadline: float) -> Frame:
        try:
            # Never two requests in the pipe: a write could then block behind a running model and be cut in half.
            self._take_unanswered(deadline)
            self._last_id += 1
            self._unanswered = 1
            self._due = deadline
            self._send({**header, "id": self._last_id}, arrays, deadline)
            frame = self._reader.read(deadline)
        except TimeoutError as error:
            raise DeadlineExceeded("the model did not answer before the deadline; allow more time") from error
        self._unanswered = 0
        if frame.header.get("id") != self._last_id:
            self.kill()
            raise Internal("the model process answered out of turn")
        if frame.header.get("ok") is not True:
            told = {key: str(frame.header.get(key, "")) for key in ("kind", "reason", "field", "message")}
            raise BY_KIND.get(told["kind"], Internal)(told["message"], reason=told["reason"], field=told["field"])
        return frame

    def _send(self, header: Header, arrays: Mapping[str, Array], deadline: float) -> None:
        self._sock.settimeout(max(deadline - time.monotonic(), 1e-3))
        try:
            send_frame(self._sock, header, arrays)
        except TimeoutError:
            self.kill()  # half a frame is in the pipe: nothing after it could be understood
            raise

    def _take_unanswered(self, deadline: float) -> None:
        while self._unanswered:
            self._reader.read(deadline)
            self._unanswered = 0


def _environment(spec: ModelSpec) -> dict[str, str]:
    passed = {name: os.environ[name] for name in PASSED_VARIABLES if name in os.environ}
    return {
        **passed,
        **MALLOC_VARIABLES,
        "LANG": "C.UTF-8",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "OMP_NUM_THREADS": str(spec.threads),
    }
