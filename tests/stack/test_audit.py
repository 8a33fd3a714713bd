"""The audit logs of a real installation: complete, sealed, and honest about being edited."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from light_site import LIGHT, eventually

from sealane.cli import main
from sealane.client import connect
from sealane_local import plan
from sealane_local.stack import LocalStack

pytestmark = pytest.mark.stack
SERVICES = ("auth", "registry", "scheduler")


def started(data: Path) -> LocalStack:
    """The control plane alone: no worker is needed to change something."""
    return LocalStack(plan.Options(data, workers=()))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An installation in which each service has changed something, stopped again."""
    data = tmp_path_factory.mktemp("audited")
    with started(data), connect(data) as client:
        client.join_tokens.create(service="inference")
        version = client.models.push(LIGHT / "litert-float.tflite", "digits", variant="litert-float", alias="latest")
        client.deployments.create("camera", version.name)
        for service in SERVICES:
            eventually(lambda service=service: _sealed(client.audit.verify(service)), f"{service} seals its rows", 5)
    yield data


def _sealed(found: object) -> bool:
    return found.rows > 0 and found.unsealed == 0 and found.checkpoints > 0  # type: ignore[attr-defined]


def run(capsys: pytest.CaptureFixture[str], data: Path, *arguments: str) -> tuple[int, str]:
    code = main.run(["audit", *arguments, "--data", str(data)])
    return code, capsys.readouterr().out


def test_verify_list_and_export(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export, marks, trust = tmp_path / "log.jsonl", tmp_path / "marks.jsonl", str(data / "pki" / "ca.pem")
    with started(data):
        code, out = run(capsys, data, "verify", "-o", "json")
        found = json.loads(out)
        assert code == 0, out
        assert [item["service"] for item in found] == list(SERVICES)
        assert all("fault" not in item and int(item["rows"]) > 0 and int(item["checkpoints"]) > 0 for item in found)
        assert run(capsys, data, "verify", "--service", "auth")[0] == 0
        code, out = run(capsys, data, "list", "--action", "CreateDeployment", "-o", "json")
        (event,) = json.loads(out)
        assert (code, event["service"], event["resource"]) == (0, "scheduler", "projects/default/deployments/camera")
        assert event["actor"] and event["request_id"] and event["sequence"]
        code, out = run(capsys, data, "list", "--service", "registry", "--resource", "projects/default/models/digits")
        assert code == 0
        assert "MoveAlias" in out and "CreateDeployment" not in out
        assert run(capsys, data, "export", "--out", str(export))[0] == 0
        assert run(capsys, data, "export", "--checkpoints-only", "--out", str(marks))[0] == 0
    offline = ("verify", "--file", str(export), "--trust", trust)
    code, out = run(capsys, tmp_path, *offline, "--checkpoints", str(marks), "-o", "json")
    assert code == 0, out
    assert [item["service"] for item in json.loads(out)] == list(SERVICES)
    lines = export.read_text().splitlines(keepends=True)
    rows = [number for number, line in enumerate(lines) if '"service":"registry"' in line and "audit_event" in line]
    export.write_text("".join(lines[: rows[1]] + lines[rows[1] + 1 :]))
    code, out = run(capsys, tmp_path, *offline)
    assert code == 1
    assert "missing" in out and "2: " in out
    cut = [line for number, line in enumerate(lines) if number < rows[-1] or '"service":"registry"' not in line]
    export.write_text("".join(cut))
    assert run(capsys, tmp_path, *offline)[0] == 0, "the end and its checkpoints are gone: the file alone does not know"
    code, out = run(capsys, tmp_path, *offline, "--checkpoints", str(marks))
    assert code == 1
    assert "truncated" in out


def test_a_row_edited_in_the_file_of_a_stopped_service_is_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = sqlite3.connect(data / "registry" / "registry.db")
    with database:
        (before,) = database.execute("select actor from audit where sequence = 2").fetchone()
        database.execute("update audit set actor = 'somebody else' where sequence = 2")
    try:
        with started(data):
            code, out = run(capsys, data, "verify", "-o", "json")
            found = {item["service"]: item.get("fault") for item in json.loads(out)}
            assert code == 1
            assert found["auth"] is None and found["scheduler"] is None
            assert (found["registry"]["kind"], found["registry"]["sequence"]) == ("KIND_ALTERED", "2")
            with connect(data) as client:  # a damaged log is reported; it does not stop the service
                client.models.push(LIGHT / "litert-float.tflite", "more", variant="litert-float")
    finally:
        with database:
            database.execute("update audit set actor = ? where sequence = 2", (before,))
        database.close()
    with started(data):
        assert run(capsys, data, "verify")[0] == 0
