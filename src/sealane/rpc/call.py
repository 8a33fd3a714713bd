"""One call on its way through the middleware: what is known about it, and when."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from google.protobuf.message import Message

from sealane.errors import PermissionDenied

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from sealane.rpc.policy import Method


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of the connection, as TLS tells.

    Args:
        address: transport address, for logs only.
        spiffe_id: identity in the peer's certificate; empty on the client port.
        tls_version: negotiated version, such as ``TLSv1.3``.
        via_gateway: set for calls that came over a lane dialled to the verified gateway.
    """

    address: str = ""
    spiffe_id: str = ""
    tls_version: str = ""
    via_gateway: bool = False

    @property
    def kind(self) -> str:
        """``auth``, ``registry``, ``scheduler``, ``inference`` or ``node``; empty without a certificate."""
        parts = self.spiffe_id.removeprefix("spiffe://sealane/").split("/")
        if len(parts) != 2 or not self.spiffe_id.startswith("spiffe://sealane/"):
            return ""
        return {"service": parts[1], "node": "node"}.get(parts[0], "")

    @property
    def node(self) -> str:
        """Id of the node; empty for services."""
        return self.spiffe_id.removeprefix("spiffe://sealane/node/") if self.kind == "node" else ""


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
    """

    subject: str
    project: str = ""
    scopes: frozenset[str] = frozenset()
    token_id: str = ""
    key_thumbprint: str = ""
    expires: float = 0.0


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

    _request_id: str = ""

    @property
    def request_id(self) -> str:
        """The caller's, else one that is made when it is first asked for."""
        if not self._request_id:
            self._request_id = self.metadata.get("x-request-id", "")[:64] or str(uuid.uuid4())
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
