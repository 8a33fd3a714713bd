"""What OAuth says over HTTP, read strictly: forms, client credentials, DPoP proofs; and how refusals are told there."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote_plus

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from starlette.requests import Request
from starlette.responses import JSONResponse

from sealane.clock import Clock
from sealane.errors import InvalidArgument, SealaneError, Unauthenticated
from sealane.security import jws
from sealane.security.proof import WINDOW_SECONDS, ReplayCache

_MAX_FORM_BYTES = 65_536
_MAX_FIELDS = 24
#: Ids of proofs are remembered, so they are short (RFC 9449 section 11.1).
_MAX_ID = 128
_FORM = "application/x-www-form-urlencoded"
_PROOF_HEADER = frozenset({"alg", "typ", "jwk"})
#: RFC 6749 section 5.1: nothing on the way may keep a token.
NOT_KEPT = {"cache-control": "no-store", "pragma": "no-cache"}
#: Reason of ours -> error of RFC 6749 section 5.2, RFC 8693 section 2.2.2, RFC 8707 section 2, RFC 9449 section 5.
_BY_REASON = {
    "INVALID_CLIENT": "invalid_client",
    "INVALID_GRANT": "invalid_grant",
    "UNSUPPORTED_GRANT_TYPE": "unsupported_grant_type",
    "UNKNOWN_AUDIENCE": "invalid_target",
    "UNKNOWN_SCOPE": "invalid_scope",
    "SCOPE_MISSING": "invalid_scope",
    "SCOPE_NOT_CARRIED": "invalid_scope",
    "NO_RULE_FITS": "unauthorized_client",
    "CALLER_NOT_ALLOWED": "unauthorized_client",
    "PROOF_REFUSED": "invalid_dpop_proof",
}
_BY_KIND = {
    "RESOURCE_EXHAUSTED": ("temporarily_unavailable", 429),
    "UNAVAILABLE": ("temporarily_unavailable", 503),
    "DEADLINE_EXCEEDED": ("temporarily_unavailable", 503),
    "INTERNAL": ("server_error", 500),
}


@dataclass(frozen=True, slots=True)
class ClientFields:
    """What a request says about its client."""

    client_id: str = ""
    client_secret: str = field(default="", repr=False)
    client_assertion_type: str = ""
    client_assertion: str = field(default="", repr=False)

    @property
    def empty(self) -> bool:
        """Whether the client does not even try to prove itself."""
        return not (self.client_secret or self.client_assertion)


async def form_of(request: Request) -> dict[str, str]:
    """The fields of a form.

    Raises:
        InvalidArgument: no form, too large, not UTF-8, or a field that is there twice (RFC 6749 section 3.2).
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
        raise InvalidArgument(f"send a form, {_FORM}")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_FORM_BYTES:
            raise InvalidArgument("the form is larger than any token request")
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=_MAX_FIELDS, errors="strict")
    except ValueError as error:
        raise InvalidArgument("the form is malformed") from error
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise InvalidArgument("a field of the form is there twice")
    return {name: value for name, value in fields.items() if value}  # an empty one counts as left out (section 3.2)


def client_of(request: Request, form: dict[str, str]) -> ClientFields:
    """The client of a request, from HTTP Basic or from the form (RFC 6749 section 2.3.1, RFC 7523 section 2.2).

    Raises:
        InvalidArgument: from both.
        Unauthenticated: an authorization header that is no HTTP Basic.
    """
    header = request.headers.get("authorization")
    in_form = ClientFields(*(form.get(name, "") for name in ClientFields.__slots__))
    if header is None:
        return in_form
    if not in_form.empty:
        raise InvalidArgument("prove the client in one way, not in several")
    name, secret = _basic(header)
    if in_form.client_id not in ("", name):
        raise InvalidArgument("the client is named twice, and not alike")
    return ClientFields(name, secret)


def _basic(header: str) -> tuple[str, str]:
    scheme, _, value = header.partition(" ")
    try:
        name, colon, secret = base64.b64decode(value.strip(), validate=True).decode().partition(":")
    except ValueError:
        name, colon, secret = "", "", ""
    if scheme.lower() != "basic" or not colon:
        raise Unauthenticated("the authorization header is no HTTP Basic", reason="INVALID_CLIENT")
    return unquote_plus(name), unquote_plus(secret)


class Proofs:
    """DPoP proofs at the token endpoint (RFC 9449 sections 4.3 and 5)."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._replays = ReplayCache(clock, window=2 * WINDOW_SECONDS)

    def thumbprint(self, request: Request, url: str) -> str:
        """Thumbprint of the key that signed the request's proof; empty without one.

        Raises:
            Unauthenticated: two proofs, or one that is not good for this request.
        """
        proofs = request.headers.getlist("dpop")
        if not proofs:
            return ""
        if len(proofs) > 1:
            raise _refused("send one proof")
        try:
            return self._check(proofs[0], request.method, url)
        except Unauthenticated as error:
            raise _refused(error.message) from error

    def _check(self, proof: str, method: str, url: str) -> str:
        parsed = jws.parse(proof, header_names=_PROOF_HEADER)
        jwk = parsed.header.get("jwk")
        if parsed.header["typ"] != "dpop+jwt" or not isinstance(jwk, dict) or set(jwk) != {"crv", "kty", "x"}:
            raise _refused("the proof's header is not acceptable; its key must be an Ed25519 key")
        public = jws.decode(str(jwk["x"]))
        if len(public) != 32 or jwk != jws.public_jwk(public):
            raise _refused("the proof's key is not acceptable")
        jws.verify(parsed, Ed25519PublicKey.from_public_bytes(public))
        claims, issued = parsed.claims, parsed.claims.get("iat")
        if claims.get("htm") != method or claims.get("htu") != url:
            raise _refused("the proof is for another request")
        if type(issued) is not int or abs(self._clock.now() - issued) > WINDOW_SECONDS:
            raise _refused("the proof is too old; check the clocks")
        thumbprint, identifier = jws.thumbprint(public), claims.get("jti")
        if not isinstance(identifier, str) or not 0 < len(identifier) <= _MAX_ID:
            raise _refused(f"the proof's jti must have 1 to {_MAX_ID} characters")
        if not self._replays.add(f"{thumbprint}:{identifier}"):
            raise _refused("the proof was used before")
        return thumbprint


def refusal(error: SealaneError) -> JSONResponse:
    """An error as OAuth tells it."""
    name, status = _BY_KIND.get(error.kind, (_BY_REASON.get(error.reason, "invalid_request"), 400))
    headers = dict(NOT_KEPT)
    if name == "invalid_client":
        status, headers["www-authenticate"] = 401, 'Basic realm="sealane"'
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after)))
    # RFC 6749 section 5.2: printable ASCII without quotation marks and backslashes.
    text = "".join(c if " " <= c <= "~" and c not in '"\\' else "?" for c in error.message)
    return JSONResponse({"error": name, "error_description": text}, status, headers=headers)


def _refused(message: str) -> Unauthenticated:
    return Unauthenticated(message, reason="PROOF_REFUSED")
