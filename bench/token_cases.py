"""The catalogue of access tokens that must be refused (SECURITY 2.6): each case by name, and its reason.

Tests knock with each at running services; ``python -m bench.refusals`` measures how long each refusal takes. Every
token here is made with auth's own key unless the case is about the key: nothing but the named fault is wrong with it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealane.security import jws, tokens
from sealane.security.key_file import KeyFile

Metadata = tuple[tuple[str, str | bytes], ...]
#: In a change of a header or of claims: leave this name out.
ABSENT = object()


def signing_key(data: Path) -> Ed25519PrivateKey:
    """Auth's own key, out of its database and under its key file, of a suite on `data`."""
    database = sqlite3.connect(f"file:{data / 'auth' / 'auth.db'}?mode=ro", uri=True)
    try:
        kid, sealed = database.execute(
            "select kid, sealed_private from signing_keys order by create_time desc"
        ).fetchone()
    finally:
        database.close()
    return Ed25519PrivateKey.from_private_bytes(KeyFile.at(data / "auth.key", create=False).open(kid, sealed))


@dataclass(frozen=True, slots=True)
class Forge:
    """Makes tokens for one audience that auth would never issue.

    Args:
        key: auth's.
        audience: the service's.
        scopes: what the method at the door demands.
    """

    key: Ed25519PrivateKey
    audience: str
    scopes: tuple[str, ...]

    @property
    def public(self) -> bytes:
        """Auth's public key, raw."""
        return self.key.public_key().public_bytes_raw()

    def good(self, **changes: object) -> str:
        """A token as auth issues it; `changes` are of the grant."""
        grant = {
            "subject": "projects/default/serviceAccounts/admin",
            "client_id": "admin@default",
            "project": "default",
            "audience": self.audience,
            "scopes": self.scopes,
        }
        return tokens.issue(
            tokens.Grant(**{**grant, **changes}),  # type: ignore[arg-type]
            key=self.key,
            issuer=tokens.ISSUER,
            now=time.time(),
        )

    def header(self, **changes: object) -> dict[str, object]:
        """The header of a good token, changed."""
        made = {"alg": "EdDSA", "typ": "at+jwt", "kid": jws.thumbprint(self.public), **changes}
        return {name: value for name, value in made.items() if value is not ABSENT}

    def claims(self, **changes: object) -> dict[str, object]:
        """The claims of a good token, changed."""
        made = {**json.loads(jws.decode(self.good().split(".")[1])), **changes}
        return {name: value for name, value in made.items() if value is not ABSENT}

    def signed(self, header: bytes, claims: bytes, sign: Callable[[bytes], bytes] | None = None) -> str:
        """A compact JWS of any two texts, by auth's key or by another signer."""
        data = f"{jws.encode(header)}.{jws.encode(claims)}"
        return f"{data}.{jws.encode((sign or self.key.sign)(data.encode()))}"

    def token(self, header: Mapping[str, object], claims: Mapping[str, object]) -> str:
        """A token by auth's key."""
        return self.signed(_json(header), _json(claims))


Make = Callable[[Forge], Metadata]


@dataclass(frozen=True, slots=True)
class Case:
    """A token, and how it is refused.

    Args:
        make: the metadata of a call with it.
        reason: of the ErrorInfo.
    """

    make: Make
    reason: str


def bearer(token: str) -> Metadata:
    """The metadata that carries a token."""
    return (("authorization", f"Bearer {token}"),)


