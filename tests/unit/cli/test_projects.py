"""``sealane projects create`` shows the secret of the project's admin, which is nowhere else."""

from __future__ import annotations

import pytest

from sealane.auth.v1 import identity_service_pb2 as pb
from sealane.cli import main


class Client:
    """Creates projects, with an admin where one is named."""

    def __enter__(self) -> Client:
        self.projects = self
        return self

    def __exit__(self, *args: object) -> None:
        return None

    def create(self, project: str, *, admin: str) -> pb.Project:
        made = pb.Project(name=f"projects/{project}")
        if admin:
            made.admin.client_id = f"{admin}@{project}"
            made.admin.client_secret = "only-here"
        return made


@pytest.mark.parametrize("admin", ["", "boss"])
def test_the_admins_credential_is_shown(
    admin: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sealane.client.connect", lambda *args, **kwargs: Client())
    options = ["--admin", admin] if admin else []
    assert main.run(["projects", "create", "tenant", "--data", "d", *options]) == 0
    lines = dict(line.split() for line in capsys.readouterr().out.splitlines())
    expected = {"client_id": "boss@tenant", "client_secret": "only-here"} if admin else {}
    assert lines == {"project": "projects/tenant"} | expected
