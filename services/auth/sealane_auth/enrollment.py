"""The rules of joining: join tokens, certificates, device keys, eviction, sealing statements, offline grants."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import math
import re
import secrets
from dataclasses import dataclass, replace

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from sealane import names
from sealane.clock import Clock
from sealane.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Unauthenticated
from sealane.records.tables import Actor
from sealane.rpc.call import TRUST_DOMAIN
from sealane.security import statements, suites
from sealane.security.certificate import key_id_of
from sealane.security.device import DeviceProofs
from sealane.security.permissions import PLATFORM_PERMISSIONS, Grants
from sealane.security.revocations import Kind, Revoked
from sealane_auth import authority
from sealane_auth.authority_files import Authority
from sealane_auth.peer_store import JoinToken, Offline, Peer, VouchedKey
from sealane_auth.rights import account_of, demand, demand_over
from sealane_auth.signing import Keyring
from sealane_auth.store import Store

SERVICES = ("registry", "scheduler", "inference")
JOIN_SECONDS = 3600.0
LONGEST_OFFLINE_SECONDS = 30 * 86_400.0
#: Device keys of one service that are good at the same time: so many processes of it may run.
REPLICAS = 4
#: RFC 1123 section 2.1, and the underscore that container names have.
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*")
_MESH = "sealane"
_NAMES = {"service": authority.service_names, "node": authority.node_names, "relay": authority.relay_names}


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """A leaf with its chain, and whom it is for."""

    leaf: x509.Certificate
    chain: bytes
    peer: Peer
    spiffe_id: str


class Enrollment:
    """Issues what peers need to be peers."""

    def __init__(self, clock: Clock, signer: Authority, keyring: Keyring) -> None:
        self._clock = clock
        self._authority = signer
        self._keyring = keyring
        self._proofs = DeviceProofs(clock)

    @property
    def trust_bundle(self) -> bytes:
        """Root certificates, PEM."""
        return self._authority.trust_bundle

    def create_join_token(self, store: Store, actor: Actor, token: JoinToken) -> tuple[str, float]:
        """A join token's secret and when it expires; `token` says for whom, the rest is filled in.

        Raises:
            PermissionDenied: who joins with it may do more than the actor.
            InvalidArgument: there is no such service, or a node would have another's names.
        """
        _check_subject(store, token)
        _demand_subject(store, actor, token)
        secret = secrets.token_urlsafe(32)
        expires = self._clock.now() + JOIN_SECONDS
        store.peers.forget_expired_join_tokens(self._clock.now())
        store.peers.add_join_token(replace(token, token_hash=_hash(secret), expires=expires))
        store.record(actor, "CreateJoinToken", spiffe_id_of(token.kind, token.subject), self._clock.now())
        return secret, expires

    def enroll(self, store: Store, join_token: str, request_pem: bytes, device_proof: str) -> IssuedCertificate:
        """A certificate for a join token, which is used up. The device key is kept for :meth:`reenroll`."""
        now = self._clock.now()
        token = store.peers.take_join_token(_hash(join_token))
        if token is None or token.expires < now:
            raise Unauthenticated(
                "the join token is unknown, used or expired; create a new one", reason="JOIN_TOKEN_REFUSED"
            )
        device_key = self._proofs.verify(device_proof, request_pem) if device_proof else b""
        before = store.peers.peer(token.kind, token.subject)
        joined = max(now, before.evict_time if before is not None else 0.0)
        if before is not None and device_key:
            device_key += _of_replicas(before, device_key)
        peer = Peer(token.kind, token.subject, token.attributes, token.hosts, device_key, token.offline, joined)
        issued = self._certificate(peer, request_pem)
        store.peers.put_peer(peer)
        actor = Actor(issued.spiffe_id, "")
        store.record(actor, "Enroll", issued.spiffe_id, now, serial=f"{issued.leaf.serial_number:x}")
        return issued

    def reenroll(self, store: Store, spiffe_id: str, request_pem: bytes, device_proof: str) -> IssuedCertificate:
        """A certificate for a proof by the device key that joined."""
        peer = _joined(store, spiffe_id)
        if peer is None or not peer.device_key:
            raise Unauthenticated(
                "no peer of this name joined with a device key; enroll with a join token", reason="DEVICE_PROOF_REFUSED"
            )
        self._proofs.verify(device_proof, request_pem, peer.device_key)
        issued = self._welcome(peer, request_pem)
        store.record(Actor(spiffe_id, ""), "Reenroll", spiffe_id, self._clock.now())
        return issued

    def renew(self, store: Store, spiffe_id: str, request_pem: bytes, device_proof: str = "") -> IssuedCertificate:
        """A new certificate for a peer that has joined, with the names it joined with."""
        peer = _joined(store, spiffe_id)
        if peer is None:
            raise FailedPrecondition(f"{spiffe_id} has not joined; enroll with a join token")
        if peer.device_key:
            self._proofs.verify(device_proof, request_pem, peer.device_key)
        issued = self._welcome(peer, request_pem)
        store.record(Actor(spiffe_id, ""), "RenewCertificate", spiffe_id, self._clock.now())
        return issued

    def evict(self, store: Store, actor: Actor, spiffe_id: str, cause: str) -> Peer:
        """Refuse a peer from now on; a join token is its way back."""
        now, peer = self._clock.now(), _joined(store, spiffe_id)
        if peer is None:
            raise NotFound(f"{spiffe_id} has not joined; list the peers")
        # One that was made before would be a way back for who is put out.
        store.peers.forget_join_tokens(peer.kind, peer.subject)
        if peer.evict_time:
            return peer
        # Certificates begin at whole seconds: each that was issued begins before this one, each later one does not.
        refused_before = max(math.floor(now), math.floor(peer.join_time) + 1)
        evicted = replace(peer, evict_time=refused_before)
        store.peers.put_peer(evicted)
        if peer.kind == "node":
            store.peers.forget_statement(peer.subject)
        life = self._authority.lives.leaf.total_seconds()
        store.revocations.add(Revoked(Kind.PEER, spiffe_id, number=refused_before), now, now + 2 * life)
        store.record(actor, "EvictPeer", spiffe_id, now, cause=cause[:200])
        return evicted

    def rotate_intermediate(self, store: Store, actor: Actor, *, distrust: bool) -> x509.Certificate:
        """A new intermediate; with `distrust`, what all those before have signed is refused."""
        now = self._clock.now()
        if distrust:
            # The files change before the commit. Were that lost, the repeat finds the intermediate among the former.
            known = store.revocations.issuers(now)
            for certificate in self._authority.intermediates:
                expires, key_id = certificate.not_valid_after_utc.timestamp(), key_id_of(certificate)
                if expires > now and key_id not in known:
                    store.revocations.add(Revoked(Kind.ISSUER, key_id), now, expires)
        before = self._authority.rotate(datetime.datetime.fromtimestamp(now, datetime.UTC))
        store.record(actor, "RotateIntermediate", "intermediate", now, distrust=str(distrust).lower(), before=before)
        return self._authority.signer.certificate

    def own_certificate(self, hosts: tuple[str, ...], request_pem: bytes) -> IssuedCertificate:
        """Auth's own leaf."""
        return self._certificate(Peer("service", "auth", {}, hosts), request_pem)

    def vouch(self, store: Store, node: str, suite: str, public_key: bytes) -> tuple[str, float]:
        """A sealing statement about a node's key, and when it expires."""
        peer, number = _welcome_node(store, node), suites.number_of(suite)
        if len(public_key) != suites.PUBLIC_BYTES[number]:
            raise InvalidArgument(
                f"a {suite} key has {suites.PUBLIC_BYTES[number]} bytes, not {len(public_key)}", field="public_key"
            )
        now, key = self._clock.now(), self._keyring.signing(store.keys)
        statement = statements.issue(
            node=node, suite=number, public_key=public_key, attributes=peer.attributes, key=key, now=now
        )
        actor = Actor(spiffe_id_of("node", node), "")
        expires = now + statements.LIFETIME_SECONDS
        key_id = suites.key_id_of(public_key)
        store.peers.put_statement(VouchedKey(node, key_id, statement, expires), now)
        store.record(actor, "PublishSealingKey", f"nodes/{node}", now, key_id=key_id)
        return statement, expires

    def account_of_certificate(self, store: Store, chain_pem: bytes) -> str:
        """The service account of a certificate that this authority issued and that is good now.

        Raises:
            Unauthenticated: it is not, or its holder was evicted.
        """
        now = datetime.datetime.fromtimestamp(self._clock.now(), datetime.UTC)
        distrusted = store.revocations.issuers(self._clock.now())
        trusted = [each for each in self._authority.intermediates if key_id_of(each) not in distrusted]
        # The leaf alone: a distrusted intermediate that came with it would verify.
        leaf_pem = b"".join(chain_pem.partition(b"-----END CERTIFICATE-----")[:2]) + b"\n"
        spiffe_id = authority.verified_name(self._authority.trust_bundle, trusted, leaf_pem, now)
        peer = _joined(store, spiffe_id)
        if peer is None or peer.kind != "account" or peer.evict_time:
            raise Unauthenticated("the certificate is no service account's", reason="CERTIFICATE_REFUSED")
        return peer.subject

    def _welcome(self, peer: Peer, request_pem: bytes) -> IssuedCertificate:
        if peer.evict_time:
            raise PermissionDenied(
                f"{spiffe_id_of(peer.kind, peer.subject)} was evicted; an operator must let it join again",
                reason="PEER_EVICTED",
            )
        return self._certificate(peer, request_pem)

    def _certificate(self, peer: Peer, request_pem: bytes) -> IssuedCertificate:
        leaf_names = _names(peer)
        # Not before it joined, since certificates that begin before an eviction are refused.
        leaf = self._authority.issue(request_pem, leaf_names, self._clock.now(), math.floor(peer.join_time))
        chain = leaf.public_bytes(serialization.Encoding.PEM) + self._authority.signer.certificate_pem
        return IssuedCertificate(leaf, chain, peer, leaf_names.spiffe_id)


