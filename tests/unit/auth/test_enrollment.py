"""Joining, renewing, coming back with the device key, and being put out."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.verification import PolicyBuilder, VerificationError
from cryptography.x509.verification import Store as TrustStore
from joining import PLACE, WHO, Site, joining

from sealane.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Unauthenticated
from sealane.rpc.call import Peer
from sealane.security import statements, suites, tls
from sealane_auth import bootstrap
from sealane_auth.account_store import Account
from sealane_auth.enrollment import JOIN_SECONDS, REPLICAS, IssuedCertificate
from sealane_auth.peer_store import JoinToken, Offline

NODE = "spiffe://sealane/node/edge-1"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with joining(tmp_path) as made:
        yield made


def peer_of(issued: IssuedCertificate) -> Peer:
    pem = issued.leaf.public_bytes(serialization.Encoding.PEM)
    return Peer(spiffe_id=issued.spiffe_id, certificate_pem=pem)


def test_a_join_token_enrolls_once_and_in_time(site: Site) -> None:
    token = site.join_token()
    site.enroll(token)
    with pytest.raises(Unauthenticated, match="used or expired"):
        site.enroll(token)
    late = site.join_token()
    site.clock.advance(JOIN_SECONDS + 1)
    with pytest.raises(Unauthenticated, match="used or expired"):
        site.enroll(late)


def test_names_come_from_the_join_token(site: Site) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    wish = x509.SubjectAlternativeName([x509.DNSName("registry.service.sealane")])
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "registry")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject).add_extension(wish, False)
    request = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    leaf = site.rules.enroll(site.store, site.join_token(), request, site.proof(request)).leaf
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["edge-1.node.sealane"]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [NODE]
    assert [str(item) for item in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1"]


def test_a_chain_verifies_for_its_name_and_no_other(site: Site) -> None:
    issued = site.enroll(kind="service", name="registry")
    now = datetime.datetime.fromtimestamp(site.clock.now(), datetime.UTC)
    roots = x509.load_pem_x509_certificates(site.secrets.authority.trust_bundle)
    verifier = PolicyBuilder().store(TrustStore(roots)).time(now)
    chain = [site.secrets.authority.signer.certificate]
    verifier.build_server_verifier(x509.DNSName("registry.service.sealane")).verify(issued.leaf, chain)
    with pytest.raises(VerificationError):
        verifier.build_server_verifier(x509.DNSName("scheduler.service.sealane")).verify(issued.leaf, chain)


@pytest.mark.parametrize(
    ("kind", "subject", "attributes", "offline", "field"),
    [
        ("service", "auth", {}, Offline(), "service"),
        ("node", "n", {"tier": "edge"}, Offline(), "attributes.clearance"),
        ("node", "n", {"clearance": "public"}, Offline(), "attributes.tier"),
        ("node", "No", PLACE, Offline(), "node"),
        ("node", "n", PLACE | {"relay": "No"}, Offline(), "attributes.relay"),
        ("relay", "No", {}, Offline(), "relay"),
        ("node", "n", PLACE | {"tier": "cloud"}, Offline(60.0), "offline_ttl"),
        ("node", "n", PLACE, Offline(31 * 86_400.0), "offline_ttl"),
        ("node", "n", PLACE, Offline(0.0, ("projects/p/serviceAccounts/a",)), "offline_ttl"),
        ("node", "n", PLACE, Offline(60.0, ("somebody",)), "site_accounts"),
        ("service", "registry", {}, Offline(60.0), "offline_ttl"),
    ],
)
def test_strange_join_tokens_are_refused_by_field(
    site: Site, kind: str, subject: str, attributes: dict[str, str], offline: Offline, field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        site.rules.create_join_token(site.store, WHO, JoinToken("", kind, subject, attributes, (), 0.0, offline))
    assert caught.value.field == field


def test_a_relay_joins_under_names_of_its_own_and_nodes_name_it(site: Site) -> None:
    issued = site.enroll(kind="relay", name="site-a")
    names = issued.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["site-a.relay.sealane"]
    assert (peer_of(issued).kind, peer_of(issued).relay, peer_of(issued).node) == ("relay", "site-a", "")
    secret, _ = site.rules.create_join_token(
        site.store, WHO, JoinToken("", "node", "edge-1", PLACE | {"relay": "site-a"}, (), 0.0)
    )
    site.enroll(secret)
    signed, _ = site.rules.vouch(site.store, "edge-1", "X25519", suites.generate(suites.X25519).public_key)
    assert statements.verify(signed, site.key_set(), site.clock.now()).attributes == PLACE | {"relay": "site-a"}
    site.rules.evict(site.store, WHO, issued.spiffe_id, "")
    with pytest.raises(Unauthenticated, match="evicted"):
        site.revocations().check_peer(peer_of(issued))


def test_a_strange_request_keeps_nothing(site: Site) -> None:
    with pytest.raises(InvalidArgument):
        site.rules.enroll(site.store, site.join_token(), b"not a request", "")
    assert site.store.peers.peer("node", "edge-1") is None


def test_renewal_keeps_the_names_and_needs_a_peer_and_its_device_key(site: Site) -> None:
    site.enroll()
    request = tls.new_request()[1]
    assert site.rules.renew(site.store, NODE, request, site.proof(request)).spiffe_id == NODE
    with pytest.raises(FailedPrecondition, match="join token"):
        site.rules.renew(site.store, "spiffe://sealane/node/edge-2", request, site.proof(request))
    for proof in ("", site.proof(request, Ed25519PrivateKey.generate())):  # a certificate that was copied
        with pytest.raises(Unauthenticated):
            site.rules.renew(site.store, NODE, request, proof)


def test_the_device_key_that_joined_brings_a_new_certificate_and_no_other_key_does(site: Site) -> None:
    site.enroll()
    site.clock.advance(3 * 86_400)  # the certificate is long over
    request = tls.new_request()[1]
    assert site.rules.reenroll(site.store, NODE, request, site.proof(request)).spiffe_id == NODE
    for proof in (site.proof(request, Ed25519PrivateKey.generate()), site.proof(tls.new_request()[1])):
        with pytest.raises(Unauthenticated):
            site.rules.reenroll(site.store, NODE, request, proof)
    used = site.proof(request)
    site.rules.reenroll(site.store, NODE, request, used)
    with pytest.raises(Unauthenticated, match="used before"):
        site.rules.reenroll(site.store, NODE, request, used)
    old = site.proof(request)
    site.clock.advance(301)
    with pytest.raises(Unauthenticated, match="too old"):
        site.rules.reenroll(site.store, NODE, request, old)


def test_processes_of_one_service_renew_each_with_its_own_device_key(site: Site) -> None:
    """Those of a node and of who was evicted go with the next join."""
    name = "spiffe://sealane/service/scheduler"
    keys = [site.device, *(Ed25519PrivateKey.generate() for _ in range(REPLICAS))]

    def join(key: Ed25519PrivateKey, kind: str = "service", of: str = "scheduler") -> None:
        request = tls.new_request()[1]
        site.rules.enroll(site.store, site.join_token(kind, of), request, site.proof(request, key))

    def renews(key: Ed25519PrivateKey, of: str = name) -> bool:
        request = tls.new_request()[1]
        try:
            site.rules.renew(site.store, of, request, site.proof(request, key))
        except Unauthenticated:
            return False
        return True

    for key in (*keys[:2], keys[1]):  # one of them joins again with its key
        join(key)
    assert [renews(key) for key in keys[:3]] == [True, True, False]
    for key in keys[2:]:
        join(key)
    assert [renews(key) for key in keys] == [False, *[True] * REPLICAS], "the oldest has gone"
    site.rules.evict(site.store, WHO, name, "stolen")
    site.clock.advance(1)
    join(keys[0])
    assert [renews(key) for key in keys] == [True, *[False] * REPLICAS]
    for key in keys[:2]:
        join(key, "node", "edge-1")
    assert [renews(key, NODE) for key in keys[:2]] == [False, True]


def test_a_peer_that_joined_without_a_device_key_cannot_come_back_by_one(site: Site) -> None:
    request = tls.new_request()[1]
    site.rules.enroll(site.store, site.join_token(), request, "")
    with pytest.raises(Unauthenticated):
        site.rules.reenroll(site.store, NODE, request, site.proof(request))


def test_an_evicted_node_gets_nothing_and_its_certificates_are_refused(site: Site) -> None:
    issued = site.enroll()
    site.revocations().check_peer(peer_of(issued))
    evicted = site.rules.evict(site.store, WHO, NODE, "stolen from the van")
    assert site.rules.evict(site.store, WHO, NODE, "again") == evicted, "it is put out once"
    with pytest.raises(Unauthenticated, match="evicted"):
        site.revocations().check_peer(peer_of(issued))
    request = tls.new_request()[1]
    for attempt in (
        lambda: site.rules.renew(site.store, NODE, request, site.proof(request)),
        lambda: site.rules.reenroll(site.store, NODE, request, site.proof(request)),
    ):
        with pytest.raises(PermissionDenied, match="evicted"):
            attempt()
    with pytest.raises(FailedPrecondition):
        site.rules.vouch(site.store, "edge-1", "X25519", b"0" * 32)
    with pytest.raises(NotFound):
        site.rules.evict(site.store, WHO, "spiffe://sealane/node/nobody", "")
    with pytest.raises(InvalidArgument):
        site.rules.evict(site.store, WHO, "spiffe://elsewhere/node/edge-1", "")


def test_a_join_token_is_the_way_back_and_opens_no_old_certificate(site: Site) -> None:
    stolen = site.enroll()
    site.rules.evict(site.store, WHO, NODE, "")
    back = site.enroll()  # within the same second
    site.revocations().check_peer(peer_of(back))
    with pytest.raises(Unauthenticated, match="evicted"):
        site.revocations().check_peer(peer_of(stolen))
    request = tls.new_request()[1]
    renewed = site.rules.renew(site.store, NODE, request, site.proof(request))
    site.revocations().check_peer(peer_of(renewed))


def test_a_distrusted_intermediate_takes_its_leaves_with_it(site: Site) -> None:
    before = site.enroll()
    site.rules.rotate_intermediate(site.store, WHO, distrust=False)
    site.revocations().check_peer(peer_of(before))
    second = site.enroll()
    site.rules.rotate_intermediate(site.store, WHO, distrust=True)
    for leaf in (before, second):  # whoever says "distrust" may have found out late which one was stolen
        with pytest.raises(Unauthenticated, match="no longer trusted"):
            site.revocations().check_peer(peer_of(leaf))
    request = tls.new_request()[1]
    fresh = site.rules.reenroll(site.store, NODE, request, site.proof(request))
    site.revocations().check_peer(peer_of(fresh))


def test_a_certificate_of_an_account_names_it_and_others_name_none(site: Site) -> None:
    name = "projects/p/serviceAccounts/camera"
    with pytest.raises(NotFound):
        site.join_token("account", name)
    site.store.accounts.put_account(Account("p", "camera", "camera@p", ("infer",), 0.0, "e"))
    issued = site.enroll(kind="account", name=name)
    assert site.rules.account_of_certificate(site.store, issued.chain) == name
    leaf_alone = issued.leaf.public_bytes(serialization.Encoding.PEM)
    assert site.rules.account_of_certificate(site.store, leaf_alone) == name, "as TLS hands it over"
    site.rules.rotate_intermediate(site.store, WHO, distrust=False)
    assert site.rules.account_of_certificate(site.store, leaf_alone) == name
    for other in (site.enroll().chain, b"nothing", _foreign(site)):
        with pytest.raises(Unauthenticated):
            site.rules.account_of_certificate(site.store, other)
    site.rules.evict(site.store, WHO, issued.spiffe_id, "")
    with pytest.raises(Unauthenticated):
        site.rules.account_of_certificate(site.store, issued.chain)


def _foreign(site: Site) -> bytes:
    """A certificate of the same names by another authority."""
    from sealane_auth import authority

    now = datetime.datetime.fromtimestamp(site.clock.now(), datetime.UTC)
    signer = authority.make_intermediate(authority.make_root(now), now)
    names = authority.account_names("projects/p/serviceAccounts/camera")
    leaf = authority.issue_leaf(signer, tls.new_request()[1], names, authority.Validity(now, now + authority.LEAF_LIFE))
    return leaf.public_bytes(serialization.Encoding.PEM) + signer.certificate_pem


def test_a_statement_carries_the_join_tokens_attributes(site: Site) -> None:
    site.enroll()
    pair = suites.generate(suites.HYBRID)
    signed, expires = site.rules.vouch(site.store, "edge-1", "MLKEM768_X25519", pair.public_key)
    statement = statements.verify(signed, site.key_set(), site.clock.now())
    assert statement.attributes == PLACE | {"relay": ""}
    assert (statement.node, statement.key_id, statement.public_key) == ("edge-1", pair.key_id, pair.public_key)
    with pytest.raises(Unauthenticated, match="expired"):
        statements.verify(signed, site.key_set(), expires + 31)
    with pytest.raises(InvalidArgument):
        site.rules.vouch(site.store, "edge-1", "X25519", pair.public_key)
    forged = signed[:-4] + ("AAAA" if signed[-4:] != "AAAA" else "BBBB")
    with pytest.raises(Unauthenticated):
        statements.verify(forged, site.key_set(), site.clock.now())


def test_the_directory_lists_each_key_while_its_statement_is_good(site: Site) -> None:
    def listed(after: str = "", limit: int = 10) -> list[str]:
        return [item.node for item in site.store.peers.statements(site.clock.now(), after, limit)]

    for name in ("edge-2", "edge-1", "edge-3"):
        site.enroll(name=name)
        site.rules.vouch(site.store, name, "X25519", suites.generate(suites.X25519).public_key)
    assert listed() == ["edge-1", "edge-2", "edge-3"]
    (first,) = site.store.peers.statements(site.clock.now(), "", 1)
    assert listed(first.name, 1) == ["edge-2"]
    site.clock.advance(400)
    pair = suites.generate(suites.HYBRID)  # started anew
    signed, _ = site.rules.vouch(site.store, "edge-1", "MLKEM768_X25519", pair.public_key)
    both = {item.key_id: item.jws for item in site.store.peers.statements(site.clock.now(), "", 2)}
    assert both[pair.key_id] == signed and first.jws in both.values(), "what was sealed to the old one is good still"
    site.rules.vouch(site.store, "edge-1", "MLKEM768_X25519", pair.public_key)
    assert listed() == ["edge-1", "edge-1", "edge-2", "edge-3"], "renewed, not listed again"
    site.clock.advance(201)
    assert listed() == ["edge-1"], "the others have expired"
    site.rules.evict(site.store, WHO, "spiffe://sealane/node/edge-1", "stolen")
    assert listed() == [], "nobody seals to who was put out"


def test_the_first_start_makes_one_admin_and_later_ones_none(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "admin.json"
    bootstrap.ensure_records(site.store, site.secrets.keyring, "p", path, site.clock)
    first = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    path.unlink()  # the operator took it away
    bootstrap.ensure_records(site.store, site.secrets.keyring, "p", path, site.clock)
    assert first and not path.exists()
