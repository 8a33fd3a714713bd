"""The rules about projects, service accounts and their credentials."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sealane.clock import Clock
from sealane.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unauthenticated
from sealane.names import check_id
from sealane.records.tables import Actor
from sealane.security import jws, permissions
from sealane.security.external_jwt import ExternalKey
from sealane.security.permissions import Bound, Grants
from sealane.security.revocations import Kind, Revoked
from sealane_auth.account_store import Account, Credential, Project
from sealane_auth.rights import (
    RightRules,
    account_of,
    demand,
    demand_over,
    demand_platform_admin,
    is_platform_admin,
    touch,
)
from sealane_auth.store import Store

ADMIN = "admin"
MAX_CREDENTIALS = 10
_MAX_JWK_BYTES = 8192
#: RFC 7638 section 3.2: the members that a thumbprint is made of.
_REQUIRED_MEMBERS = {"RSA": ("e", "kty", "n"), "EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x")}


@dataclass(frozen=True, slots=True)
class NewCredential:
    """A credential that is asked for.

    Args:
        kind: ``secret``, ``passphrase`` or ``public_key``.
        value: hash of the passphrase in PHC form, or the public JWK as JSON; empty for a secret, which is made.
        expire_time: seconds since 1970; 0 for never.
    """

    kind: str = "secret"
    value: str = ""
    expire_time: float = 0.0


@dataclass(frozen=True, slots=True)
class NewAccount:
    """A service account that is asked for; `credential` None makes one that cannot prove itself yet."""

    project: str
    account_id: str
    scopes: Sequence[str] = ()
    roles: Sequence[str] = ()
    credential: NewCredential | None = NewCredential()


class AccountRules:
    """Projects, accounts and credentials. Knows no transport and no database."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.rights = RightRules(clock)

    def create_project(self, store: Store, actor: Actor, project: str) -> Project:
        """A new project.

        Raises:
            AlreadyExists: the id is taken.
        """
        check_id(project, "project_id", label=True)
        made = Project(project, self._clock.now())
        store.accounts.add_project(made)
        store.record(actor, "CreateProject", f"projects/{project}", made.create_time)
        return made

    def create_account(self, store: Store, actor: Actor, wanted: NewAccount) -> tuple[Account, str]:
        """A new account, and its secret, which is nowhere else; empty where it proves itself otherwise.

        Raises:
            AlreadyExists: the id is taken, or was.
            InvalidArgument: an unknown scope or role.
            PermissionDenied: it would hold more than the actor.
        """
        check_id(wanted.account_id, "service_account_id", label=True)
        unknown = sorted(set(wanted.scopes) - permissions.PERMISSIONS)
        if unknown or not (wanted.scopes or wanted.roles):
            allowed = sorted(permissions.PERMISSIONS)
            raise InvalidArgument(f"scopes {unknown} are unknown; use some of {allowed}, or roles", field="scopes")
        bounds = [Bound(role) for role in dict.fromkeys(wanted.roles)]
        for bound in bounds:
            permissions.check(bound)
        demand(store, actor, permissions.grants_of(bounds, wanted.scopes))
        return self._add(store, actor, wanted, bounds)

    def create_project_admin(self, store: Store, actor: Actor, project: str, account_id: str) -> tuple[Account, str]:
        """The first administrator of a new project, and its secret."""
        check_id(account_id, "admin_account_id", label=True)
        demand(store, actor, permissions.grants_of([Bound(ADMIN)]))
        return self._add(store, actor, NewAccount(project, account_id), [Bound(ADMIN)])

    def create_first_admin(self, store: Store, project: str) -> tuple[Account, str]:
        """The administrator of the platform that the first start makes, with its project, and its secret."""
        actor = Actor("spiffe://sealane/service/auth", project)
        if store.accounts.project(project) is None:
            self.create_project(store, actor, project)
        return self._add(store, actor, NewAccount(project, ADMIN), [Bound(ADMIN, platform=True)])

    def delete_account(self, store: Store, actor: Actor, name: str) -> None:
        """Delete an account; its tokens, refresh tokens and certificate are revoked.

        Raises:
            NotFound: no such account.
            FailedPrecondition: it is the last platform administrator.
        """
        account, now = account_of(store, name), self._clock.now()
        demand_over(store, actor, account)
        was_admin = is_platform_admin(store, account)
        for binding in store.accounts.bindings(account.project, name):
            store.accounts.delete_binding(account.project, binding.binding_id)
        if was_admin:
            demand_platform_admin(store)
        store.accounts.delete_credentials(name)
        store.accounts.put_account(replace(account, scopes=(), deleted=True))
        store.sessions.delete_sessions(name)
        store.revocations.revoke_subject(name, now)
        store.peers.forget_join_tokens("account", name)
        peer = store.peers.peer("account", name)
        if peer is not None:
            store.peers.put_peer(replace(peer, evict_time=now))
            store.revocations.add(Revoked(Kind.PEER, f"spiffe://sealane/{name}", number=now), now)
        store.record(actor, "DeleteServiceAccount", name, now)

    def create_credential(self, store: Store, actor: Actor, name: str, wanted: NewCredential) -> tuple[Credential, str]:
        """A further credential of an account, and its secret where it is one.

        Raises:
            PermissionDenied: the account may do more than the actor, who would get at its rights so.
            FailedPrecondition: it has ten.
        """
        account = account_of(store, name, "parent")
        demand_over(store, actor, account)
        if len(store.accounts.credentials(name)) >= MAX_CREDENTIALS:
            raise FailedPrecondition(f"{name} has {MAX_CREDENTIALS} credentials; delete one first")
        made = self._add_credential(store, actor, account, wanted)
        touch(store, account)
        return made

    def delete_credential(self, store: Store, actor: Actor, name: str, credential_id: str) -> None:
        """Delete a credential and revoke the account's tokens, since any may have been got with it.

        Raises:
            NotFound: no such credential.
        """
        account, now = account_of(store, name), self._clock.now()
        if not store.accounts.delete_credentials(name, credential_id):
            raise NotFound(f"{name}/credentials/{credential_id} does not exist; check the name")
        demand_over(store, actor, account)
        store.revocations.revoke_subject(name, now)
        store.sessions.delete_sessions(name)
        touch(store, account)
        store.record(actor, "DeleteCredential", f"{name}/credentials/{credential_id}", now)

    def _add(self, store: Store, actor: Actor, wanted: NewAccount, bounds: Sequence[Bound]) -> tuple[Account, str]:
        if store.accounts.account(wanted.project, wanted.account_id) is not None:
            raise AlreadyExists(
                f"service account {wanted.account_id} exists, or did; choose another id", field="service_account_id"
            )
        account = Account(
            project=wanted.project,
            account_id=wanted.account_id,
            client_id=f"{wanted.account_id}@{wanted.project}",
            scopes=tuple(sorted(set(wanted.scopes))),
            create_time=self._clock.now(),
            etag=secrets.token_hex(8),
        )
        store.accounts.put_account(account)
        details = {"scopes": " ".join(account.scopes), "roles": " ".join(bound.role for bound in bounds)}
        store.record(actor, "CreateServiceAccount", account.name, account.create_time, **details)
        secret = ""
        if wanted.credential is not None:
            _, secret = self._add_credential(store, actor, account, wanted.credential)
        for bound in bounds:
            self.rights.add(store, actor, account, bound)
        return account_of(store, account.name), secret

    def _add_credential(
        self, store: Store, actor: Actor, account: Account, wanted: NewCredential
    ) -> tuple[Credential, str]:
        now, secret, value = self._clock.now(), "", wanted.value
        if wanted.expire_time and wanted.expire_time <= now:
            raise InvalidArgument("the credential would have expired already", field="credential.expire_time")
        if wanted.kind == "secret":
            secret = secrets.token_urlsafe(32)  # 256 random bits, so a plain SHA-256 of it can be stored
            value = hash_secret(secret)
        elif wanted.kind == "public_key":
            value = checked_jwk(value)
        credential = Credential(account.name, secrets.token_hex(8), wanted.kind, value, now, wanted.expire_time)
        store.accounts.put_credential(credential)
        name = f"{account.name}/credentials/{credential.credential_id}"
        store.record(actor, "CreateCredential", name, now, kind=wanted.kind)
        return credential, secret


