"""A local port that speaks TensorFlow Serving and Open Inference in plaintext, and seals towards the suite.

For applications whose client libraries know nothing of tokens and seals: they talk to it unchanged. Requests for a
prediction leave this process sealed; questions about models (metadata, status, readiness) hold no tensors and are
passed on. Whoever reaches the port calls with this client's rights, so it listens on loopback or a socket file alone.
"""

from __future__ import annotations

import ipaddress
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from sealane.client.calls import Request, remaining
from sealane.client.inference import Inference
from sealane.client.prediction import INFER_PATH, Requirement
from sealane.client.sealing import SealedCall
from sealane.client.sealing_context import Asked
from sealane.errors import InvalidArgument, ResourceExhausted, SealaneError, Unimplemented
from sealane.protocols.foreign import foreign_methods
from sealane.protocols.openinference_stream import GRPC_ERRORS, stream_answer, stream_error
from sealane.protocols.peek import peek, peek_options
from sealane.protocols.sealed import RUNS
from sealane.rpc import limits
from sealane.rpc.channel import Target
from sealane.rpc.status import translate
from sealane.rpc.transport import code_of, outward, trailers_of

STREAM_PATH = "/inference.GRPCInferenceService/ModelStreamInfer"
THREADS = 64
#: Streams at once: each holds a thread, and calls need some as well.
STREAMS = 32
#: Asked of models, and passed on as they are. What is not known here might carry tensors, so it goes nowhere.
QUESTIONS = foreign_methods() - RUNS - {STREAM_PATH}
#: Calls of one stream under way.
UNDER_WAY = 8
_LAST_PORT, _PORT_DIGITS = 65535, 9


@dataclass(frozen=True, slots=True)
class ProxyOptions:
    """How the proxy seals.

    Attributes:
        require: what a worker's statement must say.
        session: agree on keys once for many requests, with one worker.
        direct: send to the workers themselves; otherwise through the gateway.
    """

    require: Requirement = field(default_factory=dict)
    session: bool = True
    direct: bool = False


class Proxy:
    """The port.

    Args:
        inference: of the client whose rights callers get.
        options: how to seal.
    """

    def __init__(self, inference: Inference, options: ProxyOptions | None = None) -> None:
        self._inference = inference
        self._options = options or ProxyOptions()
        self._server = grpc.server(
            ThreadPoolExecutor(THREADS, thread_name_prefix="proxy"),
            handlers=[_Handlers(self)],
            options=limits.client_port(limits.DATA_MESSAGE_BYTES),
        )
        # Calls of streams run beside the streams, which hold threads of their own.
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="proxy-stream")

    def listen(self, address: str) -> int:
        """Bind and serve.

        Args:
            address: ``host:port`` on loopback, port 0 for any; or ``unix:`` and the path of a socket, which only the
                user that runs this can open.

        Returns:
            The port; 1 for a socket file.

        Raises:
            InvalidArgument: an address that others can reach, or one that cannot be bound.
        """
        check_address(address)
        before = os.umask(0o077)
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise InvalidArgument(f"cannot listen on {address}; is it in use?", field="listen") from error
        finally:
            os.umask(before)
        if not port:
            raise InvalidArgument(f"cannot listen on {address}; is it in use?", field="listen")
        self._server.start()
        return port

    def stop(self, grace: float = 1.0) -> None:
        """End it; calls under way have `grace` seconds."""
        self._server.stop(grace).wait()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def answer(self, path: str, body: bytes, deadline: float) -> bytes:
        """The answer to one request: sealed where it carries tensors.

        Raises:
            Unimplemented: no method that is known here; nothing was sent.
            SealaneError: what the suite answers.
        """
        if path not in RUNS and path not in QUESTIONS:
            raise Unimplemented("the proxy seals no such method, so it sends nothing; use another", reason="METHOD")
        inference, options = self._inference, self._options
        if path not in RUNS:
            request = Request(path, body)
            return inference.gateways.repeat(lambda target: inference.caller.send(target, request, deadline), deadline)
        wanted = peek(path, body)
        sequence = peek_options(body).sequence if path == INFER_PATH else ""

        def attempt(target: Target) -> bytes:
            remaining(deadline)
            asked = Asked(wanted.model, target, wanted.version, wanted.label, options.require)
            call = SealedCall(asked, path, body, options.direct, options.session, sequence=sequence)
            return bytes(inference.sealing.run(call, deadline))  # what goes to the wire is bytes

        # A request of a sequence is not run twice, so it is not sent again where it may have run.
        return inference.gateways.once(attempt) if sequence else inference.gateways.repeat(attempt, deadline)

    def answers(self, bodies: Iterator[bytes], deadline: float, *, in_band: bool) -> Iterator[bytes]:
        """The answers to the requests of a stream, in their order; requests of one sequence wait for each other.

        Raises:
            SealaneError: of the first request that failed, where the caller wants it so.
        """
        begun: queue.Queue[tuple[Future[bytes], str] | None] = queue.Queue(UNDER_WAY)
        over = threading.Event()

        def feed() -> None:
            sequences: dict[str, Future[bytes]] = {}
            try:
                for body in bodies:
                    begun.put(self._begin(body, sequences, deadline))
                    if over.is_set():
                        return
            except Exception:  # supervisor: grpcio ends the requests of a caller that left by an exception of its own
                return
            finally:
                begun.put(None)

        threading.Thread(target=feed, name="proxy-requests", daemon=True).start()
        try:
            while (item := begun.get()) is not None:
                try:
                    yield stream_answer(item[0].result())
                except SealaneError as error:
                    if not in_band:
                        raise
                    yield stream_error(error.message, item[1])
        finally:
            over.set()
            while not begun.empty():
                begun.get_nowait()

    def _begin(self, body: bytes, sequences: dict[str, Future[bytes]], deadline: float) -> tuple[Future[bytes], str]:
        """A request of a stream, under way, and its id."""
        try:
            options = peek_options(body)
        except InvalidArgument as error:
            refused: Future[bytes] = Future()
            refused.set_exception(error)
            return refused, ""
        before = sequences.get(options.sequence) if options.sequence else None
        future = self._pool.submit(self._after, before, body, deadline)
        if options.sequence:
            sequences[options.sequence] = future
        return future, options.request_id

    def _after(self, before: Future[bytes] | None, body: bytes, deadline: float) -> bytes:
        if before is not None:
            before.exception()  # waits
        return self.answer(INFER_PATH, body, min(deadline, time.monotonic() + limits.UNARY_SECONDS))


