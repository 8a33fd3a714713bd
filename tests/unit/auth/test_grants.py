"""Tokens for credentials and refresh tokens, and how they are taken back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from auth_records import AUDIENCE, Auth, in_memory

from sealane.errors import InvalidArgument, NotFound, PermissionDenied, ResourceExhausted, SealaneError, Unauthenticated
from sealane.records.tables import Actor
from sealane.security.permissions import Bound
from sealane_auth.account_store import Account
from sealane_auth.clients import Proof, Proven
from sealane_auth.grants import MAX_REVOKED_TOKENS
from sealane_auth.minting import Issued, Settings, Wanted
from sealane_auth.passphrases import Passphrases
from sealane_auth.sessions import ABSOLUTE_SECONDS, SLIDING_SECONDS

PHRASE = "correct horse battery"
JKT = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
OTHER_JKT = "A" * 43


@pytest.fixture
def auth() -> Iterator[Auth]:
    with in_memory() as made:
        yield made


@pytest.fixture
def person(auth: Auth) -> Account:
    account, _ = auth.account("ada", "publisher", "invoker")
    auth.add(account, "passphrase", Passphrases().hash(PHRASE))
    return account


def log_in(auth: Auth, scope: str = "offline_access", **wanted: str) -> Issued:
    proven = auth.prove(Proof("ada@p", PHRASE))
    return auth.tokens.issue(auth.store, proven, Wanted(AUDIENCE, scope, **wanted))  # type: ignore[arg-type]


def refresh(auth: Auth, token: str, proven: Proven | None = None, **wanted: str) -> Issued:
    audience = wanted.pop("audience", AUDIENCE)
    outcome = auth.tokens.refresh(auth.store, proven or "", token, Wanted(audience, **wanted))  # type: ignore[arg-type]
    if isinstance(outcome, SealaneError):
        raise outcome
    return outcome


def test_what_a_token_says(auth: Auth) -> None:
    camera, secret = auth.account("camera", "invoker")
    claims = auth.claims(auth.token(camera, secret, "infer", key_thumbprint=JKT))
    assert claims["sub"] == "projects/p/serviceAccounts/camera" and claims["client_id"] == "camera@p"
    assert (claims["scope"], claims["cnf"], claims["epoch"]) == ("infer", {"jkt": JKT}, 0)


def test_the_configured_life_is_the_longest(auth: Auth) -> None:
    auth.tokens.settings = Settings(token_seconds=60)
    camera, secret = auth.account("camera", "invoker")
    claims = auth.claims(auth.token(camera, secret))
    assert claims["exp"] == claims["iat"] + 60  # type: ignore[operator]


@pytest.mark.parametrize(
    ("wanted", "kind"),
    [
        (Wanted("elsewhere"), InvalidArgument),
        (Wanted(AUDIENCE, "everything"), InvalidArgument),
        (Wanted(AUDIENCE, "admin"), PermissionDenied),
        (Wanted(AUDIENCE, key_thumbprint="short"), InvalidArgument),
        (Wanted(AUDIENCE, key_thumbprint=JKT, certificate_thumbprint=JKT), InvalidArgument),
    ],
)
def test_requests_that_are_refused(auth: Auth, wanted: Wanted, kind: type[SealaneError]) -> None:
    camera, secret = auth.account("camera", "invoker")
    with pytest.raises(kind):
        auth.tokens.issue(auth.store, auth.prove(Proof(camera.client_id, secret)), wanted)


def test_an_account_without_rights_gets_no_token(auth: Auth) -> None:
    camera, secret = auth.account("camera", "invoker")
    (binding,) = auth.store.accounts.bindings("p", camera.name)
    auth.accounts.rights.unbind(auth.store, auth.admin, "p", binding.binding_id)
    with pytest.raises(PermissionDenied):
        auth.token(camera, secret)


def test_a_session_goes_on_without_the_passphrase(auth: Auth, person: Account) -> None:
    first = log_in(auth)
    assert "infer" in first.scope and "offline_access" not in first.scope
    second = refresh(auth, first.refresh_token, audience="sealane-registry", scope="models:read")
    assert auth.claims(second.token)["aud"] == "sealane-registry" and second.scope == "models:read"
    assert refresh(auth, second.refresh_token).scope == first.scope  # narrowing one token narrows no session


def test_a_used_refresh_token_ends_its_family_and_its_tokens(auth: Auth, person: Account) -> None:
    first = log_in(auth)
    other = log_in(auth)
    second = refresh(auth, first.refresh_token)
    with pytest.raises(Unauthenticated) as caught:
        refresh(auth, first.refresh_token)
    assert caught.value.reason == "INVALID_GRANT"
    for token in (first.token, second.token):
        with pytest.raises(Unauthenticated):
            auth.identity(token)
    with pytest.raises(Unauthenticated):
        refresh(auth, second.refresh_token)
    auth.identity(other.token)  # other sessions of the person are none of it
    refresh(auth, other.refresh_token)
    assert first.refresh_token not in auth.audit() and "came again" in auth.audit()


def test_a_session_slides_and_ends(auth: Auth, person: Account) -> None:
    issued = log_in(auth)
    for _ in range(int(ABSOLUTE_SECONDS / (SLIDING_SECONDS - 60))):
        auth.clock.advance(SLIDING_SECONDS - 60)
        issued = refresh(auth, issued.refresh_token)
    auth.clock.advance(SLIDING_SECONDS - 60)
    with pytest.raises(Unauthenticated):
        refresh(auth, issued.refresh_token)
    idle = log_in(auth)
    auth.clock.advance(SLIDING_SECONDS + 1)
    with pytest.raises(Unauthenticated):
        refresh(auth, idle.refresh_token)


def test_a_refresh_looks_at_present_rights(auth: Auth, person: Account) -> None:
    issued = log_in(auth, "offline_access infer")
    auth.accounts.rights.bind(auth.store, auth.admin, person.name, Bound("deployer"))
    assert refresh(auth, issued.refresh_token).scope == "infer"
    issued = log_in(auth, "offline_access infer")
    with pytest.raises(PermissionDenied):
        refresh(auth, issued.refresh_token, scope="infer deploy")
    (binding,) = (each for each in auth.store.accounts.bindings("p", person.name) if each.role == "invoker")
    auth.accounts.rights.unbind(auth.store, auth.admin, "p", binding.binding_id)
    with pytest.raises(Unauthenticated):  # losing a role revokes all that was given, sessions too
        refresh(auth, issued.refresh_token)


def test_a_bound_session_stays_bound(auth: Auth, person: Account) -> None:
    issued = log_in(auth, key_thumbprint=JKT)
    for wrong in ({}, {"key_thumbprint": OTHER_JKT}):
        with pytest.raises(Unauthenticated):
            refresh(auth, issued.refresh_token, **wrong)
    again = refresh(auth, issued.refresh_token, key_thumbprint=JKT)
    assert auth.identity(again.token).key_thumbprint == JKT


def test_a_machines_refresh_needs_its_credential(auth: Auth) -> None:
    camera, secret = auth.account("camera", "invoker")
    _, foreign_secret = auth.account("other", "invoker")
    proven = auth.prove(Proof(camera.client_id, secret))
    issued = auth.tokens.issue(auth.store, proven, Wanted(AUDIENCE, "offline_access"))
    with pytest.raises(Unauthenticated):
        refresh(auth, issued.refresh_token)
    with pytest.raises(Unauthenticated):
        refresh(auth, issued.refresh_token, auth.prove(Proof("other@p", foreign_secret)))
    assert refresh(auth, issued.refresh_token, proven).refresh_token


def test_a_certificate_bound_session_outlives_the_certificate(auth: Auth) -> None:
    camera, _ = auth.account("camera", "invoker")
    auth.join(camera)
    proven = auth.prove(Proof(account=camera.name))
    wanted = Wanted(AUDIENCE, "offline_access", certificate_thumbprint=JKT)
    issued = auth.tokens.issue(auth.store, proven, wanted)
    with pytest.raises(Unauthenticated):
        refresh(auth, issued.refresh_token, proven)  # not bound any more
    renewed = refresh(auth, issued.refresh_token, proven, certificate_thumbprint=OTHER_JKT)
    assert auth.identity(renewed.token).certificate_thumbprint == OTHER_JKT


def test_a_refresh_token_is_its_clients(auth: Auth, person: Account) -> None:
    issued = log_in(auth)
    with pytest.raises(Unauthenticated):
        auth.tokens.refresh(auth.store, "other@p", issued.refresh_token, Wanted(AUDIENCE))
    auth.tokens.refresh(auth.store, "ada@p", issued.refresh_token, Wanted(AUDIENCE))


@pytest.mark.parametrize("token", ["", ".", "nonsense", "a.b", "a.b.c"])
def test_strange_refresh_tokens_are_refused(auth: Auth, token: str) -> None:
    with pytest.raises(Unauthenticated):
        refresh(auth, token)


def test_a_client_revokes_its_own_tokens_and_no_others(auth: Auth) -> None:
    camera, secret = auth.account("camera", "invoker")
    other, other_secret = auth.account("other", "invoker")
    token = auth.token(camera, secret)
    auth.tokens.revoke(auth.store, auth.prove(Proof(other.client_id, other_secret)), token, auth.claims(token))
    auth.identity(token)
    with pytest.raises(Unauthenticated):
        auth.tokens.revoke(auth.store, None, token, auth.claims(token))
    auth.tokens.revoke(auth.store, auth.prove(Proof(camera.client_id, secret)), token, auth.claims(token))
    with pytest.raises(Unauthenticated):
        auth.identity(token)
    auth.tokens.revoke(auth.store, None, "unknown.token", None)


def test_revoking_a_refresh_token_takes_the_family(auth: Auth, person: Account) -> None:
    first = log_in(auth)
    second = refresh(auth, first.refresh_token)
    auth.tokens.revoke(auth.store, None, second.refresh_token, None)
    for token in (first.token, second.token):
        with pytest.raises(Unauthenticated):
            auth.identity(token)
    with pytest.raises(Unauthenticated):
        refresh(auth, second.refresh_token)


def test_revoking_a_subject_ends_everything_until_it_logs_in_anew(auth: Auth, person: Account) -> None:
    issued = log_in(auth)
    assert auth.tokens.revoke_subject(auth.store, auth.admin, person.name) == 1
    with pytest.raises(Unauthenticated):
        auth.identity(issued.token)
    with pytest.raises(Unauthenticated):
        refresh(auth, issued.refresh_token)
    assert auth.identity(log_in(auth).token).epoch == 1
    with pytest.raises(NotFound):
        auth.tokens.revoke_subject(auth.store, auth.admin, "projects/p/serviceAccounts/nobody")
    for odd in ("projects/p", "projects/p/models/m"):
        with pytest.raises(InvalidArgument):
            auth.tokens.revoke_subject(auth.store, auth.admin, odd)


def test_revoking_by_id(auth: Auth) -> None:
    camera, secret = auth.account("camera", "invoker")
    token = auth.token(camera, secret)
    auth.tokens.revoke_id(auth.store, auth.admin, "p", auth.identity(token).token_id)
    with pytest.raises(Unauthenticated):
        auth.identity(token)
    with pytest.raises(InvalidArgument):
        auth.tokens.revoke_id(auth.store, auth.admin, "p", "")


def test_one_project_cannot_fill_the_memory_of_all_with_revoked_tokens(auth: Auth) -> None:
    for number in range(MAX_REVOKED_TOKENS):
        auth.store.revocations.revoke_token("p", str(number), auth.clock.now(), auth.clock.now())
    with pytest.raises(ResourceExhausted, match="revoke the subject"):
        auth.tokens.revoke_id(auth.store, auth.admin, "p", "one-more")
    auth.tokens.revoke_id(auth.store, auth.admin, "q", "another-project")
    auth.clock.advance(1000)
    auth.tokens.revoke_id(auth.store, auth.admin, "p", "one-more")


def test_nobody_revokes_the_tokens_of_his_betters(auth: Auth) -> None:
    tenant, _ = auth.account("tenant", "admin")
    actor = Actor(tenant.name, "p")
    with pytest.raises(PermissionDenied) as caught:
        auth.tokens.revoke_subject(auth.store, actor, auth.admin.subject)
    assert caught.value.reason == "RIGHTS_EXCEEDED"
    assert auth.tokens.revoke_subject(auth.store, actor, tenant.name) == 1


def test_sessions_of_one_person_are_bounded(auth: Auth, person: Account) -> None:
    first = log_in(auth)
    proven = auth.prove(Proof("ada@p", PHRASE))
    for _ in range(50):
        auth.clock.advance(1)
        auth.tokens.issue(auth.store, proven, Wanted(AUDIENCE, "offline_access"))
    assert len(auth.store.sessions.sessions_of(person.name)) == 50
    with pytest.raises(Unauthenticated):
        refresh(auth, first.refresh_token)
