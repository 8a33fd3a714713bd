"""An offline grant and what is signed under it: good for its node, its accounts and its time, and for nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealane.errors import Unauthenticated
from sealane.security import jws, offline
from sealane.security.keys import KeySet, Published
from sealane.security.offline import GrantRequest, OfflineGrant, SiteAccount

AUTH, NODE, CAMERA = (Ed25519PrivateKey.generate() for _ in range(3))
NOW, DAY = 1_800_000_000.0, 86_400.0
ACCOUNT = SiteAccount("projects/p/serviceAccounts/camera", CAMERA.public_key().public_bytes_raw(), ("fraud-",))
REQUEST = GrantRequest("edge-1", NODE.public_key().public_bytes_raw(), [ACCOUNT], {"tier": "edge"}, 8 * DAY)


def raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


@pytest.fixture
def keys() -> KeySet:
    found = KeySet(lambda: Published({jws.thumbprint(raw(AUTH)): jws.encode(raw(AUTH))}))
    found.refresh()
    return found


@pytest.fixture
def grant(keys: KeySet) -> OfflineGrant:
    return offline.verify(offline.issue(REQUEST, AUTH, NOW), keys, NOW)


def test_a_grant_says_who_may_call_and_until_when(grant: OfflineGrant) -> None:
    assert (grant.node, grant.public_key, grant.attributes) == ("edge-1", raw(NODE), {"tier": "edge"})
    assert grant.accounts == {ACCOUNT.subject: ACCOUNT}
    assert grant.expires == NOW + 8 * DAY and grant.audience == "sealane-node/edge-1"


def test_a_grant_is_over_in_time(keys: KeySet) -> None:
    signed = offline.issue(REQUEST, AUTH, NOW)
    offline.verify(signed, keys, NOW + 8 * DAY)
    with pytest.raises(Unauthenticated) as caught:
        offline.verify(signed, keys, NOW + 8 * DAY + 31)
    assert caught.value.reason == "GRANT_EXPIRED"


def test_only_auth_grants(keys: KeySet) -> None:
    for signed in (offline.issue(REQUEST, NODE, NOW), offline.issue(REQUEST, AUTH, NOW)[:-4] + "AAAA"):
        with pytest.raises(Unauthenticated):
            offline.verify(signed, keys, NOW)
    token = jws.sign(AUTH, {"typ": "at+jwt", "kid": jws.thumbprint(raw(AUTH))}, {"sub": "spiffe://sealane/node/edge-1"})
    with pytest.raises(Unauthenticated) as caught:
        offline.verify(token, keys, NOW)
    assert caught.value.reason == "GRANT_TYPE"


def token(key: Ed25519PrivateKey = NODE, typ: str = "at+jwt", **change: object) -> str:
    claims: dict[str, object] = {
        "iss": "spiffe://sealane/node/edge-1",
        "sub": ACCOUNT.subject,
        "aud": "sealane-node/edge-1",
        "scope": "infer",
        "iat": int(NOW),
        "exp": int(NOW) + 300,
    }
    return jws.sign(key, {"typ": typ, "kid": jws.thumbprint(raw(key))}, claims | change)


def test_a_token_of_the_site_names_an_account_of_the_grant(grant: OfflineGrant) -> None:
    assert offline.check_site_token(token(), grant, NOW) == ACCOUNT
    assert offline.check_site_token(token(scope="infer models:read"), grant, NOW) == ACCOUNT


@pytest.mark.parametrize(
    "make",
    [
        lambda: token(CAMERA),
        lambda: token(AUTH),
        lambda: token(typ="sealane-offline-grant+jwt"),
        lambda: token(aud="sealane-inference"),
        lambda: token(aud="sealane-node/edge-2"),
        lambda: token(iss="spiffe://sealane/node/edge-2"),
        lambda: token(iss="https://auth.service.sealane"),
        lambda: token(sub="projects/p/serviceAccounts/other"),
        lambda: token(scope="infer deploy"),
        lambda: token(scope=None),
        lambda: token(exp=int(NOW) + 901),
        lambda: token(exp=int(NOW + 9 * DAY), iat=int(NOW + 9 * DAY) - 300),
        lambda: token(exp=str(int(NOW) + 300)),
        lambda: token(exp=int(NOW) - 31, iat=int(NOW) - 331),
        lambda: token(iat=int(NOW) + 31),
        lambda: token(iat=None),
    ],
)
def test_a_token_beyond_the_grant_is_refused(grant: OfflineGrant, make: Callable[[], str]) -> None:
    with pytest.raises(Unauthenticated):
        offline.check_site_token(make(), grant, NOW)


def test_no_token_outlives_the_grant(grant: OfflineGrant) -> None:
    end = int(grant.expires)
    late = token(iat=end - 100, exp=end)
    assert offline.check_site_token(late, grant, end - 50) == ACCOUNT
    with pytest.raises(Unauthenticated):
        offline.check_site_token(late, grant, end + 31)
    with pytest.raises(Unauthenticated):
        offline.check_site_token(token(iat=end - 100, exp=end + 1), grant, end - 50)
