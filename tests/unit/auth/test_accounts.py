"""Projects, accounts, credentials, roles and quotas: who may have them, and who may give them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from auth_records import Auth, in_memory

from sealane.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
)
from sealane.records.tables import Actor
from sealane.rpc.call import Quota
from sealane.security.permissions import Bound
from sealane_auth.accounts import MAX_CREDENTIALS, NewAccount, NewCredential
from sealane_auth.clients import Proof
from sealane_auth.minting import Wanted


@pytest.fixture
def auth() -> Iterator[Auth]:
    with in_memory() as made:
        yield made


def project_admin(auth: Auth) -> Actor:
    """An administrator of the project who is not one of the platform."""
    account, _ = auth.account("keeper", "admin")
    return Actor(account.name, "p")


def test_roles_decide_what_an_account_may_do(auth: Auth) -> None:
    camera, secret = auth.account("camera", "invoker")
    assert auth.identity(auth.token(camera, secret)).scopes == {"infer", "reflect"}
    with pytest.raises(PermissionDenied):
        auth.token(camera, secret, "models:write")
    bound = auth.accounts.rights.bind(auth.store, auth.admin, camera.name, Bound("publisher", "digits-"))
    identity = auth.identity(auth.token(camera, secret))
    assert identity.may_use("models:write", "digits-7") and not identity.may_use("models:write", "faces")
    assert "models" not in identity.models and identity.may_use("infer", "faces")
    auth.accounts.rights.unbind(auth.store, auth.admin, "p", bound.binding_id)
    assert "models:write" not in auth.identity(auth.token(camera, secret)).scopes


def test_the_platforms_first_admin_holds_everything(auth: Auth) -> None:
    proven = auth.prove(Proof("admin@p", auth.admin_secret))
    token = auth.tokens.issue(auth.store, proven, Wanted("sealane-auth")).token
    assert {"admin", "fleet", "projects", "keys", "audit:export", "infer"} <= auth.identity(token).scopes


def test_taking_rights_away_revokes_what_was_got_with_them(auth: Auth) -> None:
    camera, secret = auth.account("camera", "invoker", "publisher")
    old = auth.token(camera, secret)
    auth.identity(old)
    (binding, _) = auth.store.accounts.bindings("p", camera.name)
    auth.accounts.rights.unbind(auth.store, auth.admin, "p", binding.binding_id)
    with pytest.raises(Unauthenticated):
        auth.identity(old)
    newer = auth.token(camera, secret)
    auth.add(camera, "secret", "")
    auth.identity(newer)  # more rights or credentials revoke nothing
    credential = auth.store.accounts.credentials(camera.name)[0]
    auth.accounts.delete_credential(auth.store, auth.admin, camera.name, credential.credential_id)
    with pytest.raises(Unauthenticated):
        auth.identity(newer)
    with pytest.raises(Unauthenticated):
        auth.token(camera, secret)


def test_nobody_gives_what_he_does_not_hold(auth: Auth) -> None:
    keeper = project_admin(auth)
    auth.accounts.create_account(auth.store, keeper, NewAccount("p", "reader", (), ("viewer",)))
    reader = Actor("projects/p/serviceAccounts/reader", "p")
    for wanted in (NewAccount("p", "x", ("admin",)), NewAccount("p", "x", (), ("publisher",))):
        with pytest.raises(PermissionDenied):
            auth.accounts.create_account(auth.store, reader, wanted)
    with pytest.raises(PermissionDenied):
        auth.accounts.create_account(auth.store, keeper, NewAccount("p", "x", ("fleet",)))
    with pytest.raises(PermissionDenied):
        auth.accounts.rights.bind(auth.store, keeper, reader.subject, Bound("operator", platform=True))
    auth.accounts.rights.bind(auth.store, auth.admin, reader.subject, Bound("operator", platform=True))
    federated = Actor("projects/p/federated/github/x", "p")
    with pytest.raises(PermissionDenied):
        auth.accounts.create_account(auth.store, federated, NewAccount("p", "x", (), ("viewer",)))


def test_a_stronger_account_is_no_way_to_its_rights(auth: Auth) -> None:
    keeper, root = project_admin(auth), auth.admin.subject
    (credential,) = auth.store.accounts.credentials(root)
    (binding,) = auth.store.accounts.platform_bindings()
    attempts = (
        lambda: auth.accounts.create_credential(auth.store, keeper, root, NewCredential()),
        lambda: auth.accounts.delete_credential(auth.store, keeper, root, credential.credential_id),
        lambda: auth.accounts.delete_account(auth.store, keeper, root),
        lambda: auth.accounts.rights.unbind(auth.store, keeper, "p", binding.binding_id),
    )
    for attempt in attempts:
        savepoint = auth.connection.begin_nested()
        with pytest.raises(PermissionDenied):
            attempt()
        savepoint.rollback()
    assert auth.prove(Proof("admin@p", auth.admin_secret)).kind == "secret"


def test_the_last_platform_admin_stays(auth: Auth) -> None:
    (binding,) = auth.store.accounts.platform_bindings()
    for attempt in (
        lambda: auth.accounts.rights.unbind(auth.store, auth.admin, "p", binding.binding_id),
        lambda: auth.accounts.delete_account(auth.store, auth.admin, auth.admin.subject),
    ):
        savepoint = auth.connection.begin_nested()
        with pytest.raises((FailedPrecondition, PermissionDenied)):
            attempt()
        savepoint.rollback()
    second, _ = auth.account("second", "viewer")
    auth.accounts.rights.bind(auth.store, auth.admin, second.name, Bound("admin", platform=True))
    auth.accounts.delete_account(auth.store, Actor(second.name, "p"), auth.admin.subject)
    with pytest.raises(FailedPrecondition) as caught:
        auth.accounts.delete_account(auth.store, Actor(second.name, "p"), second.name)
    assert caught.value.reason == "LAST_ADMIN"


def test_a_deleted_accounts_id_is_gone_for_good(auth: Auth) -> None:
    camera, secret = auth.account("camera", "invoker")
    token = auth.token(camera, secret)
    auth.join(camera)
    auth.accounts.delete_account(auth.store, auth.admin, camera.name)
    with pytest.raises(Unauthenticated):
        auth.identity(token)
    with pytest.raises(Unauthenticated):
        auth.prove(Proof(account=camera.name))
    with pytest.raises(AlreadyExists):
        auth.account("camera", "invoker")
    with pytest.raises(NotFound):
        auth.accounts.delete_account(auth.store, auth.admin, camera.name)
    assert [each.account_id for each in auth.store.accounts.accounts("p", "", 10)] == ["admin"]


def test_credentials_are_few_expire_and_hold_no_secret(auth: Auth) -> None:
    camera, first = auth.account("camera", "invoker")
    expiring = NewCredential("secret", "", auth.clock.now() + 60)
    _, second = auth.accounts.create_credential(auth.store, auth.admin, camera.name, expiring)
    auth.token(camera, first), auth.token(camera, second)
    auth.clock.advance(61)
    auth.token(camera, first)
    with pytest.raises(Unauthenticated):
        auth.token(camera, second)
    for _ in range(MAX_CREDENTIALS - 2):
        auth.add(camera, "secret", "")
    with pytest.raises(FailedPrecondition):
        auth.add(camera, "secret", "")
    tables = [name for (name,) in auth.connection.execute(sa.text("SELECT name FROM sqlite_master WHERE type='table'"))]
    for table in tables:
        for row in auth.connection.execute(sa.text(f'SELECT * FROM "{table}"')):
            assert first not in str(row) and second not in str(row)


@pytest.mark.parametrize(
    "jwk",
    [
        {},
        {"kty": "oct", "k": "c2VjcmV0"},
        {"kty": "OKP", "crv": "Ed25519", "x": "AAAA", "kid": "short"},
        {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", "d": "AAAA"},
    ],
)
def test_strange_keys_are_no_credentials(auth: Auth, jwk: dict[str, str]) -> None:
    camera, _ = auth.account("camera", "invoker")
    with pytest.raises(InvalidArgument):
        auth.add(camera, "public_key", json.dumps(jwk))


def test_a_key_without_an_id_gets_its_thumbprint(auth: Auth) -> None:
    # The key and thumbprint of RFC 8037 appendix A.
    camera, _ = auth.account("camera", "invoker")
    auth.add(
        camera,
        "public_key",
        json.dumps({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}),
    )
    stored = json.loads(auth.store.accounts.credentials(camera.name)[-1].value)
    assert stored["kid"] == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_quotas_travel_in_tokens(auth: Auth) -> None:
    camera, secret = auth.account("camera", "invoker")
    assert "quota" not in auth.claims(auth.token(camera, secret))
    auth.accounts.rights.set_quota(auth.store, auth.admin, camera.name, Quota(10.5, 1000, 4))
    auth.accounts.rights.set_quota(auth.store, auth.admin, "projects/p", Quota(100, 0, 0))
    assert auth.identity(auth.token(camera, secret)).quota == (Quota(10.5, 1000, 4), Quota(100, 0, 0))
    auth.accounts.rights.set_quota(auth.store, auth.admin, camera.name, Quota())
    auth.accounts.rights.set_quota(auth.store, auth.admin, "projects/p", Quota())
    assert "quota" not in auth.claims(auth.token(camera, secret))
    for bad in (Quota(-1), Quota(float("nan")), Quota(0, -1), Quota(0, 0, -1), Quota(float("inf"))):
        with pytest.raises(InvalidArgument):
            auth.accounts.rights.set_quota(auth.store, auth.admin, camera.name, bad)
    for absent in ("projects/q", "projects/p/serviceAccounts/nobody"):
        with pytest.raises(NotFound):
            auth.accounts.rights.set_quota(auth.store, auth.admin, absent, Quota())


def test_projects_are_apart(auth: Auth) -> None:
    creator = Actor(auth.admin.subject, "q")
    auth.accounts.create_project(auth.store, creator, "q")
    with pytest.raises(AlreadyExists):
        auth.accounts.create_project(auth.store, creator, "q")
    auth.account("camera", "invoker", project="q")
    with pytest.raises(NotFound):
        auth.accounts.rights.bind(auth.store, auth.admin, "projects/q/serviceAccounts/camera", Bound("viewer"))


@pytest.mark.parametrize(
    "bound", [Bound("emperor"), Bound("admin", "digits"), Bound("invoker", platform=True), Bound("viewer", "a/b")]
)
def test_bindings_that_mean_nothing_are_refused(auth: Auth, bound: Bound) -> None:
    camera, _ = auth.account("camera", "invoker")
    with pytest.raises(InvalidArgument):
        auth.accounts.rights.bind(auth.store, auth.admin, camera.name, bound)


def test_every_change_is_audited_without_secrets(auth: Auth) -> None:
    camera, secret = auth.account("camera", "invoker")
    auth.add(camera, "secret", "")
    auth.accounts.rights.set_quota(auth.store, auth.admin, camera.name, Quota(1))
    auth.accounts.delete_account(auth.store, auth.admin, camera.name)
    recorded = auth.audit()
    for action in ("CreateProject", "CreateServiceAccount", "CreateCredential", "CreateRoleBinding"):
        assert action in recorded
    assert "UpdateQuota" in recorded and "DeleteServiceAccount" in recorded
    assert secret not in recorded and auth.admin_secret not in recorded
