"""The HTTPS face, as an OAuth library meets it (the application itself; TLS is the server's)."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import urlencode

import pytest
from auth_records import serving
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealane.clock import ManualClock
from sealane.records.tables import Actor
from sealane.security import jws
from sealane.security.tokens import ISSUER
from sealane_auth import http_face
from sealane_auth.accounts import AccountRules, NewAccount, NewCredential
from sealane_auth.clients import ASSERTION_TYPE
from sealane_auth.exchange import GRANT_TYPE
from sealane_auth.minting import ACCESS_TOKEN
from sealane_auth.passphrases import WRONG_TRIES, Passphrases
from sealane_auth.store import Store

PHRASE = "correct horse battery"
TOKEN = "https://auth.example/oauth2/token"
GRANT = {"grant_type": "client_credentials"}
KEY = Ed25519PrivateKey.generate()
RAW = KEY.public_key().public_bytes_raw()


@dataclass(slots=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: dict[str, object]


@dataclass(slots=True)
class Face:
    """The application and one client that it knows, ``camera@p``."""

    application: object
    clock: ManualClock
    secret: str

    async def send(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: list[tuple[str, str]] | None = None,
        host: str = "auth.example",
    ) -> Answer:
        """One request to the application."""
        sent: list[dict[str, object]] = []
        raw = [("host", host), ("content-length", str(len(body))), *(headers or [])]
        if not any(name == "content-type" for name, _ in raw):
            raw.append(("content-type", "application/x-www-form-urlencoded"))
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "scheme": "https",
            "server": (host, 443),
            "headers": [(name.encode(), value.encode()) for name, value in raw],
        }

        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": body}

        async def send(message: dict[str, object]) -> None:
            sent.append(message)

        await self.application(scope, receive, send)  # type: ignore[operator]
        head = {key.decode(): value.decode() for key, value in sent[0]["headers"]}  # type: ignore[attr-defined]
        text = b"".join(message.get("body", b"") for message in sent[1:])  # type: ignore[misc]
        return Answer(int(str(sent[0]["status"])), head, json.loads(text) if text.startswith(b"{") else {})

    async def post(
        self, path: str, form: dict[str, str], *headers: tuple[str, str], host: str = "auth.example"
    ) -> Answer:
        """One form."""
        return await self.send("POST", path, urlencode(form).encode(), list(headers), host)

    def client(self) -> dict[str, str]:
        """The client's fields in a form."""
        return {"client_id": "camera@p", "client_secret": self.secret}

    async def token(self, **form: str) -> str:
        """An access token."""
        answer = await self.post("/oauth2/token", GRANT | self.client() | form)
        assert answer.status == 200, answer.body
        return str(answer.body["access_token"])

    def assertion(self, **changes: object) -> dict[str, str]:
        """The fields of an assertion signed with the client's key."""
        now = int(self.clock.now())
        claims = {"iss": "camera@p", "sub": "camera@p", "aud": TOKEN, "exp": now + 60, "jti": str(uuid.uuid4())}
        text = jws.sign(KEY, {"typ": "JWT"}, claims | changes)
        return {"client_assertion_type": ASSERTION_TYPE, "client_assertion": text}

    def proof(self, **changes: object) -> tuple[str, str]:
        """A DPoP header for the token endpoint."""
        claims = {"jti": str(uuid.uuid4()), "htm": "POST", "htu": TOKEN, "iat": int(self.clock.now())} | changes
        return "dpop", jws.sign(KEY, {"typ": "dpop+jwt", "jwk": jws.public_jwk(RAW)}, claims)


@pytest.fixture
async def face() -> AsyncIterator[Face]:
    clock = ManualClock()
    rules = AccountRules(clock)

    def prepare(store: Store) -> str:
        admin = Actor(rules.create_first_admin(store, "p")[0].name, "p")
        camera, secret = rules.create_account(store, admin, NewAccount("p", "camera", (), ("invoker",)))
        key = NewCredential("public_key", json.dumps(jws.public_jwk(RAW)))
        rules.create_credential(store, admin, camera.name, key)
        phrase = NewCredential("passphrase", Passphrases().hash(PHRASE))
        rules.create_account(store, admin, NewAccount("p", "ada", (), ("operator",), phrase))
        return secret

    with serving(clock) as (records, servicer):
        secret = await records.write(prepare)
        yield Face(http_face.build(servicer, ISSUER, ["auth.example"], clock), clock, secret)


def basic(client: str, secret: str) -> tuple[str, str]:
    return "authorization", "Basic " + base64.b64encode(f"{client}:{secret}".encode()).decode()


