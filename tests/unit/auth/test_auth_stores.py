"""What the stores of accounts, sessions and issuers promise."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from auth_records import Auth, in_memory

from sealane.errors import AlreadyExists
from sealane_auth import issuer_sql, session_sql
from sealane_auth.account_store import Project
from sealane_auth.issuer_store import ClaimRule, TrustedIssuer


@pytest.fixture
def auth() -> Iterator[Auth]:
    with in_memory() as made:
        yield made


def count(auth: Auth, table: sa.Table) -> int:
    return int(auth.connection.execute(sa.select(sa.func.count()).select_from(table)).scalar() or 0)


def test_an_id_is_used_once_until_its_time_is_over(auth: Auth) -> None:
    sessions = auth.store.sessions
    assert sessions.use_id("a", 100.0, 50.0) and not sessions.use_id("a", 100.0, 99.0)
    assert sessions.use_id("b", 300.0, 101.0)
    assert count(auth, session_sql.used_ids) == 1  # what is over is forgotten
    assert sessions.use_id("a", 300.0, 102.0)


def test_a_federated_subject_is_remembered_as_long_as_its_longest_token(auth: Auth) -> None:
    issuers = auth.store.issuers
    issuers.remember_subject("i", "s", 200.0, 0.0)
    issuers.remember_subject("i", "s", 100.0, 0.0)
    issuers.remember_subject("j", "other", 500.0, 0.0)
    assert issuers.subjects("i", 150.0) == ["s"] and issuers.subjects("i", 201.0) == []
    issuers.remember_subject("i", "t", 500.0, 201.0)
    assert count(auth, issuer_sql.federated_subjects) == 2


def test_an_issuer_comes_back_as_it_went_in(auth: Auth) -> None:
    rules = (ClaimRule({"a": "b", "c.d": "*x"}, ("viewer", "invoker"), "digits"), ClaimRule({"e": "f"}, ("viewer",)))
    issuer = TrustedIssuer("p", "x", "https://x", "aud", "https://x/keys", "", rules, 5.0)
    auth.store.issuers.add_issuer(issuer)
    assert auth.store.issuers.issuer("p", "x") == issuer
    assert auth.store.issuers.issuers_of("q", "https://x") == [] == auth.store.issuers.issuers("p", "x", 10)
    with pytest.raises(AlreadyExists):
        auth.store.issuers.add_issuer(issuer)


def test_lists_are_by_id_and_strictly_after(auth: Auth) -> None:
    for project in ("c", "a", "b"):
        auth.store.accounts.add_project(Project(project, 1.0))
    assert [each.project for each in auth.store.accounts.projects("a", 2)] == ["b", "c"]
