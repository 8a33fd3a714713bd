"""What containers are handed, and the probe that judges them."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sealane.clock import SystemClock
from sealane.errors import FailedPrecondition
from sealane_auth import bootstrap as auth_bootstrap
from sealane_auth.config import Config
from sealane_auth.enrollment import Enrollment
from sealane_local import bootstrap, probe

Status = health_pb2.HealthCheckResponse.ServingStatus


class Health(health_pb2_grpc.HealthServicer):
    def __init__(self) -> None:
        self.status = Status.SERVING

    def Check(self, request: object, context: object) -> health_pb2.HealthCheckResponse:
        return health_pb2.HealthCheckResponse(status=self.status)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Health, str, Path]]:
    """A health service under a certificate of auth's, its address, the file of its root."""
    secrets = auth_bootstrap.open_secrets(Config(tmp_path / "auth"), SystemClock())
    enrollment = Enrollment(SystemClock(), secrets.authority, secrets.keyring)
    identity = auth_bootstrap.own_identity(tmp_path / "identity", enrollment, ("localhost",))
    server = grpc.server(ThreadPoolExecutor(2))
    health = Health()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    pair = [identity.pair()]
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pair))
    server.start()
    yield health, f"127.0.0.1:{port}", tmp_path / "auth" / "pki" / "root.pem"
    server.stop(0).wait()


def test_the_probe_tells_serving_from_not_serving(served: tuple[Health, str, Path]) -> None:
    health, address, roots = served
    arguments = [address, str(roots), "auth.service.sealane"]
    assert probe.main(arguments) == 0
    health.status = Status.NOT_SERVING
    assert probe.main(arguments) == 1


def test_the_probe_believes_nobody_else(
    served: tuple[Health, str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probe, "SECONDS", 0.5)
    _, address, roots = served
    assert probe.main([address, str(roots), "registry.service.sealane"]) == 1
    assert "registry.service.sealane does not serve" in capsys.readouterr().err
    assert probe.main([address, str(roots.with_name("none.pem")), "auth.service.sealane"]) == 1
    assert probe.main([address]) == 2


def test_a_handed_out_file_is_replaced_and_keeps_its_mode(tmp_path: Path) -> None:
    token = tmp_path / "token"
    for content in (b"first", b"second"):
        bootstrap.write(token, content, 0o400)
        assert token.read_bytes() == content
        assert stat.S_IMODE(token.stat().st_mode) == 0o400
    assert list(tmp_path.iterdir()) == [token]


def test_every_subject_has_a_folder_of_its_own_and_the_name_of_its_container() -> None:
    subjects = {item.name: item for item in bootstrap.subjects(Path("/enroll"))}
    assert set(subjects) == {"registry", "scheduler", "inference", "cloud-1", "edge-1"}
    assert len({item.token.parent for item in subjects.values()}) == len(subjects)
    assert "registry" in subjects["registry"].hosts and "worker-edge" in subjects["edge-1"].hosts
    assert subjects["edge-1"].place is not None and subjects["edge-1"].place.tier == "edge"


def test_without_the_folder_of_auth_the_message_says_what_to_mount(tmp_path: Path) -> None:
    config = bootstrap.Config("127.0.0.1:1", (), auth_data=tmp_path / "nothing")
    with pytest.raises(FailedPrecondition, match="mount it there"):
        bootstrap.run(config)
