"""What is revoked is refused, at once, and remembered; what is not goes on."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sealane.clock import ManualClock
from sealane.errors import Unauthenticated, Unavailable
from sealane.rpc.call import Identity, Peer
from sealane.security.revocations import Kind, Revocations, Revoked

CALLER = Identity("projects/p/serviceAccounts/a", "p", token_id="t1", key_id="k1", epoch=1)


@pytest.mark.parametrize(
    ("revoked", "refused"),
    [
        (Revoked(Kind.TOKEN, "t1", "p"), True),
        (Revoked(Kind.TOKEN, "t1", "q"), False),  # another project's admin cannot revoke it
        (Revoked(Kind.TOKEN, "t2", "p"), False),
        (Revoked(Kind.SUBJECT, CALLER.subject, number=2), True),
        (Revoked(Kind.SUBJECT, CALLER.subject, number=1), False),
        (Revoked(Kind.SUBJECT, "projects/p/serviceAccounts/b", number=9), False),
        (Revoked(Kind.KEY, "k1"), True),
        (Revoked(Kind.KEY, "k2"), False),
        (Revoked(Kind.PEER, CALLER.subject), False),
    ],
)
def test_a_token_is_refused_by_its_id_epoch_and_key(revoked: Revoked, refused: bool) -> None:
    known = Revocations(ManualClock())
    known.check(CALLER)
    known.take(1, [revoked])
    if refused:
        with pytest.raises(Unauthenticated) as caught:
            known.check(CALLER)
        assert caught.value.reason == "TOKEN_REVOKED"
    else:
        known.check(CALLER)


def test_an_epoch_never_goes_back() -> None:
    known = Revocations(ManualClock())
    known.take(2, [Revoked(Kind.SUBJECT, CALLER.subject, number=2)])
    known.take(3, [Revoked(Kind.SUBJECT, CALLER.subject, number=1)])
    with pytest.raises(Unauthenticated):
        known.check(CALLER)


def test_a_peer_without_a_certificate_is_no_concern_of_theirs() -> None:
    known = Revocations(ManualClock())
    known.take(1, [Revoked(Kind.ISSUER, "aa"), Revoked(Kind.PEER, "spiffe://sealane/node/n", number=10.0)])
    known.check_peer(Peer())
    with pytest.raises(Unauthenticated):
        known.check_peer(Peer(spiffe_id="spiffe://sealane/node/n"))


def test_a_certificate_that_does_not_name_its_issuers_key_is_refused_always() -> None:
    """The holder of a stolen intermediate writes what its leaves say; without the key identifier they are not known."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "registry.service.sealane")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
    )
    by_name = x509.AuthorityKeyIdentifier(None, [x509.DirectoryName(name)], 7)
    for made in (builder, builder.add_extension(by_name, critical=False)):
        pem = made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        with pytest.raises(Unauthenticated, match="issuer"):
            Revocations(ManualClock()).check_peer(Peer("spiffe://sealane/service/registry", certificate_pem=pem))


def test_they_are_fresh_for_a_minute_after_each_word_from_auth() -> None:
    clock = ManualClock()
    known = Revocations(clock)
    assert not known.fresh(), "nothing was heard yet"
    known.take(0, [])
    clock.advance(60)
    known.demand_fresh()
    clock.advance(1)
    with pytest.raises(Unavailable) as caught:
        known.demand_fresh()
    assert caught.value.reason == "REVOCATIONS_STALE" and caught.value.retry_after
    known.take(0, [])
    known.demand_fresh()


def test_they_are_known_after_a_restart_without_auth_but_not_fresh(tmp_path: Path) -> None:
    path = tmp_path / "revocations.json"
    Revocations(ManualClock(), path).take(7, [Revoked(Kind.TOKEN, "t1", "p"), Revoked(Kind.PEER, "x", number=1.5)])
    again = Revocations(ManualClock(), path)
    assert again.sequence == 7 and not again.fresh()
    assert again.has(Revoked(Kind.PEER, "x"))
    with pytest.raises(Unauthenticated):
        again.check(CALLER)


def test_a_snapshot_replaces_what_was_known() -> None:
    known = Revocations(ManualClock())
    known.take(7, [Revoked(Kind.TOKEN, "t1", "p")])
    known.take(2, [Revoked(Kind.KEY, "old")], snapshot=True)  # auth was restored from a backup
    known.check(CALLER)
    assert known.key_revoked("old") and known.sequence == 2


def test_listeners_hear_of_changes_and_of_nothing_else() -> None:
    known, heard = Revocations(ManualClock()), list[int]()
    known.subscribe(lambda: heard.append(known.version))
    known.take(0, [])
    known.take(1, [Revoked(Kind.KEY, "k")])
    known.take(1, [])
    known.take(2, [Revoked(Kind.KEY, "k")])
    assert heard == [1]
