"""The one visible order of what happens to every call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sealane.clock import Clock, SystemClock
from sealane.rpc.authentication import Authenticate, CertificateTokens
from sealane.rpc.authorisation import Authorise, Validate
from sealane.rpc.live import LiveStreams
from sealane.rpc.middleware import Deadline, Limits, Middleware, Parse, Tracing
from sealane.rpc.places import Admission
from sealane.security.proof import ProofVerifier
from sealane.security.revocations import Revocations
from sealane.security.tokens import TokenVerifier
from sealane.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class Guard:
    """What decides who may call.

    Args:
        verifier: of tokens for this service.
        revocations: what is no longer good.
        clock: for proofs.
        certificates: gets tokens for certificate-only callers; None where those are not served.
        quota: what stands between authorisation and parsing.
    """

    verifier: TokenVerifier
    revocations: Revocations | None = None
    clock: Clock = field(default_factory=SystemClock)
    certificates: CertificateTokens | None = None
    quota: Sequence[Middleware] = ()


def standard(
    *,
    telemetry_: Telemetry,
    guard: Guard,
    max_in_flight: int = 1000,
    raw: frozenset[str] = frozenset(),
    every_call: bool = True,
    places: Admission | None = None,
) -> list[Middleware]:
    """The list, the same everywhere, outermost first. Errors are translated around it by the adapter."""
    live: list[Middleware] = [] if guard.revocations is None else [LiveStreams(guard.revocations, guard.clock)]
    return [
        Limits(max_in_flight, places),
        Tracing(telemetry_, every_call=every_call),
        Deadline(),
        Authenticate(guard.verifier, ProofVerifier(guard.clock), guard.revocations, guard.certificates),
        Authorise(guard.revocations),
        *live,
        *guard.quota,
        Parse(raw),
        Validate(),
    ]