async def test_a_token_by_form_by_basic_and_by_assertion(face: Face) -> None:
    ways = [
        (GRANT | face.client(), ()),
        (GRANT, (basic("camera%40p", face.secret),)),
        (GRANT | {"client_id": "camera@p"}, (basic("camera%40p", face.secret),)),
        (GRANT | face.assertion(), ()),
        (GRANT | face.assertion(aud=ISSUER), ()),
    ]
    for form, headers in ways:
        answer = await face.post("/oauth2/token", form, *headers)
        assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
        assert (answer.body["token_type"], answer.body["expires_in"]) == ("Bearer", 300)
        assert answer.body["scope"] == "infer reflect"


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ({"grant_type": "password"}, "unsupported_grant_type"),
        ({}, "unsupported_grant_type"),
        ({"scope": "everything"}, "invalid_scope"),
        ({"scope": "admin"}, "invalid_scope"),
        ({"audience": "elsewhere"}, "invalid_target"),
        ({"resource": "https://elsewhere"}, "invalid_target"),
        ({"key_thumbprint": "short"}, "invalid_request"),
        ({"grant_type": "refresh_token", "refresh_token": "a.b"}, "invalid_grant"),
        ({"grant_type": "refresh_token"}, "invalid_grant"),
        ({"client_assertion": "a.b.c", "client_assertion_type": ASSERTION_TYPE}, "invalid_request"),
        ({"grant_type": GRANT_TYPE, "subject_token": "x", "subject_token_type": "y"}, "invalid_request"),
        ({"grant_type": GRANT_TYPE, "subject_token": "x", "subject_token_type": ACCESS_TOKEN}, "invalid_request"),
        ({"grant_type": GRANT_TYPE, "requested_token_type": "saml"}, "invalid_request"),
        ({"grant_type": GRANT_TYPE, "lifetime_seconds": "-1"}, "invalid_request"),
    ],
)
async def test_refusals_are_oauths(face: Face, form: dict[str, str], error: str) -> None:
    answer = await face.post("/oauth2/token", (GRANT if form else {}) | face.client() | form)
    assert (answer.status, answer.body["error"]) == (400, error)
    assert answer.headers["cache-control"] == "no-store"


async def test_a_client_that_proves_nothing_is_401(face: Face) -> None:
    for form, headers in (
        (GRANT, (basic("camera@p", "wrong"),)),
        (GRANT, (("authorization", "Basic !!!"),)),
        (GRANT, (("authorization", "Bearer abc"),)),
        (GRANT, ()),
        (GRANT | {"client_id": "nobody@p", "client_secret": face.secret}, ()),
        (GRANT | face.assertion(aud="https://evil.example/oauth2/token"), ()),
    ):
        answer = await face.post("/oauth2/token", form, *headers)
        assert (answer.status, answer.body["error"]) == (401, "invalid_client")
        assert answer.headers["www-authenticate"].startswith("Basic")


async def test_a_host_header_moves_no_audience(face: Face) -> None:
    stolen = GRANT | face.assertion(aud="https://evil.example/oauth2/token")
    answer = await face.post("/oauth2/token", stolen, host="evil.example")
    assert (answer.status, answer.body["error"]) == (401, "invalid_client")


async def test_forms_are_read_strictly(face: Face) -> None:
    good = urlencode(GRANT | face.client()).encode()
    cases = [
        (good + b"&scope=infer&scope=reflect", []),
        (good + b"&grant_type=client_credentials", []),
        (b"x" * 70_000, []),
        (good + b"&a=%ff", []),
        (good, [("content-type", "application/json")]),
        (b"&".join(b"a%d=1" % number for number in range(40)), []),
        (good, [basic("camera@p", face.secret)]),
        (urlencode(GRANT | {"client_id": "other@p"}).encode(), [basic("camera%40p", face.secret)]),
    ]
    for body, headers in cases:
        answer = await face.send("POST", "/oauth2/token", body, headers)
        assert (answer.status, answer.body["error"]) == (400, "invalid_request"), body[:80]
    assert (await face.send("GET", "/oauth2/token")).status == 405


async def test_a_dpop_proof_binds_the_token(face: Face) -> None:
    answer = await face.post("/oauth2/token", GRANT | face.client(), face.proof())
    assert (answer.status, answer.body["token_type"]) == (200, "DPoP")
    seen = await face.post("/oauth2/introspect", face.client() | {"token": str(answer.body["access_token"])})
    assert seen.body["cnf"] == {"jkt": jws.thumbprint(RAW)}


async def test_bad_dpop_proofs(face: Face) -> None:
    used = face.proof()
    await face.post("/oauth2/token", GRANT | face.client(), used)
    hmac_proof = ("dpop", "eyJhbGciOiJIUzI1NiIsInR5cCI6ImRwb3Arand0In0.e30.AAAA")
    cases = [
        (used,),
        (face.proof(htu="https://auth.example/other"),),
        (face.proof(htm="GET"),),
        (face.proof(iat=int(face.clock.now()) - 120),),
        (face.proof(jti=None),),
        (face.proof(jti="x" * 129),),
        (face.proof(jti=""),),
        (face.proof(), face.proof()),
        (hmac_proof,),
        (("dpop", "nonsense"),),
    ]
    for headers in cases:
        answer = await face.post("/oauth2/token", GRANT | face.client(), *headers)
        assert (answer.status, answer.body["error"]) == (400, "invalid_dpop_proof")
    answer = await face.post("/oauth2/token", GRANT | face.client() | {"key_thumbprint": "A" * 43}, face.proof())
    assert answer.body["error"] == "invalid_request"


