"""Streams of sealed requests to one worker: in order, and neither end can be cut off unseen."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator

import grpc

from sealane.client.calls import Stream
from sealane.client.credentials import Token
from sealane.client.sealing import SealedCall, Sealing, now_ms, opened
from sealane.client.sealing_context import parsed
from sealane.errors import InvalidArgument, SealaneError, Unavailable
from sealane.inference.v1 import sealed_inference_service_pb2 as pb
from sealane.protocols import sealed
from sealane.protocols.wire import length_delimited
from sealane.rpc.status import from_rpc_error
from sealane.security.envelope import Sealed
from sealane.security.sealed_session import ClientSession

_LEAVE_SECONDS = 2.0


def open_stream(sealing: Sealing, call: SealedCall, plaintexts: Iterator[bytes], deadline: float) -> Iterator[bytes]:
    """Open a stream; what comes back gives the serialized answers to its serialized requests, in their order.

    Nothing is sent before the worker has shown that it has the session's secret. An error that the model gives to one
    request is raised and ends the stream.

    Args:
        sealing: whom to seal to, and how to send.
        call: what to run; its plaintext is not looked at.
        plaintexts: the requests; taken as they are sent.
        deadline: monotonic time at which the stream ends.

    Raises:
        SealaneError: refused; or the stream was cut off (STREAM_CUT).
    """
    context = sealing.contexts.fresh(call.asked, deadline)
    candidate = context.choose(call.asked.require, most=1, keep=call.sequence)[0]
    token = sealing.token()
    bound = sealing.bound(context, sealed.OPEN_STREAM, candidate.statement.suite, token)
    keys = ClientSession(bound, candidate.recipient, sealing.session.tokens.key)
    sender = _Sender(keys, call.method, token, plaintexts)
    target = candidate.target if call.direct else call.asked.source
    stream = sealing.caller.stream(target, sealed.OPEN_STREAM, sender.messages(), deadline, token)
    answers = _answers(stream)
    try:
        opened(keys.opening.open(next(answers)))
    except StopIteration:
        sender.stop()
        raise _cut("at its beginning; try again") from None
    except grpc.RpcError as failure:
        sender.stop()
        raise from_rpc_error(failure) from failure
    except SealaneError:
        sender.stop()
        stream.cancel()
        raise
    return _outputs(sender, stream, answers)


def _outputs(sender: _Sender, stream: Stream, answers: Iterator[pb.SealedInferResponse]) -> Iterator[bytes]:
    sender.begin()
    over = False
    try:
        for answer in answers:
            if not sender.expected:
                raise InvalidArgument("an answer that nobody asked for; the stream was altered", reason="STREAM_ORDER")
            made, over = sender.expected.popleft()
            plaintext = opened(made.open(answer))
            if over and sender.failure:
                raise sender.failure
            if over:
                return
            yield plaintext
        raise _cut("before its end; send the rest again")
    except grpc.RpcError as failure:
        over = True
        raise sender.failure or from_rpc_error(failure) from failure
    finally:
        sender.stop()
        if not over:
            threading.Thread(target=_leave, args=(stream,), name="seal-leave", daemon=True).start()


def _leave(stream: Stream) -> None:
    """Let the worker know that the stream is over, if it hears it soon: else it keeps the session for a while."""
    timer = threading.Timer(_LEAVE_SECONDS, stream.cancel)
    timer.start()
    try:
        for _ in stream:
            pass
    except grpc.RpcError:
        return
    finally:
        timer.cancel()


def _cut(where: str) -> Unavailable:
    return Unavailable(f"the stream was cut off {where}", reason="STREAM_CUT")


def _answers(stream: Iterable[bytes]) -> Iterator[pb.SealedInferResponse]:
    for body in stream:
        yield parsed(pb.SealedInferStreamResponse.FromString, body).answer


class _Sender:
    """Seals the messages of a stream as grpcio asks for them, on a thread of its own."""

    def __init__(self, keys: ClientSession, method: str, token: Token, plaintexts: Iterator[bytes]) -> None:
        self._keys = keys
        self._method = method
        self._token = token
        self._plaintexts = plaintexts
        self._ready = threading.Event()
        self._stopped = False
        self.expected: deque[tuple[Sealed, bool]] = deque()
        """What was sent and is not answered yet, and whether it is the end."""
        self.failure: Exception | None = None
        """What came instead of a plaintext."""

    def begin(self) -> None:
        """The worker has the secret: send."""
        self._ready.set()

    def stop(self) -> None:
        """Send no more."""
        self._stopped = True
        self._ready.set()

    def messages(self) -> Iterator[bytes]:
        """The messages of the stream."""
        opening = self._keys.opening.wire
        yield length_delimited(1, len(opening)) + opening
        self._ready.wait()
        while not self._stopped:
            try:
                plaintext = next(self._plaintexts, None)
            except Exception as error:  # the caller's own: it is raised to him, and grpcio would log it
                self.failure = error
                break
            if plaintext is None:
                break
            yield self._message(plaintext, end=False)
        yield self._message(b"", end=True)

    def _message(self, plaintext: bytes, *, end: bool) -> bytes:
        made = self._keys.seal(plaintext, self._method, self._token.token_id, now_ms(), end=end)
        self.expected.append((made, end))
        return length_delimited(1, len(made.wire)) + made.wire