def hash_secret(secret: str) -> str:
    """What is stored of a random secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def checked_jwk(text: str) -> str:
    """A public JWK that can verify client assertions, with its ``kid``; without one it gets its RFC 7638 thumbprint.

    Raises:
        InvalidArgument: no JWK, a private or weak key, or one of a kind that is not supported.
    """
    if len(text) > _MAX_JWK_BYTES:
        raise InvalidArgument("the key is too large", field="credential.public_key_jwk")
    try:
        jwk = jws.strict_object(text.encode())
    except Unauthenticated as error:
        raise InvalidArgument(
            "this is no JWK; send the public key as JSON", field="credential.public_key_jwk"
        ) from error
    if "kid" not in jwk:
        members = {name: jwk.get(name) for name in _REQUIRED_MEMBERS.get(str(jwk.get("kty")), ())}
        canonical = json.dumps(members, separators=(",", ":")).encode()
        jwk["kid"] = base64.urlsafe_b64encode(hashlib.sha256(canonical).digest()).rstrip(b"=").decode()
    try:
        ExternalKey.from_jwk(jwk)
    except (InvalidArgument, Unauthenticated) as error:
        raise InvalidArgument(error.message, reason=error.reason, field="credential.public_key_jwk") from error
    return json.dumps(jwk, separators=(",", ":"))


def held_by(store: Store, account: Account) -> tuple[Grants, list[str]]:
    """What an account may do, and the roles that it holds in the whole project."""
    bindings = store.accounts.bindings(account.project, account.name)
    bounds = [Bound(each.role, each.model_prefix, each.platform) for each in bindings]
    roles = sorted({bound.role for bound in bounds if not bound.model_prefix})
    return permissions.grants_of(bounds, account.scopes), roles
