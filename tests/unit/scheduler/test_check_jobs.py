"""Load-check jobs: each variant is loaded once, on whichever nodes can, and the registry is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import sqlalchemy as sa

from sealane.clock import ManualClock
from sealane.errors import FailedPrecondition, NotFound, SealaneError, Unavailable
from sealane.records import tables
from sealane.records.database import Database
from sealane.records.tables import Actor
from sealane.records.transactions import Transactions
from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane.registry.v1 import variant_service_pb2 as variant_pb
from sealane.scheduler.v1 import fleet_service_pb2 as fleet_pb
from sealane.scheduler.v1 import job_service_pb2 as pb
from sealane_scheduler import present
from sealane_scheduler.check_jobs import MAX_CHARACTERS, PATIENCE_SECONDS
from sealane_scheduler.controller import Controller
from sealane_scheduler.fleet import Facts, Fleet, Patience, RuntimeFacts
from sealane_scheduler.job_loop import JobLoop
from sealane_scheduler.jobs import CHECK, MAX_ATTEMPTS, JobRules
from sealane_scheduler.store import JobRow, Store
from sealane_scheduler.store_sql import SqlStore, metadata

VERSION = "projects/p/models/m/versions/1"
FORMATS = {"lite": variant_pb.FORMAT_LITERT, "onnx": variant_pb.FORMAT_ONNX}


class Registry:
    """One version with a LiteRT and an ONNX variant; keeps what is recorded; fails as long as it is told to."""

    def __init__(self) -> None:
        self.failure: SealaneError | None = None
        self.checks: dict[str, variant_pb.LoadCheck] = {}
        self.calls = 0

    def version(self, name: str) -> model_pb.Version:
        self._fail()
        variants = [variant_pb.Variant(name=f"{name}/variants/{key}", format=form) for key, form in FORMATS.items()]
        return model_pb.Version(name=name, variants=variants)

    def record_checks(self, job: pb.Job) -> None:
        self._fail()
        self.calls += 1
        for item in job.checks:
            known = self.checks.setdefault(item.variant_id, item.load_check)
            assert known == item.load_check, "a repeat says the same"

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure


class Site:
    """The loop, with nodes that a test adds, and workers that it plays."""

    def __init__(self, records: Transactions[Store], clock: ManualClock) -> None:
        self.records, self.clock, self.registry = records, clock, Registry()
        self.fleet = Fleet(clock, Patience())
        self.rules = JobRules(clock, 10.0)
        self.loop = JobLoop(
            records,
            self.rules,
            Controller(records, self.fleet, clock),
            self.registry,  # type: ignore[arg-type]
        )

    def join(self, node: str, **runtimes: str) -> int:
        facts = Facts(
            {"tier": "cloud", "zone": "z"}, {name: RuntimeFacts("1", (form,)) for name, form in runtimes.items()}
        )
        return self.fleet.connect(node, facts, "statement")

    async def create(self, *variants: str) -> JobRow:
        spec = pb.CheckSpec(version=VERSION, variants=variants or tuple(FORMATS)).SerializeToString()
        return await self.records.write(lambda store: self.rules.create(store, Actor("a", "p"), spec, CHECK))

    async def job(self) -> pb.Job:
        return present.job((await self.records.read(lambda store: store.jobs("p", "", 1)))[0])

    async def finish(self, node: str, error: str = "", **loadable: bool) -> None:
        """The worker ends the task that it has with these findings."""
        (task,) = await self.loop.tasks_of(node)
        request = fleet_pb.FinishTaskRequest(task=task.task, attempt=task.attempt, error=error, retryable=bool(error))
        for name, good in loadable.items():
            request.checks.add(variant_id=name, load_check=variant_pb.LoadCheck(loadable=good, node="nodes/liar"))
        row = (await self.records.read(lambda store: store.jobs("p", "", 1)))[0]
        await self.loop.finish(row, request)


def create_tables(connection: sa.Connection) -> None:
    metadata.create_all(connection)
    tables.metadata.create_all(connection)


@pytest_asyncio.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    clock = ManualClock()
    database = Database.at(tmp_path / "s.db")
    database.start(create_tables)
    yield Site(Transactions(database, SqlStore, clock), clock)
    database.close()


def state(job: pb.Job) -> str:
    return pb.Job.State.Name(job.state).removeprefix("STATE_")


async def test_one_node_that_has_all_runtimes_checks_all(site: Site) -> None:
    site.join("n1", litert="LITERT", onnxruntime="ONNX")
    created = await site.create()
    await site.loop.step()
    (task,) = await site.loop.tasks_of("n1")
    assert [item.variant.name.rpartition("/")[2] for item in task.check.variants] == ["lite", "onnx"]
    await site.finish("n1", lite=True, onnx=False)
    await site.loop.step()
    job = await site.job()
    assert state(job) == "SUCCEEDED", "what cannot be loaded is a finding"
    assert site.registry.checks["lite"].loadable and not site.registry.checks["onnx"].loadable
    found = site.registry.checks["lite"]
    assert (found.node, found.job) == ("nodes/n1", created.name), "the scheduler says who did it, not the worker"
    assert found.check_time.ToNanoseconds() > 0
    assert {item.variant_id for item in job.checks} == {"lite", "onnx"}


async def test_what_one_node_cannot_load_goes_to_another_one(site: Site) -> None:
    site.join("n1", litert="LITERT")
    site.join("n2", onnxruntime="ONNX")
    await site.create()
    await site.loop.step()
    await site.finish("n1", lite=True)
    await site.loop.step()  # told to the registry, waits again
    assert state(await site.job()) == "PENDING" and list(site.registry.checks) == ["lite"]
    assert (await site.job()).progress == 0.5
    await site.loop.step()
    (task,) = await site.loop.tasks_of("n2")
    assert [item.variant.name.rpartition("/")[2] for item in task.check.variants] == ["onnx"]
    await site.finish("n2", onnx=True)
    await site.loop.step()
    assert state(await site.job()) == "SUCCEEDED"
    assert [site.registry.checks[name].node for name in ("lite", "onnx")] == ["nodes/n1", "nodes/n2"]


async def test_a_runtime_that_no_worker_has_is_a_finding_after_a_while(site: Site) -> None:
    site.join("n1", litert="LITERT")
    await site.create()
    await site.loop.step()
    await site.finish("n1", lite=True)
    await site.loop.step()
    await site.loop.step()
    assert state(await site.job()) == "PENDING", "a worker may still come"
    site.clock.advance(PATIENCE_SECONDS)
    site.fleet.heartbeat("n1", None, "")
    await site.loop.step()
    job = await site.job()
    assert state(job) == "SUCCEEDED"
    absent = site.registry.checks["onnx"]
    assert (absent.loadable, absent.reason, absent.node) == (False, "RUNTIME_ABSENT", "")
    assert "sealane[onnx]" in absent.message


async def test_a_worker_that_comes_in_time_is_used(site: Site) -> None:
    site.join("n1", litert="LITERT")
    await site.create("onnx")
    await site.loop.step()
    site.clock.advance(PATIENCE_SECONDS - 1)
    site.join("n2", onnxruntime="ONNX")
    await site.loop.step()
    site.clock.advance(PATIENCE_SECONDS)
    assert await site.loop.tasks_of("n2")


async def test_nothing_is_said_while_a_worker_of_before_may_come_back(site: Site) -> None:
    site.fleet.expect("n9", 60.0)
    site.join("n1", litert="LITERT")
    await site.create("onnx")
    site.clock.advance(PATIENCE_SECONDS + 1)
    site.fleet.heartbeat("n1", None, "")
    await site.loop.step()
    assert state(await site.job()) == "PENDING"


async def test_without_any_worker_it_waits(site: Site) -> None:
    await site.create()
    site.clock.advance(60)
    await site.loop.step()
    assert state(await site.job()) == "PENDING" and not site.registry.checks


async def test_a_worker_that_dies_in_the_middle_costs_an_attempt_and_no_finding(site: Site) -> None:
    site.join("n1", litert="LITERT")
    site.join("n2", onnxruntime="ONNX")
    await site.create()
    await site.loop.step()
    await site.finish("n1", lite=True)
    await site.loop.step()
    await site.loop.step()
    site.clock.advance(11)  # n2 says nothing more
    site.fleet.heartbeat("n2", None, "")
    await site.loop.step()
    job = await site.job()
    assert job.attempt == 3 and [item.variant_id for item in job.checks] == ["lite"], "bound again, nothing is lost"
    await site.finish("n2", onnx=True)
    await site.loop.step()
    assert state(await site.job()) == "SUCCEEDED"


async def test_rounds_on_several_nodes_are_no_failed_attempts(site: Site) -> None:
    site.join("n1", litert="LITERT", onnxruntime="ONNX")
    await site.create()
    for _ in range(MAX_ATTEMPTS - 1):
        await site.loop.step()
        await site.finish("n1", error="the disk is full")
    await site.loop.step()
    await site.finish("n1", lite=True)
    await site.loop.step()
    await site.loop.step()
    await site.finish("n1", onnx=True)
    await site.loop.step()
    assert state(await site.job()) == "SUCCEEDED"


async def test_a_worker_that_finds_nothing_again_and_again_ends_the_job(site: Site) -> None:
    site.join("n1", litert="LITERT", onnxruntime="ONNX")
    await site.create()
    for _ in range(MAX_ATTEMPTS):
        await site.loop.step()
        await site.finish("n1", other=True)
    job = await site.job()
    assert state(job) == "ABANDONED" and "none of the variants" in job.error and not job.checks


async def test_what_a_node_says_is_kept_short(site: Site) -> None:
    site.join("n1", litert="LITERT")
    await site.create("lite")
    await site.loop.step()
    (task,) = await site.loop.tasks_of("n1")
    request = fleet_pb.FinishTaskRequest(task=task.task, attempt=task.attempt)
    request.checks.add(variant_id="lite", load_check=variant_pb.LoadCheck(reason="R" * 9999, message="m" * 9999))
    await site.loop.finish((await site.records.read(lambda store: store.jobs("p", "", 1)))[0], request)
    (kept,) = (await site.job()).checks
    assert len(kept.load_check.message) == len(kept.load_check.reason) == MAX_CHARACTERS


async def test_an_unreachable_registry_costs_no_finding(site: Site) -> None:
    site.join("n1", litert="LITERT", onnxruntime="ONNX")
    await site.create()
    await site.loop.step()
    await site.finish("n1", lite=True, onnx=True)
    site.registry.failure = Unavailable("later")
    await site.loop.step()
    assert state(await site.job()) == "REGISTERING"
    site.registry.failure = None
    await site.loop.step()
    assert state(await site.job()) == "SUCCEEDED" and site.registry.calls == 1


@pytest.mark.parametrize("verdict", [NotFound, FailedPrecondition])
async def test_a_version_that_is_gone_fails_the_job(site: Site, verdict: type[SealaneError]) -> None:
    site.join("n1", litert="LITERT", onnxruntime="ONNX")
    await site.create()
    await site.loop.step()
    await site.finish("n1", lite=True, onnx=True)
    site.registry.failure = verdict("gone")
    await site.loop.step()
    assert ((await site.job()).error, state(await site.job())) == ("gone", "FAILED")


async def test_a_version_that_is_gone_before_it_began_fails_the_job(site: Site) -> None:
    site.join("n1", litert="LITERT")
    await site.create()
    site.registry.failure = NotFound("gone")
    await site.loop.step()
    assert ((await site.job()).error, state(await site.job())) == ("gone", "FAILED")