async def test_a_person_logs_in_refreshes_and_logs_out(face: Face) -> None:
    form = GRANT | {"client_id": "ada@p", "client_secret": PHRASE, "scope": "offline_access models:read"}
    first = (await face.post("/oauth2/token", form)).body
    again = {"grant_type": "refresh_token", "refresh_token": str(first["refresh_token"])}
    second = (await face.post("/oauth2/token", again)).body
    assert second["scope"] == "models:read" and second["refresh_token"] != first["refresh_token"]
    assert (await face.post("/oauth2/revoke", {"token": str(second["refresh_token"])})).status == 200
    gone = await face.post("/oauth2/token", again | {"refresh_token": str(second["refresh_token"])})
    assert (gone.status, gone.body["error"]) == (400, "invalid_grant")


async def test_a_client_id_that_nobody_can_have_is_refused_before_it_is_looked_at(face: Face) -> None:
    """Ten wrong ones lock a client out, so its id is remembered; this one is not."""
    for _ in range(WRONG_TRIES + 1):
        form = GRANT | {"client_id": "x" * 151, "client_secret": "wrong pass phrase"}
        answer = await face.post("/oauth2/token", form)
        assert (answer.status, answer.body["error"]) == (401, "invalid_client")


async def test_too_many_wrong_passphrases_are_429(face: Face) -> None:
    form = GRANT | {"client_id": "ada@p", "client_secret": "a guess that is wrong"}
    statuses = [(await face.post("/oauth2/token", form)).status for _ in range(11)]
    assert statuses == [401] * 10 + [429]
    assert int((await face.post("/oauth2/token", form)).headers["retry-after"]) > 0


async def test_exchange_and_the_client_acts_where_it_proves_itself(face: Face) -> None:
    token = await face.token()
    form = {"grant_type": GRANT_TYPE, "subject_token": token, "subject_token_type": ACCESS_TOKEN, "scope": "infer"}
    form |= {"model_prefixes": "digits- faces-", "lifetime_seconds": "30"}
    answer = await face.post("/oauth2/token", form)
    assert answer.body["issued_token_type"] == ACCESS_TOKEN and int(str(answer.body["expires_in"])) <= 30
    claims = jws.parse(str(answer.body["access_token"]), header_names=frozenset({"alg", "kid", "typ"})).claims
    assert claims["models"] == {"infer": ["digits-", "faces-"]} and "act" not in claims
    acted = await face.post("/oauth2/token", form | {"client_id": "ada@p", "client_secret": PHRASE})
    claims = jws.parse(str(acted.body["access_token"]), header_names=frozenset({"alg", "kid", "typ"})).claims
    assert claims["act"] == {"sub": "projects/p/serviceAccounts/ada"}
    wrong = await face.post("/oauth2/token", form | {"client_id": "ada@p", "client_secret": "not her passphrase"})
    assert wrong.status == 401


async def test_introspection_tells_clients_what_they_may_know(face: Face) -> None:
    token = await face.token()
    own = (await face.post("/oauth2/introspect", face.client() | {"token": token})).body
    assert own["active"] is True and own["client_id"] == "camera@p" and own["aud"] == "sealane-inference"
    ada = {"client_id": "ada@p", "client_secret": PHRASE}
    assert (await face.post("/oauth2/introspect", ada | {"token": token})).body["active"] is True
    hers = (await face.post("/oauth2/token", GRANT | ada)).body["access_token"]
    for other in (str(hers), "nonsense", "a.b.c"):
        answer = await face.post("/oauth2/introspect", face.client() | {"token": other})
        assert (answer.status, answer.body) == (200, {"active": False})
    assert (await face.post("/oauth2/introspect", {"token": token})).status == 401
    assert (await face.post("/oauth2/introspect", face.client())).body["error"] == "invalid_request"


async def test_a_revoked_token_is_not_active(face: Face) -> None:
    token = await face.token()
    assert (await face.post("/oauth2/revoke", {"token": token})).status == 401
    for _ in range(2):
        assert (await face.post("/oauth2/revoke", face.client() | {"token": token})).status == 200
    assert (await face.post("/oauth2/introspect", face.client() | {"token": token})).body == {"active": False}


async def test_keys_and_discovery(face: Face) -> None:
    answer = await face.send("GET", "/.well-known/jwks.json")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/jwk-set+json")
    assert answer.headers["cache-control"] == "public, max-age=300"
    (key,) = answer.body["keys"]  # type: ignore[misc]
    assert set(key) == {"kid", "kty", "crv", "x", "alg", "use"}
    for path in ("/.well-known/openid-configuration", "/.well-known/oauth-authorization-server"):
        found = (await face.send("GET", path)).body
        assert found["issuer"] == ISSUER and found["jwks_uri"] == "https://auth.example/.well-known/jwks.json"
        assert found["token_endpoint"] == TOKEN
        for name, value in found.items():
            if name.endswith("_endpoint"):
                status = (await face.send("POST", str(value).removeprefix("https://auth.example"))).status
                assert status in (400, 401), name  # it is there
