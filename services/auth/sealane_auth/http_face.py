"""The HTTPS face, so that any OAuth library works: token, introspection and revocation endpoints, keys, discovery."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sealane.auth.v1 import token_service_pb2 as pb
from sealane.clock import Clock, SystemClock
from sealane.errors import InvalidArgument, SealaneError
from sealane.security.permissions import PERMISSIONS
from sealane_auth.clients import Proof, Proven, refused
from sealane_auth.exchange import GRANT_TYPE
from sealane_auth.http_forms import NOT_KEPT, ClientFields, Proofs, client_of, form_of, refusal
from sealane_auth.minting import ACCESS_TOKEN, OFFLINE
from sealane_auth.token_servicer import Origin

_TOKEN = "/oauth2/token"  # noqa: S105  # a path
_INTROSPECT = "/oauth2/introspect"
_REVOKE = "/oauth2/revoke"
_KEYS = "/.well-known/jwks.json"
_DISCOVERY = ("/.well-known/openid-configuration", "/.well-known/oauth-authorization-server")
_AUDIENCE = "sealane-inference"
_METHODS = ["client_secret_basic", "client_secret_post", "private_key_jwt"]
_ASSERTION_ALGORITHMS = ["EdDSA", "ES256", "RS256", "PS256"]

_LOOPBACK = ("localhost", "127.0.0.1")

Handler = Callable[[Request], Awaitable[Response]]


class TokenPort(Protocol):
    """What the HTTPS face needs of the token service."""

    async def issue(self, request: pb.IssueTokenRequest, origin: Origin) -> pb.IssueTokenResponse:
        """A token for client credentials or a refresh token."""
        ...

    async def exchange(
        self, request: pb.ExchangeTokenRequest, origin: Origin, acting: str = ""
    ) -> pb.IssueTokenResponse:
        """A token for another one."""
        ...

    async def revoke(self, request: pb.RevokeTokenRequest, origin: Origin) -> None:
        """Take back a token."""
        ...

    async def introspect(self, token: str, proven: Proven) -> pb.IntrospectTokenResponse:
        """What a token says."""
        ...

    async def authenticate(self, proof: Proof) -> Proven:
        """The client that a proof proves."""
        ...

    async def GetJsonWebKeySet(self, request: pb.GetJsonWebKeySetRequest, call: None) -> pb.JsonWebKeySet:
        """The key set."""
        ...


def build(tokens: TokenPort, issuer: str, hosts: Sequence[str] = _LOOPBACK, clock: Clock | None = None) -> Starlette:
    """The application; TLS is the server's business.

    Args:
        tokens: the token service.
        issuer: claim ``iss`` of the tokens.
        hosts: names and addresses of this server; default: loopback. A client's assertion may name the token endpoint
            below one of them as its audience; below another, which a ``Host`` header may name, it was meant for another
            server.
        clock: the time; default: the machine's.
    """
    face = _Face(tokens, issuer, frozenset(hosts), Proofs(clock or SystemClock()))
    return Starlette(
        routes=[
            Route(_TOKEN, _told(face.token), methods=["POST"]),
            Route(_INTROSPECT, _told(face.introspect), methods=["POST"]),
            Route(_REVOKE, _told(face.revoke), methods=["POST"]),
            Route(_KEYS, face.keys),
            *(Route(path, face.discovery) for path in _DISCOVERY),
        ]
    )


def _told(handler: Handler) -> Handler:
    async def endpoint(request: Request) -> Response:
        try:
            return await handler(request)
        except SealaneError as error:
            return refusal(error)

    return endpoint


class _Face:
    def __init__(self, tokens: TokenPort, issuer: str, hosts: frozenset[str], proofs: Proofs) -> None:
        self._tokens = tokens
        self._issuer = issuer
        self._hosts = hosts
        self._proofs = proofs

    async def token(self, request: Request) -> Response:
        """RFC 6749 section 3.2."""
        form = await form_of(request)
        client = client_of(request, form)
        key = self._proofs.thumbprint(request, _url(request, _TOKEN))
        if key and form.get("key_thumbprint", key) != key:
            raise InvalidArgument("key_thumbprint is of another key than the proof")
        form["key_thumbprint"] = key or form.get("key_thumbprint", "")
        grant = form.get("grant_type", "")
        if grant == GRANT_TYPE:
            issued = await self._exchange(request, form, client)
        else:
            if grant == "client_credentials" and client.empty:
                raise refused()
            asked = self._client(client)
            asked.MergeFrom(
                pb.IssueTokenRequest(
                    grant_type=grant,
                    audience=_audience(form),
                    scope=form.get("scope", ""),
                    key_thumbprint=form["key_thumbprint"],
                    refresh_token=form.get("refresh_token", ""),
                )
            )
            issued = await self._tokens.issue(asked, self._origin(request))
        return JSONResponse(_answer(issued), headers=NOT_KEPT)

    async def _exchange(self, request: Request, form: dict[str, str], client: ClientFields) -> pb.IssueTokenResponse:
        """RFC 8693; the client need not prove itself, and if it does it acts for the subject."""
        if form.get("requested_token_type", ACCESS_TOKEN) != ACCESS_TOKEN or "actor_token" in form:
            raise InvalidArgument("only access tokens are issued, and the actor is the client itself")
        origin, acting = self._origin(request), ""
        if not client.empty:
            acting = (await self._tokens.authenticate(_proof(client, origin))).account.name
        lifetime = form.get("lifetime_seconds", "0")
        if not lifetime.isascii() or not lifetime.isdigit() or len(lifetime) > 9:
            raise InvalidArgument("lifetime_seconds is no number of seconds")
        asked = pb.ExchangeTokenRequest(
            grant_type=GRANT_TYPE,
            subject_token=form.get("subject_token", ""),
            subject_token_type=form.get("subject_token_type", ""),
            audience=_audience(form),
            scope=form.get("scope", ""),
            model_prefixes=form.get("model_prefixes", "").split(),
            key_thumbprint=form["key_thumbprint"],
            project=form.get("project", ""),
            lifetime_seconds=int(lifetime),
        )
        return await self._tokens.exchange(asked, origin, acting)

    async def introspect(self, request: Request) -> Response:
        """RFC 7662."""
        form = await form_of(request)
        proven = await self._tokens.authenticate(_proof(client_of(request, form), self._origin(request)))
        if "token" not in form:
            raise InvalidArgument("name the token")
        found = await self._tokens.introspect(form["token"], proven)
        if not found.active:
            return JSONResponse({"active": False}, headers=NOT_KEPT)
        names = ("active", "scope", "client_id", "sub", "aud", "iss", "jti", "exp", "iat", "project", "token_type")
        answer: dict[str, object] = {name: getattr(found, name) for name in names}
        confirmation = {"jkt": found.key_thumbprint, "x5t#S256": found.certificate_thumbprint}
        if any(confirmation.values()):
            answer["cnf"] = {name: value for name, value in confirmation.items() if value}
        return JSONResponse(answer, headers=NOT_KEPT)

    async def revoke(self, request: Request) -> Response:
        """RFC 7009; a token that is not good is as good as revoked."""
        form = await form_of(request)
        if "token" not in form:
            raise InvalidArgument("name the token")
        client = self._client(client_of(request, form))
        await self._tokens.revoke(pb.RevokeTokenRequest(token=form["token"], client=client), self._origin(request))
        return Response(headers=NOT_KEPT)

    async def keys(self, request: Request) -> Response:
        """RFC 7517."""
        found = await self._tokens.GetJsonWebKeySet(pb.GetJsonWebKeySetRequest(), None)
        names = ("kid", "kty", "crv", "x", "alg", "use")
        body = {"keys": [{name: getattr(key, name) for name in names} for key in found.keys]}
        headers = {"cache-control": f"public, max-age={found.max_age_seconds}"}
        return Response(json.dumps(body), media_type="application/jwk-set+json", headers=headers)

    async def discovery(self, request: Request) -> Response:
        """RFC 8414 section 2, and what OpenID Connect Discovery asks for beyond; no more than there is."""
        found: dict[str, object] = {
            "issuer": self._issuer,
            "token_endpoint": _url(request, _TOKEN),
            "introspection_endpoint": _url(request, _INTROSPECT),
            "revocation_endpoint": _url(request, _REVOKE),
            "jwks_uri": _url(request, _KEYS),
            "grant_types_supported": ["client_credentials", "refresh_token", GRANT_TYPE],
            "response_types_supported": [],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": [],
            "scopes_supported": [*sorted(PERMISSIONS), OFFLINE],
            "dpop_signing_alg_values_supported": ["EdDSA"],
            # A person's client refreshes, and anybody exchanges and ends a session, by what he holds alone.
            "token_endpoint_auth_methods_supported": [*_METHODS, "none"],
            "introspection_endpoint_auth_methods_supported": _METHODS,
            "revocation_endpoint_auth_methods_supported": [*_METHODS, "none"],
        }
        for endpoint in ("token", "introspection", "revocation"):
            found[f"{endpoint}_endpoint_auth_signing_alg_values_supported"] = _ASSERTION_ALGORITHMS
        return JSONResponse(found)

    def _client(self, client: ClientFields) -> pb.IssueTokenRequest:
        return pb.IssueTokenRequest(
            client_id=client.client_id,
            client_secret=client.client_secret,
            client_assertion_type=client.client_assertion_type,
            client_assertion=client.client_assertion,
        )

    def _origin(self, request: Request) -> Origin:
        own = request.url.hostname in self._hosts
        return Origin(endpoint=_url(request, _TOKEN) if own else "")


def _url(request: Request, path: str) -> str:
    return str(request.base_url).rstrip("/") + path


def _audience(form: dict[str, str]) -> str:
    return form.get("audience") or form.get("resource") or _AUDIENCE


def _proof(client: ClientFields, origin: Origin) -> Proof:
    return Proof(
        client_id=client.client_id,
        secret=client.client_secret,
        assertion_type=client.client_assertion_type,
        assertion=client.client_assertion,
        endpoint=origin.endpoint,
    )


def _answer(issued: pb.IssueTokenResponse) -> dict[str, object]:
    answer: dict[str, object] = {
        "access_token": issued.access_token,
        "token_type": issued.token_type,
        "expires_in": issued.expires_in,
        "scope": issued.scope,
    }
    if issued.refresh_token:
        answer["refresh_token"] = issued.refresh_token
    if issued.issued_token_type:
        answer["issued_token_type"] = issued.issued_token_type
    return answer
