"""Watches: every change once, in order, resumed where it was left; bounded and told when it is too late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from sealane.clock import ManualClock
from sealane.errors import FailedPrecondition
from sealane.records.database import Database
from sealane.records.tables import Actor
from sealane.records.transactions import Transactions
from sealane_registry.store import Store
from sealane_registry.store_sql import SqlStore
from sealane_registry.watch import Seen, Watches


class Records:
    """A database on which things happen."""

    def __init__(self, database: Database) -> None:
        self.transactions: Transactions[Store] = Transactions(database, SqlStore, ManualClock())
        self.watches = Watches(self.transactions, bookmark=1.0)
        self.transactions.after_write(self.watches.announce)

    async def change(self, name: str, project: str = "p", time: float = 1.0) -> None:
        await self.transactions.write(lambda store: store.record(Actor("a", project), "Change", name, time))

    def follow(self, after: int = 0, project: str = "p") -> AsyncIterator[Seen]:
        return self.watches.follow(project, after)


@pytest.fixture
def records(database: Database) -> Records:
    return Records(database)


async def take(stream: AsyncIterator[Seen], count: int) -> list[str]:
    found = []
    while len(found) < count:
        seen = await asyncio.wait_for(anext(stream), 10)
        if seen.change is not None:
            found.append(seen.change.resource)
    return found


async def test_a_watch_begins_now_and_sees_what_comes(records: Records) -> None:
    await records.change("before")
    stream = records.follow()
    start = await anext(stream)
    assert (start.revision, start.change) == (1, None)
    pending = asyncio.create_task(take(stream, 2))
    await records.change("one")
    await records.change("other", project="q")
    await records.change("two")
    assert await pending == ["one", "two"]


async def test_it_resumes_after_any_revision_without_gap_or_repeat(records: Records) -> None:
    names = [f"r{place}" for place in range(450)]
    for name in names:
        await records.change(name)
    for after in (1, 200, 201, 449):
        assert await take(records.follow(after), 450 - after) == names[after:]
    stream = records.follow(450)
    assert (await anext(stream)).revision == 450


async def test_changes_made_while_it_reads_are_seen(records: Records) -> None:
    await records.change("r0")
    stream = records.follow(1)
    await anext(stream)

    async def write() -> None:
        for place in range(1, 200):
            await records.change(f"r{place}")

    _, found = await asyncio.gather(write(), take(stream, 199))
    assert found == [f"r{place}" for place in range(1, 200)]


async def test_what_is_no_longer_kept_is_told(records: Records) -> None:
    for place in range(10):
        await records.change(f"r{place}", time=float(place))
    await records.transactions.write(lambda store: store.drop_changes(5.0))
    assert await take(records.follow(5), 5) == [f"r{place}" for place in range(5, 10)]
    for after in (3, 999):
        with pytest.raises(FailedPrecondition) as late:
            await anext(records.follow(after))
        assert late.value.reason == "REVISION_COMPACTED"


async def test_the_newest_change_stays_however_old_it_is(records: Records) -> None:
    await records.change("r0")
    await records.change("r1")
    await records.transactions.write(lambda store: store.drop_changes(1e12))
    assert await records.transactions.read(lambda store: store.revisions()) == (1, 2)


async def test_a_quiet_watch_learns_where_it_stands(records: Records) -> None:
    await records.change("mine")
    stream = records.follow(1)
    assert (await anext(stream)).revision == 1
    await records.change("theirs", project="q")
    seen = await asyncio.wait_for(anext(stream), 10)
    assert (seen.revision, seen.change) == (2, None)
