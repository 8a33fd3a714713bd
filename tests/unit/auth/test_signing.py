"""One signing key follows another, and what lies on the disk opens with the key file alone."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from joining import Site, joining

from sealane.errors import FailedPrecondition, NotFound, Unauthenticated
from sealane.rpc.call import Identity
from sealane.security import jws
from sealane.security.key_file import KeyFile
from sealane_auth import bootstrap
from sealane_auth.authority_files import Authority
from sealane_auth.config import Config
from sealane_auth.key_store import SigningKey
from sealane_auth.signing import State, state_of

DAY = 86_400.0


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with joining(tmp_path) as made:
        yield made


def states(site: Site) -> list[str]:
    keys = site.store.keys.all()
    return [state_of(key, keys, site.clock.now()).value for key in keys]


def signing_kid(site: Site) -> str:
    return jws.thumbprint(site.secrets.keyring.signing(site.store.keys).public_key().public_bytes_raw())


def test_the_next_key_is_known_twice_as_long_as_caches_hold_before_it_signs(site: Site) -> None:
    first = signing_kid(site)
    fresh = site.secrets.keyring.rotate(site.store.keys)
    assert site.secrets.keyring.rotate(site.store.keys) == fresh, "one rotation at a time"
    assert states(site) == ["SIGNING", "PUBLISHED"]
    assert set(site.secrets.keyring.public_keys(site.store.keys)) == {first, fresh.kid}
    site.clock.advance(599)
    assert signing_kid(site) == first
    site.clock.advance(2)
    assert signing_kid(site) == fresh.kid
    assert states(site) == ["RETIRING", "SIGNING"]
    site.clock.advance(600)  # a statement of the old key, signed in its last second, is still good
    assert set(site.secrets.keyring.public_keys(site.store.keys)) == {first, fresh.kid}
    site.clock.advance(100)
    assert states(site) == ["WITHDRAWN", "SIGNING"]
    assert set(site.secrets.keyring.public_keys(site.store.keys)) == {fresh.kid}


def test_a_key_is_published_as_long_as_its_longest_offline_grant(site: Site) -> None:
    site.secrets.keyring.rotate(site.store.keys, longest=8 * DAY)
    site.clock.advance(8 * DAY)
    assert states(site) == ["RETIRING", "SIGNING"]
    site.clock.advance(DAY)
    assert states(site) == ["WITHDRAWN", "SIGNING"]


def test_a_retired_key_is_dead_at_once_and_another_one_signs(site: Site) -> None:
    first = signing_kid(site)
    site.secrets.keyring.retire(site.store.keys, site.store.revocations, first)
    assert states(site) == ["REVOKED", "SIGNING"]
    assert first not in site.secrets.keyring.public_keys(site.store.keys)
    with pytest.raises(Unauthenticated, match="revoked"):
        site.revocations().check(Identity("s", "p", key_id=first))
    site.revocations().check(Identity("s", "p", key_id=signing_kid(site)))
    again = site.secrets.keyring.retire(site.store.keys, site.store.revocations, first)
    assert again.revoke_time and states(site) == ["REVOKED", "SIGNING"]
    with pytest.raises(NotFound):
        site.secrets.keyring.retire(site.store.keys, site.store.revocations, "nobody")


def test_an_emergency_takes_the_key_that_waits(site: Site) -> None:
    first, waiting = signing_kid(site), site.secrets.keyring.rotate(site.store.keys)
    site.secrets.keyring.retire(site.store.keys, site.store.revocations, first)
    assert signing_kid(site) == waiting.kid
    assert states(site) == ["REVOKED", "SIGNING"]


def test_a_waiting_key_can_be_retired_too(site: Site) -> None:
    first, waiting = signing_kid(site), site.secrets.keyring.rotate(site.store.keys)
    site.secrets.keyring.retire(site.store.keys, site.store.revocations, waiting.kid)
    site.clock.advance(601)
    assert signing_kid(site) == first


def test_keys_change_by_themselves_after_a_month_and_are_forgotten_after_a_year(site: Site) -> None:
    assert site.secrets.keyring.tick(site.store.keys) is None
    site.clock.advance(30 * DAY)
    fresh = site.secrets.keyring.tick(site.store.keys)
    assert fresh is not None and site.secrets.keyring.tick(site.store.keys) is None
    for _ in range(14):
        site.clock.advance(30 * DAY)
        site.secrets.keyring.tick(site.store.keys)
    assert 12 <= len(site.store.keys.all()) <= 14


def test_nothing_secret_lies_on_the_disk_in_clear(site: Site, tmp_path: Path) -> None:
    private = site.secrets.keyring.signing(site.store.keys).private_bytes_raw()
    assert private not in site.store.keys.all()[0].sealed_private
    scalar = site.secrets.authority.signer.key.private_numbers().private_value.to_bytes(32, "big")
    for path in (tmp_path / "auth").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert scalar not in content and b"PRIVATE KEY" not in content, path
            assert not path.name.endswith(".key") or path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "auth.key").stat().st_mode & 0o777 == 0o600


def test_a_missing_or_other_key_file_stops_the_start_and_says_so(site: Site, tmp_path: Path) -> None:
    config, path = Config(tmp_path / "auth"), tmp_path / "auth.key"
    right = path.read_bytes()
    path.unlink()
    with pytest.raises(FailedPrecondition, match="restore"):
        bootstrap.open_secrets(config, site.clock)
    path.write_bytes(bytes(32))
    with pytest.raises(FailedPrecondition, match="restore"):
        bootstrap.open_secrets(config, site.clock)
    path.write_bytes(b"short")
    with pytest.raises(FailedPrecondition, match="32"):
        bootstrap.open_secrets(config, site.clock)
    path.write_bytes(right)
    secrets = bootstrap.open_secrets(config, site.clock)
    assert secrets.authority.signer.certificate == site.secrets.authority.signer.certificate


def test_what_is_sealed_opens_under_its_name_alone() -> None:
    keyfile = KeyFile(b"k" * 32)
    sealed = keyfile.seal("one", b"secret")
    assert keyfile.open("one", sealed) == b"secret"
    for name, content in (
        ("two", sealed),
        ("one", sealed[:-1] + bytes([sealed[-1] ^ 1])),
        ("one", b"in clear"),
        ("one", b""),
    ):
        with pytest.raises(FailedPrecondition):
            keyfile.open(name, content)


def test_keys_of_a_version_that_kept_them_in_clear_are_taken_over(site: Site, tmp_path: Path) -> None:
    private = Ed25519PrivateKey.generate()
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    kid = jws.thumbprint(private.public_key().public_bytes_raw())
    site.store.keys.delete_key(site.store.keys.all()[0].kid)
    site.store.keys.put_key(SigningKey(kid, b"", pem, 1.0, 1.0))
    site.secrets.keyring.prepare(site.store.keys)
    (taken,) = site.store.keys.all()
    assert taken.public == private.public_key().public_bytes_raw() and b"PRIVATE" not in taken.sealed_private
    assert signing_kid(site) == kid


def test_an_old_intermediate_is_followed_by_a_new_one_of_the_same_root(tmp_path: Path) -> None:
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    files = Authority(tmp_path, KeyFile(b"k" * 32))
    files.open(now)
    first, root = files.signer.certificate, files.trust_bundle
    files.open(now + datetime.timedelta(days=59))
    assert files.signer.certificate == first
    files.open(now + datetime.timedelta(days=61))
    second = files.signer.certificate
    assert second != first and files.trust_bundle == root
    assert set(files.intermediates) == {first, second}
    (tmp_path / "root.key").unlink()  # taken offline
    files.open(now + datetime.timedelta(days=140))
    assert files.signer.certificate == second
    with pytest.raises(FailedPrecondition, match=r"root\.key"):
        files.rotate(now)


def test_a_clock_that_was_set_back_leaves_a_key_that_signs(site: Site) -> None:
    kid = signing_kid(site)
    site.secrets.keyring.retire(site.store.keys, site.store.revocations, kid)
    fresh = signing_kid(site)
    site.clock.advance(-3600)
    assert signing_kid(site) == fresh
    assert fresh in site.secrets.keyring.public_keys(site.store.keys)
    assert site.secrets.keyring.tick(site.store.keys) is None


def test_states_follow_from_times_alone() -> None:
    keys = [SigningKey("a", b"", b"", 0.0, 0.0, withdraw_time=30.0), SigningKey("b", b"", b"", 5.0, 10.0)]
    seen = [[state_of(key, keys, now) for key in keys] for now in (0.0, 9.9, 10.0, 29.9, 30.0)]
    assert seen == [
        [State.SIGNING, State.PUBLISHED],
        [State.SIGNING, State.PUBLISHED],
        [State.RETIRING, State.SIGNING],
        [State.RETIRING, State.SIGNING],
        [State.WITHDRAWN, State.SIGNING],
    ]