def _json(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _header(reason: str, **changes: object) -> Case:
    return Case(lambda forge: bearer(forge.token(forge.header(**changes), forge.claims())), reason)


def _claims(reason: str, **changes: object) -> Case:
    return Case(lambda forge: bearer(forge.token(forge.header(), forge.claims(**changes))), reason)


def _times(reason: str, **offsets: float) -> Case:
    """Times relative to now."""

    def make(forge: Forge) -> Metadata:
        now = int(time.time())
        return bearer(forge.token(forge.header(), forge.claims(**{name: now + by for name, by in offsets.items()})))

    return Case(make, reason)


def _number(name: str, literal: str, reason: str) -> Case:
    """A claim spelled as no JSON writer of ours spells it."""

    def make(forge: Forge) -> Metadata:
        text = _json(forge.claims(**{name: "LITERAL"})).replace(b'"LITERAL"', literal.encode())
        return bearer(forge.signed(_json(forge.header()), text))

    return Case(make, reason)


def _altered(change: Callable[[str], str], reason: str = "TOKEN_MALFORMED") -> Case:
    return Case(lambda forge: bearer(change(forge.good())), reason)


def _metadata(make: Make, reason: str) -> Case:
    return Case(make, reason)


def _by(alg: str, signer: Callable[[Forge], Callable[[bytes], bytes]]) -> Case:
    """A token whose header names another algorithm and that is signed so."""
    return Case(
        lambda forge: bearer(forge.signed(_json(forge.header(alg=alg)), _json(forge.claims()), signer(forge))),
        "TOKEN_ALGORITHM",
    )


def _hs256(secret: Callable[[Forge], bytes]) -> Callable[[Forge], Callable[[bytes], bytes]]:
    return lambda forge: lambda data: hmac.digest(secret(forge), data, "sha256")


def _pem(forge: Forge) -> bytes:
    public = forge.key.public_key()
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _der(forge: Forge) -> bytes:
    public = forge.key.public_key()
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _unsigned(_: Forge) -> Callable[[bytes], bytes]:
    return lambda data: b""


def _rsa(padder: padding.AsymmetricPadding) -> Callable[[Forge], Callable[[bytes], bytes]]:
    return lambda forge: lambda data: rsa.generate_private_key(65537, 2048).sign(data, padder, hashes.SHA256())


def _es256(_: Forge) -> Callable[[bytes], bytes]:
    return lambda data: ec.generate_private_key(ec.SECP256R1()).sign(data, ec.ECDSA(hashes.SHA256()))


def _fixed(signature: bytes) -> Callable[[Forge], Callable[[bytes], bytes]]:
    return lambda forge: lambda data: signature


def _genuine(forge: Forge) -> Callable[[bytes], bytes]:
    return forge.key.sign


_PSS = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
ALGORITHMS: dict[str, Case] = {
    **{f"alg {name!r}, unsigned": _by(name, _unsigned) for name in ("none", "None", "NONE", "nOnE", "")},
    **{f"alg {name!r}, auth's signature": _by(name, _genuine) for name in ("none", "eddsa", "Ed25519", "Ed448")},
    "HS256 by the public key in PEM": _by("HS256", _hs256(_pem)),
    "HS256 by the public key in DER": _by("HS256", _hs256(_der)),
    "HS256 by the public key's JWK": _by("HS256", _hs256(lambda forge: _json(jws.public_jwk(forge.public)))),
    "HS256 by the public key's bytes": _by("HS256", _hs256(lambda forge: forge.public)),
    "HS256 by nothing": _by("HS256", _hs256(lambda forge: b"")),
    "RS256 by another key": _by("RS256", _rsa(padding.PKCS1v15())),
    "PS256 by another key": _by("PS256", _rsa(_PSS)),
    "ES256 by another key": _by("ES256", _es256),
    "ES256, r and s are 0": _by("ES256", _fixed(bytes(64))),
    "ES256, r and s are n": _by("ES256", _fixed(_P256_ORDER.to_bytes(32, "big") * 2)),
    **{f"{name} over auth's signature": _by(name, _genuine) for name in ("RS256", "PS384", "ES256", "ES384", "HS512")},
    "alg missing": _header("TOKEN_HEADER", alg=ABSENT),
    "alg null": _header("TOKEN_ALGORITHM", alg=None),
    "alg a list": _header("TOKEN_ALGORITHM", alg=["EdDSA"]),
    "EdDSA, no signature": Case(
        lambda forge: bearer(forge.signed(_json(forge.header()), _json(forge.claims()), _unsigned(forge))),
        "TOKEN_SIGNATURE",
    ),
    "EdDSA, R and S are 0": Case(
        lambda forge: bearer(forge.signed(_json(forge.header()), _json(forge.claims()), lambda data: bytes(64))),
        "TOKEN_SIGNATURE",
    ),
    "EdDSA by another key under auth's kid": Case(
        lambda forge: bearer(
            forge.signed(_json(forge.header()), _json(forge.claims()), Ed25519PrivateKey.generate().sign)
        ),
        "TOKEN_SIGNATURE",
    ),
}


def _own_kid(forge: Forge) -> Metadata:
    other = Ed25519PrivateKey.generate()
    header = forge.header(kid=jws.thumbprint(other.public_key().public_bytes_raw()))
    return bearer(forge.signed(_json(header), _json(forge.claims()), other.sign))


KEY_IDS: dict[str, Case] = {
    "kid missing": _header("TOKEN_TYPE", kid=ABSENT),
    "kid an array": Case(
        lambda forge: bearer(forge.token(forge.header(kid=[jws.thumbprint(forge.public)]), forge.claims())),
        "TOKEN_TYPE",
    ),
    "kid an object": _header("TOKEN_TYPE", kid={}),
    "kid unknown": _header("TOKEN_KEY", kid=jws.encode(hashlib.sha256(b"nobody").digest())),
    "kid of a key that is not auth's": Case(_own_kid, "TOKEN_KEY"),
    "kid empty": _header("TOKEN_KEY", kid=""),
    "kid of 10 KB": _header("TOKEN_MALFORMED", kid="k" * 10_000),
    "kid a path": _header("TOKEN_KEY", kid="../../etc/passwd"),
    "kid an injection": _header("TOKEN_KEY", kid="' or 1=1--"),
    "kid with NUL": _header("TOKEN_KEY", kid="k\x00k"),
}
HEADERS: dict[str, Case] = {
    "jku": _header("TOKEN_HEADER", jku="https://attacker.example/jwks"),
    "x5u": _header("TOKEN_HEADER", x5u="https://attacker.example/chain"),
    "jwk": Case(
        lambda forge: bearer(forge.token(forge.header(jwk=jws.public_jwk(forge.public)), forge.claims())),
        "TOKEN_HEADER",
    ),
    "x5c": _header("TOKEN_HEADER", x5c=[]),
    "crit": _header("TOKEN_HEADER", crit=["exp"]),
    "b64 false": _header("TOKEN_HEADER", b64=False, crit=["b64"]),
    "zip": _header("TOKEN_HEADER", zip="DEF"),
    "cty JWT": _header("TOKEN_HEADER", cty="JWT"),
    "typ missing": _header("TOKEN_HEADER", typ=ABSENT),
    **{
        f"typ {typ!r}": _header("TOKEN_TYPE", typ=typ)
        for typ in ("JWT", "logout+jwt", "dpop+jwt", "id+jwt", "", None, ["at+jwt"])
    },
}


def _doubled(part: int, addition: bytes) -> Case:
    """The same key twice: the last one would win in most parsers."""

    def make(forge: Forge) -> Metadata:
        parts = [_json(forge.header()), _json(forge.claims())]
        parts[part] = parts[part][:-1] + b"," + addition + b"}"
        return bearer(forge.signed(parts[0], parts[1]))

    return Case(make, "TOKEN_MALFORMED")


def _text(header: bytes | None, claims: bytes | None) -> Case:
    """A header or claims that are no JSON object in UTF-8."""

    def make(forge: Forge) -> Metadata:
        return bearer(forge.signed(header or _json(forge.header()), claims or _json(forge.claims())))

    return Case(make, "TOKEN_MALFORMED")


_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def _json_form(forge: Forge) -> Metadata:
    head, body, signature = forge.good().split(".")
    return bearer(json.dumps({"payload": body, "protected": head, "signature": signature}))


def _nested(brackets: int) -> bytes:
    return b"[" * brackets + b"]" * brackets


FORMS: dict[str, Case] = {
    "a header name twice": _doubled(0, b'"alg":"none"'),
    "a claim twice": _doubled(1, b'"scope":"admin"'),
    "an inner name twice": _doubled(1, b'"cnf":{"jkt":"a","jkt":"b"}'),
    "stray bits at the end": _altered(lambda token: token[:-1] + _ALPHABET[_ALPHABET.index(token[-1]) ^ 1]),
    "padding at the end": _altered(lambda token: token + "=="),
    "padding in the header": _altered(lambda token: token.replace(".", "=.", 1)),
    "white space at the beginning": _altered(lambda token: " " + token),
    "white space inside": _altered(lambda token: token[:50] + " " + token[50:]),
    "white space at a dot": _altered(lambda token: token.replace(".", ". ", 1)),
    "the alphabet of base64": _altered(lambda token: token[:-4] + "+/+/"),
    "2 parts": _altered(lambda token: token.rpartition(".")[0]),
    "4 parts": _altered(lambda token: token + ".e30"),
    "5 parts": _altered(lambda token: token + "..e30"),
    "1 part": _altered(lambda token: token.replace(".", "")),
    "dots alone": _altered(lambda token: ".."),
    "JSON serialisation": Case(_json_form, "TOKEN_MALFORMED"),
    "header an array": _text(b"[]", None),
    "header empty": _text(b" ", None),
    "claims an array": _text(None, b'["sub"]'),
    "claims a text": _text(None, b'"sub"'),
    "claims with a byte order mark": Case(
        lambda forge: bearer(forge.signed(_json(forge.header()), b"\xef\xbb\xbf" + _json(forge.claims()))),
        "TOKEN_MALFORMED",
    ),
    "claims not UTF-8": _text(None, b'{"sub":"\xff"}'),
    "claims cut": _text(None, b'{"sub":"a"'),
    "header nested 1,200 deep": _text(b'{"alg":' + _nested(1200) + b"}", b"{}"),
    "claims nested 1,200 deep": _text(None, b'{"sub":' + _nested(1200) + b"}"),
    "9 KB": _altered(lambda token: token + "A" * 9000),
    "9 KB of claims": _claims("TOKEN_MALFORMED", note="n" * 6700),
}
TIMES: dict[str, Case] = {
    "exp missing": _claims("TOKEN_INVALID", exp=ABSENT),
    "exp past": _times("TOKEN_EXPIRED", exp=-100, iat=-400),
    "exp a text": _claims("TOKEN_INVALID", exp="4102444800"),
    "exp null": _claims("TOKEN_INVALID", exp=None),
    "exp true": _claims("TOKEN_INVALID", exp=True),
    "exp 1e308": _number("exp", "1e308", "TOKEN_INVALID"),
    "exp 1e400": _number("exp", "1e400", "TOKEN_INVALID"),
    "exp of 400 digits": _number("exp", "9" * 400, "TOKEN_INVALID"),
    "exp NaN": _number("exp", "NaN", "TOKEN_MALFORMED"),
    "exp Infinity": _number("exp", "Infinity", "TOKEN_MALFORMED"),
    "exp negative": _claims("TOKEN_INVALID", exp=-1),
    "life of more than 15 minutes": _times("TOKEN_INVALID", iat=0, exp=901),
    "nbf future": _times("TOKEN_NOT_YET_VALID", nbf=90),
    "nbf a text": _claims("TOKEN_INVALID", nbf="0"),
    "iat missing": _claims("TOKEN_INVALID", iat=ABSENT),
    "iat future": _times("TOKEN_NOT_YET_VALID", iat=90, exp=300),
    "iat a text": _claims("TOKEN_INVALID", iat="0"),
    "iat NaN": _number("iat", "NaN", "TOKEN_MALFORMED"),
    "iat -1e400": _number("iat", "-1e400", "TOKEN_INVALID"),
}
PARTIES: dict[str, Case] = {
    "aud missing": _claims("TOKEN_INVALID", aud=ABSENT),
    "aud null": _claims("TOKEN_INVALID", aud=None),
    "aud a list": Case(
        lambda forge: bearer(forge.token(forge.header(), forge.claims(aud=[forge.audience]))), "TOKEN_AUDIENCE"
    ),
    "aud another service": _claims("TOKEN_AUDIENCE", aud="sealane-scheduler"),
    "aud a prefix": Case(
        lambda forge: bearer(forge.token(forge.header(), forge.claims(aud=forge.audience[:-1]))), "TOKEN_AUDIENCE"
    ),
    "aud in another case": Case(
        lambda forge: bearer(forge.token(forge.header(), forge.claims(aud=forge.audience.upper()))), "TOKEN_AUDIENCE"
    ),
    "iss missing": _claims("TOKEN_INVALID", iss=ABSENT),
    "iss another": _claims("TOKEN_ISSUER", iss="https://attacker.example"),
    "iss a substring": _claims("TOKEN_ISSUER", iss=tokens.ISSUER[1:-1]),
    "iss with a slash": _claims("TOKEN_ISSUER", iss=tokens.ISSUER + "/"),
    "iss a list": _claims("TOKEN_ISSUER", iss=[tokens.ISSUER]),
    "sub empty": _claims("TOKEN_INVALID", sub=""),
    "sub a number": _claims("TOKEN_INVALID", sub=7),
    **{f"{name} missing": _claims("TOKEN_INVALID", **{name: ABSENT}) for name in ("sub", "jti", "client_id", "scope")},
    "project missing": _claims("TOKEN_INVALID", project=ABSENT),
    "project empty": _claims("TOKEN_INVALID", project=""),
    "scope a list": _claims("TOKEN_INVALID", scope=["infer", "models:read"]),
    "four actors": Case(lambda forge: bearer(forge.good(actors=("a", "b", "c", "d"))), "TOKEN_INVALID"),
    "bound in an unknown way": _claims("TOKEN_BINDING", cnf={"kid": "k"}),
    "bound by a text": _claims("TOKEN_BINDING", cnf="k"),
}


def _twice(forge: Forge) -> Metadata:
    return bearer(forge.good()) * 2


METADATA: dict[str, Case] = {
    "no entry": _metadata(lambda forge: (), "TOKEN_MISSING"),
    "an empty entry": _metadata(lambda forge: (("authorization", ""),), "TOKEN_MISSING"),
    "no scheme": _metadata(lambda forge: (("authorization", forge.good()),), "TOKEN_MISSING"),
    "scheme Basic": _metadata(lambda forge: (("authorization", f"Basic {forge.good()}"),), "TOKEN_MISSING"),
    "scheme and no token": _metadata(lambda forge: (("authorization", "Bearer"),), "TOKEN_MISSING"),
    "two entries": _metadata(_twice, "TOKEN_AMBIGUOUS"),
    "two entries, one bad": _metadata(
        lambda forge: (*bearer(forge.good()), ("authorization", "Bearer x")), "TOKEN_AMBIGUOUS"
    ),
    "authorization-bin": _metadata(
        lambda forge: (("authorization-bin", f"Bearer {forge.good()}".encode()),), "TOKEN_AMBIGUOUS"
    ),
    "authorization-bin beside a good one": _metadata(
        lambda forge: (*bearer(forge.good()), ("authorization-bin", b"Bearer x")), "TOKEN_AMBIGUOUS"
    ),
}
CASES: dict[str, Case] = {
    **ALGORITHMS, **KEY_IDS, **HEADERS, **FORMS, **TIMES, **PARTIES, **METADATA,
}  # fmt: skip
#: What looks odd and is right.
ACCEPTED: dict[str, Make] = {
    "as auth issues it": lambda forge: bearer(forge.good()),
    "typ application/at+jwt": lambda forge: bearer(forge.token(forge.header(typ="application/at+jwt"), forge.claims())),
    "scheme bearer": lambda forge: (("authorization", f"bearer {forge.good()}"),),
    "scheme BEARER": lambda forge: (("authorization", f"BEARER {forge.good()}"),),
    "three actors": lambda forge: bearer(forge.good(actors=("a", "b", "c"))),
    "iat 20 s ahead": lambda forge: bearer(
        forge.token(forge.header(), forge.claims(iat=int(time.time()) + 20, exp=int(time.time()) + 300))
    ),
}
