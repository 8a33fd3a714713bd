"""The rules about accounts, tokens, join tokens and sealing statements."""

from __future__ import annotations

import datetime
import hashlib
import hmac
import secrets
from dataclasses import dataclass, replace

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealane import names
from sealane.clock import Clock
from sealane.errors import FailedPrecondition, InvalidArgument, PermissionDenied, Unauthenticated
from sealane.records.tables import Actor
from sealane.security import jws, statements, suites, tokens
from sealane_auth import authority
from sealane_auth.authority import Signer
from sealane_auth.store import Account, EnrolledPeer, JoinToken, SigningKey, Store

ISSUER = tokens.ISSUER
AUDIENCES = ("sealane-auth", "sealane-registry", "sealane-scheduler", "sealane-inference")
SCOPES = (
    "admin",
    "models:read",
    "models:write",
    "infer",
    "deploy",
    "jobs:submit",
    "jobs:read",
    "jobs:cancel",
    "nodes:read",
    "reflect",
)
SERVICES = ("registry", "scheduler", "inference")
JOIN_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """What a client asks for."""

    client_id: str
    client_secret: str
    audience: str
    scope: str = ""
    key_thumbprint: str = ""


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """What it gets."""

    token: str
    token_type: str
    scope: str


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """A leaf with its chain, and whom it is for."""

    leaf: x509.Certificate
    chain: bytes
    peer: EnrolledPeer
    names: authority.LeafNames


