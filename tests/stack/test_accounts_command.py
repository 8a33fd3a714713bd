"""A day of an administrator and of a person, by the command and the SDK, against a real auth process."""

from __future__ import annotations

import json
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from control_plane import Service
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from oidc_issuer import OidcIssuer, running

from sealane.cli import main
from sealane.client import (
    ClientCredentials,
    ExternalToken,
    NewCredential,
    PrivateKeyCredentials,
    RefreshTokenFile,
    Rule,
    connect,
)
from sealane.client.logins import read_login, write_login
from sealane.errors import PermissionDenied, Unauthenticated
from sealane.security import jws

PHRASE = "correct horse battery"


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OidcIssuer]:
    with running(tmp_path_factory.mktemp("issuer")) as made:
        yield made


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, issuer: OidcIssuer) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("accounts")
    settings = {"FEDERATION_CA": str(issuer.ca_file), "FEDERATION_PRIVATE": "true"}
    service = Service("auth", directory / "auth", settings)
    try:
        ports = service.start()
        (directory / "pki").mkdir()
        shutil.copy(service.directory / "pki" / "root.pem", directory / "pki" / "ca.pem")
        shutil.copy(service.directory / "admin.json", directory / "admin.json")
        (directory / "endpoints.json").write_text(json.dumps({"auth": f"127.0.0.1:{ports['client']}"}))
        yield directory
    finally:
        service.stop()


