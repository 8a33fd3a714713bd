"""Registering what a job made: patient with the registry's moods, final where it says no."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import sqlalchemy as sa

from sealane.clock import ManualClock
from sealane.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    SealaneError,
    Unavailable,
)
from sealane.records import tables
from sealane.records.database import Database
from sealane.records.tables import Actor
from sealane.records.transactions import Transactions
from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane.scheduler.v1 import job_service_pb2 as pb
from sealane_scheduler.controller import Controller
from sealane_scheduler.fleet import Fleet, Patience
from sealane_scheduler.job_loop import JobLoop
from sealane_scheduler.jobs import JobRules, Outcome
from sealane_scheduler.store import JobRow, Store
from sealane_scheduler.store_sql import SqlStore, metadata

SPEC = pb.OptimiseSpec(source_variant="projects/p/models/m/versions/1/variants/savedmodel")


class Registry:
    """Fails as long as it is told to."""

    def __init__(self) -> None:
        self.failure: SealaneError | None = None

    def version(self, name: str) -> model_pb.Version:
        return model_pb.Version(name=name)

    def register(self, job: pb.Job) -> list[str]:
        if self.failure is not None:
            raise self.failure
        return [f"{job.name}/made"]


def create_tables(connection: sa.Connection) -> None:
    metadata.create_all(connection)
    tables.metadata.create_all(connection)


@pytest_asyncio.fixture
async def parts(tmp_path: Path) -> AsyncIterator[tuple[Transactions[Store], JobLoop, Registry, JobRow]]:
    clock, registry = ManualClock(), Registry()
    database = Database.at(tmp_path / "s.db")
    database.start(create_tables)
    records: Transactions[Store] = Transactions(database, SqlStore, clock)
    rules = JobRules(clock, 10.0)
    loop = JobLoop(records, rules, Controller(records, Fleet(clock, Patience()), clock), registry)  # type: ignore[arg-type]

    def finish(store: Store) -> JobRow:
        row = rules.claim(store, rules.create(store, Actor("a", "p"), SPEC.SerializeToString()), "n1")
        assert row is not None
        return rules.finish(store, row, Outcome(source_accuracy=0.9, accuracies=[("int8", 0.9)]))

    yield records, loop, registry, await records.write(finish)
    database.close()


@pytest.mark.parametrize("mood", [Unavailable, Aborted, DeadlineExceeded, ResourceExhausted, Internal])
async def test_a_busy_registry_costs_no_work(parts, mood: type[SealaneError]) -> None:  # type: ignore[no-untyped-def]
    records, loop, registry, job = parts
    registry.failure = mood("later")
    await loop.step()
    assert (await records.read(lambda store: store.jobs("p", "", 1)))[0].state == "REGISTERING"
    registry.failure = None
    await loop.step()
    done = (await records.read(lambda store: store.jobs("p", "", 1)))[0]
    assert done.state == "SUCCEEDED"
    assert pb.Job.FromString(done.results).variants == [f"{job.name}/made"]


@pytest.mark.parametrize("verdict", [InvalidArgument, FailedPrecondition])
async def test_a_no_is_final_and_told(parts, verdict: type[SealaneError]) -> None:  # type: ignore[no-untyped-def]
    records, loop, registry, _ = parts
    registry.failure = verdict("never")
    await loop.step()
    ended = (await records.read(lambda store: store.jobs("p", "", 1)))[0]
    assert (ended.state, ended.error) == ("FAILED", "never")
