"""What the scheduler tells to be in use: a report replaces the one before it whole, or not at all."""

from __future__ import annotations

import pytest

from sealane.clock import ManualClock
from sealane.errors import Aborted, InvalidArgument
from sealane.records.database import Database
from sealane.records.transactions import Transactions
from sealane.registry.v1 import model_service_pb2 as pb
from sealane_registry.limits import LimitRules
from sealane_registry.store import Store
from sealane_registry.store_sql import SqlStore
from sealane_registry.use_servicer import UseMethods
from sealane_registry.watch import Watches

VERSIONS = [f"projects/p/models/digits/versions/{number}" for number in (1, 2, 3)]


class Reports:
    """The methods on a database."""

    def __init__(self, database: Database) -> None:
        clock = ManualClock()
        self.records: Transactions[Store] = Transactions(database, SqlStore, clock)
        self.methods = UseMethods(self.records, Watches(self.records, bookmark=1.0), LimitRules(clock))

    async def tell(self, *versions: str, part: int = 0, more: bool = False) -> None:
        uses = [pb.Use(holder="projects/p/deployments/d", versions=versions)]
        await self.methods.ReportUse(pb.ReportUseRequest(uses=uses, part=part, more=more), None)  # type: ignore[arg-type]

    async def in_use(self) -> list[str]:
        def read(store: Store) -> list[str]:
            return [name for name in VERSIONS if store.holders("p", "version", f"digits/{name.rpartition('/')[2]}")]

        return await self.records.read(read)


@pytest.fixture
def reports(database: Database) -> Reports:
    return Reports(database)


async def test_a_report_in_parts_replaces_with_its_last_part_and_all_at_once(reports: Reports) -> None:
    await reports.tell(VERSIONS[0])
    await reports.tell(VERSIONS[1], more=True)
    assert await reports.in_use() == VERSIONS[:1], "half a report frees nothing and holds nothing"
    await reports.tell(VERSIONS[2], part=1)
    assert await reports.in_use() == VERSIONS[1:]
    await reports.tell()
    assert await reports.in_use() == []


@pytest.mark.parametrize("begun", [0, 1], ids=["after a restart", "after a part that was lost"])
async def test_a_part_out_of_turn_is_refused_and_changes_nothing(reports: Reports, begun: int) -> None:
    await reports.tell(VERSIONS[0])
    for part in range(begun):
        await reports.tell(VERSIONS[1], part=part, more=True)
    with pytest.raises(Aborted) as lost:
        await reports.tell(VERSIONS[2], part=begun + 1)
    assert lost.value.reason == "REPORT_LOST"
    assert await reports.in_use() == VERSIONS[:1]


async def test_a_report_that_begins_anew_forgets_the_half_of_before(reports: Reports) -> None:
    await reports.tell(VERSIONS[0], more=True)
    await reports.tell(VERSIONS[1], more=True)
    await reports.tell(VERSIONS[2], part=1)
    assert await reports.in_use() == VERSIONS[1:]


async def test_a_name_that_is_none_is_refused(reports: Reports) -> None:
    await reports.tell(VERSIONS[0])
    with pytest.raises(InvalidArgument):
        await reports.tell("projects/p/models/digits")
    assert await reports.in_use() == VERSIONS[:1]
