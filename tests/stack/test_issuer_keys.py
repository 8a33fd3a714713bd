"""Fetching the keys of external issuers: what is kept, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from oidc_issuer import OidcIssuer, running

from sealane.clock import ManualClock
from sealane.errors import Unavailable
from sealane_auth import issuer_keys
from sealane_auth.issuer_keys import CACHE_SECONDS, KEEP_SECONDS, REFETCH_SECONDS, IssuerKeys
from sealane_auth.issuer_store import TrustedIssuer


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[OidcIssuer]:
    with running(tmp_path / "issuer", "/realms/acme") as made:
        yield made


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def keys(issuer: OidcIssuer, clock: ManualClock) -> IssuerKeys:
    return IssuerKeys(clock, ca_file=issuer.ca_file, private=True)


def trusted(issuer: OidcIssuer, jwks_uri: str = "") -> TrustedIssuer:
    return TrustedIssuer("p", "sso", issuer.url, "sealane", jwks_uri)


def kids(keys: IssuerKeys, trust: TrustedIssuer, *, unknown_key: bool = False) -> list[str]:
    return [key.kid for key in keys.get(trust, unknown_key=unknown_key)]


def test_by_discovery_and_by_address_and_kept_for_five_minutes(
    issuer: OidcIssuer, keys: IssuerKeys, clock: ManualClock
) -> None:
    assert kids(keys, trusted(issuer)) == ["k1"]
    assert issuer.fetched == ["/realms/acme/.well-known/openid-configuration", "/realms/acme/certs"]
    assert kids(keys, trusted(issuer, f"{issuer.url}/certs")) == ["k1"]
    before = len(issuer.fetched)
    clock.advance(CACHE_SECONDS - 1)
    kids(keys, trusted(issuer))
    assert len(issuer.fetched) == before
    clock.advance(2)
    kids(keys, trusted(issuer))
    assert len(issuer.fetched) == before + 2


def test_an_unknown_key_brings_the_new_set_but_not_more_often_than_every_ten_seconds(
    issuer: OidcIssuer, keys: IssuerKeys, clock: ManualClock
) -> None:
    kids(keys, trusted(issuer))
    issuer.rotate()
    assert kids(keys, trusted(issuer), unknown_key=True) == ["k1"]
    clock.advance(REFETCH_SECONDS)
    before = len(issuer.fetched)
    assert kids(keys, trusted(issuer), unknown_key=True) == ["k1x"]
    for _ in range(5):
        kids(keys, trusted(issuer), unknown_key=True)
    assert len(issuer.fetched) == before + 2


def test_the_last_good_set_serves_while_the_issuer_is_down(
    issuer: OidcIssuer, keys: IssuerKeys, clock: ManualClock
) -> None:
    kids(keys, trusted(issuer))
    issuer.behaviour = "down"
    clock.advance(CACHE_SECONDS + 1)
    assert kids(keys, trusted(issuer)) == ["k1"]
    before = len(issuer.fetched)
    kids(keys, trusted(issuer))
    assert len(issuer.fetched) == before  # it is not asked again with every token
    clock.advance(KEEP_SECONDS)
    with pytest.raises(Unavailable):
        kids(keys, trusted(issuer))
    issuer.behaviour = "good"
    clock.advance(REFETCH_SECONDS)
    assert kids(keys, trusted(issuer)) == ["k1"]


@pytest.mark.parametrize("behaviour", ["redirect", "huge", "down", "slow"])
def test_answers_that_are_none(
    issuer: OidcIssuer, keys: IssuerKeys, behaviour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer_keys, "FETCH_SECONDS", 1.0)
    issuer.behaviour = behaviour
    with pytest.raises(Unavailable):
        kids(keys, trusted(issuer, f"{issuer.url}/certs"))


def test_discovery_must_be_of_the_issuer_itself(issuer: OidcIssuer, keys: IssuerKeys) -> None:
    issuer.says_issuer = "https://login.example"
    with pytest.raises(Unavailable):
        kids(keys, trusted(issuer))


def test_private_addresses_and_unknown_authorities_are_refused(issuer: OidcIssuer, clock: ManualClock) -> None:
    public = IssuerKeys(clock, ca_file=issuer.ca_file)
    for url in (issuer.url, issuer.url.replace("localhost", "127.0.0.1"), "https://[::1]:1", "https://169.254.169.254"):
        with pytest.raises(Unavailable, match="not public"):
            public.get(TrustedIssuer("p", "sso", url, "sealane"))
    assert issuer.fetched == []
    with pytest.raises(Unavailable):
        IssuerKeys(clock, private=True).get(trusted(issuer))  # the system's authorities do not know it
    assert issuer.fetched == []


def test_a_name_that_is_none_is_unavailable(clock: ManualClock) -> None:
    with pytest.raises(Unavailable):
        IssuerKeys(clock).get(TrustedIssuer("p", "sso", "https://no-such-host.invalid", "sealane"))
