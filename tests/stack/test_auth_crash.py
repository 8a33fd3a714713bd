"""AUTH-10: auth killed at every fail point of its changes: what was acknowledged stands, the rest is whole or not."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealane.auth.v1 import enrollment_service_pb2 as enroll_pb
from sealane.auth.v1 import (
    enrollment_service_pb2_grpc,
    identity_service_pb2_grpc,
    signing_key_service_pb2_grpc,
    token_service_pb2_grpc,
)
from sealane.auth.v1 import identity_service_pb2 as identity_pb
from sealane.auth.v1 import signing_key_service_pb2 as keys_pb
from sealane.auth.v1 import token_service_pb2 as tokens_pb
from sealane.client import Client, ClientCredentials, NodePlace
from sealane.errors import SealaneError
from sealane.rpc.channel import Target, dial
from sealane.security import device, tls

pytestmark = pytest.mark.stack
START_SECONDS = 30.0
PLACE = NodePlace(tier="edge", zone="site-a", clearance="restricted")
KILLED = 137


def free_port() -> int:
    with socket.socket() as item:
        item.bind(("127.0.0.1", 0))
        return int(item.getsockname()[1])


@dataclass
class Auth:
    """Auth alone, on ports that stay; and what was acknowledged to its callers before."""

    folder: Path
    ports: dict[str, int] = field(default_factory=lambda: {name: free_port() for name in ("client", "mesh", "http")})
    process: subprocess.Popen[bytes] | None = None
    device: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    dead: str = ""
    """A token of a subject that was revoked."""
    retired: str = ""
    """A signing key that was retired."""

    def start(self, failpoint: str = "") -> None:
        settings = {"DATA_DIR": str(self.folder / "auth")}
        names = {"client": "LISTEN", "mesh": "MESH_LISTEN", "http": "HTTP_LISTEN"}
        settings |= {names[name]: f"127.0.0.1:{port}" for name, port in self.ports.items()}
        environment = {**os.environ, **{f"SEALANE_AUTH_{name}": value for name, value in settings.items()}}
        if failpoint:
            environment["SEALANE_FAILPOINTS"] = f"{failpoint}=panic"
        ready = self.folder / "auth" / "ports.json"
        ready.unlink(missing_ok=True)
        with (self.folder / "auth.log").open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "sealane_auth"], env=environment, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while not ready.exists():
            assert self.process.poll() is None, (self.folder / "auth.log").read_text()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        if self.process is not None:
            self.process.wait()

    def wait_killed(self) -> None:
        assert self.process is not None
        assert self.process.wait(START_SECONDS) == KILLED

    @property
    def trust(self) -> bytes:
        return (self.folder / "auth" / "pki" / "root.pem").read_bytes()

    def client(self) -> Client:
        import json

        found = json.loads((self.folder / "auth" / "admin.json").read_text())
        credentials = ClientCredentials(found["client_id"], found["client_secret"], project="default")
        endpoints = {"auth": f"127.0.0.1:{self.ports['client']}"}
        return Client(endpoints, trust_bundle=self.trust, credentials=credentials, timeout=5.0)

    def bare(self) -> grpc.Channel:
        """A channel on which nothing is tried again."""
        return dial(Target(f"127.0.0.1:{self.ports['client']}", self.trust, "auth.service.sealane"))

    def rows(self) -> dict[str, list[tuple[object, ...]]]:
        """Everything that auth keeps but the seals of its log, which follow by themselves."""
        with sqlite3.connect(f"file:{self.folder / 'auth' / 'auth.db'}?mode=ro", uri=True) as database:
            names = [row[0] for row in database.execute("select name from sqlite_master where type = 'table'")]
            own = [name for name in names if not name.startswith(("sqlite_", "alembic", "audit_checkpoints"))]
            kept = {name: database.execute(f"select * from {name} order by 1, 2").fetchall() for name in own}
        kept["audit"] = [row[:8] for row in kept["audit"]]
        return kept


@dataclass
class Change:
    """One change: what it takes, how it is asked for, and that it can be asked for again."""

    prepare: Callable[[Auth, Client], object]
    ask: Callable[[Auth, str, object], object]
    again: str = "OK"
    """Kind of the answer to the same request after a change that was committed; a repeat of others succeeds."""


def call(auth: Auth, stub: Callable[[grpc.Channel], object], method: str, request: object, token: str = "") -> object:
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    with auth.bare() as channel:
        return getattr(stub(channel), method)(request, timeout=10.0, metadata=metadata)


def identity(method: str, make: Callable[[object], object]) -> Callable[[Auth, str, object], object]:
    stub = identity_service_pb2_grpc.IdentityServiceStub
    return lambda auth, token, made: call(auth, stub, method, make(made), token)


def tokens(method: str, make: Callable[[object], object]) -> Callable[[Auth, str, object], object]:
    stub = token_service_pb2_grpc.TokenServiceStub
    return lambda auth, token, made: call(auth, stub, method, make(made), token)


def keys(method: str, make: Callable[[object], object]) -> Callable[[Auth, str, object], object]:
    stub = signing_key_service_pb2_grpc.SigningKeyServiceStub
    return lambda auth, token, made: call(auth, stub, method, make(made), token)


def enrollment(method: str, make: Callable[[object], object], *, open_: bool = False):
    stub = enrollment_service_pb2_grpc.EnrollmentServiceStub
    return lambda auth, token, made: call(auth, stub, method, make(made), "" if open_ else token)


def nothing(auth: Auth, client: Client) -> object:
    return str(uuid.uuid4())


def account(auth: Auth, client: Client) -> object:
    return client.accounts.create("camera", ("infer",))


def join_request(auth: Auth, client: Client) -> object:
    request = tls.new_request()[1]
    proof = device.prove(auth.device, request, time.time())
    joined = client.join_tokens.create(node="edge-2", place=PLACE)
    return enroll_pb.EnrollRequest(join_token=joined.token, certificate_request=request, device_proof=proof)


def reenroll_request(auth: Auth, client: Client) -> object:
    request = tls.new_request()[1]
    proof = device.prove(auth.device, request, time.time())
    return enroll_pb.ReenrollRequest(
        spiffe_id="spiffe://sealane/node/edge-1", certificate_request=request, device_proof=proof
    )


def signing_kid(auth: Auth, client: Client) -> object:
    return next(key.kid for key in client.keys.list() if key.state == keys_pb.SigningKey.STATE_SIGNING)


def login(made: object) -> object:
    assert isinstance(made, identity_pb.ServiceAccount)
    return tokens_pb.IssueTokenRequest(
        grant_type="client_credentials",
        client_id=made.client_id,
        client_secret=made.client_secret,
        audience="sealane-inference",
        scope="infer offline_access",
    )


PARENT, CAMERA = "projects/default", "projects/default/serviceAccounts/camera"
CHANGES: dict[str, Change] = {
    "BeginSession": Change(account, tokens("IssueToken", login)),
    "CreateServiceAccount": Change(
        nothing,
        identity(
            "CreateServiceAccount",
            lambda made: identity_pb.CreateServiceAccountRequest(
                parent=PARENT, service_account_id="new", roles=["invoker"], request_id=str(made)
            ),
        ),
    ),
    "DeleteServiceAccount": Change(
        account,
        identity("DeleteServiceAccount", lambda _: identity_pb.DeleteServiceAccountRequest(name=CAMERA)),
        "NOT_FOUND",
    ),
    "RevokeSubject": Change(account, tokens("RevokeSubject", lambda _: tokens_pb.RevokeSubjectRequest(subject=CAMERA))),
    "RevokeTokenId": Change(
        nothing,
        tokens("RevokeTokenId", lambda made: tokens_pb.RevokeTokenIdRequest(parent=PARENT, token_id=str(made))),
    ),
    "RotateSigningKey": Change(nothing, keys("RotateSigningKey", lambda _: keys_pb.RotateSigningKeyRequest())),
    "RetireSigningKey": Change(
        signing_kid,
        keys("RetireSigningKey", lambda made: keys_pb.RetireSigningKeyRequest(kid=str(made))),
        "UNAUTHENTICATED",  # the caller's own token died with the key
    ),
    "RotateIntermediate": Change(
        nothing, keys("RotateIntermediate", lambda _: keys_pb.RotateIntermediateRequest(distrust=True))
    ),
    "CreateJoinToken": Change(
        nothing,
        enrollment("CreateJoinToken", lambda _: enroll_pb.CreateJoinTokenRequest(service="registry")),
    ),
    "Enroll": Change(join_request, enrollment("Enroll", lambda made: made, open_=True), "UNAUTHENTICATED"),
    "Reenroll": Change(reenroll_request, enrollment("Reenroll", lambda made: made, open_=True)),
    "EvictPeer": Change(
        nothing,
        enrollment("EvictPeer", lambda _: enroll_pb.EvictPeerRequest(spiffe_id="spiffe://sealane/node/edge-1")),
    ),
}


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of an auth that has acknowledged this and that, to be copied by each test."""
    auth = Auth(tmp_path_factory.mktemp("history"))
    auth.start()
    try:
        with auth.client() as client:
            made = client.accounts.create("kept", ("infer", "models:read"))
            (auth.folder / "secret").write_text(made.client_secret)
            request = tls.new_request()[1]
            joined = client.join_tokens.create(node="edge-1", place=PLACE)
            (auth.folder / "device").write_bytes(auth.device.private_bytes_raw())
            message = enroll_pb.EnrollRequest(
                join_token=joined.token,
                certificate_request=request,
                device_proof=device.prove(auth.device, request, time.time()),
            )
            call(auth, enrollment_service_pb2_grpc.EnrollmentServiceStub, "Enroll", message)
            thief = client.accounts.create("thief", ("infer",))
            with auth.client() as other:
                other.accounts.delete("thief")
            (auth.folder / "thief").write_text(thief.client_secret)
    finally:
        auth.stop()
    return auth.folder


