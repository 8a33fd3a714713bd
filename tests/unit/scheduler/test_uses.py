"""What the registry is told to be in use, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
import sqlalchemy as sa

from sealane.clock import ManualClock
from sealane.errors import Unavailable
from sealane.records import tables
from sealane.records.database import Database
from sealane.records.transactions import Transactions
from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane.scheduler.v1 import deployment_service_pb2 as deployment_pb
from sealane.scheduler.v1 import job_service_pb2 as pb
from sealane_scheduler import use_reports
from sealane_scheduler.store import DeployedRow, DeploymentRow, EnsembleRow, JobRow, Store
from sealane_scheduler.store_sql import SqlStore, metadata
from sealane_scheduler.use_reports import AGAIN_SECONDS, UseReports
from sealane_scheduler.uses import KEPT_SECONDS, collect

VERSION = "projects/p/models/m/versions/1"
CAMERA = DeploymentRow("p", "camera", VERSION, b"", b"", 1.0, 1.0, "e")
OPTIMISE = pb.OptimiseSpec(
    source_variant="projects/p/models/m/versions/2/variants/v", calibration_sha256="c" * 64, test_sha256="t" * 64
)
JOB = JobRow("p", "j", "PENDING", OPTIMISE.SerializeToString(), 1.0, 100.0, "e")
CHECK = JobRow(
    "p", "k", "RUNNING", pb.CheckSpec(version=VERSION, variants=["v"]).SerializeToString(), 1.0, 1.0, "e", kind="check"
)


def test_deployments_use_their_version_and_the_alias_that_they_go_by() -> None:
    camera = DeployedRow("p", "camera", VERSION, "")
    named = DeployedRow("p", "door", VERSION, "projects/p/models/m/aliases/production")
    assert collect([camera, named], [], [], 0.0) == [
        model_pb.Use(holder="projects/p/deployments/camera", versions=[VERSION]),
        model_pb.Use(
            holder="projects/p/deployments/door",
            versions=[VERSION],
            aliases=["projects/p/models/m/aliases/production"],
        ),
    ]


def test_a_chain_uses_the_versions_that_it_was_checked_with() -> None:
    ensemble = deployment_pb.Ensemble(model_versions=[VERSION, VERSION, "projects/p/models/n/versions/3"])
    (use,) = collect([], [EnsembleRow("p", "chain", ensemble.SerializeToString(), 1.0, "e")], [], 0.0)
    assert list(use.versions) == [VERSION, "projects/p/models/n/versions/3"]


def test_a_job_uses_its_version_and_inputs_until_it_ends_and_its_inputs_for_a_while() -> None:
    inputs = [f"projects/p/artifacts/{letter * 64}" for letter in "ct"]
    for state in ("PENDING", "RUNNING", "REGISTERING"):
        (use,) = collect([], [], [replace(JOB, state=state)], 1e9)
        assert (list(use.versions), list(use.artifacts)) == (["projects/p/models/m/versions/2"], inputs)
    for state in ("SUCCEEDED", "FAILED", "CANCELLED", "ABANDONED"):
        (use,) = collect([], [], [replace(JOB, state=state)], JOB.update_time)
        assert (list(use.versions), list(use.artifacts)) == ([], inputs)
        assert collect([], [], [replace(JOB, state=state)], JOB.update_time + 1) == []
    (use,) = collect([], [], [CHECK], 0.0)
    assert list(use.versions) == [VERSION] and not use.artifacts
    assert collect([], [], [replace(CHECK, state="SUCCEEDED")], 0.0) == [], "a version that was checked can be rejected"


class Registry:
    """Keeps what it is told; away as long as a test says so."""

    def __init__(self) -> None:
        self.told: list[list[model_pb.Use]] = []
        self.away = False
        self.refused = 0

    def report_uses(self, uses: Iterable[model_pb.Use]) -> None:
        if self.away:
            self.refused += 1
            raise Unavailable("away")
        self.told.append(list(uses))


class Parts:
    """Records, a registry, and what tells it."""

    def __init__(self, records: Transactions[Store]) -> None:
        self.records, self.registry, self.clock = records, Registry(), ManualClock()
        self.reports = UseReports(records, self.registry, self.clock)  # type: ignore[arg-type]

    async def deploy(self, name: str) -> None:
        await self.records.write(lambda store: store.add_deployments([replace(CAMERA, deployment=name)]))

    def holders(self) -> list[str]:
        return [use.holder.rpartition("/")[2] for use in self.registry.told[-1]]


def create_tables(connection: sa.Connection) -> None:
    metadata.create_all(connection)
    tables.metadata.create_all(connection)


@pytest_asyncio.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Parts]:
    database = Database.at(tmp_path / "s.db")
    database.start(create_tables)
    yield Parts(Transactions(database, SqlStore, ManualClock()))
    database.close()


async def test_it_is_told_at_start_even_that_nothing_is_in_use(parts: Parts) -> None:
    assert await parts.reports.step()
    assert parts.registry.told == [[]]


async def test_the_same_is_told_again_only_after_a_while(parts: Parts) -> None:
    await parts.deploy("a")
    await parts.reports.step()
    await parts.reports.step()
    assert len(parts.registry.told) == 1
    parts.clock.advance(AGAIN_SECONDS)
    await parts.reports.step()
    assert len(parts.registry.told) == 2


async def test_what_could_not_be_told_is_told_later(parts: Parts) -> None:
    await parts.deploy("a")
    parts.registry.away = True
    assert not await parts.reports.step()
    parts.registry.away = False
    assert await parts.reports.step() and parts.holders() == ["a"]


async def test_jobs_that_ended_long_ago_are_not_even_read(parts: Parts) -> None:
    now = parts.clock.now()
    ended = [replace(JOB, job=f"j{age}", state="SUCCEEDED", update_time=now - age) for age in (1, KEPT_SECONDS + 1)]

    def add(store: Store) -> None:
        for row in ended:
            store.add_job(row)

    await parts.records.write(add)
    await parts.reports.step()
    assert parts.holders() == ["j1"]


async def test_a_change_is_told_by_itself_and_again_while_nobody_hears(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(use_reports, "RETRY_SECONDS", 0.01)
    running = asyncio.create_task(parts.reports.run())
    try:
        await _until(lambda: parts.registry.told == [[]])
        for name in "abc":
            await parts.deploy(name)
        await _until(lambda: parts.holders() == ["a", "b", "c"])
        parts.registry.away = True
        await parts.deploy("d")
        await _until(lambda: parts.registry.refused > 1)
        parts.registry.away = False
        await _until(lambda: parts.holders() == ["a", "b", "c", "d"])
    finally:
        running.cancel()


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.01)
