"""One of several schedulers on a database leads, and who has lost the lead writes nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import postgres
import pytest
import sqlalchemy as sa

import sealane_scheduler
from sealane.clock import SystemClock
from sealane.errors import NOT_LEADER, SealaneError, Unavailable
from sealane.records.database import Database
from sealane.records.migrate import migrate
from sealane_scheduler import leadership as module
from sealane_scheduler.leadership import Leadership, holder_in
from sealane_scheduler.leadership_sql import leadership

MIGRATIONS = Path(sealane_scheduler.__file__).parent / "migrations"
ADDRESSES = ("here:1", "here:2")


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    with postgres.server() as url:
        yield url


class Replica:
    """A scheduler as far as the lead goes."""

    def __init__(self, url: str, holder: str) -> None:
        self.database = Database(url, idle_seconds=0.5)
        self.database.start(lambda connection: migrate(connection, MIGRATIONS))
        self.leadership = Leadership(self.database, holder, SystemClock())
        self.waited = 0

    async def gain(self, seconds: float = 5.0) -> bool:
        async with asyncio.timeout(seconds):
            return await self.leadership.gain(ADDRESSES, self.waits)

    def waits(self) -> None:
        self.waited += 1

    def write(self, node: str) -> None:
        """Something that only who leads may write."""
        values = {"node": node, "admission": "CORDONED", "deadline": 0.0, "since": 0.0}
        table = sa.table("holds", *(sa.column(name) for name in values))
        self.database.write(lambda connection: connection.execute(table.insert().values(values))).result(10)

    def written(self) -> set[str]:
        query = sa.select(sa.column("node")).select_from(sa.table("holds"))
        return self.database.read(lambda connection: set(connection.execute(query).scalars())).result(10)

    def expire(self) -> None:
        """The lease is over by the database's clock."""
        over = leadership.update().values(until=0.0)
        self.database.write(lambda connection: connection.execute(over), guarded=False).result(10)


@pytest.fixture
def pair(postgresql: str) -> Iterator[tuple[Replica, Replica]]:
    one, other = Replica(postgresql, "one"), Replica(postgresql, "other")
    one.expire()
    for table in ("holds",):
        clear = sa.delete(sa.table(table))
        one.database.write(lambda connection, clear=clear: connection.execute(clear), guarded=False).result(10)
    yield one, other
    for replica in (one, other):
        replica.database.close()


async def test_one_leads_and_the_other_waits_until_the_lease_is_over(pair: tuple[Replica, Replica]) -> None:
    one, other = pair
    assert await one.gain() is False
    one.write("a")
    with pytest.raises(TimeoutError):
        await other.gain(1.2)
    assert other.waited == 1 and not other.leadership.leads
    with pytest.raises(Unavailable) as refused:
        other.write("b")
    assert refused.value.reason == NOT_LEADER and refused.value.metadata["leader"] == "here:1"
    one.expire()
    assert await other.gain() is False, "it did not have to wait any more"
    other.write("c")
    with pytest.raises(Unavailable) as lost:
        one.write("d")
    assert lost.value.reason == NOT_LEADER and not one.leadership.leads
    assert other.written() == {"a", "c"}


async def test_who_gives_the_lead_up_is_followed_at_once(pair: tuple[Replica, Replica]) -> None:
    one, other = pair
    await one.gain()
    waiting = asyncio.create_task(other.gain())
    await asyncio.sleep(0.2)
    one.leadership.give_up()
    assert await waiting is True
    with pytest.raises(Unavailable):
        one.write("a")


async def test_who_was_started_again_has_its_lead_back_at_once(pair: tuple[Replica, Replica], postgresql: str) -> None:
    one, _ = pair
    await one.gain()
    again = Replica(postgresql, "one")
    assert await again.gain() is False
    again.write("a")
    with pytest.raises(Unavailable):
        one.write("b")
    again.database.close()


async def test_the_lead_is_kept_and_its_loss_is_noticed(
    pair: tuple[Replica, Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    for name, seconds in (("LEASE_SECONDS", 1.2), ("RENEW_SECONDS", 0.2), ("SURE_SECONDS", 0.8)):
        monkeypatch.setattr(module, name, seconds)
    await one.gain()
    keeping = asyncio.create_task(one.leadership.keep())
    with pytest.raises(TimeoutError):
        await other.gain(2.0)
    assert one.leadership.leads
    while not other.leadership.leads:  # it may have been renewed just before
        one.expire()
        with contextlib.suppress(TimeoutError):
            await other.gain(0.3)
    with pytest.raises(Unavailable):
        await asyncio.wait_for(keeping, 2.0)
    assert not one.leadership.leads


async def test_who_stops_in_the_middle_of_a_write_holds_nobody_up(pair: tuple[Replica, Replica]) -> None:
    """Its session is ended by the server, with its lock on the lead; what it had begun is undone."""
    import threading

    one, other = pair
    await one.gain()
    stopped, go_on = threading.Event(), threading.Event()

    def write(connection: sa.Connection) -> None:
        connection.execute(sa.text("insert into holds values ('half', 'CORDONED', 0, 0)"))
        stopped.set()
        go_on.wait(20)

    writing = one.database.write(write)
    assert await asyncio.to_thread(stopped.wait, 5)
    # Past its end by its clock; that row cannot be written while its holder has it locked.
    waiting = asyncio.create_task(asyncio.to_thread(other.expire))
    async with asyncio.timeout(10):
        await waiting
        await other.gain()
    other.write("whole")
    go_on.set()
    with pytest.raises(SealaneError):
        await asyncio.wrap_future(writing)
    with pytest.raises(Unavailable) as lost:
        one.write("late")
    assert lost.value.reason == NOT_LEADER
    assert other.written() == {"whole"}


async def test_two_that_start_at_once_migrate_once(postgresql: str) -> None:
    engine = sa.create_engine(postgresql, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text("create database fresh"))
    engine.dispose()
    url = postgresql.replace("/postgres?", "/fresh?")
    made = await asyncio.gather(*(asyncio.to_thread(Replica, url, name) for name in ("x", "y", "z")))
    assert await made[0].gain() is False
    for replica in made:
        replica.database.close()


async def test_a_file_of_its_own_is_led_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 's.db'}"
    one = Replica(url, holder_in(tmp_path))
    assert await one.gain() is False
    keeping = asyncio.create_task(one.leadership.keep())
    one.write("a")
    await asyncio.sleep(0.1)
    assert not keeping.done() and one.leadership.leads
    keeping.cancel()
    one.database.close()
    assert holder_in(tmp_path) == holder_in(tmp_path)
    again = Replica(url, "another")
    assert await again.gain() is False, "who had it has ended, since it is one process's file"
    again.write("b")
    assert again.written() == {"a", "b"}
    again.database.close()
