"""Who may let whom join, under which names; and what is left of join tokens and distrusted intermediates."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives import serialization
from joining import PLACE, WHO, Site, joining

from sealane.errors import InvalidArgument, PermissionDenied, Unauthenticated
from sealane.records.tables import Actor
from sealane.rpc.call import Peer
from sealane.security.permissions import Bound
from sealane_auth import peer_sql
from sealane_auth.accounts import AccountRules, NewAccount
from sealane_auth.enrollment import JOIN_SECONDS, IssuedCertificate
from sealane_auth.peer_store import JoinToken


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with joining(tmp_path) as made:
        yield made


def operator(site: Site) -> Actor:
    """An operator of the platform, who manages nodes."""
    rules = AccountRules(site.clock)
    account, _ = rules.create_account(site.store, WHO, NewAccount("platform", "ops", roles=("viewer",)))
    rules.rights.bind(site.store, WHO, account.name, Bound("operator", platform=True))
    return Actor(account.name, "platform")


def token_for(kind: str, subject: str, *hosts: str) -> JoinToken:
    return JoinToken("", kind, subject, PLACE if kind == "node" else {}, hosts, 0.0)


def refused(site: Site, issued: IssuedCertificate) -> bool:
    pem = issued.leaf.public_bytes(serialization.Encoding.PEM)
    try:
        site.revocations().check_peer(Peer(spiffe_id=issued.spiffe_id, certificate_pem=pem))
    except Unauthenticated:
        return True
    return False


def test_an_operator_lets_nodes_join_but_neither_services_nor_his_betters(site: Site) -> None:
    ops = operator(site)
    assert site.rules.create_join_token(site.store, ops, token_for("node", "edge-1"))
    assert site.rules.create_join_token(site.store, ops, token_for("account", ops.subject))
    for wanted in (token_for("account", WHO.subject), token_for("service", "inference")):
        with pytest.raises(PermissionDenied) as caught:
            site.rules.create_join_token(site.store, ops, wanted)
        assert caught.value.reason == "RIGHTS_EXCEEDED"
        assert site.rules.create_join_token(site.store, WHO, wanted), "the admin of the platform may"


@pytest.mark.parametrize(
    "host",
    [
        "auth.service.sealane",
        "AUTH.Service.SeaLane",
        "sealane",
        "edge-2.node.sealane.",
        "a.example,auth.service.sealane",
        "b\u00fccher.example",
        "*.example",
        "",
    ],
)
def test_nobody_joins_under_names_of_the_mesh_or_that_are_none(site: Site, host: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        site.rules.create_join_token(site.store, WHO, token_for("node", "edge-1", "10.0.0.1", host))
    assert caught.value.field == "hosts"


@pytest.mark.parametrize("host", ["localhost", "::1", "10.0.0.7", "edge_1", "node-1.site.example"])
def test_ordinary_hosts_are_taken(site: Site, host: str) -> None:
    assert site.rules.create_join_token(site.store, WHO, token_for("node", "edge-1", host))


def test_no_token_from_before_lets_an_evicted_peer_back_in(site: Site) -> None:
    issued = site.enroll()
    spare, other = site.join_token(), site.join_token(name="edge-2")
    site.rules.evict(site.store, WHO, issued.spiffe_id, "stolen")
    with pytest.raises(Unauthenticated):
        site.enroll(spare)
    site.enroll(other, name="edge-2")
    assert site.enroll(site.join_token()), "a later one does"


def test_no_token_outlives_its_account(site: Site) -> None:
    rules = AccountRules(site.clock)
    account, _ = rules.create_account(site.store, WHO, NewAccount("platform", "camera", roles=("invoker",)))
    token = site.join_token("account", account.name)
    rules.delete_account(site.store, WHO, account.name)
    with pytest.raises(Unauthenticated):
        site.enroll(token, "account", account.name)


def test_expired_tokens_are_deleted_when_another_is_made(site: Site) -> None:
    for _ in range(3):
        site.join_token()
    site.clock.advance(JOIN_SECONDS + 1)
    site.join_token()
    found = site.store.peers._connection.execute(sa.select(peer_sql.join_tokens)).all()
    assert len(found) == 1


def test_distrust_takes_hold_after_a_kill_between_files_and_commit(site: Site) -> None:
    leaf = site.enroll()
    now = datetime.datetime.fromtimestamp(site.clock.now(), datetime.UTC)
    site.secrets.authority.rotate(now)  # all that is left of a rotation whose commit was lost
    assert not refused(site, leaf)
    site.rules.rotate_intermediate(site.store, WHO, distrust=True)
    assert refused(site, leaf) and not refused(site, site.enroll())


def test_a_certificate_of_a_distrusted_intermediate_gets_no_token(site: Site) -> None:
    issued = site.enroll(kind="account", name=WHO.subject)
    assert site.rules.account_of_certificate(site.store, issued.chain) == WHO.subject
    site.rules.rotate_intermediate(site.store, WHO, distrust=True)
    with pytest.raises(Unauthenticated):
        site.rules.account_of_certificate(site.store, issued.chain)
