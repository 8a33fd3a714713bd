"""A runtime whose model does what it is told: it sleeps, counts, and tries to get out of its box.

One module and one entry point, as any runtime of somebody else's would be. A request is a BYTES tensor ``do`` of one
element, ``verb argument``; the answer says how it went: ``done ...``, or ``refused ERRNO``. The signature ``code``
takes the same as :data:`CODE_BYTES` bytes with zeros behind it; ``flags`` gives the bytes of BOOLs.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from sealane.errors import InvalidArgument
from sealane.tensors import Array, Signature, TensorSpec
from sealane_worker.runtimes import RuntimeInfo, RuntimeOptions

CODE_BYTES = 64
_PTRACE_ATTACH, _PR_GET_DUMPABLE = 16, 3


def _exhaust_memory(_: str) -> str:
    held = []
    while True:
        held.append(mmap.mmap(-1, 16 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        held[-1].write(b"x" * (16 << 20))


def _exhaust_descriptors(argument: str) -> str:
    held = []
    try:
        for _ in range(int(argument)):
            held.append(os.dup(0))
    except OSError as error:
        for descriptor in held:
            os.close(descriptor)
        return f"refused {errno.errorcode[error.errno or 0]} after {len(held)}"
    return f"done {len(held)}"


def _ptrace(_: str) -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(_PTRACE_ATTACH, os.getppid(), None, None) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")
    return "attached"


def _dumpable(_: str) -> str:
    return str(ctypes.CDLL(None).prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0))


def _connect(argument: str) -> str:
    host, _, port = argument.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=2):
        return "connected"


def _fork(_: str) -> str:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return str(pid)


def _spin(argument: str) -> str:
    """Burn a processor behind everybody's back."""

    def burn() -> None:
        until = time.monotonic() + float(argument)
        while time.monotonic() < until:
            sum(range(1000))

    threading.Thread(target=burn, daemon=True).start()
    return "spinning"


def _overwrite_requests(_: str) -> str:
    """Map every memory file that is open, for writing."""
    for link in Path("/proc/self/fd").iterdir():
        mmap.mmap(int(link.name), 4096)
    return "mapped"


def _signal_by_descriptor(_: str) -> str:
    """Have the kernel send SIGKILL to the parent when a pipe becomes readable."""
    read, write = os.pipe()
    fcntl.fcntl(read, fcntl.F_SETOWN, os.getppid())
    fcntl.fcntl(read, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(read, fcntl.F_SETFL, os.O_ASYNC)
    os.write(write, b"x")
    return "sent"


def _lie(_: str) -> str:
    """Send one byte on every socket that is open: no answer of anything."""
    for descriptor in range(3, 4096):
        try:
            os.write(descriptor, b"x")
        except OSError:
            continue
    return "lied"


def _complain(_: str) -> str:
    raise InvalidArgument("\u00fc" * 5000, reason="R" * 100_000, field="f" * 100_000)


VERBS: dict[str, Callable[[str], object]] = {
    "": lambda _: "",
    "read": lambda path: len(Path(path).read_bytes()),
    "list": lambda path: len(list(Path(path).iterdir())),
    "write": lambda path: Path(path).write_bytes(b"x"),
    "connect": _connect,
    "fork": _fork,
    "exec": lambda path: os.execv(path, [path]),
    "ptrace": _ptrace,
    "dumpable": _dumpable,
    "signal": lambda _: os.kill(os.getppid(), signal.SIGTERM),
    "signal-by-descriptor": _signal_by_descriptor,
    "shared-memory": lambda _: mmap.mmap(-1, 4096, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS).close(),
    "affinity": lambda _: os.sched_setaffinity(os.getppid(), {0}),
    "priority": lambda _: os.setpriority(os.PRIO_PROCESS, os.getppid(), 19),
    "chmod": lambda path: Path(path).chmod(0o777),
    "chown": lambda path: os.chown(path, 0, 0),
    "touch": lambda path: os.utime(path),
    "lie": _lie,
    "complain": _complain,
    "memory": _exhaust_memory,
    "descriptors": _exhaust_descriptors,
    "spin": _spin,
    "proc": _overwrite_requests,
    "sleep": lambda seconds: time.sleep(float(seconds)),
    "echo": lambda text: text,
    "environment": lambda _: sorted(os.environ),
    "die": lambda _: os._exit(9),
    "print": lambda text: os.write(2, text.encode() + b"\n"),
}


class Hostile:
    """See the module."""

    def load(self, path: Path, options: RuntimeOptions) -> tuple[Signature, ...]:
        """What the model's file says is done at once, as by a model that is hostile already while it is loaded."""
        text = path.read_text().strip()
        if text:
            said = self._do(text)
            if said.startswith("refused"):
                raise InvalidArgument(said)
        do = TensorSpec("do", "BYTES", (-1,))
        said_spec = TensorSpec("said", "BYTES", (-1,))
        rows = TensorSpec("rows", "INT64", (-1,))
        code = TensorSpec("code", "UINT8", (-1, CODE_BYTES))
        flags, number = TensorSpec("flags", "BOOL", (-1,)), TensorSpec("bytes", "UINT8", (-1,))
        return (
            Signature((do,), (said_spec, rows)),
            Signature((code,), (said_spec,), name="code"),
            Signature((flags,), (number,), name="flags"),
        )

    def run(self, inputs: Mapping[str, Array], signature_name: str) -> dict[str, Array]:
        """Each row is done in turn; `rows` tells how many came together."""
        if "flags" in inputs:
            return {"bytes": inputs["flags"].view(np.uint8)}
        texts = [bytes(item).decode() for item in inputs["do"]] if "do" in inputs else _texts(inputs["code"])
        said = np.array([self._do(text) for text in texts], np.object_)
        # How many came together is no row's own: a signature that tells it never runs several together unasked.
        return {"said": said} | ({"rows": np.full(len(said), len(said), np.int64)} if "do" in inputs else {})

    def close(self) -> None:
        """Nothing to let go of."""

    def _do(self, text: str) -> str:
        verb, _, argument = text.partition(" ")
        try:
            return f"done {VERBS[verb](argument)}"
        except OSError as error:
            return f"refused {errno.errorcode.get(error.errno or 0, error.errno)}"


def _texts(codes: Array) -> list[str]:
    """What rows of bytes say; a worker that tries a model on rows of its own says nothing."""
    texts = [bytes(row).rstrip(b"\0").decode("latin-1") for row in codes]
    return [text if text.partition(" ")[0] in VERBS else "" for text in texts]


RUNTIME = RuntimeInfo("hostile", ("HOSTILE",), "sealane_hostile", ("sealane-hostile",), "sealane-hostile", Hostile)