def spiffe_id_of(kind: str, subject: str) -> str:
    """The SPIFFE id of a peer."""
    return f"{TRUST_DOMAIN}{subject}" if kind == "account" else f"{TRUST_DOMAIN}{kind}/{subject}"


def _names(peer: Peer) -> authority.LeafNames:
    if peer.kind == "account":
        return authority.account_names(peer.subject)
    return _NAMES[peer.kind](peer.subject, peer.hosts)


def _of_replicas(before: Peer, newest: bytes) -> bytes:
    """Device keys that stay good when a service joins again: another process of it may be there, and goes on.

    None of who was evicted. A node or an account is one process, and joins again in place of what it was.
    """
    if before.kind != "service" or before.evict_time:
        return b""
    keys = [before.device_key[at : at + 32] for at in range(0, len(before.device_key), 32)]
    return b"".join([key for key in keys if key != newest][: REPLICAS - 1])


def _joined(store: Store, spiffe_id: str) -> Peer | None:
    rest = spiffe_id.removeprefix(TRUST_DOMAIN)
    if rest == spiffe_id:
        raise InvalidArgument(f"{spiffe_id!r} is no SPIFFE id of this suite", field="spiffe_id")
    if rest.startswith("projects/"):
        return store.peers.peer("account", rest)
    kind, _, subject = rest.partition("/")
    return store.peers.peer(kind, subject)


