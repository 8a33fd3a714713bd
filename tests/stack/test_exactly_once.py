"""SCHED-7: a batch whose workers and scheduler are killed at random, paused beyond their lease, and repeat themselves.

What comes out is the dataset, each row once. Five runs; 200 with LONG=1.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from light_site import CLOUD, EDGE, LightSite, eventually, running

from sealane.errors import Aborted, SealaneError
from sealane.rpc.channel import connect as dial
from sealane.scheduler.v1 import fleet_service_pb2 as fleet_pb
from sealane.scheduler.v1 import job_service_pb2 as pb
from sealane.scheduler.v1.fleet_service_pb2_grpc import FleetServiceStub
from sealane.security import enroll, tls

LONG = bool(os.environ.get("LONG"))
pytestmark = [pytest.mark.stack, pytest.mark.timeout(7200 if LONG else 300)]
RUNS = range(200 if LONG else 5)
ROWS, PER_TASK, LEASE = 360, 3, 2.0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightSite]:
    settings = {"scheduler": {"TASK_LEASE": str(LEASE)}}
    with running(tmp_path_factory.mktemp("once"), settings=settings) as site:
        site.push()
        rows = tmp_path_factory.mktemp("rows") / "rows.npz"
        np.savez(rows, image=site.rows, number=np.arange(ROWS))
        site.client.datasets.push(rows, "rows")
        yield site


@pytest.fixture(scope="module")
def expected(site: LightSite) -> np.ndarray:
    """What the model says of each row, by a job that nothing happens to."""
    job = site.client.jobs.batch("digits@latest", "rows", variant="litert-float", inputs={"image": "image"})
    site.client.jobs.wait(job.name, 60)
    return np.concatenate([part["probabilities"] for part in site.client.jobs.results(job.name)])


@pytest.fixture(scope="module")
def tally() -> Iterator[Counter[str]]:
    """What happened in the runs that went well, told after the last one."""
    done: Counter[str] = Counter()
    yield done
    blows = ", ".join(
        f"{what} {count} times" for what, count in sorted(done.items()) if what.startswith(("kill", "pause"))
    )
    tasks = f"{done['attempts']} attempts at {done['tasks']} tasks"
    print(f"figure: {done['runs']} runs: {blows}; {tasks}, {done['rows']} of {done['runs'] * ROWS} rows once")


class Chaos:
    """What happens meanwhile, by a seed."""

    def __init__(self, site: LightSite, seed: int) -> None:
        self.site, self.rng = site, random.Random(seed)
        self.done: list[str] = []

    def strike(self) -> None:
        """One blow."""
        what, name = self.rng.choice(
            [("kill", EDGE), ("kill", CLOUD), ("kill", "scheduler"), ("pause", EDGE), ("pause", CLOUD)]
        )
        child = self.site.stack.child(name)
        pid = child.pid
        if pid is None:
            return
        self.done.append(f"{what} {name}")
        if what == "kill":
            child.crash()
            return
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(LEASE * 1.5)
        finally:
            if child.pid == pid:
                os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("seed", RUNS)
def test_the_results_are_the_dataset_each_row_once(
    site: LightSite, expected: np.ndarray, tally: Counter[str], seed: int
) -> None:
    chaos, jobs = Chaos(site, seed), site.client.jobs
    options = {"rows_per_task": PER_TASK, "max_attempts": 20, "speculative": seed % 2 == 1}
    job = jobs.batch("digits@latest", "rows", variant="litert-float", inputs={"image": "image"}, **options)  # type: ignore[arg-type]
    for _ in range(3):
        time.sleep(chaos.rng.uniform(0.05, 0.4))
        chaos.strike()
    ended = jobs.wait(job.name, 150)
    assert ended.tasks.succeeded == ended.tasks.total == ROWS // PER_TASK
    tasks = list(jobs.tasks(job.name))
    covered = [row for task in tasks for row in range(task.first_row, task.first_row + task.rows)]
    assert covered == list(range(ROWS)), chaos.done
    said = np.concatenate([part["probabilities"] for part in jobs.results(job.name)])
    np.testing.assert_allclose(said, expected, atol=1e-6, err_msg=str(chaos.done))
    tally.update(chaos.done)
    tally.update(runs=1, attempts=sum(task.attempt for task in tasks), tasks=len(tasks), rows=len(covered))
    eventually(lambda: all(site.stack.child(name).serving() for name in (EDGE, CLOUD, "scheduler")), "all is up", 30)


def test_a_zombies_late_result_is_refused(site: LightSite) -> None:
    """An attempt that was lost, told by its own node with its own certificate, and told again."""
    jobs = site.client.jobs
    job = jobs.batch("digits@latest", "rows", inputs={"image": "image"}, rows_per_task=ROWS, residency=["site-a"])
    jobs.wait(job.name, 60)
    done = jobs.task(job.name, 0)
    identity = tls.load(site.data / "workers" / EDGE / "identity")
    assert identity is not None
    target = enroll.mesh_target(identity, "scheduler", site.endpoints["scheduler_mesh"])
    forged = pb.TaskOutput(sha256="0" * 64, size_bytes=1, rows=ROWS)
    request = fleet_pb.FinishTaskRequest(task=done.name, attempt=done.attempt, output=forged)
    with dial(target) as channel:
        stub = FleetServiceStub(channel)
        stub.FinishTask(request, timeout=5)  # a repeat of what was recorded is no error, and changes nothing
        for change in ({"attempt": done.attempt + 1}, {"attempt": 0}, {"attempt": done.attempt, "error": "late"}):
            for name, value in change.items():
                setattr(request, name, value)
            with pytest.raises(Aborted) as told:
                stub.FinishTask(request, timeout=5)
            assert told.value.reason == "FENCED"
        with pytest.raises(SealaneError):
            stub.RenewTask(fleet_pb.RenewTaskRequest(task=done.name, attempt=done.attempt), timeout=5)
    assert jobs.task(job.name, 0).output == done.output
