"""The server of a worker with the native front: the front, the threads that answer what it has read, and grpcio behind.

What the front has read of callers that are known goes to threads of ours (:class:`sealane_native.Asked`); what it has
not, streams and strangers, it carries to grpcio's server behind a Unix socket.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sealane.errors import Internal, SealaneError, Unavailable
from sealane.rpc import limits, sync_server
from sealane.rpc.call import Call, Peer
from sealane.rpc.dispatch import Dispatcher
from sealane.rpc.transport import headers_of, load_trailers, outward
from sealane.security import tls
from sealane_worker.express import Express

if TYPE_CHECKING:
    import sealane_native

log = logging.getLogger(__name__)

#: A socket's path has 107 bytes at most.
_LONGEST_FOLDER = 80
#: Who has no certificate, over the TLS that the front makes.
_STRANGER = Peer(tls_version="TLSv1.3")


class _Threads:
    """They take calls from the front's desk; more are made while none waits, up to a number."""

    def __init__(self, front: sealane_native.Front, dispatcher: Dispatcher, express: Express, most: int) -> None:
        self._front = front
        self._dispatcher = dispatcher
        self._express = express
        self._left = threading.Semaphore(most)

    def start(self) -> None:
        """Make the first."""
        self._left.acquire()
        threading.Thread(target=self._run, name="native-call", daemon=True).start()

    def _run(self) -> None:
        while True:
            taken = self._front.take()
            if taken is None:
                return
            asked, alone = taken
            if alone and self._left.acquire(blocking=False):
                threading.Thread(target=self._run, name="native-call", daemon=True).start()
            try:
                self._answer(asked)
            except BaseException:  # supervisor: a thread outlives whatever one call does to it
                log.exception("answering a call failed")
                asked.refuse(headers_of(Internal("internal error"), ""))

    def _answer(self, asked: sealane_native.Asked) -> None:
        route = self._dispatcher.routes[asked.path]
        metadata, duplicates = dict[str, str](), set[str]()
        for name, value in asked.metadata:
            if name in metadata:
                duplicates.add(name)
            metadata[name] = value
        call = Call(
            method=route.method,
            metadata=metadata,
            peer=_STRANGER,
            deadline=asked.deadline,
            body=asked.take_body(),
            duplicates=frozenset(duplicates),
            watch=asked.watch,
            ticket=asked.ticket,
            sampled=asked.sampled,
        )
        try:
            answer = self._dispatcher.unary(route, call)
        except SealaneError as error:
            failure = outward(error, asked.path)
            loads = [(name, str(value)) for name, value in load_trailers(call)]
            asked.refuse([*headers_of(failure, call.request_id), *loads])
            return
        self._express.answered(call)
        asked.answer(answer, [(name, str(value)) for name, value in load_trailers(call)])


class NativeServer:
    """The front, what answers beside it, and what stands behind it.

    Args:
        dispatcher: what is served.
        express: tells the front what calls come to.
        threads: calls that run at the same time, beside the front and behind it.
    """

    def __init__(self, dispatcher: Dispatcher, express: Express, *, threads: int) -> None:
        self._dispatcher = dispatcher
        self._express = express
        self._count = threads
        self._secret = secrets.token_hex(16)
        # Nobody else can reach the socket, and it is no longer than a path of a socket may be.
        self._folder = Path(tempfile.mkdtemp(prefix="sealane-", dir=_short(tempfile.gettempdir())))
        marks = sync_server.Marks(self._secret, express.answered)
        self._behind = sync_server.build(dispatcher, threads=threads, front=marks)
        self._front: sealane_native.Front | None = None

    def bind(self, listen: str, identity: tls.PeerIdentity, sample_ratio: float) -> int:
        """Take the port; gives its number.

        Raises:
            Unavailable: it cannot be had.
        """
        import sealane_native

        socket = self._folder / "front"
        self._behind.add_insecure_port(f"unix:{socket}")
        try:
            self._front = sealane_native.Front(
                listen,
                (str(socket), self._secret),
                identity.pair(),
                _renewed(identity),
                self._unary(),
                limits.of_front(),
                self._express.places,
                sample_ratio,
                (self._express.fail, self._express.fail_inside),
                self._express.opener.memory.opening,
            )
        except OSError as error:
            raise Unavailable(f"{error}; choose another SEALANE_WORKER_LISTEN", reason="PORT_TAKEN") from error
        self._express.attach(self._front)
        return self._front.port

    def forget(self) -> None:
        """Have every call go through the interpreter once more."""
        if self._front is not None:
            self._front.forget()

    def start(self) -> None:
        """Take calls."""
        self._behind.start()
        if self._front is not None:
            _Threads(self._front, self._dispatcher, self._express, self._count).start()
            self._front.start()

    def stop(self, grace: float | None) -> threading.Event:
        """Take no more, and give those under way some seconds; the event comes when all have ended."""
        ended = threading.Event()
        threading.Thread(target=self._stop, args=(grace or 0.0, ended), name="front-stop", daemon=True).start()
        return ended

    def _stop(self, grace: float, ended: threading.Event) -> None:
        until = time.monotonic() + grace
        if self._front is not None:
            self._front.stop(grace)
        self._behind.stop(max(until - time.monotonic(), 0.0)).wait()
        if self._front is not None:
            self._front.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        ended.set()

    def _unary(self) -> Sequence[str]:
        methods = (route.method for route in self._dispatcher.routes.values())
        return [method.path for method in methods if not method.client_streaming and not method.server_streaming]


def _short(folder: str) -> str:
    return folder if len(folder) <= _LONGEST_FOLDER else "/tmp"  # noqa: S108  # a folder for its owner alone is made in it


def _renewed(identity: tls.PeerIdentity) -> Callable[[], tuple[bytes, bytes] | None]:
    """Gives key and chain where the file has changed since it was last asked."""
    chain = identity.directory / tls.CHAIN
    seen = {"mtime": chain.stat().st_mtime_ns}

    def changed() -> tuple[bytes, bytes] | None:
        mtime = chain.stat().st_mtime_ns
        if mtime == seen["mtime"]:
            return None
        pair = identity.pair()
        seen["mtime"] = mtime
        return pair

    return changed
