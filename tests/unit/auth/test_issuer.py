"""What auth vouches for, and for whom."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.verification import PolicyBuilder
from cryptography.x509.verification import Store as TrustStore

from sealane.clock import ManualClock
from sealane.errors import AlreadyExists, FailedPrecondition, InvalidArgument, PermissionDenied, Unauthenticated
from sealane.records import tables
from sealane.records.tables import Actor
from sealane.security import jws, statements, suites, tls
from sealane.security.keys import KeySet
from sealane.security.tokens import ISSUER, TokenVerifier
from sealane_auth import authority, bootstrap
from sealane_auth.issuer import JOIN_SECONDS, Issuer, TokenRequest, ensure_signing_key, public_keys
from sealane_auth.store import JoinToken
from sealane_auth.store_sql import SqlStore, metadata

WHO = Actor("projects/p/serviceAccounts/admin", "p")
PLACE = {"tier": "edge", "zone": "site-a", "region": "eu", "pool": "edge", "clearance": "restricted"}
CLOCK = ManualClock()
NOW = datetime.datetime.fromtimestamp(CLOCK.now(), datetime.UTC)
ROOT = authority.make_root(NOW)
INTERMEDIATE = authority.make_intermediate(ROOT, NOW)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def rules(clock: ManualClock) -> Issuer:
    return Issuer(clock, INTERMEDIATE)


@pytest.fixture
def store() -> Iterator[SqlStore]:
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        metadata.create_all(connection)
        tables.metadata.create_all(connection)
        made = SqlStore(connection)
        ensure_signing_key(made, 0.0)
        yield made
    engine.dispose()


def key_set(store: SqlStore) -> KeySet:
    keys = KeySet(lambda: {kid: jws.encode(raw) for kid, raw in public_keys(store).items()})
    keys.refresh()
    return keys


def test_an_account_gets_tokens_that_services_take(store: SqlStore, rules: Issuer, clock: ManualClock) -> None:
    account, secret = rules.create_account(store, WHO, "camera", ["infer", "models:read"])
    issued = rules.issue_token(store, TokenRequest(account.client_id, secret, "sealane-inference", "infer"))
    verifier = TokenVerifier(key_set(store), issuer=ISSUER, audience="sealane-inference", clock=clock)
    identity = verifier.verify(issued.token)
    assert (identity.project, identity.scopes) == ("p", {"infer"})
    other = TokenVerifier(key_set(store), issuer=ISSUER, audience="sealane-registry", clock=clock)
    with pytest.raises(Unauthenticated):
        other.verify(issued.token)


def test_wrong_secrets_scopes_and_audiences_are_refused(store: SqlStore, rules: Issuer) -> None:
    account, secret = rules.create_account(store, WHO, "camera", ["infer"])
    for client_id, wrong in ((account.client_id, "x"), ("nobody@p", secret), (account.client_id, "")):
        with pytest.raises(Unauthenticated) as caught:
            rules.issue_token(store, TokenRequest(client_id, wrong, "sealane-inference"))
        assert caught.value.message == "client id or secret is wrong; check both"
    with pytest.raises(PermissionDenied):
        rules.issue_token(store, TokenRequest(account.client_id, secret, "sealane-inference", "admin"))
    with pytest.raises(InvalidArgument):
        rules.issue_token(store, TokenRequest(account.client_id, secret, "elsewhere"))
    with pytest.raises(AlreadyExists):
        rules.create_account(store, WHO, "camera", ["infer"])
    with pytest.raises(InvalidArgument):
        rules.create_account(store, WHO, "other", ["everything"])


def test_no_secret_is_stored(store: SqlStore, rules: Issuer) -> None:
    _, secret = rules.create_account(store, WHO, "camera", ["infer"])
    joined, _ = rules.create_join_token(store, WHO, JoinToken("", "node", "edge-1", PLACE, (), 0.0))
    for table in (*metadata.sorted_tables, *tables.metadata.sorted_tables):
        for row in store._connection.execute(sa.select(table)):
            assert secret not in str(row) and joined not in str(row)


def join(store: SqlStore, rules: Issuer, kind: str = "node", name: str = "edge-1") -> str:
    attributes = PLACE if kind == "node" else {}
    return rules.create_join_token(store, WHO, JoinToken("", kind, name, attributes, ("10.0.0.1",), 0.0))[0]


def test_a_join_token_enrolls_once_and_in_time(store: SqlStore, rules: Issuer, clock: ManualClock) -> None:
    secret = join(store, rules)
    _, request = tls.new_request()
    rules.enroll(store, secret, request)
    with pytest.raises(Unauthenticated):
        rules.enroll(store, secret, request)
    late = join(store, rules)
    clock.advance(JOIN_SECONDS + 1)
    with pytest.raises(Unauthenticated):
        rules.enroll(store, late, request)


def test_names_come_from_the_join_token(store: SqlStore, rules: Issuer) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    wish = x509.SubjectAlternativeName([x509.DNSName("registry.service.sealane")])
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "registry")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject).add_extension(wish, False)
    from cryptography.hazmat.primitives import hashes, serialization

    request = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    leaf = rules.enroll(store, join(store, rules), request).leaf
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["edge-1.node.sealane"]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://sealane/node/edge-1"]
    assert [str(item) for item in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1"]


def test_a_chain_verifies_for_its_name_and_no_other(store: SqlStore, rules: Issuer) -> None:
    _, request = tls.new_request()
    issued = rules.enroll(store, join(store, rules, "service", "registry"), request)
    verifier = PolicyBuilder().store(TrustStore([ROOT.certificate])).time(NOW)
    chain = [INTERMEDIATE.certificate]
    verifier.build_server_verifier(x509.DNSName("registry.service.sealane")).verify(issued.leaf, chain)
    with pytest.raises(x509.verification.VerificationError):
        verifier.build_server_verifier(x509.DNSName("scheduler.service.sealane")).verify(issued.leaf, chain)


def test_strange_join_tokens_and_requests_are_refused(store: SqlStore, rules: Issuer) -> None:
    with pytest.raises(InvalidArgument):
        join(store, rules, "service", "auth")
    with pytest.raises(InvalidArgument):
        rules.create_join_token(store, WHO, JoinToken("", "node", "n", {"tier": "edge"}, (), 0.0))
    with pytest.raises(InvalidArgument):
        rules.enroll(store, join(store, rules), b"not a request")


def test_renewal_keeps_the_names_and_needs_a_peer(store: SqlStore, rules: Issuer) -> None:
    _, request = tls.new_request()
    rules.enroll(store, join(store, rules), request)
    assert rules.renew(store, "node", "edge-1", tls.new_request()[1]).names.dns == "edge-1.node.sealane"
    with pytest.raises(FailedPrecondition):
        rules.renew(store, "node", "edge-2", request)


def test_a_statement_carries_the_join_tokens_attributes(store: SqlStore, rules: Issuer, clock: ManualClock) -> None:
    rules.enroll(store, join(store, rules), tls.new_request()[1])
    pair = suites.generate(suites.HYBRID)
    signed, expires = rules.vouch(store, "edge-1", "MLKEM768_X25519", pair.public_key)
    statement = statements.verify(signed, key_set(store), clock.now())
    assert statement.attributes == PLACE
    assert (statement.node, statement.key_id, statement.public_key) == ("edge-1", pair.key_id, pair.public_key)
    with pytest.raises(Unauthenticated, match="expired"):
        statements.verify(signed, key_set(store), expires + 31)
    with pytest.raises(InvalidArgument):
        rules.vouch(store, "edge-1", "X25519", pair.public_key)
    forged = signed[:-4] + ("AAAA" if signed[-4:] != "AAAA" else "BBBB")
    with pytest.raises(Unauthenticated):
        statements.verify(forged, key_set(store), clock.now())


def test_the_first_start_makes_one_admin_and_later_ones_none(
    store: SqlStore, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("auth") / "admin.json"
    bootstrap.ensure_records(store, "p", path, 0.0)
    first = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    path.unlink()  # the operator took it away
    bootstrap.ensure_records(store, "p", path, 0.0)
    assert first and not path.exists()


def test_an_old_intermediate_is_followed_by_a_new_one_of_the_same_root(tmp_path: Path) -> None:
    first, trust = bootstrap.ensure_authority(tmp_path, NOW)
    again, _ = bootstrap.ensure_authority(tmp_path, NOW + datetime.timedelta(days=59))
    assert again.certificate == first.certificate
    later = NOW + datetime.timedelta(days=61)
    second, same = bootstrap.ensure_authority(tmp_path, later)
    assert second.certificate != first.certificate and same == trust
    assert second.certificate.not_valid_after_utc > first.certificate.not_valid_after_utc
    (tmp_path / "root.key").unlink()  # taken offline
    assert (
        bootstrap.ensure_authority(tmp_path, later + datetime.timedelta(days=80))[0].certificate == second.certificate
    )
    for path in tmp_path.glob("*.key"):
        assert path.stat().st_mode & 0o777 == 0o600
