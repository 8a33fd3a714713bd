"""One call on its way through the middleware: what is known about it, and when."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from google.protobuf.message import Message

from sealane.errors import PermissionDenied, SealaneError
from sealane.security.certificate import CertificateFacts, facts_of

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from sealane.rpc.loads import Load
    from sealane.rpc.policy import Method


TRUST_DOMAIN = "spiffe://sealane/"


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of the connection, as TLS tells.

    Args:
        spiffe_id: identity in the peer's certificate; empty on the client port.
        tls_version: negotiated version, such as ``TLSv1.3``.
        via_gateway: set for calls that came over a lane dialled to the verified gateway.
        certificate_pem: its certificate; empty on the client port.
    """

    spiffe_id: str = ""
    tls_version: str = ""
    via_gateway: bool = False
    certificate_pem: bytes = b""

    @property
    def certificate(self) -> CertificateFacts:
        """The facts of its certificate."""
        return facts_of(self.certificate_pem)

    @property
    def kind(self) -> str:
        """The service's name, ``node``, ``relay`` or ``account``; empty without a certificate."""
        if not self.spiffe_id.startswith(TRUST_DOMAIN):
            return ""
        parts = self.spiffe_id.removeprefix(TRUST_DOMAIN).split("/")
        match parts:
            case ["service", name]:
                return name
            case ["node" | "relay" as kind, _]:
                return kind
            case ["projects", _, "serviceAccounts", _]:
                return "account"
        return ""

    @property
    def node(self) -> str:
        """Id of the node; empty for others."""
        return self.spiffe_id.removeprefix(f"{TRUST_DOMAIN}node/") if self.kind == "node" else ""

    @property
    def relay(self) -> str:
        """Id of the relay; empty for others."""
        return self.spiffe_id.removeprefix(f"{TRUST_DOMAIN}relay/") if self.kind == "relay" else ""

    @property
    def account(self) -> str:
        """Resource name of the service account; empty for others."""
        return self.spiffe_id.removeprefix(TRUST_DOMAIN) if self.kind == "account" else ""


@dataclass(frozen=True, slots=True)
class Quota:
    """What a project or an account may use of all gateways and workers together; 0 is without limit.

    Args:
        requests_per_second: calls.
        bytes_per_second: bytes of requests.
        concurrent_requests: calls at the same time.
    """

    requests_per_second: float = 0.0
    bytes_per_second: float = 0.0
    concurrent_requests: int = 0


_UNLIMITED = Quota()


@dataclass(frozen=True, slots=True)
class Identity:
    """The verified caller: a token's subject, or a peer with a certificate.

    Args:
        subject: account name or SPIFFE id.
        project: project of the token; empty for peers, who act for any project.
        scopes: what the token allows.
        token_id: ``jti`` of the token.
        key_thumbprint: ``cnf.jkt``: the key that the token is bound to; empty for a bearer token.
        expires: seconds since 1970 at which the token ends.
        certificate_thumbprint: ``cnf.x5t#S256``: the certificate that the token is bound to.
        models: for permissions limited to some models, the prefixes of their ids.
        client_id: client the token was issued to.
        key_id: key that signed the token.
        epoch: the subject's epoch when it was issued.
        actor: who acts for the subject, by RFC 8693 section 4.1; empty for itself.
        quota: of the account, and of its project.
    """

    subject: str
    project: str = ""
    scopes: frozenset[str] = frozenset()
    token_id: str = ""
    key_thumbprint: str = ""
    expires: float = 0.0
    certificate_thumbprint: str = ""
    models: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    client_id: str = ""
    key_id: str = ""
    epoch: int = 0
    actor: str = ""
    quota: tuple[Quota, Quota] | None = None
    charged: tuple[tuple[str, Quota], ...] = field(init=False)
    """The project and account, by resource name, that have a quota."""

    def __post_init__(self) -> None:
        names = (self.subject, f"projects/{self.project}")
        charged = [(name, quota) for name, quota in zip(names, self.quota or (), strict=False) if quota != _UNLIMITED]
        object.__setattr__(self, "charged", tuple(charged))

    def may_use(self, permission: str, model: str) -> bool:
        """Whether a limit to some models, if there is one, lets `permission` be used for a model id."""
        limits = self.models.get(permission)
        return limits is None or model.startswith(limits)


@dataclass(frozen=True, slots=True)
class Carried:
    """A node whose stream somebody else carries: auth's statement, which came with it, says so.

    Args:
        node: id of the node.
        issued: seconds since 1970 at which auth signed the statement.
    """

    node: str
    issued: float


class Cancellation:
    """Says once, from any thread, that nobody waits for an answer any more."""

    __slots__ = ("_callbacks", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] | None = []

    def watch(self, callback: Callable[[], None]) -> bool:
        """Have `callback` called; false, and it is not, where nobody waits already."""
        with self._lock:
            if self._callbacks is None:
                return False
            self._callbacks.append(callback)
            return True

    def cancel(self) -> None:
        """Nobody waits any more. The callbacks run here, once."""
        with self._lock:
            callbacks, self._callbacks = self._callbacks, None
        for callback in callbacks or ():
            callback()


@dataclass(slots=True)
class Call:
    """State of one call. Middleware fills it from the outside in."""

    method: Method
    metadata: Mapping[str, str]
    peer: Peer
    deadline: float
    """Monotonic time at which nobody waits any more."""
    body: bytes | None = None
    identity: Identity | None = None
    message: Message | None = None
    span: Span | None = None
    trace_token: object = None
    traceparent: str = ""
    started: float = field(default_factory=time.monotonic)
    entered: int = 0
    duplicates: frozenset[str] = frozenset()
    """Metadata keys that were sent more than once."""
    cancel: Callable[[], None] | None = None
    """Ends a stream from any thread; unset for calls with one answer, which end by themselves."""
    revoked: SealaneError | None = None
    """Why a stream was ended before its time."""
    carried: Carried | None = None
    """The node that the peer, a relay, speaks for on this stream: once it is evicted the stream ends too."""

    watch: Callable[[Callable[[], None]], bool] | None = None
    """Has a function called when nobody waits any more, as :meth:`Cancellation.watch`; unset where nobody can tell."""

    within: Call | None = None
    """The stream that carries this call; who may make the one was found out for the other."""

    proves: tuple[str, str] | None = None
    """Over HTTP: the method and URL that a proof of possession must name; unset: POST and the method's path."""
    model: tuple[str, str, str] | None = None
    """Project, deployment and version that the call is for, once they are known; for metrics."""

    load: Load | None = None
    """How busy the model is that the call was for; told to the caller with the answer."""

    ticket: int = 0
    """Under which a front of this process wants to hear what the call came to; 0 where none does."""
    sampled: bool = False
    """Whether that front has drawn the lot to trace it."""

    _request_id: str = ""

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, on any thread, when the caller is gone; at once where he is gone already.

        It may also be called after the call has ended. It must be quick, and asking for it costs little, but not
        nothing: ask when there is something to wait for.
        """
        if self.watch is not None and not self.watch(callback):
            callback()

    @property
    def request_id(self) -> str:
        """The caller's, else one that is made when it is first asked for."""
        if not self._request_id:
            self._request_id = self.metadata.get("x-request-id", "")[:64] or f"{random.getrandbits(128):032x}"
        return self._request_id

    @property
    def remaining(self) -> float:
        """Seconds left until the deadline; negative when it is over."""
        return self.deadline - time.monotonic()

    @property
    def caller(self) -> Identity:
        """The verified caller."""
        if self.identity is None:
            raise PermissionDenied("this method needs a caller; authenticate first", reason="NO_IDENTITY")
        return self.identity
