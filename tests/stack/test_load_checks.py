"""The load-check job through real services: workers load variants, the registry keeps what came of it."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from light_site import CLOUD, LIGHT, LightSite, eventually, running

from sealane.cli import main
from sealane.client import Client, ClientCredentials, connect
from sealane.client.load_checks import ensure
from sealane.client.model_files import inspect
from sealane.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from sealane.scheduler.v1 import job_service_pb2 as pb

GOOD = LIGHT / "litert-int8.tflite"


def push(site: LightSite, name: str, *variants: tuple[str, bytes], folder: Path) -> str:
    """A version of the light model, with more LiteRT variants of any content; returns its name."""
    version = site.client.models.push(GOOD, name, variant="litert-int8")
    signatures = inspect(GOOD).signatures
    assert signatures
    for variant, content in variants:
        path = folder / f"{variant}.tflite"
        path.write_bytes(content)
        site.client.models.add_variant(version.name, path, variant=variant)
    return version.name


def test_each_variant_is_loaded_and_the_registry_knows(site: LightSite, tmp_path: Path) -> None:
    name = push(site, "checked", ("broken", b"no model at all"), folder=tmp_path)
    job = site.client.jobs.check("checked@1")
    assert job.check.version == name and list(job.check.variants) == ["litert-int8", "broken"]
    ended = site.client.jobs.wait(job.name, 60)
    found = {item.variant_id: item.load_check for item in ended.checks}
    assert found["litert-int8"].loadable and found["litert-int8"].runtime == "litert"
    assert found["litert-int8"].memory_bytes > 0 and found["litert-int8"].sandbox
    assert not found["broken"].loadable and found["broken"].reason == "MODEL_UNREADABLE"
    assert found["broken"].job == job.name and found["broken"].node.startswith("nodes/")
    kept = {item.name.rpartition("/")[2]: item.load_check for item in site.client.models.get_version(name).variants}
    assert kept == found


def test_a_model_that_is_not_what_its_version_says(site: LightSite) -> None:
    (declared,) = inspect(GOOD).signatures
    lie = replace(declared, outputs=(replace(declared.outputs[0], name="something_else"),))
    site.client.models.push(GOOD, "lies", variant="litert-int8", signatures=[lie])
    (found,) = site.client.jobs.wait(site.client.jobs.check("lies@1").name, 60).checks
    assert (found.load_check.loadable, found.load_check.reason) == (False, "SIGNATURES_DIFFER")
    assert "something_else" in found.load_check.message


def test_ensure_checks_what_nobody_loaded_yet_and_nothing_twice(site: LightSite, tmp_path: Path) -> None:
    push(site, "ensured", folder=tmp_path)
    session = site.client._session
    before = len(list(site.client.jobs.list()))
    found = ensure(session, "ensured@1", timeout=60)
    assert [item.load_check.loadable for item in found.variants] == [True]
    assert ensure(session, "ensured@1", timeout=60) == found
    assert len(list(site.client.jobs.list())) == before + 1


def test_the_command_prints_a_line_for_each_variant(
    site: LightSite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(site, "printed", ("broken", b"no model at all"), folder=tmp_path)
    assert main.run(["jobs", "check", "printed@1", "--wait", "--data", str(site.data)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("litert-int8") and "loadable" in line for line in lines)
    assert any(line.startswith("broken") and "MODEL_UNREADABLE" in line for line in lines)


def test_what_is_asked_must_be_there_and_the_callers(site: LightSite, tmp_path: Path) -> None:
    name = push(site, "asked", folder=tmp_path)
    with pytest.raises(NotFound, match="litert-int8"):
        site.client.jobs.check("asked@1", variants=["other"])
    with pytest.raises(NotFound):
        site.client.jobs.check("asked@7")
    with pytest.raises(InvalidArgument, match="number"):
        _raw(site, "projects/default/models/asked/versions/latest")
    with pytest.raises(NotFound):
        _raw(site, name.replace("projects/default", "projects/other"))
    reader = site.client.accounts.create(f"r{uuid.uuid4().hex[:8]}", ["models:read", "jobs:read"])
    with site.client_of(reader.client_id, reader.client_secret) as client, pytest.raises(PermissionDenied):
        client.jobs.check("asked@1")


def test_a_token_for_some_models_checks_these_alone(site: LightSite, tmp_path: Path) -> None:
    for name in ("team-a-one", "team-b-one"):
        push(site, name, folder=tmp_path)
    limited = f"p{uuid.uuid4().hex[:8]}"
    account = site.client.accounts.create(limited, ["reflect"])
    site.client.roles.bind(limited, "publisher", model_prefix="team-a-")
    with site.client_of(account.client_id, account.client_secret) as client:
        job = client.jobs.check("team-a-one@1")
        assert client.jobs.wait(job.name, 60).checks[0].load_check.loadable
        with pytest.raises(NotFound):
            _raw(site, "projects/default/models/team-b-one/versions/1", client)
        hidden = site.client.jobs.check("team-b-one@1")
        with pytest.raises(NotFound):
            client.jobs.get(hidden.name)
        assert hidden.name not in [item.name for item in client.jobs.list()]
    eventually(lambda: site.client.jobs.get(hidden.name).state == pb.Job.STATE_SUCCEEDED, "the other one ends")


@pytest.mark.timeout(180)
def test_it_ends_once_though_scheduler_worker_and_registry_are_killed(tmp_path: Path) -> None:
    with running(tmp_path / "site", settings={"scheduler": {"TASK_LEASE": "2"}}) as site:
        folder = tmp_path / "models"
        folder.mkdir()
        push(site, "mortal", *((f"broken-{number}", b"%d" % number) for number in range(6)), folder=folder)
        job = site.client.jobs.check("mortal@1")
        eventually(lambda: site.client.jobs.get(job.name).state != pb.Job.STATE_PENDING, "a worker has it")
        for victim in (CLOUD, "scheduler", "registry"):
            site.crash(victim)
        ended = site.client.jobs.wait(job.name, 60)
        kept = {item.name.rpartition("/")[2]: item for item in site.client.models.get_version("mortal@1").variants}
        assert {item.variant_id for item in ended.checks} == kept.keys()
        assert all(kept[item.variant_id].load_check == item.load_check for item in ended.checks)
        assert [name for name, item in kept.items() if item.load_check.loadable] == ["litert-int8"]


def _raw(site: LightSite, version: str, client: Client | None = None) -> pb.Job:
    """A request as it is, which the SDK would have resolved."""
    jobs = (client or site.client).jobs
    request = pb.CreateJobRequest(
        parent="projects/default", job=pb.Job(check=pb.CheckSpec(version=version)), request_id=str(uuid.uuid4())
    )
    created: pb.Job = jobs._stub().CreateJob(request, timeout=10)
    return created


def test_an_approver_has_a_version_loaded_before_it_is_approved(site: LightSite) -> None:
    site.client.models.push(GOOD, "judged-live", variant="litert-int8")
    account = site.client.accounts.create(f"ada-{uuid.uuid4().hex[:8]}", (), roles=["approver"])
    with pytest.raises(FailedPrecondition) as own:
        site.client.models.approve("judged-live@1")
    assert own.value.reason == "OWN_VERSION"
    credentials = ClientCredentials(account.client_id, account.client_secret)
    with connect(site.data, credentials=credentials) as ada:
        with pytest.raises(FailedPrecondition) as unknown:
            ada.models.approve("judged-live@1", load_check=False)
        assert unknown.value.reason == "NOT_LOAD_CHECKED"
        approved = ada.models.approve("judged-live@1", "fine")
    (approval,) = approved.approvals
    assert approval.comment == "fine" and "approver" in approval.roles
    assert approved.variants[0].load_check.loadable


def test_an_alias_in_use_moves_once_a_worker_loaded_the_version_and_never_to_one_that_none_can(
    site: LightSite, tmp_path: Path
) -> None:
    client, name = site.client, "moving"
    client.models.push(GOOD, name, variant="litert-int8", alias="live")
    client.deployments.create("moving-live", f"{name}@live")
    client.deployments.wait("moving-live", 60)
    client.models.push(GOOD, name, variant="litert-int8")
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"no model at all")
    client.models.push(broken, name, signatures=inspect(GOOD).signatures, variant="broken")
    eventually(lambda: client.models.explain(f"{name}@2", "live").promotable is False, "the registry knows of the use")
    try:
        assert client.models.move_alias(name, "live", 2).version.endswith("/versions/2")
        with pytest.raises(FailedPrecondition) as refused:
            client.models.move_alias(name, "live", 3)
        assert refused.value.reason == "NOT_PROMOTABLE" and "broken" in refused.value.message
        moves = list(client.models.history(name, "live"))
        assert [move.version.rpartition("/")[2] for move in moves] == ["2", "1"]
        assert any("litert-int8" in check.evidence for check in moves[0].evidence.checks)
        assert client.models.verify_history(name, "live") == 2
    finally:
        client.deployments.delete("moving-live")
