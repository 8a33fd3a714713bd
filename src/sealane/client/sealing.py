"""The client's half of sealed calls: whom to seal to, and what to do when a key has gone stale."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from sealane import telemetry
from sealane.client.calls import Caller, Request
from sealane.client.credentials import Token
from sealane.client.inference import Requirement
from sealane.client.session import Session
from sealane.errors import FailedPrecondition, InvalidArgument, SealaneError, Unauthenticated
from sealane.inference.v1 import sealed_inference_service_pb2 as pb
from sealane.rpc.channel import Target
from sealane.rpc.status import from_status
from sealane.security import envelope, statements
from sealane.security.statements import Statement

_SERVICE = "/sealane.inference.v1.SealedInferenceService"
CONTEXT_PATH = f"{_SERVICE}/GetSealingContext"
INFER_PATH = f"{_SERVICE}/SealedInfer"
MAX_RECIPIENTS = 2
_MARGIN_SECONDS = 5.0
_ANSWER, _STATUS = 0, 1
M = TypeVar("M")

#: Reasons after which a fresh context may help.
_STALE = frozenset({"STALE_SEALING_KEY", "CANNOT_OPEN"})


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker whose statement was verified."""

    statement: Statement
    variant_digest: str
    target: Target


@dataclass(frozen=True, slots=True)
class Context:
    """What sealed requests to one deployment are bound to."""

    deployment: str
    candidates: tuple[Candidate, ...]
    expires: float


class Sealing:
    """Seals requests and opens answers."""

    def __init__(self, session: Session, caller: Caller) -> None:
        self._session = session
        self._caller = caller
        self._contexts: dict[tuple[str, str], Context] = {}

    def run(self, call: SealedCall, deadline: float) -> bytes:
        """One sealed inference, one attempt; a stale key is replaced once.

        Args:
            call: what to run, and for whom to seal it.
            deadline: monotonic time at which nobody waits any more.

        Returns:
            The serialized answer of the sealed method.

        Raises:
            FailedPrecondition: no worker satisfies what is required.
            SealaneError: refused, or failed inside the seal.
        """
        key = (call.source.address, call.model)
        known = self._contexts.get(key)
        if known is not None and time.time() < known.expires:
            try:
                return self._attempt(call, known, deadline)
            except SealaneError as error:
                self._contexts.pop(key, None)
                if error.reason not in _STALE:
                    raise
        context = self._contexts[key] = self._fetch(call, deadline)
        try:
            return self._attempt(call, context, deadline)
        except SealaneError as error:
            self._contexts.pop(key, None)
            if error.reason != "STALE_SEALING_KEY" or known is not None:
                raise
        # A worker may have started anew between the two calls; once more, not for ever.
        return self._attempt(call, self._fetch(call, deadline), deadline)

    def _attempt(self, call: SealedCall, context: Context, deadline: float) -> bytes:
        token = self._caller.token(bound=True)
        if not token.bound:
            raise Unauthenticated("a sealed call needs a token bound to the client's key", reason="SENDER_KEY")
        chosen = _choose(context.candidates, call.require)
        with self._session.telemetry.span(telemetry.SPAN_SEAL):
            sealed = self._seal(call.plaintext, context, chosen, token)
        target = chosen[0].target if call.direct else call.source
        request = Request(INFER_PATH, sealed.request.SerializeToString(), proof_in_body=True)
        answer = self._caller.send(target, request, deadline, token)
        with self._session.telemetry.span(telemetry.SPAN_OPEN):
            return _open(sealed, answer)

    def _seal(self, plaintext: bytes, context: Context, chosen: Sequence[Candidate], token: Token) -> envelope.Sealed:
        bound = envelope.Bound(
            suite=chosen[0].statement.suite,
            project=token.project,
            deployment=context.deployment,
            method=envelope.METHOD,
            request_id=os.urandom(16),
            token_id=token.token_id,
            issued_at_ms=int(time.time() * 1000),
        )
        targets = [
            envelope.Target(item.statement.key_id, item.statement.public_key, item.variant_digest) for item in chosen
        ]
        return envelope.seal(plaintext, bound, targets, self._session.tokens.key)

    def _fetch(self, call: SealedCall, deadline: float) -> Context:
        request = Request(CONTEXT_PATH, pb.GetSealingContextRequest(model=call.model).SerializeToString())
        answer = self._caller.send(call.source, request, deadline, self._caller.token(bound=True))
        context = _parse(pb.SealingContext.FromString, answer)
        bundle = self._session.site.trust_bundle
        candidates: list[Candidate] = []
        refused: SealaneError | None = None
        for item in context.candidates:
            try:
                verified = statements.verify(item.statement, self._session.keys)
            except SealaneError as error:
                refused = error  # never seal to a worker that auth does not vouch for
                continue
            # The name that TLS expects follows from the verified statement, not from what the gateway says.
            target = Target(item.address, bundle, f"{verified.node}.node.sealane")
            candidates.append(Candidate(verified, item.variant_digest, target))
        if not candidates:
            raise refused or FailedPrecondition(f"no worker of {call.model!r} has a sealing key", reason="NO_CANDIDATE")
        expires = min(item.statement.expires for item in candidates) - _MARGIN_SECONDS
        return Context(context.deployment, tuple(candidates), expires)


@dataclass(frozen=True, slots=True)
class SealedCall:
    """What to run sealed.

    Args:
        model: deployment id, or id of a model with one deployment.
        plaintext: serialized ModelInferRequest.
        source: the gateway, or a worker, to get the context from.
        require: what a worker's statement must say.
        direct: send to the first recipient itself instead of through the gateway.
    """

    model: str
    plaintext: bytes
    source: Target
    require: Requirement
    direct: bool = False


def _choose(candidates: Sequence[Candidate], require: Requirement) -> list[Candidate]:
    """At most two that satisfy the requirement, of one suite, in the gateway's order."""
    fitting = [item for item in candidates if _satisfies(item.statement, require)]
    if not fitting:
        found = sorted(item.statement.node for item in candidates)
        raise FailedPrecondition(
            f"none of the workers {found} satisfies {dict(require)} by its signed statement; nothing was sent",
            reason="NO_CANDIDATE",
        )
    suite = fitting[0].statement.suite
    return [item for item in fitting if item.statement.suite == suite][:MAX_RECIPIENTS]


def _satisfies(statement: Statement, require: Requirement) -> bool:
    facts = {**statement.attributes, "node": statement.node}
    unknown = sorted(set(require) - set(facts))
    if unknown:
        raise InvalidArgument(f"statements say nothing of {unknown}; require some of {sorted(facts)}", field="require")
    return all(
        facts[name] == wanted if isinstance(wanted, str) else facts[name] in wanted for name, wanted in require.items()
    )


def _open(sealed: envelope.Sealed, answer: bytes) -> bytes:
    plaintext = sealed.open(_parse(pb.SealedInferResponse.FromString, answer))
    if plaintext[:1] == bytes([_STATUS]):
        raise from_status(_parse(status_pb2.Status.FromString, plaintext[1:]))
    if plaintext[:1] != bytes([_ANSWER]):
        raise InvalidArgument("the sealed answer has an unknown form; update the client", reason="ANSWER_FORM")
    return plaintext[1:]


def _parse(parse: Callable[[bytes], M], content: bytes) -> M:
    try:
        return parse(content)
    except DecodeError as error:
        raise InvalidArgument("the answer is malformed; is this a Sealane endpoint?", reason="MALFORMED") from error
