"""Tokens: what a verifier takes and what it refuses (SECURITY 2.6, the cases of this stage)."""

from __future__ import annotations

import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from sealane.clock import ManualClock
from sealane.errors import Unauthenticated
from sealane.security import jws, tokens
from sealane.security.keys import KeySet, Published
from sealane.security.proof import ProofVerifier, prove
from sealane.security.tokens import ISSUER, Grant, TokenVerifier, UnknownKey

KEY = Ed25519PrivateKey.generate()
KID = jws.thumbprint(KEY.public_key().public_bytes_raw())
CLOCK = ManualClock()
GRANT = Grant("projects/p/serviceAccounts/a", "a@p", "p", "sealane-inference", ("infer",))


def make_verifier(clock: ManualClock = CLOCK, audience: str = "sealane-inference") -> TokenVerifier:
    keys = KeySet(lambda: Published({KID: jws.encode(KEY.public_key().public_bytes_raw())}))
    keys.refresh()
    return TokenVerifier(keys, issuer=ISSUER, audience=audience, clock=clock)


def token(**grant: object) -> str:
    values = {name: getattr(GRANT, name) for name in Grant.__slots__} | grant
    return tokens.issue(Grant(**values), key=KEY, issuer=ISSUER, now=CLOCK.now())


def forged(header: dict[str, object], claims: dict[str, object], key: Ed25519PrivateKey = KEY) -> str:
    return jws.sign(key, header, claims)


def claims_of(text: str) -> dict[str, object]:
    return json.loads(jws.decode(text.split(".")[1]))


def test_a_token_says_who_and_what() -> None:
    identity = make_verifier().verify(token(key_thumbprint="t" * 43))
    assert (identity.subject, identity.project, identity.scopes) == (GRANT.subject, "p", {"infer"})
    assert identity.key_thumbprint == "t" * 43


def test_a_cached_token_still_expires() -> None:
    clock = ManualClock()
    verifier, issued = make_verifier(clock), token()
    verifier.verify(issued)
    clock.advance(tokens.LIFETIME_SECONDS + tokens.LEEWAY_SECONDS + 1)
    with pytest.raises(Unauthenticated, match="expired"):
        verifier.verify(issued)


HEADERS: dict[str, dict[str, object]] = {
    "alg none": {"alg": "none"},
    "alg HS256": {"alg": "HS256"},
    "typ missing-like": {"typ": "JWT"},
    "logout token": {"typ": "logout+jwt"},
    "proof": {"typ": "dpop+jwt"},
    "jku": {"jku": "https://attacker.example"},
    "jwk": {"jwk": {"kty": "OKP"}},
    "x5c": {"x5c": []},
    "crit": {"crit": ["b64"]},
    "zip": {"zip": "DEF"},
    "kid path": {"kid": "../../etc/passwd"},
    "kid list": {"kid": [KID]},
}


@pytest.mark.parametrize("change", HEADERS.values(), ids=HEADERS)
def test_a_strange_header_is_refused(change: dict[str, object]) -> None:
    header = {"typ": "at+jwt", "kid": KID} | change
    with pytest.raises((Unauthenticated, UnknownKey)):
        make_verifier().verify(forged(header, claims_of(token())))


NOW = CLOCK.now()
CLAIMS: dict[str, dict[str, object]] = {
    "exp past": {"exp": NOW - 100, "iat": NOW - 200},
    "exp text": {"exp": "soon"},
    "exp huge": {"exp": 1e308},
    "exp negative": {"exp": -1},
    "lifetime beyond 15 min": {"exp": NOW + 901},
    "iat future": {"iat": NOW + 60},
    "nbf future": {"nbf": NOW + 60},
    "aud list": {"aud": ["sealane-inference"]},
    "aud other": {"aud": "sealane-registry"},
    "aud prefix": {"aud": "sealane"},
    "iss other": {"iss": "https://attacker.example"},
    "iss substring": {"iss": ISSUER[:-1]},
    "iss slash": {"iss": ISSUER + "/"},
    "sub empty": {"sub": ""},
    "project empty": {"project": ""},
    "unknown binding": {"cnf": {"kid": "x"}},
}


@pytest.mark.parametrize("change", CLAIMS.values(), ids=CLAIMS)
def test_strange_claims_are_refused(change: dict[str, object]) -> None:
    claims = claims_of(token()) | change
    with pytest.raises(Unauthenticated):
        make_verifier().verify(forged({"typ": "at+jwt", "kid": KID}, claims))


@pytest.mark.parametrize("missing", ["exp", "iat", "aud", "iss", "sub", "jti", "client_id", "project", "scope"])
def test_a_missing_claim_is_refused(missing: str) -> None:
    claims = claims_of(token())
    del claims[missing]
    with pytest.raises(Unauthenticated):
        make_verifier().verify(forged({"typ": "at+jwt", "kid": KID}, claims))


def test_another_key_is_refused() -> None:
    with pytest.raises(Unauthenticated):
        make_verifier().verify(forged({"typ": "at+jwt", "kid": KID}, claims_of(token()), Ed25519PrivateKey.generate()))


def test_duplicate_keys_are_refused() -> None:
    head, body, _ = token().split(".")
    doubled = jws.decode(body)[:-1] + b',"scope":"admin"}'
    signing = f"{head}.{jws.encode(doubled)}"
    with pytest.raises(Unauthenticated, match="JSON"):
        make_verifier().verify(f"{signing}.{jws.encode(KEY.sign(signing.encode()))}")


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_no_altered_token_passes(position: int, flip: int) -> None:
    issued = bytearray(token().encode())
    issued[position % len(issued)] ^= flip
    try:
        text = issued.decode("ascii")
    except UnicodeDecodeError:
        return
    with pytest.raises((Unauthenticated, UnknownKey)):
        make_verifier().verify(text)


def test_a_proof_is_for_one_call_once() -> None:
    clock, key, issued = ManualClock(), Ed25519PrivateKey.generate(), token()
    thumbprint = jws.thumbprint(key.public_key().public_bytes_raw())
    proof = prove(key, method_path="/a.B/C", token=issued, now=clock.now())
    verifier = ProofVerifier(clock)
    with pytest.raises(Unauthenticated, match="another call"):
        verifier.verify(proof, method_path="/a.B/D", token=issued, thumbprint=thumbprint)
    with pytest.raises(Unauthenticated, match="another call"):
        verifier.verify(proof, method_path="/a.B/C", token="other", thumbprint=thumbprint)
    with pytest.raises(Unauthenticated, match="another key"):
        verifier.verify(proof, method_path="/a.B/C", token=issued, thumbprint="x" * 43)
    verifier.verify(proof, method_path="/a.B/C", token=issued, thumbprint=thumbprint)
    with pytest.raises(Unauthenticated, match="before"):
        verifier.verify(proof, method_path="/a.B/C", token=issued, thumbprint=thumbprint)
    old = prove(key, method_path="/a.B/C", token=issued, now=clock.now() - 61)
    with pytest.raises(Unauthenticated, match="too old"):
        verifier.verify(old, method_path="/a.B/C", token=issued, thumbprint=thumbprint)
    with pytest.raises(Unauthenticated, match="send a proof"):
        verifier.verify("", method_path="/a.B/C", token=issued, thumbprint=thumbprint)
