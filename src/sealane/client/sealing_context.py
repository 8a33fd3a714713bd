"""Whom to seal to: workers that serve a deployment, by statements that auth signed, and what is demanded of them."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from google.protobuf.message import DecodeError

from sealane.client.calls import Caller, Request
from sealane.client.keyed_locks import KeyedLocks
from sealane.client.prediction import Requirement
from sealane.client.session import Session
from sealane.errors import FailedPrecondition, InvalidArgument, SealaneError, Unauthenticated, Unavailable
from sealane.inference.v1 import sealed_inference_service_pb2 as pb
from sealane.rpc.affinity import key_of as key_of_affinity
from sealane.rpc.affinity import weight
from sealane.rpc.channel import Target
from sealane.security import envelope, statements, suites
from sealane.security.sealing_messages import policy_of
from sealane.security.sealing_policy import CLEARANCES, SealingPolicy, cleared
from sealane.security.statements import Statement

CONTEXT_PATH = "/sealane.inference.v1.SealedInferenceService/GetSealingContext"
MAX_RECIPIENTS = 2
_MARGIN_SECONDS = 5.0
#: Requirements whose choice is remembered.
_CHOICES = 64
#: A worker's statement is renewed, and auth's keys are published, some seconds after a key was retired.
_PASSING = frozenset({"STATEMENT_KEY", "STATEMENT_EXPIRED"})
M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to run, and where a worker that may read it must stand.

    Attributes:
        model: deployment id, id of a model with one deployment, or a served name.
        source: the gateway, or a worker, to get the context from.
        version: that must be serving, as digits; empty for any.
        label: of the version, instead.
        require: what a worker's statement must say.
    """

    model: str
    source: Target
    version: str = ""
    label: str = ""
    require: Requirement = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker whose statement was verified."""

    statement: Statement
    variant_digest: str
    target: Target
    policies: tuple[SealingPolicy, ...] = ()

    @property
    def facts(self) -> Mapping[str, str]:
        """All that the statement says."""
        said = self.statement
        return {**said.attributes, "node": said.node, "suite": suites.NAMES[said.suite]}

    @property
    def recipient(self) -> envelope.Target:
        """The same as somebody to seal to."""
        return envelope.Target(self.statement.key_id, self.statement.public_key, self.variant_digest)


@dataclass(frozen=True, slots=True)
class Context:
    """What sealed requests to one deployment are bound to."""

    deployment: str
    candidates: tuple[Candidate, ...]
    expires: float
    _chosen: dict[object, list[Candidate]] = field(default_factory=dict, compare=False, repr=False)

    def choose(
        self, require: Requirement, *, most: int = MAX_RECIPIENTS, keep: str = "", affinity: str = ""
    ) -> list[Candidate]:
        """The workers to seal to: those that satisfy caller and owner, of one suite, best first.

        Args:
            require: what the caller demands.
            most: number of them.
            keep: for what belongs together, such as a sequence: always the same one while it is there.
            affinity: for what belongs together, such as a session: the same ones while they are there.

        Raises:
            FailedPrecondition: none satisfies; nothing was sent.
            InvalidArgument: a demand that no statement speaks of.
        """
        demanded = (
            most,
            *((name, value if isinstance(value, str) else tuple(value)) for name, value in require.items()),
        )
        own = keep or affinity
        known = None if own else self._chosen.get(demanded)
        if known is None:
            known = self._choose(require, most, keep, affinity)
            if not own and len(self._chosen) < _CHOICES:
                self._chosen[demanded] = known
        return known

    def _key(self, affinity: str) -> str:
        return key_of_affinity(self.deployment.split("/")[1], affinity)

    def _choose(self, require: Requirement, most: int, keep: str, affinity: str) -> list[Candidate]:
        check_requirement(require)
        refused: dict[str, str] = {}
        fitting = []
        for item in self.candidates:
            why = _why_not(item, require)
            if why:
                refused[item.statement.node] = why
            else:
                fitting.append(item)
        if not fitting:
            told = "; ".join(f"{node}: {why}" for node, why in sorted(refused.items()))
            raise FailedPrecondition(
                f"no worker may read it by its signed statement ({told}); nothing was sent", reason="NO_CANDIDATE"
            )
        if keep:  # rendezvous hashing (Thaler and Ravishankar 1996), as the gateway keeps sequences
            return [max(fitting, key=lambda item: hashlib.sha256(f"{item.statement.node}\0{keep}".encode()).digest())]
        if affinity:
            fitting.sort(key=lambda item: weight(item.statement.node, self._key(affinity)), reverse=True)
        suite = fitting[0].statement.suite
        return [item for item in fitting if item.statement.suite == suite][:most]


class Contexts:
    """Sealing contexts, remembered until the first of their statements ends. May be used from any thread."""

    def __init__(self, session: Session, caller: Caller) -> None:
        self._session = session
        self._caller = caller
        self._known: dict[tuple[str, str, str, str], Context] = {}
        self._fetching = KeyedLocks()
        self._lock = threading.Lock()

    def get(self, asked: Asked, deadline: float) -> tuple[Context, bool]:
        """The context, and whether it was known before.

        Raises:
            SealaneError: refused, or no worker that auth vouches for.
        """
        known = self._good(asked)
        if known is not None:
            return known, True
        with self._fetching.hold(key_of(asked), deadline):
            known = self._good(asked)
            if known is not None:
                return known, False  # just fetched, by another caller
            return self.fresh(asked, deadline), False

    def _good(self, asked: Asked) -> Context | None:
        known = self._known.get(key_of(asked))
        return known if known is not None and time.time() < known.expires else None

    def fresh(self, asked: Asked, deadline: float) -> Context:
        """The context of this moment, for a stream: what goes over it cannot be sealed anew."""
        context = self._fetch(asked, deadline)
        with self._lock:
            self._known[key_of(asked)] = context
        return context

    def forget(self, asked: Asked, context: Context) -> None:
        """Fetch anew next time, unless somebody else has done so."""
        with self._lock:
            if self._known.get(key_of(asked)) is context:
                del self._known[key_of(asked)]

    def _fetch(self, asked: Asked, deadline: float) -> Context:
        message = pb.GetSealingContextRequest(model=asked.model, version=asked.version, label=asked.label)
        token = self._caller.token(bound=True)
        answer = self._caller.send(asked.source, Request(CONTEXT_PATH, message.SerializeToString()), deadline, token)
        context = parsed(pb.SealingContext.FromString, answer)
        if not context.deployment.startswith(f"projects/{token.project}/deployments/"):
            raise InvalidArgument("the sealing context is of another project; nothing was sent", reason="CONTEXT")
        candidates: list[Candidate] = []
        refused: SealaneError | None = None
        for item in context.candidates:
            try:
                candidates.append(self._candidate(item))
            except SealaneError as error:
                refused = error  # never seal to a worker that auth does not vouch for
        if not candidates:
            raise _nobody(asked, refused)
        expires = min(item.statement.expires for item in candidates) - _MARGIN_SECONDS
        return Context(context.deployment, tuple(candidates), expires)

    def _candidate(self, item: pb.SealingCandidate) -> Candidate:
        verified = statements.verify(item.statement, self._session.keys)
        # The name that TLS expects follows from the verified statement, not from what the gateway says.
        target = Target(item.address, self._session.site.trust_bundle, f"{verified.node}.node.sealane")
        return Candidate(verified, item.variant_digest, target, tuple(policy_of(policy) for policy in item.policies))


def parsed(parse: Callable[[bytes], M], content: bytes) -> M:
    """What a service answered.

    Raises:
        InvalidArgument: it is no such message.
    """
    try:
        return parse(content)
    except DecodeError as error:
        raise InvalidArgument("the answer is malformed; is this a Sealane endpoint?", reason="MALFORMED") from error


def bound_token_needed() -> Unauthenticated:
    """The error for credentials that give bearer tokens alone."""
    return Unauthenticated("a sealed call needs a token bound to the client's key", reason="SENDER_KEY")


def _nobody(asked: Asked, refused: SealaneError | None) -> SealaneError:
    """Why there is no candidate. What changing keys alone can cause is tried again; nothing was sent."""
    if refused is None:
        return FailedPrecondition(f"no worker of {asked.model!r} has a sealing key", reason="NO_CANDIDATE")
    if refused.reason in _PASSING:
        return Unavailable(f"{refused.message}; nothing was sent", reason=refused.reason, retry_after=0.1)
    return refused


def key_of(asked: Asked) -> tuple[str, str, str, str]:
    """What a context depends on."""
    return asked.source.address, asked.model, asked.version, asked.label


def _why_not(candidate: Candidate, require: Requirement) -> str:
    facts = candidate.facts
    for name, wanted in require.items():
        if not _satisfies(name, facts[name], wanted):
            return (
                f"{name} {wanted if isinstance(wanted, str) else ' or '.join(wanted)} required, it says {facts[name]}"
            )
    return next(filter(None, (policy.refusal(facts) for policy in candidate.policies)), "")


#: What statements may speak of.
_FACTS = ("clearance", "node", "pool", "region", "suite", "tier", "zone")


def check_requirement(require: Requirement) -> None:
    """Whether a statement could ever satisfy it.

    Raises:
        InvalidArgument: it demands what no statement speaks of, or a clearance that there is not.
    """
    if unknown := sorted(set(require) - set(_FACTS)):
        raise InvalidArgument(f"statements say nothing of {unknown}; require some of {list(_FACTS)}", field="require")
    wanted = require.get("clearance", ())
    names = {wanted} if isinstance(wanted, str) else set(wanted)
    if strange := sorted(names - set(CLEARANCES)):
        raise InvalidArgument(f"{strange} is no clearance; require one of {list(CLEARANCES)}", field="require")


def _satisfies(name: str, said: str, wanted: str | Sequence[str]) -> bool:
    if not isinstance(wanted, str):
        return said in wanted
    if name == "clearance" and wanted in CLEARANCES:
        return cleared(said, wanted)
    return said == wanted
