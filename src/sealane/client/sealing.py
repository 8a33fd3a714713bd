"""The client's half of sealed calls: seals, sends, opens; again where a key, a session or a worker has gone.

The rules of docs/sealed-protocol.md: an envelope goes to each recipient at most once, what a worker may have seen is
sealed anew, and a session's requests go to the one worker that keeps it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from google.rpc import status_pb2

from sealane import telemetry
from sealane.client.calls import Caller, Place, Request
from sealane.client.credentials import Token
from sealane.client.envelopes_ahead import EnvelopesAhead
from sealane.client.keyed_locks import KeyedLocks
from sealane.client.sealing_context import Asked, Candidate, Context, Contexts, bound_token_needed, key_of, parsed
from sealane.client.session import Session
from sealane.errors import MODEL_CRASHED, InvalidArgument, SealaneError, Unavailable
from sealane.inference.v1 import sealed_inference_service_pb2 as pb
from sealane.protocols import sealed
from sealane.rpc.channel import Target
from sealane.rpc.status import from_status
from sealane.security import envelope, native_envelope, sealed_session
from sealane.security.envelope import ANSWER, STATUS, Bound, Sealed
from sealane.security.native_envelope import AnyPrepared
from sealane.security.sealed_chunks import chunk_count
from sealane.security.sealed_session import ClientSession

_STALE_KEY, _CANNOT_OPEN = "STALE_SEALING_KEY", "CANNOT_OPEN"
_STALE = (_STALE_KEY, "STALE_SEALED_SESSION")
#: Of a context that was known before: another worker may have joined, or another version come, since.
_STALE_IF_KNOWN = (_CANNOT_OPEN, "NO_CANDIDATE")
#: A worker may start anew between two calls; not for ever.
_MOST_RENEWALS = 2
#: A session is given up before the worker does: what was sealed under it must still arrive.
_SESSION_SECONDS = sealed_session.LIFETIME_SECONDS - 60.0
#: To end all sessions when a client is closed.
_CLOSE_SECONDS = 0.5
_SESSION_REQUESTS = sealed_session.MAX_REQUESTS - 64


@dataclass(frozen=True, slots=True)
class SealedCall:
    """One sealed call.

    Attributes:
        asked: what is to run, and what is required of who may read it.
        method: that `plaintext` is a request of.
        plaintext: the serialized request.
        direct: send to the recipients themselves instead of through the gateway.
        session: seal under a session with one worker.
        hedge_after: direct calls: seconds after which the second recipient is asked as well; 0 for never.
        sequence: what belongs together and goes to one worker.
        affinity: what belongs together and goes to one worker while that is not much busier than others.
    """

    asked: Asked
    method: str
    plaintext: bytes = field(repr=False)
    direct: bool = False
    session: bool = False
    hedge_after: float = 0.0
    sequence: str = ""
    affinity: str = ""


@dataclass(frozen=True, slots=True)
class _Session:
    """A session that is open, and with whom."""

    candidate: Candidate
    keys: ClientSession
    until: float
    target: Target
    process: int = field(default_factory=os.getpid)

    def good_for(self, candidate: Candidate) -> bool:
        """Whether a request to `candidate`, as the present context has it, may go under this session."""
        same = self.candidate is candidate or self.candidate.recipient == candidate.recipient
        # A process that was forked off would use the same numbers for other requests.
        mine = self.process == os.getpid()
        return same and mine and time.monotonic() < self.until and self.keys.used < _SESSION_REQUESTS


@dataclass(frozen=True, slots=True)
class _Ready:
    """A request that is sealed, for whom, and the token that goes with it."""

    made: Sealed
    chosen: Sequence[Candidate]
    token: Token


class Sealing:
    """Seals requests and opens answers. May be used from any thread."""

    def __init__(self, session: Session, caller: Caller) -> None:
        self.session = session
        self.caller = caller
        self.contexts = Contexts(session, caller)
        self._ahead = EnvelopesAhead()
        self._under_way, self._counting = 0, threading.Lock()
        self._sessions: dict[tuple[str, ...], _Session] = {}
        self._opening = KeyedLocks()

    def run(self, call: SealedCall, deadline: float) -> bytes:
        """One sealed inference, one attempt; a stale key or session is replaced.

        That a key or a session is stale is said outside of any seal, so a gateway may say it of a request that ran. A
        step of a sequence is therefore not sent again; anything else may run once more for each such lie.

        Args:
            call: what to run, and for whom to seal it.
            deadline: monotonic time at which nobody waits any more.

        Returns:
            The serialized answer of the sealed method.

        Raises:
            FailedPrecondition: no worker satisfies what is required.
            SealaneError: refused, or failed inside the seal.
        """
        self._count(1)
        try:
            return self._run(call, deadline)
        finally:
            self._count(-1)

    def _count(self, step: int) -> None:
        with self._counting:
            self._under_way += step

    def _run(self, call: SealedCall, deadline: float) -> bytes:
        for left in reversed(range(_MOST_RENEWALS + 1)):
            context, known = self.contexts.get(call.asked, deadline)
            sent = False
            try:
                ready = self._ready(call, context, deadline)
                sent = True
                plaintext = self._exchange(call, ready, deadline)
            except SealaneError as error:
                self._forget(call, context, error)
                # What did not open by what was just fetched will not open by what is fetched next.
                stale = error.reason in _STALE or (error.reason in _STALE_IF_KNOWN and known)
                if not stale or not left or (sent and call.sequence):
                    raise
            else:
                return opened(plaintext)
        raise AssertionError  # the last attempt returns or raises

    def close(self) -> None:
        """End the sessions at their workers, which keep so many; where one is not there, it forgets by itself."""
        deadline = time.monotonic() + _CLOSE_SECONDS
        while self._sessions and time.monotonic() < deadline:
            _, session = self._sessions.popitem()
            if session.process == os.getpid():
                with contextlib.suppress(SealaneError):
                    made = session.keys.seal(b"", "", self.token().token_id, now_ms(), end=True)
                    request = Request(sealed.INFER, made.wire, proof_in_body=True)
                    self.caller.send(session.target, request, deadline, self.token())

    def bound(self, context: Context, method: str, suite: int, token: Token) -> Bound:
        """What an envelope made now is bound to."""
        return Bound(
            suite=suite,
            project=token.project,
            deployment=context.deployment,
            method=method,
            request_id=os.urandom(envelope.NONCE_BYTES),
            token_id=token.token_id,
            issued_at_ms=now_ms(),
        )

    def token(self) -> Token:
        """A token that is bound to the client's key.

        Raises:
            Unauthenticated: the credentials give none.
        """
        token = self.caller.token(bound=True)
        if not token.bound:
            raise bound_token_needed()
        return token

    def _ready(self, call: SealedCall, context: Context, deadline: float) -> _Ready:
        """The request, sealed; a session is opened where there is none. Nothing of the request is sent."""
        if call.session:
            try:
                session = self._session_of(call, context, deadline)
            except SealaneError as error:
                if error.reason != "SEALED_SESSIONS":  # the worker keeps no more of them, and works all the same
                    raise
            else:
                token = self.token()
                with self.session.telemetry.span(telemetry.SPAN_SEAL):
                    made = session.keys.seal(call.plaintext, call.method, token.token_id, now_ms())
                return _Ready(made, (session.candidate,), token)
        token = self.token()
        chosen = context.choose(call.asked.require, keep=call.sequence, affinity=call.affinity)
        with self.session.telemetry.span(telemetry.SPAN_SEAL):
            return _Ready(self._seal(call, context, chosen, token), chosen, token)

    def _exchange(self, call: SealedCall, ready: _Ready, deadline: float) -> bytes | bytearray:
        answer = self._send(call, ready, deadline)
        with self.session.telemetry.span(telemetry.SPAN_OPEN):
            return ready.made.read(answer)

    def _seal(self, call: SealedCall, context: Context, chosen: Sequence[Candidate], token: Token) -> Sealed:
        chunks, recipients = chunk_count(call.plaintext), tuple(item.recipient for item in chosen)

        def prepare(*, ahead: bool) -> AnyPrepared:
            bound = self.bound(context, call.method, chosen[0].statement.suite, token)
            return native_envelope.prepare(chunks, bound, recipients, self.session.tokens.key, ahead=ahead)

        # All that an envelope is bound to, but its id and time.
        kind = (context.deployment, call.method, token.token_id, chunks, recipients)
        made = (self._ahead.take(kind) or prepare(ahead=False)).seal(call.plaintext)
        if self._under_way == 1:  # else there are callers enough for the processor
            self._ahead.make(kind, lambda: prepare(ahead=True), at_once=native_envelope.installed())
        return made

    def _session_of(self, call: SealedCall, context: Context, deadline: float) -> _Session:
        candidate = context.choose(call.asked.require, most=1, keep=call.sequence, affinity=call.affinity)[0]
        key = (*key_of(call.asked), candidate.statement.key_id)
        known = self._sessions.get(key)
        if known is None or not known.good_for(candidate):
            with self._opening.hold(key, deadline):
                known = self._sessions.get(key)
                if known is None or not known.good_for(candidate):  # else another caller was first
                    known = self._sessions[key] = self._open_session(call, context, candidate, deadline)
        return known

    def _open_session(self, call: SealedCall, context: Context, candidate: Candidate, deadline: float) -> _Session:
        token = self.token()
        bound = self.bound(context, sealed.OPEN_SESSION, candidate.statement.suite, token)
        keys = ClientSession(bound, candidate.recipient, self.session.tokens.key)
        message = pb.OpenSealedSessionRequest(envelope=keys.opening.request)
        request = Request(sealed.OPEN_SESSION, message.SerializeToString(), proof_in_body=True)
        target = candidate.target if call.direct else call.asked.source
        answer = parsed(pb.OpenSealedSessionResponse.FromString, self.caller.send(target, request, deadline, token))
        # That it opens shows that the worker has the secret.
        told = parsed(pb.SealedSession.FromString, opened(keys.opening.open(answer.answer)))
        return _Session(candidate, keys, time.monotonic() + min(told.lifetime_seconds, _SESSION_SECONDS), target)

    def _send(self, call: SealedCall, ready: _Ready, deadline: float) -> bytes:
        request, token = Request(sealed.INFER, ready.made.wire, proof_in_body=True, affinity=call.affinity), ready.token
        if not call.direct:
            return self.caller.send(call.asked.source, request, deadline, token)
        targets = [item.target for item in ready.chosen]
        if call.hedge_after and len(targets) > 1:
            places = [Place(item) for item in targets]
            return self.caller.hedged(places, request, deadline, token, after=call.hedge_after)
        return self.caller.first(targets, request, deadline, token)

    def _forget(self, call: SealedCall, context: Context, error: SealaneError) -> None:
        """What a failure says is not good any more."""
        gone = isinstance(error, Unavailable) and error.reason != MODEL_CRASHED
        if gone or error.reason in (*_STALE, _CANNOT_OPEN):
            for key in [key for key in list(self._sessions) if key[:-1] == key_of(call.asked)]:
                self._sessions.pop(key, None)
        if gone or error.reason in (_STALE_KEY, *_STALE_IF_KNOWN):
            self.contexts.forget(call.asked, context)


def opened(plaintext: bytes | bytearray) -> bytes:
    """What is inside a sealed answer, as something that messages are parsed from; large ones are not copied.

    Raises:
        SealaneError: an error that was sealed.
    """
    if plaintext[:1] == STATUS:
        raise from_status(parsed(status_pb2.Status.FromString, bytes(plaintext[1:])))
    if plaintext[:1] != ANSWER:
        raise InvalidArgument("the sealed answer has an unknown form; update the client", reason="ANSWER_FORM")
    return cast(bytes, memoryview(plaintext)[1:])


def now_ms() -> int:
    """The time that envelopes carry: milliseconds since 1970."""
    return int(time.time() * 1000)