def check_address(address: str) -> None:
    """Whether nobody but this machine can reach an address.

    Raises:
        InvalidArgument: others can.
    """
    if address.startswith("unix:"):
        path = Path(address.removeprefix("unix:"))
        # Without a path it would be an abstract socket, which every user of this machine can open.
        if path.name in ("", "..") or not path.parent.is_dir():
            raise InvalidArgument(f"{address!r} names no socket in a folder that exists; give its path", field="listen")
        if path.is_socket() and _answers(path):
            raise InvalidArgument(f"something listens on {address} already; stop it, or give another", field="listen")
        return
    host, _, port = address.rpartition(":")
    try:
        local = host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        local = False
    if port.isdecimal() and int(port[:_PORT_DIGITS]) > _LAST_PORT:
        raise InvalidArgument(f"{address!r} has no port; use one up to {_LAST_PORT}", field="listen")
    if not local or not port.isdecimal():
        raise InvalidArgument(
            f"{address!r} is not on loopback: whoever reaches it would call with your rights and read what is sent; "
            "use 127.0.0.1:PORT or unix:PATH",
            field="listen",
        )


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


class _Handlers(grpc.GenericRpcHandler):
    """Both protocols, by their paths."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._streams = threading.BoundedSemaphore(STREAMS)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """The handler of a path."""
        path = details.method
        if path == STREAM_PATH:
            return grpc.stream_stream_rpc_method_handler(self._stream)

        def run(body: bytes, context: grpc.ServicerContext) -> bytes:
            answer = b""
            try:
                answer = self._proxy.answer(path, body, _deadline(context, limits.UNARY_SECONDS))
            except Exception as error:  # the translator: the one place that may catch all
                _abort(context, error, path)
            return answer

        return grpc.unary_unary_rpc_method_handler(run)

    def _stream(self, bodies: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        wanted = {str(key): value for key, value in context.invocation_metadata() or ()}
        in_band = str(wanted.get(GRPC_ERRORS, "")).lower() != "true"
        if not self._streams.acquire(blocking=False):
            busy = ResourceExhausted(f"the proxy carries {STREAMS} streams already; end one", reason="OVERLOAD")
            _abort(context, busy, STREAM_PATH)
        try:
            yield from self._proxy.answers(bodies, _deadline(context, limits.STREAM_SECONDS), in_band=in_band)
        except Exception as error:  # the translator: the one place that may catch all
            _abort(context, error, STREAM_PATH)
        finally:
            self._streams.release()


def _abort(context: grpc.ServicerContext, error: Exception, path: str) -> None:
    failure = outward(translate(error, ""), path)
    context.set_trailing_metadata(trailers_of(failure, ""))
    context.abort(code_of(failure), failure.message)


def _deadline(context: grpc.ServicerContext, most: float) -> float:
    # Without a deadline grpcio tells some 292 years.
    remaining = context.time_remaining()
    return time.monotonic() + (most if remaining is None else min(remaining, most))
