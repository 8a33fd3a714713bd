"""Trusted external issuers: what is kept of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ClaimRule:
    """Which tokens get which roles.

    Args:
        claims: pattern by claim; all must fit.
        roles: what is granted then.
        model_prefix: limit to some models; empty for the whole project.
    """

    claims: Mapping[str, str]
    roles: tuple[str, ...]
    model_prefix: str = ""


@dataclass(frozen=True, slots=True)
class TrustedIssuer:
    """An external issuer that a project trusts.

    Args:
        project: the project.
        issuer_id: id below it.
        issuer: claim ``iss``, exactly.
        audience: audience that its tokens must name.
        jwks_uri: where its keys are; empty for what its discovery document says.
        jwks: its key set as JSON; empty where it is fetched.
        rules: what its tokens are worth.
        create_time: seconds since 1970.
    """

    project: str
    issuer_id: str
    issuer: str
    audience: str
    jwks_uri: str = ""
    jwks: str = ""
    rules: tuple[ClaimRule, ...] = field(default=())
    create_time: float = 0.0

    @property
    def name(self) -> str:
        """Resource name."""
        return f"projects/{self.project}/trustedIssuers/{self.issuer_id}"


class IssuerStore(Protocol):
    """Records of trusted issuers, inside one transaction."""

    def add_issuer(self, issuer: TrustedIssuer) -> None:
        """Add; a taken id raises AlreadyExists."""
        ...

    def issuer(self, project: str, issuer_id: str) -> TrustedIssuer | None:
        """An issuer by its id."""
        ...

    def issuers_of(self, project: str, issuer: str) -> list[TrustedIssuer]:
        """Issuers of a project with a claim ``iss``, by id."""
        ...

    def issuers(self, project: str, after: str, limit: int) -> list[TrustedIssuer]:
        """Issuers of a project by id, strictly after `after`."""
        ...

    def delete_issuer(self, project: str, issuer_id: str) -> bool:
        """Delete one; whether there was one."""
        ...

    def remember_subject(self, issuer_name: str, subject: str, until: float, now: float) -> None:
        """Keep that a subject got tokens through an issuer until a time; those whose time is over are forgotten."""
        ...

    def subjects(self, issuer_name: str, now: float) -> list[str]:
        """Subjects whose tokens may still be good, in order."""
        ...
