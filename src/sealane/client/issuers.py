"""The external issuers that a project trusts."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sealane.auth.v1 import federation_service_pb2 as pb
from sealane.auth.v1 import federation_service_pb2_grpc
from sealane.client.paging import pages
from sealane.client.session import Session


@dataclass(frozen=True, slots=True)
class Rule:
    """Which tokens of an external issuer get which roles.

    Args:
        claims: pattern by claim, all must fit; a dot leads into an object, ``*`` stands for anything but ``/``,
            a final ``**`` for any rest.
        roles: what they get; not ``admin``.
        model_prefix: only for models whose ids begin so.
    """

    claims: Mapping[str, str]
    roles: Sequence[str]
    model_prefix: str = ""


class Issuers:
    """External issuers (OpenID Connect) that the project trusts."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def trust(
        self,
        issuer_id: str,
        issuer: str,
        *,
        audience: str,
        rules: Sequence[Rule],
        keys: str = "",
    ) -> pb.TrustedIssuer:
        """Trust an issuer.

        Args:
            issuer_id: id of the trust.
            issuer: the claim ``iss`` of its tokens, exactly; an https URL.
            audience: audience that its tokens must name.
            rules: what its tokens are worth; one that no rule fits is refused.
            keys: URL of its key set, or the set itself as JSON for an issuer that auth cannot reach; empty for what its
                discovery document says.
        """
        trusted = pb.TrustedIssuer(
            issuer=issuer,
            audience=audience,
            rules=[
                pb.ClaimRule(claims=rule.claims, roles=rule.roles, model_prefix=rule.model_prefix) for rule in rules
            ],
        )
        if keys.lstrip().startswith("{"):
            trusted.jwks = keys
        elif keys:
            trusted.jwks_uri = keys
        request = pb.CreateTrustedIssuerRequest(
            parent=self._session.parent,
            trusted_issuer_id=issuer_id,
            trusted_issuer=trusted,
            request_id=str(uuid.uuid4()),
        )
        return self._stub().CreateTrustedIssuer(request, timeout=self._session.timeout)

    def list(self) -> Iterator[pb.TrustedIssuer]:
        """All trusted issuers, by id."""

        def fetch(token: str) -> pb.ListTrustedIssuersResponse:
            request = pb.ListTrustedIssuersRequest(parent=self._session.parent, page_token=token)
            return self._stub().ListTrustedIssuers(request, timeout=self._session.timeout)

        return pages(fetch, lambda page: page.trusted_issuers)

    def distrust(self, issuer_id: str) -> None:
        """End a trust; tokens that were exchanged are revoked."""
        request = pb.DeleteTrustedIssuerRequest(name=f"{self._session.parent}/trustedIssuers/{issuer_id}")
        self._stub().DeleteTrustedIssuer(request, timeout=self._session.timeout)

    def _stub(self) -> federation_service_pb2_grpc.FederationServiceStub:
        return federation_service_pb2_grpc.FederationServiceStub(self._session.channel("auth"))
