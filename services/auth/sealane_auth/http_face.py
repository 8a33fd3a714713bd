"""The HTTPS face, so that any OAuth library works: token endpoint, key set, discovery."""

from __future__ import annotations

import base64
import json
from typing import Protocol
from urllib.parse import parse_qsl, unquote_plus

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sealane.auth.v1 import token_service_pb2 as pb
from sealane.errors import SealaneError

_ERRORS = {"UNAUTHENTICATED": ("invalid_client", 401), "PERMISSION_DENIED": ("invalid_scope", 400)}
_MAX_FORM_BYTES = 16_384


class TokenPort(Protocol):
    """What the HTTP face needs of the token service."""

    async def IssueToken(self, request: pb.IssueTokenRequest, call: None) -> pb.IssueTokenResponse:
        """Issue a token."""
        ...

    async def GetJsonWebKeySet(self, request: pb.GetJsonWebKeySetRequest, call: None) -> pb.JsonWebKeySet:
        """The key set."""
        ...


def build(tokens: TokenPort, issuer: str) -> Starlette:
    """The application; TLS is the server's business."""

    async def token(request: Request) -> Response:
        # RFC 6749 sections 3.2 and 2.3.1: a form, credentials in it or in HTTP Basic.
        form = await _form(request)
        if form is None:
            return JSONResponse({"error": "invalid_request"}, 400)
        client_id, secret = _basic(request.headers.get("authorization", "")) or (
            form.get("client_id", ""),
            form.get("client_secret", ""),
        )
        wanted = pb.IssueTokenRequest(
            grant_type=form.get("grant_type", ""),
            client_id=client_id,
            client_secret=secret,
            audience=form.get("audience", form.get("resource", "sealane-inference")),
            scope=form.get("scope", ""),
            key_thumbprint=form.get("key_thumbprint", ""),
        )
        try:
            issued = await tokens.IssueToken(wanted, None)
        except SealaneError as error:
            name, status = _ERRORS.get(error.kind, ("invalid_request", 400))
            return JSONResponse({"error": name, "error_description": error.message}, status)
        answer = {
            "access_token": issued.access_token,
            "token_type": issued.token_type,
            "expires_in": issued.expires_in,
            "scope": issued.scope,
        }
        return JSONResponse(answer, headers={"cache-control": "no-store"})

    async def keys(request: Request) -> Response:
        found = await tokens.GetJsonWebKeySet(pb.GetJsonWebKeySetRequest(), None)
        names = ("kid", "kty", "crv", "x", "alg", "use")
        body = {"keys": [{name: getattr(key, name) for name in names} for key in found.keys]}
        return Response(json.dumps(body), media_type="application/jwk-set+json")

    async def discovery(request: Request) -> Response:
        base = str(request.base_url).rstrip("/")
        return JSONResponse(
            {
                "issuer": issuer,
                "token_endpoint": f"{base}/oauth2/token",
                "jwks_uri": f"{base}/.well-known/jwks.json",
                "grant_types_supported": ["client_credentials"],
                "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
            }
        )

    return Starlette(
        routes=[
            Route("/oauth2/token", token, methods=["POST"]),
            Route("/.well-known/jwks.json", keys),
            Route("/.well-known/openid-configuration", discovery),
        ]
    )


async def _form(request: Request) -> dict[str, str] | None:
    """The fields of a form; None where it is larger than any token request."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_FORM_BYTES:
            return None
    try:
        return dict(parse_qsl(body.decode("utf-8", "replace"), max_num_fields=20))
    except ValueError:  # more fields than any token request has
        return None


def _basic(header: str) -> tuple[str, str] | None:
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, _, secret = base64.b64decode(value, validate=True).decode().partition(":")
    except ValueError:
        return None
    return unquote_plus(name), unquote_plus(secret)