class Command:
    """``sealane`` with JSON output on one installation."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._home = home
        self._capsys = capsys

    def __call__(self, *arguments: str, code: int = 0) -> object:
        """Run a command; its output, parsed."""
        self._capsys.readouterr()
        assert main.run([*arguments, "--data", str(self._home), "--output", "json"]) == code, self._capsys.readouterr()
        out = self._capsys.readouterr().out
        return json.loads(out) if out.strip() else None


@pytest.fixture
def sealane(home: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(home, capsys)


def test_accounts_credentials_and_roles(sealane: Command, home: Path) -> None:
    made = sealane("accounts", "create", "camera", "--role", "invoker")
    assert made["client_secret"] and made["roles"] == ["invoker"]  # type: ignore[index, call-overload]
    second = sealane("accounts", "credentials", "add", "camera")
    listed = sealane("accounts", "credentials", "list", "camera")
    assert len(listed) == 2 and made["client_secret"] not in json.dumps(listed)  # type: ignore[arg-type, index, call-overload]
    with connect(home, credentials=ClientCredentials("camera@default", second["secret"])) as camera:  # type: ignore[index, call-overload]
        camera.token("sealane-inference")
    bound = sealane("roles", "bind", "camera", "publisher", "--model-prefix", "digits-")
    assert len(sealane("roles", "list", "camera")) == 2  # type: ignore[arg-type]
    sealane("roles", "unbind", str(bound["name"]).rpartition("/")[2])  # type: ignore[index, call-overload]
    quota = sealane("accounts", "quota", "camera", "--requests", "5")
    assert quota["requests_per_second"] == 5  # type: ignore[index, call-overload]
    assert sealane("accounts", "quota", "camera", "--concurrent", "2")["requests_per_second"] == 5  # type: ignore[index, call-overload]
    sealane("accounts", "credentials", "delete", "camera", str(second["name"]).rpartition("/")[2])  # type: ignore[index, call-overload]
    sealane("accounts", "delete", "camera")
    sealane("accounts", "get", "camera", code=5)
    sealane("projects", "create", "tenant-b")
    assert {"projects/default", "projects/tenant-b"} <= {each["name"] for each in sealane("projects", "list")}  # type: ignore[attr-defined]


def test_a_person_logs_in_works_and_logs_out(sealane: Command, home: Path, tmp_path: Path) -> None:
    with connect(home) as admin:
        admin.accounts.create("ada", roles=["operator"], credential=NewCredential(passphrase=PHRASE))
    secret = tmp_path / "passphrase"
    secret.write_text(PHRASE + "\n")
    sealane("login", "ada@default", "--passphrase-file", str(secret))
    try:
        path = home / "login.json"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600 and PHRASE not in path.read_text()
        first = read_login(path)["refresh_token"]
        token = sealane("token", "--audience", "sealane-auth")["access_token"]  # type: ignore[index, call-overload]
        claims = jws.parse(token, header_names=frozenset({"alg", "kid", "typ"})).claims
        assert claims["client_id"] == "ada@default" and read_login(path)["refresh_token"] != first
        sealane("accounts", "list", code=4)  # she is no administrator
        assert sealane("introspect", token)["active"] is True  # type: ignore[index, call-overload]
    finally:
        sealane("logout")
    assert not path.exists()
    assert not sealane("introspect", token).get("active")  # type: ignore[attr-defined]
    sealane("logout", code=1)


def test_many_share_one_login(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "login.json"
    with connect(home) as admin:
        admin.accounts.create("grace", roles=["viewer"], credential=NewCredential(passphrase=PHRASE))
        admin.log_in(path, "grace@default", PHRASE)
    failures: list[Exception] = []

    def use() -> None:
        try:
            with connect(home, credentials=RefreshTokenFile(path)) as client:
                for audience in ("sealane-auth", "sealane-registry", "sealane-inference"):
                    client.token(audience)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures  # two uses of one refresh token would have ended the session
    stolen = read_login(path)
    with connect(home, credentials=RefreshTokenFile(path)) as client:
        client.token("sealane-auth")
    write_login(path, stolen)
    with connect(home, credentials=RefreshTokenFile(path)) as client, pytest.raises(Unauthenticated, match="log in"):
        client.token("sealane-auth")


def test_a_wrong_passphrase_says_what_is_wrong(sealane: Command, home: Path, tmp_path: Path) -> None:
    secret = tmp_path / "passphrase"
    secret.write_text("not her passphrase")
    sealane("login", "nobody@default", "--passphrase-file", str(secret), code=4)
    assert not (home / "login.json").exists()


def test_a_signing_key_and_narrowed_tokens(sealane: Command, home: Path, tmp_path: Path) -> None:
    key, path = Ed25519PrivateKey.generate(), tmp_path / "key.jwk"
    path.write_text(json.dumps(jws.public_jwk(key.public_key().public_bytes_raw())))
    made = sealane("accounts", "create", "robot", "--role", "publisher", "--public-key", str(path))
    assert "client_secret" not in made  # type: ignore[operator]
    with connect(home, credentials=PrivateKeyCredentials("robot@default", key)) as robot:
        issued = robot.access_tokens.narrow(
            "sealane-registry", scope="models:read", model_prefixes=["digits-"], lifetime_seconds=30
        )
        assert issued.scope == "models:read" and issued.expires_in <= 30
        with pytest.raises(PermissionDenied):
            robot.access_tokens.narrow("sealane-registry", scope="admin")
    narrowed = sealane("token", "--scope", "infer", "--model-prefix", "digits-", "--lifetime", "20")
    assert narrowed["scope"] == "infer" and narrowed["expires_in"] <= 20  # type: ignore[index, call-overload, operator]


def test_revoking(sealane: Command, home: Path) -> None:
    with connect(home) as admin:
        made = admin.accounts.create("loser", ["infer"])
        credentials = ClientCredentials(made.client_id, made.client_secret)
        with connect(home, credentials=credentials) as loser:
            token = loser.token("sealane-inference")
        claims = jws.parse(token, header_names=frozenset({"alg", "kid", "typ"})).claims
        assert admin.access_tokens.introspect(token).active
        sealane("revoke", "--token-id", str(claims["jti"]))
        assert not admin.access_tokens.introspect(token).active
        with connect(home, credentials=credentials) as loser:
            token = loser.token("sealane-inference")
        assert sealane("revoke", "--account", "loser")["epoch"] == 1  # type: ignore[index, call-overload]
        assert not admin.access_tokens.introspect(token).active
    sealane("revoke", code=2)


def test_a_pipeline_needs_no_secret_of_ours(sealane: Command, home: Path, issuer: OidcIssuer) -> None:
    trust = ("issuers", "trust", "github", issuer.url, "--audience", "sealane", "--role", "publisher")
    sealane(*trust, "--claim", "repository=acme/*", "--claim", "ref=refs/heads/main", "--model-prefix", "digits-")
    assert sealane("issuers", "list")[0]["issuer"] == issuer.url  # type: ignore[index, call-overload]
    with connect(home, credentials=ExternalToken(issuer.github_token, "default")) as pipeline:
        assert pipeline.project == "default" and pipeline.token("sealane-registry")
    with (
        connect(home, credentials=ExternalToken(lambda: issuer.github_token("evil/x"), "default")) as stranger,
        pytest.raises(PermissionDenied),
    ):
        stranger.token("sealane-registry")
    sealane("issuers", "distrust", "github")
    with (
        connect(home, credentials=ExternalToken(issuer.github_token, "default")) as pipeline,
        pytest.raises(Unauthenticated),
    ):
        pipeline.token("sealane-registry")
    with connect(home) as admin:
        rules = [Rule({"sub": "a"}, ["viewer"]), Rule({"sub": "b"}, ["invoker"], "digits-")]
        key = rsa.generate_private_key(65537, 2048).public_key().public_numbers()
        jwk = {"kty": "RSA", "kid": "x", "n": jws.encode(key.n.to_bytes(256, "big")), "e": "AQAB"}
        made = admin.issuers.trust(
            "inline", "https://sso.example", audience="sealane", rules=rules, keys=json.dumps({"keys": [jwk]})
        )
        assert len(made.rules) == 2
        admin.issuers.distrust("inline")


def test_no_file_of_a_login_is_open_to_others(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        write_login(tmp_path / "login.json", {"client_id": "a", "project": "p", "refresh_token": "t"})
    finally:
        os.umask(previous)
    assert [stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()] == [0o600]
