"""Tokens of other issuers: whose keys are taken, and which tokens are believed."""

from __future__ import annotations

import json
from collections.abc import Callable

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from sealane.errors import InvalidArgument, Unauthenticated
from sealane.security import jws
from sealane.security.external_jwt import ExternalKey, parse_key_set, verify

NOW = 1_800_000_000.0
ISSUER, AUDIENCE = "https://id.example.com/realms/cameras", "sealane"
RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()


def number(value: int, size: int = 0) -> str:
    return jws.encode(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


def rsa_jwk(**more: object) -> dict[str, object]:
    numbers = RSA_KEY.public_key().public_numbers()
    return {"kty": "RSA", "kid": "rsa", "n": number(numbers.n), "e": number(numbers.e), **more}


def ec_jwk(**more: object) -> dict[str, object]:
    numbers = EC_KEY.public_key().public_numbers()
    return {"kty": "EC", "kid": "ec", "crv": "P-256", "x": number(numbers.x, 32), "y": number(numbers.y, 32), **more}


def ed_jwk(**more: object) -> dict[str, object]:
    public = ED_KEY.public_key().public_bytes_raw()
    return {"kty": "OKP", "kid": "ed", "crv": "Ed25519", "x": jws.encode(public), **more}


SET = parse_key_set(json.dumps({"keys": [rsa_jwk(), rsa_jwk(kid="pss", alg="PS256"), ec_jwk(), ed_jwk()]}).encode())


def claims(**more: object) -> dict[str, object]:
    return {"iss": ISSUER, "aud": AUDIENCE, "sub": "camera-7", "iat": int(NOW), "exp": int(NOW) + 300, **more}


def signed(
    content: dict[str, object], key: PrivateKeyTypes = RSA_KEY, algorithm: str = "RS256", **header: object
) -> str:
    return jwt.encode(content, key, algorithm=algorithm, headers={"kid": "rsa", **header})  # type: ignore[arg-type]


def check(token: str) -> dict[str, object]:
    return verify(token, SET, issuer=ISSUER, audience=AUDIENCE, now=NOW)


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [(RSA_KEY, "RS256", "rsa"), (RSA_KEY, "PS256", "pss"), (EC_KEY, "ES256", "ec"), (ED_KEY, "EdDSA", "ed")],
)
def test_each_algorithm_with_its_key(key: PrivateKeyTypes, algorithm: str, kid: str) -> None:
    assert check(signed(claims(), key, algorithm, kid=kid)) == claims()
    wrong = "PS256" if algorithm == "RS256" else "RS256"
    with pytest.raises(Unauthenticated) as refused:
        check(signed(claims(), RSA_KEY, wrong, kid=kid))
    assert refused.value.reason == "TOKEN_ALGORITHM"


def test_an_audience_list_that_names_us_and_the_types_of_known_issuers() -> None:
    assert check(signed(claims(aud=["account", AUDIENCE]), typ="JWT", x5t="ykNaY4qM"))["sub"] == "camera-7"
    assert check(signed(claims(), typ="at+jwt"))["sub"] == "camera-7"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"iss": ISSUER + "/"}, "TOKEN_ISSUER"),
        ({"iss": [ISSUER]}, "TOKEN_ISSUER"),
        ({"aud": "sealane-inference"}, "TOKEN_AUDIENCE"),
        ({"aud": ["account"]}, "TOKEN_AUDIENCE"),
        ({"aud": [AUDIENCE, 7]}, "TOKEN_AUDIENCE"),
        ({"aud": None}, "TOKEN_AUDIENCE"),
        ({"exp": int(NOW) - 31}, "TOKEN_EXPIRED"),
        ({"exp": 1e308}, "TOKEN_INVALID"),
        ({"exp": str(int(NOW) + 60)}, "TOKEN_INVALID"),
        ({"exp": True}, "TOKEN_INVALID"),
        ({"exp": None}, "TOKEN_INVALID"),
        ({"iat": int(NOW) + 31}, "TOKEN_NOT_YET_VALID"),
        ({"nbf": int(NOW) + 31}, "TOKEN_NOT_YET_VALID"),
        ({"sub": ""}, "TOKEN_INVALID"),
        ({"sub": 7}, "TOKEN_INVALID"),
    ],
)
def test_claims_that_are_not_believed(change: dict[str, object], reason: str) -> None:
    parts = [jws.encode(json.dumps(part).encode()) for part in ({"alg": "EdDSA", "kid": "ed"}, claims(**change))]
    body = ".".join(parts)
    with pytest.raises(Unauthenticated) as refused:
        check(f"{body}.{jws.encode(ED_KEY.sign(body.encode()))}")
    assert refused.value.reason == reason


