"""The HTTPS face, as an OAuth library meets it (the application itself; TLS is the server's)."""

from __future__ import annotations

import base64
import json
from urllib.parse import urlencode

from sealane.auth.v1 import token_service_pb2 as pb
from sealane.errors import Unauthenticated
from sealane_auth import http_face


class Tokens:
    """Knows one client."""

    def __init__(self) -> None:
        self.asked: list[pb.IssueTokenRequest] = []

    async def IssueToken(self, request: pb.IssueTokenRequest, call: None) -> pb.IssueTokenResponse:
        self.asked.append(request)
        if (request.client_id, request.client_secret) != ("a@p", "s:1"):
            raise Unauthenticated("client id or secret is wrong; check both")
        return pb.IssueTokenResponse(access_token="t", token_type="Bearer", expires_in=300, scope="infer")

    async def GetJsonWebKeySet(self, request: pb.GetJsonWebKeySetRequest, call: None) -> pb.JsonWebKeySet:
        return pb.JsonWebKeySet(keys=[pb.JsonWebKey(kid="k", kty="OKP", crv="Ed25519", x="x", alg="EdDSA", use="sig")])


async def fetch(
    tokens: Tokens, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], dict[str, object]]:
    """One request to the application."""
    sent: list[dict[str, object]] = []
    raw = {"host": "auth.example", "content-length": str(len(body))} | (headers or {})
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "scheme": "https",
        "server": ("auth.example", 443),
        "headers": [(name.encode(), value.encode()) for name, value in raw.items()],
    }

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    await http_face.build(tokens, "https://issuer")(scope, receive, send)  # type: ignore[arg-type]
    head = {key.decode(): value.decode() for key, value in sent[0]["headers"]}  # type: ignore[attr-defined]
    text = b"".join(message.get("body", b"") for message in sent[1:])  # type: ignore[misc]
    return int(str(sent[0]["status"])), head, json.loads(text) if text.startswith(b"{") else {}


def basic(client: str, secret: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{client}:{secret}".encode()).decode()}


async def test_a_token_by_form_and_by_basic() -> None:
    tokens = Tokens()
    form = {"grant_type": "client_credentials", "client_id": "a@p", "client_secret": "s:1", "audience": "sealane-auth"}
    status, head, body = await fetch(tokens, "POST", "/oauth2/token", urlencode(form).encode())
    assert (status, body["access_token"], head["cache-control"]) == (200, "t", "no-store")
    assert tokens.asked[0].audience == "sealane-auth"
    grant = urlencode({"grant_type": "client_credentials"}).encode()
    status, _, _ = await fetch(tokens, "POST", "/oauth2/token", grant, basic("a%40p", "s%3A1"))
    assert status == 200


async def test_refusals_are_oauths() -> None:
    grant = urlencode({"grant_type": "client_credentials"}).encode()
    for headers in (basic("a@p", "wrong"), {"authorization": "Basic !!!"}, {}):
        status, _, body = await fetch(Tokens(), "POST", "/oauth2/token", grant, headers)
        assert (status, body["error"]) == (401, "invalid_client")
    status, _, body = await fetch(Tokens(), "POST", "/oauth2/token", b"x" * 20_000)
    assert (status, body["error"]) == (400, "invalid_request")
    assert (await fetch(Tokens(), "GET", "/oauth2/token"))[0] == 405


async def test_keys_and_discovery() -> None:
    status, head, body = await fetch(Tokens(), "GET", "/.well-known/jwks.json")
    assert (status, head["content-type"]) == (200, "application/jwk-set+json")
    assert body["keys"] == [{"kid": "k", "kty": "OKP", "crv": "Ed25519", "x": "x", "alg": "EdDSA", "use": "sig"}]
    _, _, found = await fetch(Tokens(), "GET", "/.well-known/openid-configuration")
    assert found["issuer"] == "https://issuer"
    assert found["jwks_uri"] == "https://auth.example/.well-known/jwks.json"