@pytest.fixture
def auth(history: Path, tmp_path: Path) -> Iterator[Auth]:
    import shutil

    folder = tmp_path / "site"
    shutil.copytree(history, folder)
    made = Auth(folder, device=Ed25519PrivateKey.from_private_bytes((folder / "device").read_bytes()))
    yield made
    made.stop()


@pytest.mark.parametrize("point", ["recorded", "committed"])
@pytest.mark.parametrize("action", sorted(CHANGES))
def test_a_kill_leaves_a_change_whole_or_unmade_and_all_before_it_standing(auth: Auth, action: str, point: str) -> None:
    change = CHANGES[action]
    auth.start(f"{action}.{point}")
    with auth.client() as client:
        made, token = change.prepare(auth, client), client.token("sealane-auth")
    before = auth.rows()
    with pytest.raises(grpc.RpcError) as caught:
        change.ask(auth, token, made)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
    auth.wait_killed()
    after = auth.rows()
    recorded = [row for row in after["audit"] if row not in before["audit"]]
    if point == "recorded":
        assert after == before, "nothing of it stays"
    else:
        assert action in {row[4] for row in recorded}
        assert after != before
    auth.start()
    check_acknowledged(auth)
    wanted = change.again if point == "committed" else "OK"
    try:
        change.ask(auth, token, made)
        outcome = "OK"
    except grpc.RpcError as error:
        outcome = error.code().name  # type: ignore[attr-defined]
    assert outcome == wanted
    check_acknowledged(auth)


def check_acknowledged(auth: Auth) -> None:
    """What was acknowledged before any kill."""
    with auth.client() as client:
        assert "kept" in {found.name.rpartition("/")[2] for found in client.accounts.list()}
        assert "thief" not in {found.name.rpartition("/")[2] for found in client.accounts.list()}
        assert "spiffe://sealane/node/edge-1" in {peer.spiffe_id for peer in client.peers.list()}
        assert sum(key.state == keys_pb.SigningKey.STATE_SIGNING for key in client.keys.list()) == 1
        checked = client.audit.verify("auth")
        assert checked.rows + checked.unsealed > 5 and not checked.HasField("fault"), checked
    endpoints = {"auth": f"127.0.0.1:{auth.ports['client']}"}
    for name, works in (("kept", True), ("thief", False)):
        secret = (auth.folder / ("secret" if works else "thief")).read_text()
        credentials = ClientCredentials(f"{name}@default", secret, project="default")
        with Client(endpoints, trust_bundle=auth.trust, credentials=credentials, timeout=5.0) as client:
            try:
                client.token("sealane-inference")
                assert works
            except SealaneError as error:
                assert not works, error
                assert error.kind == "UNAUTHENTICATED"
