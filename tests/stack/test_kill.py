"""State survives kill -9 of any one process at any step (DEMO-7)."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from light_site import CAMERA_A, CAMERA_B, CLOUD, EDGE, LIGHT, MODEL, LightSite, eventually, running

from sealane.errors import SealaneError
from sealane.scheduler.v1 import job_service_pb2 as job_pb

pytestmark = pytest.mark.stack
CONTROL = ("auth", "registry", "scheduler")
VICTIMS = pytest.mark.parametrize("victim", [*CONTROL, "inference", CLOUD, EDGE])


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightSite]:
    """A suite whose processes are killed; after every test all of it serves again."""
    with running(tmp_path_factory.mktemp("mortal")) as site:
        site.deploy_cameras(site.push())
        yield site


def settled(site: LightSite) -> None:
    """Both cameras are served by the edge and nobody else, as before the crash."""

    def answered() -> bool:
        # Camera A may be refused until its one node is back; everything after that must work.
        return site.client.inference.predict(CAMERA_A, site.image)["probabilities"].shape == (1, 10)

    for camera in (CAMERA_A, CAMERA_B):
        eventually(lambda camera=camera: {node for node, _ in site.places(camera)} == {EDGE}, f"{camera} is on {EDGE}")
        site.client.deployments.wait(camera, 20)
    eventually(answered, f"{CAMERA_A} is answered")
    assert site.client.inference.predict(CAMERA_B, site.image)["probabilities"].shape == (1, 10)


@VICTIMS
def test_after_push(mortal: LightSite, victim: str, tmp_path: Path) -> None:
    client, name = mortal.client, f"pushed-{victim}"
    first, second = mortal.push(name), mortal.push(name)
    moved = client.models.move_alias(name, "production", 1)
    mortal.crash(victim)
    assert [item.name for item in client.models.versions(name)] == [second, first]
    assert client.models.get_alias(name, "production") == moved
    assert client.models.get_alias(name, "latest").version == second
    version = client.models.get_version(f"{name}@production")
    assert [item.name.rpartition("/")[2] for item in version.variants] == ["litert-float", "litert-int8"]
    assert all(len(item.measurements) == 1 for item in version.variants)
    client.models.pull(f"{name}@1", tmp_path, variant="litert-int8")
    assert (tmp_path / "litert-int8.tflite").read_bytes() == (LIGHT / "litert-int8.tflite").read_bytes()
    assert mortal.push(name).endswith("/versions/3"), "numbers go on where they were"
    settled(mortal)


@VICTIMS
def test_during_upload(mortal: LightSite, victim: str, tmp_path: Path) -> None:
    content = os.urandom(12 << 20)
    crashed: list[int | None] = []

    def crash_once(name: str, done: int, total: int) -> None:
        if not crashed and done >= 4 << 20:
            crashed.append(mortal.stack.child(victim).pid)
            mortal.stack.child(victim).crash()

    digest = mortal.client.artifacts.upload(content, progress=crash_once)
    assert crashed
    eventually(lambda: mortal.stack.child(victim).pid not in (None, *crashed), f"{victim} is started again")
    mortal.stack.wait_for_lanes()
    assert digest == hashlib.sha256(content).hexdigest()
    back = mortal.client.artifacts.download(digest, tmp_path / "back")
    assert back.read_bytes() == content
    settled(mortal)


@VICTIMS
def test_after_deploy(mortal: LightSite, victim: str) -> None:
    client, name = mortal.client, f"deployed-{victim}"
    client.deployments.create(name, f"{MODEL}@1", objective="accuracy")
    client.deployments.wait(name, 30)
    before = {camera: mortal.places(camera) for camera in (CAMERA_A, CAMERA_B, name)}
    decisions = len(client.deployments.explain(CAMERA_B))
    mortal.crash(victim)
    for deployment in before:
        assert client.deployments.wait(deployment, 20).model_version.endswith("/versions/1")
        assert client.inference.predict(deployment, mortal.image)["probabilities"].shape == (1, 10)
    settled(mortal)
    if victim not in (CLOUD, EDGE):
        assert {deployment: mortal.places(deployment) for deployment in before} == before, "nothing was placed anew"
        assert len(client.deployments.explain(CAMERA_B)) == decisions, "nothing was decided anew"
    client.deployments.delete(name)
    assert name not in {item.name.rpartition("/")[2] for item in client.deployments.list()}


@dataclass
class Traffic:
    """Callers that never stop; what they got."""

    site: LightSite
    answers: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def call(self, label: str, options: dict[str, object]) -> None:
        times = self.answers.setdefault(label, [])
        while not self.stop.is_set():
            started = time.monotonic()
            try:
                self.site.client.inference.predict(CAMERA_B, self.site.image, timeout=10.0, **options)
            except SealaneError as error:
                self.failures.append(f"{label} {error.kind} {error.reason}: {error.message}")
            times.append((started, time.monotonic()))


@contextmanager
def traffic(site: LightSite) -> Iterator[Traffic]:
    """The three ways of the SDK, all the time."""
    load = Traffic(site)
    ways = {"gateway": {}, "direct": {"via": "direct"}, "sealed": {"sealed": True}}
    threads = [threading.Thread(target=load.call, args=item, daemon=True) for item in ways.items()]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.stop.set()
        for thread in threads:
            thread.join(15)


@VICTIMS
def test_during_traffic(mortal: LightSite, victim: str) -> None:
    with traffic(mortal) as load:
        eventually(lambda: len(load.answers) == 3 and all(load.answers.values()), "every way answers")
        down = time.monotonic()
        mortal.crash(victim)
        back = time.monotonic()
        eventually(lambda: all(times[-1][0] > back for times in load.answers.values()), "every way answers again")
    assert load.failures == []
    if victim in CONTROL:
        for way, times in load.answers.items():
            meanwhile = [started for started, ended in times if down < started and ended < back]
            assert len(meanwhile) > 3, f"a running data plane needs nobody ({way})"
    settled(mortal)


def under_way(job: job_pb.Job, progress: float) -> bool:
    """Whether a job runs and is that far; one that has ended never will be."""
    assert job.state in (job_pb.Job.STATE_PENDING, job_pb.Job.STATE_RUNNING, job_pb.Job.STATE_REGISTERING)
    return job.state != job_pb.Job.STATE_PENDING and job.progress >= progress


@pytest.mark.tensorflow
@pytest.mark.timeout(240)
def test_during_a_job(mortal: LightSite, trained: Path) -> None:
    client = mortal.client
    version = client.models.push(trained / "saved_model", "trained", variant="savedmodel")
    job = client.jobs.optimise(
        f"{version.name}/variants/savedmodel", trained / "calibration.npz", trained / "test.npz", request_id=REQUEST
    )

    for progress, victim in ((0.0, "scheduler"), (0.3, CLOUD), (0.8, "registry")):
        eventually(lambda least=progress: under_way(client.jobs.get(job.name), least), f"{progress} is done", 60)
        mortal.crash(victim)
    done = client.jobs.wait(job.name, timeout=150)
    variants = client.models.get_version(version.name).variants
    assert sorted(item.name.rpartition("/")[2] for item in variants) == ["litert-float", "litert-int8", "savedmodel"]
    assert {item.variant_id for item in done.results} == {"savedmodel", "litert-float", "litert-int8"}
    assert all(len(item.measurements) == 1 for item in variants), "measured once"
    again = client.jobs.optimise(
        f"{version.name}/variants/savedmodel", trained / "calibration.npz", trained / "test.npz", request_id=REQUEST
    )
    assert again.name == job.name, "the same request is the same job"
    assert [item.name for item in client.jobs.list()] == [job.name]
    settled(mortal)


def test_a_scheduler_that_is_asked_to_end_does_so_though_the_registry_is_gone(mortal: LightSite) -> None:
    registry, scheduler = (mortal.stack.child(name) for name in ("registry", "scheduler"))
    mortal.client.deployments.create("passing", mortal.push())
    mortal.client.deployments.wait("passing", 30)
    registry.stop()
    registry.join(20)
    try:
        mortal.client.deployments.delete("passing")
        time.sleep(1.0)  # by now the registry is being told, again and again
        process = scheduler._process
        assert process is not None
        scheduler.stop()
        assert process.wait(8) == 0
    finally:
        registry.start()
        scheduler.start()
    mortal.stack.wait_for_lanes(60)
    settled(mortal)


REQUEST = "7d2b0b52-6a2c-4f0e-9d8e-0a3c1f1f7a11"
