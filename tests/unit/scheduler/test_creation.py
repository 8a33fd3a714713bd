"""Calls that come at once are placed and recorded together, and what happens to one happens to no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio
import sqlalchemy as sa
from google.protobuf import empty_pb2, wrappers_pb2
from test_fleet import World, facts, join_two, row, two_nodes

from sealane.errors import AlreadyExists, FailedPrecondition, SealaneError, Unavailable
from sealane.records import tables
from sealane.records.once import UNPROTECTED, Asked
from sealane.records.tables import Actor
from sealane.scheduler.v1 import deployment_service_pb2 as pb
from sealane_scheduler.batch import Placed
from sealane_scheduler.cluster import Deployed
from sealane_scheduler.creation import AT_ONCE, Creation
from sealane_scheduler.recovery import SUBSTITUTE_SECONDS


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = two_nodes(tmp_path)
    yield made
    made.database.close()


def wanted(*names: str, asked: Asked = UNPROTECTED, gang: bool = False, **demand: object) -> Creation:
    rows = [row(name, **demand) for name in names]
    return Creation(
        rows, Actor("s", "p"), lambda _: wrappers_pb2.StringValue(value="+".join(names)), asked=asked, gang=gang
    )


async def create(world: World, *calls: Creation) -> list[str | SealaneError]:
    """The answers to calls that come at once."""
    found = await asyncio.gather(*map(world.controller.create, calls), return_exceptions=True)
    answers: list[str | SealaneError] = []
    for item in found:
        assert isinstance(item, bytes | SealaneError), item
        answers.append(item if isinstance(item, SealaneError) else wrappers_pb2.StringValue.FromString(item).value)
    return answers


def commits(world: World) -> list[int]:
    """Grows with every commit."""
    seen: list[int] = []
    sa.event.listen(world.database._engine, "commit", lambda connection: seen.append(1))
    return seen


async def names(world: World) -> set[str]:
    """What is recorded."""
    rows = await world.records.read(lambda store: store.deployments())
    return {item.deployment for item in rows}


def there(world: World) -> set[str]:
    """What the controller works on."""
    return {item.row.deployment for item in world.controller.all()}


async def test_calls_that_come_at_once_are_recorded_together(world: World) -> None:
    seen = commits(world)
    assert await create(world, *(wanted(f"d{i}") for i in range(40))) == [f"d{i}" for i in range(40)]
    assert len(seen) == 1 and len(await names(world)) == 40 == len(there(world))
    audited = sa.select(sa.func.count()).select_from(tables.audit)
    assert world.database.read(lambda connection: connection.scalar(audited)).result(5) == 40


async def test_no_group_is_larger_than_one_call_may_be_and_the_order_stays(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    placer, groups = world.controller._placer, list[list[str]]()
    reserve = placer.reserve

    def spy(items: Sequence[Deployed], *, gang: bool = False) -> list[Placed]:
        groups.append([item.row.deployment for item in items])
        return reserve(items, gang=gang)

    monkeypatch.setattr(placer, "reserve", spy)
    calls = [wanted(*(f"d{i}-{j}" for j in range(30))) for i in range(5)]
    assert len(await create(world, *calls)) == 5
    assert [len(group) for group in groups] == [60, 60, 30] and max(map(len, groups)) <= AT_ONCE
    assert [name for group in groups for name in group] == [item.deployment for call in calls for item in call.rows]


async def test_of_two_that_want_one_name_the_first_gets_it_and_the_others_room_is_free(world: World) -> None:
    first, second, third = await create(world, wanted("a"), wanted("b", "a"), wanted("c"))
    assert (first, third) == ("a", "c")
    assert isinstance(second, AlreadyExists) and "deployment a exists" in second.message
    assert await names(world) == {"a", "c"} == there(world)
    kept = world.controller.snapshot().digest
    world.restart()
    join_two(world)
    await world.controller.load()
    assert world.controller.snapshot().digest == kept, "nothing is taken for what was not created"


async def test_one_id_is_answered_once_however_close_the_repeat_comes(world: World) -> None:
    asked, other = (Asked.of("p", "id", wrappers_pb2.StringValue(value=value)) for value in ("x", "y"))
    first, repeat, reused = await create(
        world, wanted("a", asked=asked), wanted("a", asked=asked), wanted("b", asked=other)
    )
    assert first == repeat == "a"
    assert isinstance(reused, AlreadyExists) and reused.reason == "REQUEST_ID_REUSED"
    assert await create(world, wanted("a", asked=asked)) == ["a"]
    assert await names(world) == {"a"} == there(world)


async def test_an_id_whose_call_was_refused_is_free(world: World) -> None:
    asked = Asked.of("p", "id", empty_pb2.Empty())
    await world.create(row("a"))
    refused, repeat = await create(world, wanted("a", asked=asked), wanted("a", asked=asked))
    assert isinstance(refused, AlreadyExists) and isinstance(repeat, AlreadyExists)
    assert await create(world, wanted("b", asked=asked)) == ["b"]


async def test_a_gang_that_does_not_fit_refuses_itself_alone(world: World) -> None:
    before, gang, after = await create(world, wanted("a"), wanted("b", "c", gang=True, replicas=3), wanted("d"))
    assert (before, after) == ("a", "d")
    assert isinstance(gang, FailedPrecondition) and gang.reason == "SPREAD"
    assert await names(world) == {"a", "d"} == there(world)


async def test_who_goes_away_before_its_turn_creates_nothing_and_after_it_all(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = asyncio.ensure_future(world.controller.create(wanted("gone")))
    await asyncio.sleep(0)
    gone.cancel()
    assert await create(world, wanted("a")) == ["a"]
    assert await names(world) == {"a"}
    once_each = world.records.once_each

    async def as_its_caller_leaves(*arguments: object) -> object:
        leaving.cancel()
        return await once_each(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(world.records, "once_each", as_its_caller_leaves)
    leaving = asyncio.ensure_future(world.controller.create(wanted("b")))
    with pytest.raises(asyncio.CancelledError):
        await leaving
    async with asyncio.timeout(5):
        while "b" not in there(world):
            await asyncio.sleep(0.01)
    assert await names(world) == {"a", "b"}


async def test_what_cannot_be_recorded_is_refused_and_takes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = world.controller.snapshot().digest

    def broken(*_: object) -> None:
        raise Unavailable("no disk")

    with monkeypatch.context() as patch:
        patch.setattr("sealane.records.tables.record_all", broken)
        assert all(isinstance(item, Unavailable) for item in await create(world, wanted("a"), wanted("b")))
    assert not await names(world) and not there(world)
    assert world.controller.snapshot().digest == before
    assert await create(world, wanted("a"), wanted("b")) == ["a", "b"]


async def test_a_node_that_goes_while_it_is_recorded_is_made_good(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = world.fleet.connect("edge-1", facts("edge", "site-a"), "")
    once_each = world.records.once_each

    async def as_the_node_goes(*arguments: object) -> object:
        world.fleet.disconnect("edge-1", session)
        await world.settle()
        return await once_each(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(world.records, "once_each", as_the_node_goes)
    assert await create(world, wanted("a", tier_preference=pb.TIER_PREFERENCE_EDGE)) == ["a"]
    assert world.nodes("a") == ["edge-1"]
    world.clock.advance(SUBSTITUTE_SECONDS + 0.01)
    world.fleet.heartbeat("cloud-1", None, "")
    await world.settle()
    assert world.nodes("a") == ["edge-1", "cloud-1"]