def _welcome_node(store: Store, node: str) -> Peer:
    peer = store.peers.peer("node", node)
    if peer is None or peer.evict_time:
        raise FailedPrecondition(f"node {node} has not joined; enroll with a join token")
    return peer


def _check_subject(store: Store, token: JoinToken) -> None:
    if token.kind == "account":
        project, account_id = names.parse(token.subject, "projects/*/serviceAccounts/*", "account")
        account = store.accounts.account(project, account_id)
        if account is None or account.deleted:
            raise NotFound(f"{token.subject} does not exist, or is not yours to see; check the name")
    else:
        names.check_id(token.subject, token.kind, label=True)
    if token.kind == "service" and token.subject not in SERVICES:
        raise InvalidArgument(f"service {token.subject!r} is unknown; use one of {list(SERVICES)}", field="service")
    if token.kind == "node":
        _check_node(token.attributes)
    for host in token.hosts:
        _check_host(host)
    _check_offline(token.kind, token.attributes, token.offline)


def _demand_subject(store: Store, actor: Actor, token: JoinToken) -> None:
    """Nodes belong to who manages the fleet; an account's certificate holds its rights, a service's those of all."""
    if token.kind == "account":
        demand_over(store, actor, account_of(store, token.subject, "account"))
    elif token.kind == "service":
        demand(store, actor, Grants(PLATFORM_PERMISSIONS, {}))


def _check_host(host: str) -> None:
    try:
        ipaddress.ip_address(host)
        return
    except ValueError:
        pass
    if len(host) > 253 or not _HOST.fullmatch(host):
        raise InvalidArgument("a host is an IP address, or a name of ASCII letters, digits, '-' and '.'", field="hosts")
    if host.lower().rpartition(".")[2] == _MESH:
        raise InvalidArgument(f"names that end in {_MESH!r} are the mesh's own; leave them out", field="hosts")


def _check_node(attributes: dict[str, str]) -> None:
    if attributes.get("tier") not in ("cloud", "edge"):
        raise InvalidArgument("a node needs attributes with tier 'cloud' or 'edge'", field="attributes.tier")
    if attributes.get("clearance") not in ("public", "internal", "restricted"):
        raise InvalidArgument(
            "a node needs a clearance: 'public', 'internal' or 'restricted'", field="attributes.clearance"
        )
    if attributes.get("relay"):
        names.check_id(attributes["relay"], "attributes.relay", label=True)


def _check_offline(kind: str, attributes: dict[str, str], offline: Offline) -> None:
    if not offline.ttl and not offline.accounts:
        return
    if kind != "node" or attributes.get("tier") != "edge":
        raise InvalidArgument("only an edge node can serve its site alone", field="offline_ttl")
    if not 0 < offline.ttl <= LONGEST_OFFLINE_SECONDS:
        raise InvalidArgument("offline_ttl is more than 0 and at most 30 days", field="offline_ttl")
    for account in offline.accounts:
        names.parse(account, "projects/*/serviceAccounts/*", "site_accounts")


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
