"""Who the client is: its secret or passphrase, a JWT that it signed, or its certificate on the mesh port.

RFC 6749 section 2.3, RFC 7523 section 3, RFC 8705 section 2. Three steps, since each has a place of its own:
:meth:`ClientChecks.look_up` on the database thread, :meth:`ClientChecks.prove` on a thread that may be kept busy, and
:func:`still_good` again in the transaction that issues.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from sealane.clock import Clock
from sealane.errors import InvalidArgument, Unauthenticated
from sealane.security import external_jwt, jws, tokens
from sealane.security.external_jwt import ExternalKey
from sealane_auth.account_store import Account, Credential
from sealane_auth.accounts import hash_secret
from sealane_auth.passphrases import Lockout, Passphrases, is_machine_secret
from sealane_auth.store import Store

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
CERTIFICATE = "certificate"
PASSPHRASE = "passphrase"  # noqa: S105  # the name of a kind
_ASSERTION_SECONDS = 600.0
_ASSERTION_HEADER = frozenset({"alg", "kid", "typ"})
#: Compared with where there is nothing to compare with, so that it costs the same.
_NO_HASH = "0" * 64


@dataclass(frozen=True, slots=True)
class Proof:
    """What a client brings.

    Args:
        client_id: who it says it is; may be empty where the proof says it.
        secret: secret or passphrase.
        assertion_type: must be :data:`ASSERTION_TYPE` where there is an assertion.
        assertion: signed JWT.
        account: resource name of the account in its certificate.
        endpoint: URL of the token endpoint that was asked; an assertion may name it as its audience.
    """

    client_id: str = ""
    secret: str = field(default="", repr=False)
    assertion_type: str = ""
    assertion: str = field(default="", repr=False)
    account: str = ""
    endpoint: str = ""

    @property
    def empty(self) -> bool:
        """Whether it proves nothing, not even wrongly."""
        return not (self.secret or self.assertion or self.account)


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the client that is named: nothing, where there is no such account."""

    client_id: str
    account: Account | None
    credentials: tuple[Credential, ...] = ()
    welcome: bool = False

    def of_kind(self, kind: str) -> list[Credential]:
        """Its credentials of one kind."""
        return [credential for credential in self.credentials if credential.kind == kind]


@dataclass(frozen=True, slots=True)
class Proven:
    """A client that has proved itself.

    Args:
        account: the account.
        credential_id: what it proved itself with; empty for a certificate.
        kind: ``secret``, ``passphrase``, ``public_key`` or ``certificate``.
        used_id: id that must not be used again; empty for none.
        until: seconds since 1970 until which that must be remembered.
    """

    account: Account
    credential_id: str
    kind: str
    used_id: str = ""
    until: float = 0.0