class Issuer:
    """Issues everything that auth vouches for. Knows no transport and no database."""

    def __init__(self, clock: Clock, intermediate: Signer) -> None:
        self._clock = clock
        self._intermediate = intermediate

    def create_account(self, store: Store, actor: Actor, account_id: str, scopes: list[str]) -> tuple[Account, str]:
        """A new account in the actor's project, and its secret, which is nowhere else."""
        names.check_id(account_id, "service_account_id", label=True)
        unknown = sorted(set(scopes) - set(SCOPES))
        if unknown or not scopes:
            raise InvalidArgument(f"scopes {unknown} are unknown; use some of {list(SCOPES)}", field="scopes")
        account, secret = new_account(actor.project, account_id, tuple(sorted(set(scopes))), self._clock.now())
        store.add_account(account)
        name = f"projects/{actor.project}/serviceAccounts/{account_id}"
        store.record(actor, "CreateServiceAccount", name, self._clock.now(), scopes=" ".join(account.scopes))
        return account, secret

    def issue_token(self, store: Store, request: TokenRequest) -> IssuedToken:
        """A token for client credentials (RFC 6749 section 4.4)."""
        account = store.account_by_client(request.client_id)
        stored = account.secret_hash if account else "0" * 64
        if not hmac.compare_digest(_hash(request.client_secret), stored) or account is None:
            raise Unauthenticated("client id or secret is wrong; check both", reason="INVALID_CLIENT")
        if request.audience not in AUDIENCES:
            raise InvalidArgument(
                f"audience {request.audience!r} is unknown; use one of {list(AUDIENCES)}", field="audience"
            )
        if request.key_thumbprint and len(jws.decode(request.key_thumbprint)) != 32:
            raise InvalidArgument("key_thumbprint is no RFC 7638 SHA-256 thumbprint", field="key_thumbprint")
        wanted = request.scope.split() or list(account.scopes)
        excess = sorted(set(wanted) - set(account.scopes))
        if excess:
            raise PermissionDenied(f"the account does not hold {excess}; ask an admin", reason="SCOPE_MISSING")
        grant = tokens.Grant(
            subject=f"projects/{account.project}/serviceAccounts/{account.account_id}",
            client_id=account.client_id,
            project=account.project,
            audience=request.audience,
            scopes=wanted,
            key_thumbprint=request.key_thumbprint,
        )
        token = tokens.issue(grant, key=signing_key(store), issuer=ISSUER, now=self._clock.now())
        return IssuedToken(token, "DPoP" if request.key_thumbprint else "Bearer", " ".join(sorted(wanted)))

    def create_join_token(self, store: Store, actor: Actor, token: JoinToken) -> tuple[str, float]:
        """A join token's secret and when it expires; `token` says for whom, the rest is filled in."""
        names.check_id(token.subject, token.kind, label=True)
        if token.kind == "service" and token.subject not in SERVICES:
            raise InvalidArgument(f"service {token.subject!r} is unknown; use one of {list(SERVICES)}", field="service")
        if token.kind == "node" and token.attributes.get("tier") not in ("cloud", "edge"):
            raise InvalidArgument("a node needs attributes with tier 'cloud' or 'edge'", field="attributes.tier")
        if token.kind == "node" and token.attributes.get("clearance") not in ("public", "internal", "restricted"):
            raise InvalidArgument(
                "a node needs a clearance: 'public', 'internal' or 'restricted'", field="attributes.clearance"
            )
        secret = secrets.token_urlsafe(32)
        expires = self._clock.now() + JOIN_SECONDS
        store.add_join_token(replace(token, token_hash=_hash(secret), expires=expires))
        store.record(actor, "CreateJoinToken", f"{token.kind}s/{token.subject}", self._clock.now())
        return secret, expires

    def enroll(self, store: Store, join_token: str, request_pem: bytes) -> IssuedCertificate:
        """A certificate for a join token, which is used up."""
        token = store.take_join_token(_hash(join_token))
        if token is None or token.expires < self._clock.now():
            raise Unauthenticated(
                "the join token is unknown, used or expired; create a new one", reason="JOIN_TOKEN_REFUSED"
            )
        peer = EnrolledPeer(token.kind, token.subject, token.attributes, token.hosts)
        issued = self._certificate(peer, request_pem)
        store.put_peer(peer)
        actor = Actor(issued.names.spiffe_id, "")
        store.record(
            actor, "Enroll", issued.names.spiffe_id, self._clock.now(), serial=f"{issued.leaf.serial_number:x}"
        )
        return issued

    def renew(self, store: Store, kind: str, subject: str, request_pem: bytes) -> IssuedCertificate:
        """A new certificate for a peer that has joined, with the names it joined with."""
        peer = store.peer(kind, subject)
        if peer is None:
            raise FailedPrecondition(f"{kind} {subject} has not joined; enroll with a join token")
        issued = self._certificate(peer, request_pem)
        actor = Actor(issued.names.spiffe_id, "")
        store.record(actor, "RenewCertificate", issued.names.spiffe_id, self._clock.now())
        return issued

    def vouch(self, store: Store, node: str, suite: str, public_key: bytes) -> tuple[str, float]:
        """A sealing statement about a node's key, and when it expires."""
        peer, number = store.peer("node", node), suites.number_of(suite)
        if peer is None:
            raise FailedPrecondition(f"node {node} has not joined; enroll with a join token")
        if len(public_key) != suites.PUBLIC_BYTES[number]:
            raise InvalidArgument(
                f"a {suite} key has {suites.PUBLIC_BYTES[number]} bytes, not {len(public_key)}", field="public_key"
            )
        now = self._clock.now()
        statement = statements.issue(
            node=node, suite=number, public_key=public_key, attributes=peer.attributes, key=signing_key(store), now=now
        )
        actor = Actor(f"spiffe://sealane/node/{node}", "")
        store.record(actor, "PublishSealingKey", f"nodes/{node}", now, key_id=suites.key_id_of(public_key))
        return statement, now + statements.LIFETIME_SECONDS

    def _certificate(self, peer: EnrolledPeer, request_pem: bytes) -> IssuedCertificate:
        make = authority.service_names if peer.kind == "service" else authority.node_names
        leaf_names = make(peer.subject, peer.hosts)
        now = datetime.datetime.fromtimestamp(self._clock.now(), datetime.UTC)
        leaf = authority.issue_leaf(self._intermediate, request_pem, leaf_names, now)
        chain = leaf.public_bytes(serialization.Encoding.PEM) + self._intermediate.certificate_pem
        return IssuedCertificate(leaf, chain, peer, leaf_names)


def new_account(project: str, account_id: str, scopes: tuple[str, ...], now: float) -> tuple[Account, str]:
    """An account and its secret: 256 random bits, so a plain SHA-256 of it can be stored."""
    secret = secrets.token_urlsafe(32)
    client_id = f"{account_id}@{project}"
    return Account(project, account_id, client_id, _hash(secret), scopes, now, secrets.token_hex(8)), secret


def ensure_signing_key(store: Store, now: float) -> None:
    """Make the first signing key where there is none."""
    if store.signing_keys():
        return
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    store.add_signing_key(SigningKey(jws.thumbprint(key.public_key().public_bytes_raw()), pem, now))


def signing_key(store: Store) -> Ed25519PrivateKey:
    """The key that signs now."""
    return _private(store.signing_keys()[-1])


def public_keys(store: Store) -> dict[str, bytes]:
    """Raw public keys by kid, of every key whose signatures may still be about."""
    return {key.kid: _private(key).public_key().public_bytes_raw() for key in store.signing_keys()}


def _private(key: SigningKey) -> Ed25519PrivateKey:
    private = serialization.load_pem_private_key(key.private_pem, None)
    if not isinstance(private, Ed25519PrivateKey):
        raise FailedPrecondition("the stored signing key is not an Ed25519 key")
    return private


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
