"""External issuers: what is trusted, which rules fit, what comes of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import jwt
import pytest
from auth_records import Auth, in_memory
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from sealane.errors import AlreadyExists, InvalidArgument, NotFound, PermissionDenied, Unauthenticated
from sealane.records.tables import Actor
from sealane_auth.federation import fits, inline_keys
from sealane_auth.issuer_keys import IssuerKeys
from sealane_auth.issuer_store import ClaimRule, TrustedIssuer
from sealane_auth.minting import Issued, Wanted

GITHUB = "https://token.actions.githubusercontent.com"
KEY = rsa.generate_private_key(65537, 2048)
JWK = jwt.get_algorithm_by_name("RS256").to_jwk(KEY.public_key(), as_dict=True) | {
    "kid": "g1",
    "alg": "RS256",
    "use": "sig",
}
JWK.pop("key_ops", None)
RULES = (
    ClaimRule({"repository": "acme/*", "ref": "refs/heads/main"}, ("publisher",), "digits-"),
    ClaimRule({"realm_access.roles": "ml-viewer"}, ("viewer",)),
)


@pytest.fixture
def auth() -> Iterator[Auth]:
    with in_memory() as made:
        yield made


def trust(auth: Auth, issuer_id: str = "github", **changes: object) -> TrustedIssuer:
    facts = {"issuer": GITHUB, "audience": "sealane", "jwks": json.dumps({"keys": [JWK]}), "rules": RULES} | changes
    return auth.federation.trust(auth.store, auth.admin, TrustedIssuer("p", issuer_id, **facts))  # type: ignore[arg-type]


def external(auth: Auth, **changes: object) -> str:
    now = int(auth.clock.now())
    claims = {
        "iss": GITHUB,
        "aud": "sealane",
        "sub": "repo:acme/digits:ref:refs/heads/main",
        "repository": "acme/digits",
        "ref": "refs/heads/main",
        "iat": now,
        "nbf": now - 5,
        "exp": now + 120,
    }
    return jwt.encode(claims | changes, KEY, algorithm="RS256", headers={"kid": "g1"})


def exchange(auth: Auth, token: str, audience: str = "sealane-registry", **wanted: object) -> Issued:
    (trusted,) = auth.federation.candidates(auth.store, "projects/p", token)
    federated = auth.federation.identify(trusted, inline_keys(trusted), token)
    return auth.tokens.exchange.for_federated(auth.store, federated, Wanted(audience, **wanted), "")  # type: ignore[arg-type]


def test_a_pipeline_gets_what_its_rule_gives(auth: Auth) -> None:
    trust(auth)
    identity = auth.identity(exchange(auth, external(auth)).token)
    assert identity.subject == "projects/p/federated/github/repo%3Aacme%2Fdigits%3Aref%3Arefs%2Fheads%2Fmain"
    assert identity.may_use("models:write", "digits-3") and not identity.may_use("models:write", "faces")
    assert "nodes:read" not in identity.scopes  # a rule limited to models gives nothing else
    assert auth.clock.now() < identity.expires <= auth.clock.now() + 120  # no longer than the external token
    assert "repo%3Aacme" in auth.audit()


def test_rules_add_up(auth: Auth) -> None:
    trust(auth)
    identity = auth.identity(exchange(auth, external(auth, realm_access={"roles": ["x", "ml-viewer"]})).token)
    assert {"models:write", "nodes:read"} <= identity.scopes
    assert identity.may_use("models:read", "faces") and not identity.may_use("models:write", "faces")


@pytest.mark.parametrize(
    "changes", [{"repository": "evil/digits"}, {"ref": "refs/heads/other"}, {"repository": ["acme/x/y"]}, {"ref": None}]
)
def test_a_token_that_no_rule_fits_is_refused(auth: Auth, changes: dict[str, object]) -> None:
    trust(auth)
    with pytest.raises(PermissionDenied):
        exchange(auth, external(auth, **changes))


@pytest.mark.parametrize(
    "changes", [{"aud": "other"}, {"exp": 1}, {"iss": GITHUB + "/"}, {"nbf": 1_900_000_000}, {"sub": ""}]
)
def test_a_token_that_does_not_verify_is_refused(auth: Auth, changes: dict[str, object]) -> None:
    trust(auth)
    with pytest.raises(Unauthenticated):
        exchange(auth, external(auth, **changes))


def test_more_scope_than_the_rules_give_is_refused(auth: Auth) -> None:
    trust(auth)
    with pytest.raises(PermissionDenied):
        exchange(auth, external(auth), scope="admin")


def test_the_trust_is_one_projects_alone(auth: Auth) -> None:
    trust(auth)
    auth.accounts.create_project(auth.store, Actor(auth.admin.subject, "q"), "q")
    with pytest.raises(Unauthenticated):
        auth.federation.candidates(auth.store, "projects/q", external(auth))


def test_ending_the_trust_revokes_what_was_exchanged(auth: Auth) -> None:
    trust(auth)
    token = exchange(auth, external(auth)).token
    auth.federation.distrust(auth.store, auth.admin, "p", "github")
    with pytest.raises(Unauthenticated):
        auth.identity(token)
    with pytest.raises(NotFound):
        auth.federation.distrust(auth.store, auth.admin, "p", "github")
    trust(auth)  # trusted anew, old tokens stay dead
    with pytest.raises(Unauthenticated):
        auth.identity(token)
    auth.identity(exchange(auth, external(auth)).token)


def test_a_federated_subject_can_be_revoked(auth: Auth) -> None:
    trust(auth)
    token = exchange(auth, external(auth)).token
    auth.tokens.revoke_subject(auth.store, auth.admin, auth.identity(token).subject)
    with pytest.raises(Unauthenticated):
        auth.identity(token)


def test_long_subjects_stay_apart(auth: Auth) -> None:
    trust(auth)
    subjects = {auth.identity(exchange(auth, external(auth, sub="x" * 500 + end)).token).subject for end in "ab"}
    assert len(subjects) == 2 and all(len(subject) < 200 for subject in subjects)


@pytest.mark.parametrize(
    "changes",
    [
        {"issuer": "http://token.example"},
        {"issuer": "https://user:word@token.example"},
        {"issuer": "https://token.example/?a=b"},
        {"issuer": "https://token.example/#a"},
        {"issuer": "file:///etc/passwd"},
        {"jwks": "", "jwks_uri": "http://token.example/keys"},
        {"audience": ""},
        {"jwks": "nonsense"},
        {"jwks": '{"keys": []}'},
        {"jwks": '{"keys": [{"kty": "oct", "kid": "k", "k": "AAAA"}]}'},
        {"rules": ()},
        {"rules": (ClaimRule({}, ("viewer",)),)},
        {"rules": (ClaimRule({"iss": GITHUB}, ("viewer",)),)},
        {"rules": (ClaimRule({"sub": "*"}, ("viewer",)),)},
        {"rules": (ClaimRule({"sub": "**"}, ("viewer",)),)},
        {"rules": (ClaimRule({"sub": "a**b"}, ("viewer",)),)},
        {"rules": (ClaimRule({"sub": ""}, ("viewer",)),)},
        {"rules": (ClaimRule({"sub": "x"}, ("admin",)),)},
        {"rules": (ClaimRule({"sub": "x"}, ()),)},
        {"rules": (ClaimRule({"sub": "x"}, ("emperor",)),)},
        {"rules": (ClaimRule({"sub": "x"}, ("operator",), "digits"),)},
    ],
)
def test_trusts_that_are_refused(auth: Auth, changes: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        trust(auth, **changes)


def test_an_id_is_taken_once_and_a_rule_gives_what_its_author_holds(auth: Auth) -> None:
    trust(auth)
    with pytest.raises(AlreadyExists):
        trust(auth)
    auth.account("reader", "viewer")
    reader = Actor("projects/p/serviceAccounts/reader", "p")
    with pytest.raises(PermissionDenied):
        auth.federation.trust(
            auth.store, reader, TrustedIssuer("p", "x", GITHUB, "sealane", jwks="", rules=(RULES[0],))
        )


def test_inline_keys_are_never_fetched(auth: Auth) -> None:
    assert [key.kid for key in IssuerKeys(auth.clock).get(trust(auth))] == ["g1"]


@pytest.mark.parametrize(
    ("value", "pattern", "fit"),
    [
        ("acme/x", "acme/*", True),
        ("acme/x/y", "acme/*", False),
        ("acme/x/y", "acme/**", True),
        ("acme", "acme/**", False),
        ("aXb", "a.b", False),
        ("repo:acme/x:ref:refs/heads/main", "repo:acme/*:ref:refs/heads/*", True),
        (["a", "b"], "b", True),
        ([["b"]], "b", False),
        (True, "true", True),
        (7, "7", True),
        (7.0, "7", False),
        (None, "*", False),
        ({"a": 1}, "*", False),
        ("x\n", "x", False),
        ("ab", "ab*ba", False),
        ("aba", "a*b*a", True),
        ("a" * 1024, "a*", True),
        ("a" * 1025, "a*", False),
    ],
)
def test_patterns(value: object, pattern: str, fit: bool) -> None:
    assert fits({"claim": value}, "claim", pattern) is fit


@given(st.text("a/*", max_size=10), st.text("ab/\n", max_size=12))
def test_patterns_mean_what_they_say(pattern: str, value: str) -> None:
    rest = pattern.endswith("**")
    pattern = re.sub(r"\*+", "*", pattern) + ("*" if rest else "")
    expression = "[^/]*".join(map(re.escape, pattern.removesuffix("**").split("*"))) + (".*" if rest else "")
    assert fits({"c": value}, "c", pattern) is bool(re.fullmatch(expression, value, re.DOTALL))


def test_no_pattern_takes_long() -> None:
    """With backtracking the first alone would take hours."""
    for pattern in ("*a" * 8 + "*b", "*" + "a*" * 127, "*aaaaaaaaab" * 8 + "**"):
        assert not fits({"c": "a" * 1024 + "c"}, "c", pattern)
        assert fits({"c": "a" * 1023}, "c", pattern) is (pattern == "*" + "a*" * 127)


def test_claims_are_found_by_name_before_path() -> None:
    assert fits({"https://x.example/role": "a"}, "https://x.example/role", "a")
    assert fits({"a": {"b": {"c": "v"}}}, "a.b.c", "v")
    assert not fits({"a": "v"}, "a.b", "v")
    assert not fits({}, "a", "**")


@given(st.text(max_size=30), st.text(max_size=30))
def test_a_pattern_without_stars_fits_itself_alone(pattern: str, value: str) -> None:
    pattern = pattern.replace("*", "")
    assert fits({"c": value}, "c", pattern) is (value == pattern)