class ClientChecks:
    """Client authentication."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._passphrases = Passphrases()
        self._lockout = Lockout(clock)

    def look_up(self, store: Store, proof: Proof) -> Known:
        """What is known of the client that a proof names.

        Raises:
            InvalidArgument: more than one proof (RFC 6749 section 2.3), or an unknown type of assertion.
            Unauthenticated: no proof.
        """
        if sum(map(bool, (proof.secret, proof.assertion, proof.account))) > 1:
            raise InvalidArgument("prove the client in one way, not in several", reason="SEVERAL_PROOFS")
        if proof.empty:
            raise refused()
        if bool(proof.assertion) != bool(proof.assertion_type) or proof.assertion_type not in ("", ASSERTION_TYPE):
            raise InvalidArgument(
                f"client_assertion_type must be {ASSERTION_TYPE!r} with an assertion", field="client_assertion_type"
            )
        if proof.account:
            project, account_id = proof.account.split("/")[1::2]
            account = store.accounts.account(project, account_id)
        else:
            account = store.accounts.account_by_client(proof.client_id or _named(proof.assertion))
        if account is None or account.deleted:
            return Known(proof.client_id, None)
        now = self._clock.now()
        good = tuple(each for each in store.accounts.credentials(account.name) if each.good(now))
        return Known(account.client_id, account, good, _welcome(store, proof))

    def prove(self, known: Known, proof: Proof) -> Proven:
        """Check the proof. Blocks for some ten milliseconds where a passphrase may be meant.

        Raises:
            Unauthenticated: it proves nothing; the same words whatever is wrong.
            ResourceExhausted: too many passphrases at once, or too many wrong ones.
        """
        if proof.client_id and proof.client_id != known.client_id:
            raise refused()
        if proof.assertion:
            return self._by_assertion(known, proof)
        if proof.account:
            if known.account is None or not known.welcome:
                raise refused()
            return Proven(known.account, "", CERTIFICATE)
        return self._by_secret(known, proof)

    def _by_secret(self, known: Known, proof: Proof) -> Proven:
        given, found = hash_secret(proof.secret), None
        for credential in known.of_kind("secret"):
            if hmac.compare_digest(given, credential.value):
                found = credential
        hmac.compare_digest(given, _NO_HASH)
        if found is not None and known.account is not None:
            return Proven(known.account, found.credential_id, "secret")
        # What has the form of a machine secret is never a passphrase (see Passphrases.hash) and is refused at once.
        # Anything else costs one argon2id, whether the client exists, has a passphrase, or not: time tells nothing.
        if is_machine_secret(proof.secret):
            raise refused()
        return self._by_passphrase(known, proof)

    def _by_passphrase(self, known: Known, proof: Proof) -> Proven:
        self._lockout.check(proof.client_id)
        credentials = known.of_kind(PASSPHRASE)
        index = self._passphrases.matching(proof.secret, [credential.value for credential in credentials])
        if index < 0 or known.account is None:
            self._lockout.wrong(proof.client_id)
            raise refused()
        self._lockout.right(proof.client_id)
        return Proven(known.account, credentials[index].credential_id, PASSPHRASE)

    def _by_assertion(self, known: Known, proof: Proof) -> Proven:
        audiences = [tokens.ISSUER, *([proof.endpoint] if proof.endpoint else [])]
        for credential in known.of_kind("public_key"):
            key = ExternalKey.from_jwk(json.loads(credential.value))
            try:
                claims = _assertion_claims(proof.assertion, key, known.client_id, audiences, self._clock.now())
            except Unauthenticated:
                continue  # another key of the account may have signed it
            ends = self._end(claims)
            identifier = claims.get("jti")
            if claims.get("sub") != known.client_id or not isinstance(identifier, str) or not identifier or not ends:
                break
            used = f"{known.client_id}:{hash_secret(identifier)}"
            assert known.account is not None
            return Proven(
                known.account,
                credential.credential_id,
                "public_key",
                used,
                ends + 2 * external_jwt.LEEWAY_SECONDS,
            )
        raise refused()

    def _end(self, claims: Mapping[str, object]) -> float:
        """When a verified assertion stops working; 0 for one that is not acceptable.

        Ten minutes after it was signed, whatever its ``exp`` says: libraries are fond of an hour. One that does not say
        when it was signed must end within ten minutes from now.
        """
        now, issued = self._clock.now(), _number(claims.get("iat"))
        ends = min(_number(claims["exp"]), issued + _ASSERTION_SECONDS) if issued else _number(claims["exp"])
        acceptable = now - external_jwt.LEEWAY_SECONDS < ends <= now + _ASSERTION_SECONDS + external_jwt.LEEWAY_SECONDS
        return ends if acceptable else 0.0


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def use_up(store: Store, proven: Proven, now: float) -> None:
    """Let a proof that is good once be good no more.

    Raises:
        Unauthenticated: it was used before.
    """
    if proven.used_id and not store.sessions.use_id(proven.used_id, proven.until, now):
        raise Unauthenticated("the assertion was used before; sign a new one", reason="INVALID_CLIENT")


def still_good(store: Store, proven: Proven, now: float) -> Account:
    """The account as it is now, in the transaction that issues.

    Raises:
        Unauthenticated: account or credential was deleted, or has expired, since it was looked at.
    """
    account = store.accounts.account(proven.account.project, proven.account.account_id)
    if account is None or account.deleted:
        raise refused()
    if proven.kind != CERTIFICATE:
        credentials = store.accounts.credentials(account.name)
        if not any(each.credential_id == proven.credential_id and each.good(now) for each in credentials):
            raise refused()
    return account


def refused() -> Unauthenticated:
    """The one answer to a client that did not prove itself."""
    return Unauthenticated("client id or secret is wrong; check both", reason="INVALID_CLIENT")


def _assertion_claims(
    assertion: str, key: ExternalKey, client_id: str, audiences: list[str], now: float
) -> dict[str, object]:
    parts = jws.split(assertion, header_names=_ASSERTION_HEADER, limit=external_jwt.MAX_TOKEN_BYTES)
    if "kid" not in parts.header:
        # RFC 7523 asks for no key id: then each key of the account is tried.
        key = replace(key, kid=None)  # type: ignore[arg-type]
    named = jws.strict_object(parts.payload).get("aud")
    if isinstance(named, list) and len(named) == 1:
        (named,) = named
    # One audience and that is us: an assertion for several could be one that another server got.
    if named not in audiences or not isinstance(named, str):
        raise refused()
    return external_jwt.verify(assertion, [key], issuer=client_id, audience=named, now=now)


def _named(assertion: str) -> str:
    """The client that an assertion, not verified yet, says it is by."""
    if not assertion:
        return ""
    try:
        parts = jws.split(assertion, header_names=_ASSERTION_HEADER, limit=external_jwt.MAX_TOKEN_BYTES)
        return str(jws.strict_object(parts.payload).get("iss", ""))
    except Unauthenticated as error:
        raise refused() from error


def _welcome(store: Store, proof: Proof) -> bool:
    """Whether the certificate's account has joined and was not evicted."""
    peer = store.peers.peer("account", proof.account) if proof.account else None
    return peer is not None and not peer.evict_time
