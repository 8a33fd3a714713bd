"""Tokens of issuers that are not ours: their published keys, parsed strictly, and the verification.

Keys come from an issuer's JWK set, never from a token. The trust in an issuer, what its claims mean here
and how its key set is fetched are not decided in this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey, EllipticCurvePublicNumbers
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, RSAPublicNumbers

from sealane.errors import InvalidArgument, Unauthenticated
from sealane.security import jws

LEEWAY_SECONDS = 30
#: Claims of people's identity providers are longer than ours.
MAX_TOKEN_BYTES = 16_384
#: A token that lives longer is a mistake of its issuer.
MAX_AHEAD_SECONDS = 24 * 3600
#: ``x5t`` is what GitHub and Entra add to every token; the key is found by its ``kid`` alone.
_HEADER = frozenset({"alg", "kid", "typ", "x5t", "x5t#S256"})
#: RFC 8725 section 3.1: one algorithm per key. Without ``alg`` it is the one that OpenID Connect starts from.
_ALGORITHMS = {"RSA": ("RS256", "PS256"), "EC": ("ES256",), "OKP": ("EdDSA",)}
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_RSA_BITS = (2048, 8192)
_USELESS = "EXTERNAL_KEY_UNUSABLE"
_REFUSED = "EXTERNAL_KEY_REFUSED"

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class ExternalKey:
    """A public key of an issuer and the one algorithm that it verifies.

    Args:
        kid: its id in the issuer's set.
        algorithm: ``RS256``, ``PS256``, ``ES256`` or ``EdDSA``.
        public: the key.
    """

    kid: str
    algorithm: str
    public: PublicKey

    @classmethod
    def from_jwk(cls, jwk: Mapping[str, object]) -> ExternalKey:
        """The key in a JWK (RFC 7517).

        Raises:
            InvalidArgument: reason ``EXTERNAL_KEY_UNUSABLE`` for a key that is not for verifying signatures or
                of a kind that is not supported; ``EXTERNAL_KEY_REFUSED`` for one that must not be trusted.
        """
        kind, kid = jwk.get("kty"), jwk.get("kid")
        if kind == "oct" or _PRIVATE & jwk.keys():
            # A secret that everybody can read proves nothing: RFC 8725 section 2.1 is made of this.
            raise _refused("the key is or holds a secret; ask the issuer to replace it")
        if not isinstance(kid, str) or not kid:
            raise _useless("the key has no kid")
        if jwk.get("use", "sig") != "sig" or not _may_verify(jwk.get("key_ops")):
            raise _useless("the key is not for verifying signatures")  # RFC 7517 sections 4.2 and 4.3
        if not isinstance(kind, str) or kind not in _ALGORITHMS:
            raise _useless("the key's kty is not supported; use RSA, EC or OKP")
        algorithm = jwk.get("alg", _ALGORITHMS[kind][0])
        if not isinstance(algorithm, str) or algorithm not in _ALGORITHMS[kind]:
            raise _useless(f"the key's alg is not supported for {kind}; use {' or '.join(_ALGORITHMS[kind])}")
        public: PublicKey = _rsa(jwk) if kind == "RSA" else _ec(jwk) if kind == "EC" else _okp(jwk)
        return cls(kid, algorithm, public)


def parse_key_set(document: bytes) -> tuple[ExternalKey, ...]:
    """The usable keys of a JWK set; those for encryption and of unknown kinds are passed over (RFC 7517 section 5).

    Raises:
        InvalidArgument: no JWK set, a key that must not be trusted, or two usable keys with one kid.
    """
    try:
        entries = jws.strict_object(document).get("keys")
    except Unauthenticated as error:
        raise _refused("the key set is not valid JSON; check its address") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise _refused("the document is no JWK set; check its address")
    keys: dict[str, ExternalKey] = {}
    for entry in entries:
        try:
            key = ExternalKey.from_jwk(entry)
        except InvalidArgument as error:
            if error.reason == _USELESS:
                continue
            raise
        if key.kid in keys:
            raise _refused("two keys of the set share a kid; ask the issuer to name them apart")
        keys[key.kid] = key
    return tuple(keys.values())


def verify_signature(token: str, keys: Iterable[ExternalKey]) -> bytes:
    """The payload of a compact JWS that one of `keys` signed.

    Raises:
        Unauthenticated: it does not verify; reason ``TOKEN_KEY`` where no key has its ``kid``, so that
            fetching the set anew may help.
    """
    parts = jws.split(token, header_names=_HEADER, limit=MAX_TOKEN_BYTES)
    kid = parts.header.get("kid")
    key = next((key for key in keys if key.kid == kid), None)
    if key is None:
        raise Unauthenticated("the token's key is not one of its issuer's", reason="TOKEN_KEY")
    if parts.header["alg"] != key.algorithm:
        raise Unauthenticated("the token's algorithm is not the key's", reason="TOKEN_ALGORITHM")
    try:
        payload: bytes = jwt.PyJWS().decode_complete(token, key.public, algorithms=[key.algorithm])["payload"]
    except jwt.PyJWTError as error:
        raise Unauthenticated("the token's signature does not verify", reason="TOKEN_SIGNATURE") from error
    return payload


def verify(token: str, keys: Sequence[ExternalKey], *, issuer: str, audience: str, now: float) -> dict[str, object]:
    """The claims of an external token that is meant for us and valid now.

    Args:
        token: compact JWS; its ``typ`` is free, issuers differ.
        keys: keys of `issuer`, and of nobody else.
        issuer: exact ``iss``.
        audience: our name with that issuer; ``aud`` is it, or a list that holds it.
        now: seconds since 1970.

    Raises:
        Unauthenticated: it does not verify.
    """
    claims = jws.strict_object(verify_signature(token, keys))
    if claims.get("iss") != issuer:
        raise Unauthenticated("the token is of another issuer", reason="TOKEN_ISSUER")
    audiences = claims.get("aud")
    named = audiences if isinstance(audiences, list) else [audiences]
    if not all(isinstance(name, str) for name in named) or audience not in named:
        raise Unauthenticated(f"the token is not for {audience}", reason="TOKEN_AUDIENCE")
    _check_times(claims, now)
    subject = claims.get("sub")
    if not isinstance(subject, str) or not subject:
        raise Unauthenticated("the token names no subject", reason="TOKEN_INVALID")
    return claims


def _check_times(claims: Mapping[str, object], now: float) -> None:
    expires, issued, not_before = (_time(claims, name) for name in ("exp", "iat", "nbf"))
    if expires is None or expires > now + MAX_AHEAD_SECONDS:
        raise Unauthenticated("the token's lifetime is not acceptable", reason="TOKEN_INVALID")
    if expires + LEEWAY_SECONDS <= now:
        raise Unauthenticated("the token has expired; get a new one", reason="TOKEN_EXPIRED")
    if max(issued or 0, not_before or 0) > now + LEEWAY_SECONDS:
        raise Unauthenticated("the token is not valid yet; check the clocks", reason="TOKEN_NOT_YET_VALID")


def _time(claims: Mapping[str, object], name: str) -> int | float | None:
    value = claims.get(name)
    if name not in claims:
        return None
    # type() and not isinstance(): a bool is an int. An overlong number never becomes a float: no overflow.
    if type(value) is int or type(value) is float:
        return value
    raise Unauthenticated("the token's times are not numbers", reason="TOKEN_INVALID")


def _may_verify(operations: object) -> bool:
    return operations is None or (isinstance(operations, list) and "verify" in operations)


def _rsa(jwk: Mapping[str, object]) -> RSAPublicKey:
    modulus, exponent = (int.from_bytes(_bytes(jwk, name), "big") for name in ("n", "e"))
    if not _RSA_BITS[0] <= modulus.bit_length() <= _RSA_BITS[1]:
        raise _refused("the RSA key has fewer than 2048 or more than 8192 bits")
    if not (65537 <= exponent < 2**32 and exponent % 2):
        raise _refused("the RSA key's exponent is not acceptable")  # NIST SP 800-56B section 6.2
    if _is_roca(modulus):
        raise _refused("the RSA key can be factored (CVE-2017-15361)")
    try:
        return RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError as error:
        raise _refused("the RSA key is malformed") from error


def _ec(jwk: Mapping[str, object]) -> EllipticCurvePublicKey:
    if jwk.get("crv") != "P-256":
        raise _refused("the key's curve does not fit ES256; it is P-256 (RFC 7518 section 3.4)")
    x, y = (_bytes(jwk, name) for name in ("x", "y"))
    if len(x) != 32 or len(y) != 32:  # RFC 7518 section 6.2.1.2
        raise _refused("the key's coordinates are malformed")
    try:
        return EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), SECP256R1()).public_key()
    except ValueError as error:
        raise _refused("the key is no point of its curve") from error


def _okp(jwk: Mapping[str, object]) -> Ed25519PublicKey:
    if jwk.get("crv") != "Ed25519":
        raise _useless("the key's curve is not supported; use Ed25519")
    try:
        return Ed25519PublicKey.from_public_bytes(_bytes(jwk, "x"))
    except ValueError as error:
        raise _refused("the key is malformed") from error


def _bytes(jwk: Mapping[str, object], name: str) -> bytes:
    value = jwk.get(name)
    try:
        return jws.decode(value) if isinstance(value, str) else b""
    except Unauthenticated as error:
        raise _refused(f"the key's {name} is not canonical base64url") from error


def _is_roca(modulus: int) -> bool:
    """Whether a modulus has the mark of CVE-2017-15361.

    Primes of the faulty library are powers of 65537 modulo many small primes, and so is their product
    (Nemec, Sys, Svenda, Klinec, Matyas: The Return of Coppersmith's Attack, CCS 2017, section 2.2). A sound
    key passes for one with a chance of about 2^-27.
    """
    small = (n for n in range(3, 168) if all(n % divisor for divisor in range(2, int(n**0.5) + 1)))
    return all(modulus % prime in {pow(65537, power, prime) for power in range(prime - 1)} for prime in small)


def _refused(message: str) -> InvalidArgument:
    return InvalidArgument(message, reason=_REFUSED)


def _useless(message: str) -> InvalidArgument:
    return InvalidArgument(message, reason=_USELESS)