def test_the_edges_of_the_leeway() -> None:
    assert check(signed(claims(exp=int(NOW) - 29)))
    assert check(signed(claims(iat=int(NOW) + 30, nbf=int(NOW) + 30)))
    without = claims()
    del without["exp"]
    with pytest.raises(Unauthenticated):
        check(signed(without))


@pytest.mark.parametrize("name", ["jku", "x5u", "x5c", "jwk", "crit", "b64", "zip", "cty"])
def test_a_header_that_would_steer_the_verification_is_refused(name: str) -> None:
    head = jws.encode(json.dumps({"alg": "EdDSA", "kid": "ed", name: "x"}).encode())
    body = f"{head}.{jws.encode(json.dumps(claims()).encode())}"
    with pytest.raises(Unauthenticated) as refused:
        check(f"{body}.{jws.encode(ED_KEY.sign(body.encode()))}")
    assert refused.value.reason == "TOKEN_HEADER"


def test_the_public_key_as_a_shared_secret_is_refused() -> None:
    """The confusion of RFC 8725 section 2.1."""
    import hashlib
    import hmac

    from cryptography.hazmat.primitives import serialization

    pem = RSA_KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for secret in (pem, json.dumps(rsa_jwk()).encode()):
        for algorithm in ("HS256", "none", "None", ""):
            head = jws.encode(json.dumps({"alg": algorithm, "kid": "rsa"}).encode())
            body = f"{head}.{jws.encode(json.dumps(claims()).encode())}"
            tag = hmac.digest(secret, body.encode(), hashlib.sha256) if algorithm == "HS256" else b""
            with pytest.raises(Unauthenticated) as refused:
                check(f"{body}.{jws.encode(tag)}")
            assert refused.value.reason == "TOKEN_ALGORITHM"


def test_an_unknown_kid_says_so_that_the_set_can_be_fetched_again() -> None:
    for kid in ("other", "../../etc/passwd", ""):
        with pytest.raises(Unauthenticated) as refused:
            check(signed(claims(), kid=kid))
        assert refused.value.reason == "TOKEN_KEY"


def test_a_long_token_is_not_looked_at() -> None:
    with pytest.raises(Unauthenticated) as refused:
        check(signed(claims(groups="x" * 13_000)))
    assert refused.value.reason == "TOKEN_MALFORMED"


@pytest.mark.parametrize(
    "jwk",
    [
        {"kty": "oct", "kid": "s", "k": "AAAA"},
        rsa_jwk(d="AQAB"),
        rsa_jwk(n=number(2**1023 + 1155)),
        rsa_jwk(e="AQ"),
        rsa_jwk(e="Aw"),
        rsa_jwk(n="!!"),
        rsa_jwk(n=7),
        ec_jwk(crv="P-384"),
        ec_jwk(crv="secp256k1"),
        ec_jwk(y=number(1, 32)),
        ec_jwk(x="AA"),
        ed_jwk(x="AA"),
    ],
)
def test_a_key_that_must_not_be_trusted_spoils_its_set(jwk: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse_key_set(json.dumps({"keys": [ed_jwk(kid="good"), jwk]}).encode())
    assert refused.value.reason == "EXTERNAL_KEY_REFUSED"


@pytest.mark.parametrize(
    "make",
    [
        lambda: rsa_jwk(use="enc"),
        lambda: rsa_jwk(key_ops=["encrypt"]),
        lambda: rsa_jwk(key_ops="verify"),
        lambda: rsa_jwk(alg="RSA-OAEP"),
        lambda: rsa_jwk(alg="RS512"),
        lambda: rsa_jwk(alg="ES256"),
        lambda: ec_jwk(alg="ES384", crv="P-384"),
        lambda: ed_jwk(crv="X25519"),
        lambda: {"kty": "AKP", "kid": "pq", "pub": "AAAA"},
        lambda: {name: value for name, value in rsa_jwk().items() if name != "kid"},
    ],
)
def test_a_key_for_something_else_is_passed_over(make: Callable[[], dict[str, object]]) -> None:
    found = parse_key_set(json.dumps({"keys": [make(), ed_jwk(kid="good")]}).encode())
    assert [key.kid for key in found] == ["good"]
    with pytest.raises(InvalidArgument):
        ExternalKey.from_jwk(make())


@pytest.mark.parametrize(
    "document", [b"", b"[]", b"{}", b'{"keys": {}}', b'{"keys": [7]}', b'{"keys": [], "keys": []}']
)
def test_what_is_no_key_set(document: bytes) -> None:
    with pytest.raises(InvalidArgument):
        parse_key_set(document)


def test_two_keys_under_one_name_are_refused() -> None:
    with pytest.raises(InvalidArgument):
        parse_key_set(json.dumps({"keys": [ed_jwk(kid="same"), ec_jwk(kid="same")]}).encode())
