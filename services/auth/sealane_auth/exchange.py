"""The rules of token exchange (RFC 8693): what comes out may do less than what went in, and never lives longer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from sealane.clock import Clock
from sealane.errors import InvalidArgument, PermissionDenied, Unauthenticated
from sealane.records.tables import Actor
from sealane.rpc.call import Quota
from sealane.security import permissions, tokens
from sealane.security.certificate import facts_of
from sealane.security.permissions import Grants
from sealane_auth.minting import ACCESS_TOKEN, Issued, Mint, Settings, Wanted
from sealane_auth.rights import account_of, check_prefix, grants_of, quota_claim
from sealane_auth.store import Store

GRANT_TYPE = "urn:ietf:params:oauth:grant-type:token-exchange"
EXTERNAL = ("urn:ietf:params:oauth:token-type:jwt", "urn:ietf:params:oauth:token-type:id_token")
CERTIFICATE = "urn:sealane:params:oauth:token-type:x509"
TYPES = (ACCESS_TOKEN, *EXTERNAL, CERTIFICATE)
#: All that a bearer token takes to another service or key: a worker that sees one must not change anything with it.
_CARRIED = frozenset({"models:read", "jobs:read", "nodes:read", "reflect"})
_MAX_PREFIXES = 16
#: Certificates are no secret: who brings one that he saw gets no further than where it was shown.
_FOR_CERTIFICATES = "sealane-inference"


class Certificates(Protocol):
    """Knows whose a certificate is."""

    def account_of_certificate(self, store: Store, chain_pem: bytes) -> str:
        """Name of the service account of a PEM chain; raises Unauthenticated for one that is not good now."""
        ...


@dataclass(frozen=True, slots=True)
class Federated:
    """An external token that was verified, and what it is worth.

    Args:
        issuer_name: resource name of the trust.
        project: whose trust.
        subject: subject here.
        client_id: client id here.
        grants: what the rules give.
        expires: when the external token ends, seconds since 1970.
    """

    issuer_name: str
    project: str
    subject: str
    client_id: str
    grants: Grants
    expires: float


@dataclass(frozen=True, slots=True)
class _Source:
    subject: str
    client_id: str
    project: str
    grants: Grants
    ends: float
    epoch: int
    actors: tuple[str, ...] = ()
    key_thumbprint: str = ""
    certificate_thumbprint: str = ""
    quota: tuple[Quota, Quota] | None = field(default=None)


class ExchangeRules:
    """Exchanges."""

    def __init__(self, clock: Clock, mint: Mint, certificates: Certificates, settings: Settings) -> None:
        self._clock = clock
        self._mint = mint
        self._certificates = certificates
        self._settings = settings

    def narrow(self, store: Store, claims: Mapping[str, object], wanted: Wanted, actor: str) -> Issued:
        """A token for one of ours.

        Args:
            store: the records.
            claims: of the subject token, verified.
            wanted: the token that is asked for.
            actor: who will act for the subject; empty for the subject itself.

        Raises:
            PermissionDenied: it would do more than the subject token, or name more than three actors.
        """
        wanted.check()
        identity = tokens.identity_of(claims)
        grants = Grants(identity.scopes, identity.models)
        bearer = not (identity.key_thumbprint or identity.certificate_thumbprint)
        # Binding counts as moving: else a thief bound it to a key of his own first, and then took it along.
        if bearer and (claims["aud"] != wanted.audience or wanted.key_thumbprint):
            grants = _carried(grants, wanted)
        source = _Source(
            subject=identity.subject,
            client_id=identity.client_id,
            project=identity.project,
            grants=grants,
            ends=identity.expires,
            epoch=identity.epoch,
            actors=tokens.actors_of(claims),
            key_thumbprint=identity.key_thumbprint,
            certificate_thumbprint=identity.certificate_thumbprint,
            quota=identity.quota,
        )
        return self._issue(store, source, wanted, actor)

    def for_certificate(self, store: Store, chain_pem: bytes, wanted: Wanted, actor: str) -> Issued:
        """A token for an account whose certificate the gateway saw; bound to that certificate.

        Raises:
            Unauthenticated: it is no account's certificate that is good now.
            PermissionDenied: a token that the gateway has no use for.
        """
        wanted.check()
        if wanted.audience != _FOR_CERTIFICATES:
            raise PermissionDenied(
                f"a certificate is exchanged for {_FOR_CERTIFICATES} alone", reason="CALLER_NOT_ALLOWED"
            )
        account = account_of(store, self._certificates.account_of_certificate(store, chain_pem))
        source = _Source(
            subject=account.name,
            client_id=account.client_id,
            project=account.project,
            grants=grants_of(store, account),
            ends=self._clock.now() + self._settings.token_seconds,
            epoch=store.revocations.epoch_of(account.name),
            certificate_thumbprint=facts_of(chain_pem).thumbprint,
            quota=quota_claim(store, account),
        )
        return self._issue(store, source, wanted, actor)

    def for_federated(self, store: Store, federated: Federated, wanted: Wanted, actor: str) -> Issued:
        """A token for one of a trusted external issuer, no longer than that one.

        Raises:
            PermissionDenied: no rule fits it.
        """
        wanted.check()
        _, project, _, issuer_id = federated.issuer_name.split("/")
        if store.issuers.issuer(project, issuer_id) is None:
            raise Unauthenticated("the issuer is not trusted any more", reason="ISSUER_UNKNOWN")
        if not federated.grants.scopes:
            raise PermissionDenied(
                "no rule of the project fits this token; ask an admin of the project", reason="NO_RULE_FITS"
            )
        project_quota = store.accounts.quota(f"projects/{federated.project}")
        source = _Source(
            subject=federated.subject,
            client_id=federated.client_id,
            project=federated.project,
            grants=federated.grants,
            ends=federated.expires,
            epoch=store.revocations.epoch_of(federated.subject),
            quota=(Quota(), Quota(*project_quota)) if project_quota and any(project_quota) else None,
        )
        issued = self._issue(store, source, wanted, actor)
        now = self._clock.now()
        store.issuers.remember_subject(federated.issuer_name, federated.subject, now + issued.expires_in + 60, now)
        who = Actor(federated.subject, federated.project)
        store.record(who, "ExchangeToken", federated.issuer_name, now, scopes=issued.scope, audience=wanted.audience)
        return issued

    def _issue(self, store: Store, source: _Source, wanted: Wanted, actor: str) -> Issued:
        grant = tokens.Grant(
            subject=source.subject,
            client_id=source.client_id,
            project=source.project,
            audience=wanted.audience,
            scopes=(),
            key_thumbprint=_bound_key(source, wanted),
            certificate_thumbprint=source.certificate_thumbprint,
            epoch=source.epoch,
            actors=_actors(source, actor),
            quota=source.quota,
            lifetime=self._lifetime(source, wanted),
        )
        granted = _narrowed(source.grants, wanted)
        issued = self._mint.sign(store, replace(grant, scopes=granted.scopes, models=granted.models))
        return replace(issued, issued_type=ACCESS_TOKEN)

    def _lifetime(self, source: _Source, wanted: Wanted) -> int:
        left = int(source.ends) - int(self._clock.now())
        if left < 1:
            raise Unauthenticated("the token has expired; get a new one", reason="TOKEN_EXPIRED")
        return min(left, self._settings.token_seconds, wanted.lifetime or left)


def _narrowed(grants: Grants, wanted: Wanted) -> Grants:
    scopes = wanted.scopes_of(grants)
    if len(wanted.model_prefixes) > _MAX_PREFIXES:
        raise InvalidArgument(f"at most {_MAX_PREFIXES} model prefixes", field="model_prefixes")
    for prefix in wanted.model_prefixes:
        if not prefix:
            raise InvalidArgument("an empty prefix limits nothing; leave it out", field="model_prefixes")
        check_prefix(prefix, "model_prefixes")
    found = permissions.narrowed(grants, scopes, wanted.model_prefixes)
    lost = sorted(set(wanted.scope.split()) - found.scopes - {"offline_access"})
    if lost or not found.scopes:
        raise PermissionDenied(
            f"scope {' '.join(lost) or 'of any kind'} is not held for these models", reason="SCOPE_MISSING"
        )
    return found


def _carried(grants: Grants, wanted: Wanted) -> Grants:
    carried = _CARRIED | {"infer"} if wanted.audience == "sealane-inference" else _CARRIED
    if set(wanted.scope.split()) & grants.scopes - carried:
        raise PermissionDenied(
            "a bearer token does not take these scopes to another service or key; ask with the credential",
            reason="SCOPE_NOT_CARRIED",
        )
    return permissions.narrowed(grants, grants.scopes & carried)


def _bound_key(source: _Source, wanted: Wanted) -> str:
    if wanted.key_thumbprint and source.certificate_thumbprint:
        raise PermissionDenied("the token is bound to a certificate and stays so", reason="TOKEN_BINDING")
    if wanted.key_thumbprint and source.key_thumbprint and wanted.key_thumbprint != source.key_thumbprint:
        raise PermissionDenied("the token is bound to another key and stays so", reason="TOKEN_BINDING")
    return source.key_thumbprint or wanted.key_thumbprint


def _actors(source: _Source, actor: str) -> tuple[str, ...]:
    if not actor or actor == source.subject or source.actors[:1] == (actor,):
        return source.actors
    if len(source.actors) >= tokens.MAX_ACTORS:
        raise PermissionDenied(
            f"{tokens.MAX_ACTORS} act for the subject already; exchange an earlier token", reason="TOO_MANY_ACTORS"
        )
    return (actor, *source.actors)
