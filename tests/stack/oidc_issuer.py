"""An OpenID Connect issuer on loopback, over HTTPS with an authority of its own: Keycloak's shape, or GitHub's."""

from __future__ import annotations

import datetime
import ipaddress
import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

_NOW = datetime.datetime.now(datetime.UTC)
_SLOW_PIECE_SECONDS = 0.2


class OidcIssuer:
    """The issuer while it runs.

    Args:
        directory: where its certificates go; ``ca.pem`` is its authority.
        path: path of its issuer URL, such as ``/realms/acme``.
    """

    def __init__(self, directory: Path, path: str = "") -> None:
        self.ca_file = directory / "ca.pem"
        self._path = path
        self.kid = "k1"
        self.key = rsa.generate_private_key(65537, 2048)
        self.says_issuer = ""
        self.behaviour = "good"
        self.fetched: list[str] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(_certificate(directory))
        self._server = _Server(self, context)
        self.url = f"https://localhost:{self._server.server_address[1]}{path}"

    def start(self) -> None:
        """Serve."""
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        """End."""
        self._server.shutdown()
        self._server.server_close()

    def rotate(self) -> None:
        """Sign with another key from now on; the old one is gone."""
        self.kid += "x"
        self.key = rsa.generate_private_key(65537, 2048)

    def jwks(self) -> dict[str, object]:
        """The key set."""
        jwk = jwt.get_algorithm_by_name("RS256").to_jwk(self.key.public_key(), as_dict=True)
        found = {name: value for name, value in jwk.items() if name != "key_ops"}
        encryption = found | {"kid": "enc", "use": "enc", "alg": "RSA-OAEP"}  # Keycloak publishes one beside
        return {"keys": [encryption, found | {"kid": self.kid, "use": "sig", "alg": "RS256"}]}

    def token(self, **changes: object) -> str:
        """A token for ``sealane``."""
        now = int(time.time())
        claims = {"iss": self.url, "aud": "sealane", "sub": "someone", "iat": now, "exp": now + 300} | changes
        return jwt.encode(claims, self.key, algorithm="RS256", headers={"kid": self.kid, "typ": "JWT"})

    def keycloak_token(self, *roles: str, **changes: object) -> str:
        """A person's access token as Keycloak shapes it."""
        facts = {
            "typ": "Bearer",
            "azp": "ml-portal",
            "aud": ["sealane", "account"],
            "sub": "f:1b2c:ada",
            "preferred_username": "ada",
            "realm_access": {"roles": ["offline_access", *roles]},
            "resource_access": {"account": {"roles": ["view-profile"]}},
            "acr": "1",
            "sid": "0f3c",
        }
        return self.token(**(facts | changes))

    def github_token(self, repository: str = "acme/digits", ref: str = "refs/heads/main", **changes: object) -> str:
        """A workflow's token as GitHub Actions shapes it."""
        facts = {
            "sub": f"repo:{repository}:ref:{ref}",
            "repository": repository,
            "repository_owner": repository.partition("/")[0],
            "repository_owner_id": "65",
            "ref": ref,
            "ref_type": "branch",
            "event_name": "push",
            "workflow": "train",
            "job_workflow_ref": f"{repository}/.github/workflows/train.yml@{ref}",
            "runner_environment": "github-hosted",
            "run_attempt": "2",
            "nbf": int(time.time()) - 60,
            "jti": "3f1c",
        }
        return self.token(**(facts | changes))

    def answer(self, path: str) -> tuple[int, bytes]:
        """What a path answers."""
        self.fetched.append(path)
        if self.behaviour == "down":
            return 503, b""
        if self.behaviour == "huge":
            return 200, b'{"keys": [' + b" " * 300_000 + b"]}"
        if path == f"{self._path}/.well-known/openid-configuration":
            document = {"issuer": self.says_issuer or self.url, "jwks_uri": f"{self.url}/certs"}
            return 200, json.dumps(document).encode()
        if path == f"{self._path}/certs":
            return 200, json.dumps(self.jwks()).encode()
        return 404, b""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, issuer: OidcIssuer, context: ssl.SSLContext) -> None:
        self.issuer = issuer
        super().__init__(("127.0.0.1", 0), _Handler)
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        """Answer as the issuer behaves."""
        issuer = self.server.issuer
        if issuer.behaviour == "redirect":
            self.send_response(302)
            self.send_header("location", f"{issuer.url}/certs")
            self.end_headers()
            return
        if issuer.behaviour == "slow":
            issuer.fetched.append(self.path)
            for _ in range(200):  # byte by byte: no single read takes long
                self.wfile.write(b"H")
                time.sleep(_SLOW_PIECE_SECONDS)
            return
        status, body = issuer.answer(self.path)
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def running(directory: Path, path: str = "") -> Iterator[OidcIssuer]:
    """An issuer that serves."""
    directory.mkdir(parents=True, exist_ok=True)
    issuer = OidcIssuer(directory, path)
    issuer.start()
    try:
        yield issuer
    finally:
        issuer.stop()


def _certificate(directory: Path) -> Path:
    """A leaf for localhost with its key, in one file; its authority goes to ``ca.pem``."""
    root, leaf = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test issuer's authority")])
    begin, end = _NOW - datetime.timedelta(minutes=5), _NOW + datetime.timedelta(days=1)

    def builder(name: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        made = x509.CertificateBuilder().subject_name(name).issuer_name(authority).public_key(key)
        made = made.serial_number(x509.random_serial_number()).not_valid_before(begin).not_valid_after(end)
        return made.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), False)

    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    top = builder(authority, root.public_key()).add_extension(x509.BasicConstraints(True, 0), True)
    (directory / "ca.pem").write_bytes(
        top.add_extension(usage, True).sign(root, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    )
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    signed = (
        builder(name, leaf.public_key())
        .add_extension(x509.SubjectAlternativeName(names), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key()), False)
        .sign(root, hashes.SHA256())
    )
    private = leaf.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = directory / "leaf.pem"
    path.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    return path
