"""Compact JWS with Ed25519, strictly parsed.

Used for sealing statements and proofs; access tokens go through the same parser before PyJWT sees them
(:mod:`sealane.security.tokens`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sealane.errors import Unauthenticated

#: Who issues everything that auth signs.
ISSUER = "https://auth.service.sealane"
#: A token longer than this is refused before it is looked at.
MAX_TOKEN_BYTES = 4096
#: Room for a statement: it carries a post-quantum public key of 1,216 bytes.
MAX_STATEMENT_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Parsed:
    """The parts of a compact JWS, decoded and not yet verified."""

    header: dict[str, object]
    claims: dict[str, object]
    signing_input: bytes
    signature: bytes


def encode(data: bytes) -> str:
    """base64url without padding (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """base64url, canonical only: no padding, no white space, no stray bits.

    Raises:
        Unauthenticated: any other spelling.
    """
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise Unauthenticated("the token is malformed; get a new one", reason="TOKEN_MALFORMED") from error
    if encode(data) != text:
        raise Unauthenticated("the token is not in canonical form; get a new one", reason="TOKEN_MALFORMED")
    return data


@dataclass(frozen=True, slots=True)
class Split:
    """A compact JWS taken apart: the header is read, the payload is bytes."""

    header: dict[str, object]
    payload: bytes
    signing_input: bytes
    signature: bytes


def split(token: str, *, header_names: frozenset[str], limit: int = MAX_TOKEN_BYTES) -> Split:
    """Take a compact JWS apart (RFC 8725 section 3: be strict before being clever).

    Refuses: more than `limit` bytes, other than three parts, non-canonical base64url, duplicate JSON
    keys (RFC 7515 section 4), a header with any name beyond `header_names` (so no ``jku``, ``x5u``,
    ``crit``, ``b64``, ``zip``) or without ``alg``.
    """
    if len(token) > limit or token.count(".") != 2:
        raise Unauthenticated("the token is malformed; get a new one", reason="TOKEN_MALFORMED")
    head, body, signature = token.split(".")
    header = strict_object(decode(head))
    if set(header) - header_names or "alg" not in header:
        raise Unauthenticated("the token's header is not acceptable", reason="TOKEN_HEADER")
    return Split(header, decode(body), f"{head}.{body}".encode(), decode(signature))


def parse(token: str, *, header_names: frozenset[str], limit: int = MAX_TOKEN_BYTES) -> Parsed:
    """Take apart a compact JWS of ours, which says its type and carries claims; as strict as :func:`split`."""
    parts = split(token, header_names=header_names, limit=limit)
    if "typ" not in parts.header:
        raise Unauthenticated("the token's header is not acceptable", reason="TOKEN_HEADER")
    return Parsed(parts.header, strict_object(parts.payload), parts.signing_input, parts.signature)


def verify(parsed: Parsed, key: Ed25519PublicKey) -> None:
    """Check an EdDSA signature (RFC 8037 section 3.1).

    Raises:
        Unauthenticated: another algorithm, or the signature does not verify.
    """
    if parsed.header.get("alg") != "EdDSA":
        raise Unauthenticated("the token's algorithm is not the key's", reason="TOKEN_ALGORITHM")
    try:
        key.verify(parsed.signature, parsed.signing_input)
    except InvalidSignature as error:
        raise Unauthenticated("the token's signature does not verify", reason="TOKEN_SIGNATURE") from error


def sign(key: Ed25519PrivateKey, header: Mapping[str, object], claims: Mapping[str, object]) -> str:
    """A compact JWS over `claims`; ``alg`` is added to the header."""
    head = encode(json.dumps({"alg": "EdDSA", **header}, separators=(",", ":")).encode())
    body = encode(json.dumps(claims, separators=(",", ":")).encode())
    return f"{head}.{body}.{encode(key.sign(f'{head}.{body}'.encode()))}"


@lru_cache(maxsize=1024)
def thumbprint(public_key: bytes) -> str:
    """RFC 7638 thumbprint of a raw Ed25519 public key (32 bytes), base64url."""
    return encode(hashlib.sha256(json.dumps(public_jwk(public_key), separators=(",", ":")).encode()).digest())


def public_jwk(public_key: bytes) -> dict[str, str]:
    """The required members of the key's JWK, in the order that RFC 7638 wants."""
    return {"crv": "Ed25519", "kty": "OKP", "x": encode(public_key)}


def strict_object(data: bytes) -> dict[str, object]:
    """A JSON object in UTF-8 without duplicate keys and without NaN and infinities.

    Raises:
        Unauthenticated: anything else.
    """

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        members = dict(pairs)
        if len(members) != len(pairs):
            raise ValueError("duplicate key")
        return members

    def refuse(constant: str) -> object:
        raise ValueError(constant)

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise Unauthenticated("the token is not valid JSON; get a new one", reason="TOKEN_MALFORMED") from error
    if not isinstance(value, dict):
        raise Unauthenticated("the token does not hold an object; get a new one", reason="TOKEN_MALFORMED")
    return value
