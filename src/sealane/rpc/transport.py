"""What grpcio tells about a call, in our words. Shared by the synchronous and the asyncio server."""

from __future__ import annotations

import base64
import time
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Protocol

import grpc

from sealane.errors import SealaneError, Unavailable
from sealane.rpc import limits
from sealane.rpc.call import Call, Peer
from sealane.rpc.loads import LOAD
from sealane.rpc.policy import Method
from sealane.rpc.status import CODE_OF, DETAILS_KEY, to_status

_TFSERVING = "/tensorflow.serving."
#: What a caller brings upon himself; the same call elsewhere, or a little later, would fare no better.
OWN_LIMITS = frozenset({"QUOTA_EXCEEDED", "REQUEST_TOO_LARGE"})
_TRY_AGAIN = 0.1
#: What stays as it is in a percent-encoded message: printable ASCII but for the percent sign.
_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")

Trailers = tuple[tuple[str, str | bytes], ...]


class Context(Protocol):
    """The part of a servicer context that both kinds of server have."""

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """Metadata of the caller."""
        ...

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """What TLS knows of the peer."""
        ...

    def time_remaining(self) -> float | None:
        """Seconds left, None without a deadline."""
        ...


def call_of(method: Method, context: Context, body: bytes | None) -> Call:
    """The call that a context stands for."""
    metadata: dict[str, str] = {}
    duplicates: set[str] = set()
    for key, value in context.invocation_metadata() or ():
        if key in metadata:
            duplicates.add(key)
        metadata[key] = value if isinstance(value, str) else ""
    streaming = method.client_streaming or method.server_streaming
    cap = limits.STREAM_SECONDS if streaming else limits.UNARY_SECONDS
    remaining = context.time_remaining()
    return Call(
        method=method,
        metadata=metadata,
        peer=_peer(context),
        deadline=time.monotonic() + (cap if remaining is None else min(remaining, cap)),
        body=body,
        duplicates=frozenset(duplicates),
        # The synchronous server has it; on the event loop a caller that leaves cancels the task.
        watch=getattr(context, "add_callback", None),
    )


def trailers_of(failure: SealaneError, request_id: str) -> Trailers:
    """Trailing metadata of a refusal: the rich status, and when to try again."""
    details: Trailers = ((DETAILS_KEY, to_status(failure, request_id).SerializeToString()),)
    if failure.retry_after is not None:
        details += (("grpc-retry-pushback-ms", str(int(failure.retry_after * 1000))),)
    return details


def headers_of(failure: SealaneError, request_id: str) -> list[tuple[str, str]]:
    """Status, message and :func:`trailers_of` of a refusal as HTTP/2 carries them, where grpcio does not write them.

    "PROTOCOL-HTTP2.md" of gRPC: the message is percent-encoded, binary metadata are base64 without padding.
    """
    headers = [
        ("grpc-status", str(code_of(failure).value[0])),
        ("grpc-message", urllib.parse.quote(failure.message, safe=_PRINTABLE)),
    ]
    for name, value in trailers_of(failure, request_id):
        headers.append((name, value if isinstance(value, str) else base64.b64encode(value).decode().rstrip("=")))
    return headers


def load_trailers(call: Call) -> Trailers:
    """Trailing metadata that says how busy the model is that a call was for; none where it came to none."""
    load = call.load
    return () if load is None else ((LOAD, load.encode(time.monotonic() - call.started)),)


def outward(failure: SealaneError, path: str) -> SealaneError:
    """The failure as the clients of the method's protocol know it, for the edge alone: lanes carry the true kind.

    Clients of TensorFlow Serving know overload as UNAVAILABLE. A quota is the caller's own and no overload.
    """
    if failure.kind != "RESOURCE_EXHAUSTED" or failure.reason in OWN_LIMITS or not path.startswith(_TFSERVING):
        return failure
    told = Unavailable(
        failure.message, reason=failure.reason, field=failure.field, retry_after=failure.retry_after or _TRY_AGAIN
    )
    told.metadata = failure.metadata
    return told


def code_of(failure: SealaneError) -> grpc.StatusCode:
    """The gRPC code of an error."""
    return CODE_OF[failure.kind]


def _peer(context: Context) -> Peer:
    # Asking grpcio for the transport address as well costs more than everything else here together.
    tls = context.auth_context()
    version = _first(tls, "ssl_tls_version")
    certificate = next(iter(tls.get("x509_pem_cert", ())), b"")
    if "peer_spiffe_id" not in tls or not certificate:
        return _STRANGERS.get(version) or Peer(tls_version=version)
    return Peer(
        spiffe_id=_first(tls, "peer_spiffe_id"),
        tls_version=version,
        certificate_pem=certificate,
    )


def _first(tls: Mapping[str, Iterable[bytes]], name: str) -> str:
    return next(iter(tls.get(name, ())), b"").decode("ascii", "replace")


#: Peers without a certificate are all alike.
_STRANGERS = {version: Peer(tls_version=version) for version in ("", "TLSv1.3")}
