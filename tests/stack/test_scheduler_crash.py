"""SCHED-9: the scheduler killed at every fail point of bind, lease, renewal and finish.

No job or placement that was acknowledged is lost or doubled, and healthy work does not move.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import pytest
from light_site import LightSite, eventually, running

from sealane.errors import AlreadyExists, SealaneError

pytestmark = [pytest.mark.stack, pytest.mark.timeout(240)]
T = TypeVar("T")
ROWS = 360
#: So long that a scheduler comes back within a third of it.
LEASE_SECONDS = 9.0
#: Of deployments.
BIND = (
    "CreateDeployment.recorded",
    "CreateDeployment.committed",
    "scheduler.bind.recorded",
    "scheduler.bind.committed",
)
#: Of jobs.
TASKS = (
    "CreateJob.recorded",
    "CreateJob.committed",
    "scheduler.lease.recorded",
    "scheduler.lease.committed",
    "FinishTask.recorded",
    "FinishTask.committed",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightSite]:
    with running(tmp_path_factory.mktemp("crash"), settings={"scheduler": {"TASK_LEASE": "3"}}) as site:
        site.deploy_cameras(site.push())
        rows = tmp_path_factory.mktemp("rows") / "rows.npz"
        np.savez(rows, image=site.rows)
        site.client.datasets.push(rows, "rows")
        yield site


class Killed:
    """A scheduler that dies at a fail point, once it was reached; the process after it has none."""

    def __init__(self, site: LightSite, point: str) -> None:
        self.child = site.stack.child("scheduler")
        self.environment = self.child.command.environment
        self.point = point

    def arm(self) -> None:
        self.environment["SEALANE_FAILPOINTS"] = f"{self.point}=panic"
        try:
            self.again()
        finally:
            del self.environment["SEALANE_FAILPOINTS"]
        self.armed = self.child.pid

    def again(self) -> None:
        before = self.child.pid
        self.child.crash()
        eventually(lambda: self.child.pid not in (None, before) and self.child.serving(), "the scheduler is back")

    def has_died(self) -> bool:
        return self.child.pid not in (None, self.armed)

    def mend(self) -> None:
        """Return when one without the fail point serves."""
        if self.has_died():
            eventually(self.child.serving, "the scheduler is back")
        else:
            self.again()


def insist(call: Callable[[], T], seconds: float = 40.0) -> T:
    """As a caller does who has not been answered."""
    until = time.monotonic() + seconds
    while True:
        try:
            return call()
        except AlreadyExists:
            raise
        except SealaneError:
            assert time.monotonic() < until, "never answered"
            time.sleep(0.1)


@pytest.mark.parametrize("point", BIND)
def test_a_deployment_is_placed_once(site: LightSite, point: str) -> None:
    name, killed = f"d-{uuid.uuid4().hex[:8]}", Killed(site, point)
    healthy = {camera: site.places(camera) for camera in ("camera-a", "camera-b")}
    killed.arm()
    acknowledged = True
    try:
        site.client.deployments.create(name, "digits@latest", tier="edge")
    except SealaneError:
        acknowledged = False
    try:
        eventually(killed.has_died, f"it died at {point}")
    finally:
        killed.mend()
    if not acknowledged:
        with contextlib.suppress(AlreadyExists):  # it was made, and only the answer was lost
            insist(lambda: site.client.deployments.create(name, "digits@latest", tier="edge"))
    site.client.deployments.wait(name, 40)
    assert len(site.places(name)) == 1
    eventually(lambda: {camera: site.places(camera) for camera in healthy} == healthy, "healthy work did not move")
    assert site.client.inference.predict("camera-a", site.image)["probabilities"].shape == (1, 10)
    site.client.deployments.delete(name)


@pytest.mark.parametrize("point", TASKS)
def test_a_job_is_done_once(site: LightSite, point: str) -> None:
    request, killed = str(uuid.uuid4()), Killed(site, point)
    healthy = {camera: site.places(camera) for camera in ("camera-a", "camera-b")}
    before = {job.name for job in site.client.jobs.list()}
    killed.arm()

    def create() -> str:
        job = site.client.jobs.batch(
            "digits@latest", "rows", variant="litert-int8", rows_per_task=30, request_id=request, max_attempts=10
        )
        return job.name

    name = ""
    with contextlib.suppress(SealaneError):  # it died before it answered
        name = create()
    try:
        eventually(killed.has_died, f"it died at {point}")
    finally:
        killed.mend()
    again = insist(create)
    assert name in ("", again), "the same request is the same job"
    ended = site.client.jobs.wait(again, 60)
    assert {job.name for job in site.client.jobs.list()} - before == {again}
    assert ended.tasks.succeeded == ended.tasks.total == 12
    said = np.concatenate([part["probabilities"] for part in site.client.jobs.results(again)])
    assert said.shape == (ROWS, 10)
    assert {camera: site.places(camera) for camera in healthy} == healthy


def test_a_renewal_that_was_not_answered_costs_nothing(site: LightSite) -> None:
    """The scheduler dies with a renewal; what runs goes on, and is finished by the next one."""
    killed = Killed(site, "scheduler.renew.committed")
    lease = killed.environment["SEALANE_SCHEDULER_TASK_LEASE"]
    killed.environment["SEALANE_SCHEDULER_TASK_LEASE"] = str(LEASE_SECONDS)
    killed.arm()
    job = insist(lambda: site.client.jobs.benchmark("digits@latest", variants=["litert-int8"], seconds=1.0))
    try:
        eventually(killed.has_died, "it died at a renewal", 40)
        died = time.monotonic()
    finally:
        killed.mend()
    away = time.monotonic() - died
    killed.environment["SEALANE_SCHEDULER_TASK_LEASE"] = lease
    ended = site.client.jobs.wait(job.name, 90)
    assert ended.results[0].measurement.rows_per_second > 0
    if away > LEASE_SECONDS / 3:  # a worker ends its task itself where nothing was answered for two thirds of the lease
        pytest.skip(
            f"the scheduler was away for {away:.0f} s, after a third of the lease: the worker may have ended the task"
        )
    assert site.client.jobs.task(job.name, 0).attempts[-1].attempt == 1, "it was not begun again"
