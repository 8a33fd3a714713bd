"""Group commit: what is answered is kept, what fails undoes itself alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from sealane.auth.v1 import identity_service_pb2 as pb
from sealane.errors import AlreadyExists, InvalidArgument, NotFound, Unavailable
from sealane.records import once as once_
from sealane.records import tables
from sealane.records.database import Database
from sealane.records.migrate import migrate
from sealane.records.paging import read_token, write_token

items = sa.Table("items", sa.MetaData(), sa.Column("name", sa.String, primary_key=True))


def prepare(connection: sa.Connection) -> None:
    items.metadata.create_all(connection)
    tables.metadata.create_all(connection)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database.at(tmp_path / "x.db")
    made.start(prepare)
    yield made
    made.close()


def add(name: str, fail: bool = False):  # type: ignore[no-untyped-def]
    def run(connection: sa.Connection) -> str:
        connection.execute(items.insert().values(name=name))
        if fail:
            raise NotFound("no")
        return name

    return run


def names(connection: sa.Connection) -> list[str]:
    return sorted(connection.execute(sa.select(items.c.name)).scalars())


def test_a_failure_in_a_group_undoes_itself_alone(database: Database) -> None:
    futures = [database.write(add(f"n{index}", fail=index % 3 == 0)) for index in range(30)]
    kept = []
    for index, future in enumerate(futures):
        if index % 3 == 0:
            with pytest.raises(NotFound):
                future.result(5)
        else:
            kept.append(future.result(5))
    assert database.read(names).result(5) == sorted(kept)


def test_what_was_answered_survives_a_second_start(tmp_path: Path) -> None:
    first = Database.at(tmp_path / "x.db")
    first.start(prepare)
    first.write(add("kept")).result(5)
    first.close()
    with pytest.raises(Unavailable):
        first.write(add("late"))
    second = Database.at(tmp_path / "x.db")
    second.start(prepare)
    assert second.read(names).result(5) == ["kept"]
    mode = second.read(lambda c: c.exec_driver_sql("PRAGMA synchronous").scalar_one()).result(5)
    assert mode == 2  # FULL
    second.close()


async def test_a_caller_that_goes_away_leaves_the_thread_alive(database: Database) -> None:
    def slow(connection: sa.Connection) -> None:
        time.sleep(0.3)
        connection.execute(items.insert().values(name="slow"))

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await asyncio.wrap_future(database.write(slow))
    assert await asyncio.wrap_future(database.read(names)) == ["slow"]


def test_a_request_id_runs_once(database: Database) -> None:
    request, runs = pb.ListServiceAccountsRequest(parent="projects/p"), []

    def once(message: pb.ListServiceAccountsRequest, project: str = "p") -> bytes:
        def run(connection: sa.Connection) -> bytes:
            return once_.once(
                connection,
                project=project,
                request_id="r",
                request=message,
                now=0.0,
                run=lambda: (runs.append(1), b"answer")[1],
            )

        return database.write(run).result(5)

    assert once(request) == once(request) == b"answer"
    assert len(runs) == 1
    with pytest.raises(AlreadyExists):
        once(pb.ListServiceAccountsRequest(parent="projects/other"))
    once(request, project="q")
    assert len(runs) == 2


def test_request_ids_are_short_and_forgotten_after_a_week(database: Database) -> None:
    def once(number: int, now: float, request_id: str = "") -> None:
        message = pb.ListServiceAccountsRequest(parent=str(number))
        wanted = request_id or str(number)
        database.write(
            lambda c: once_.once(c, project="p", request_id=wanted, request=message, now=now, run=lambda: b"a")
        ).result(5)

    def kept(connection: sa.Connection) -> set[str]:
        return set(connection.scalars(sa.select(tables.request_ids.c.request_id)))

    week = 7 * 86_400.0
    for number in range(50):
        once(number, 0.0)
    for number in range(100, 900):
        once(number, week - 1.0)
    assert len(database.read(kept).result(5)) == 850, "none is forgotten early"
    for number in range(1000, 1800):
        once(number, week + 1.0)
    assert database.read(kept).result(5) == {str(number) for number in (*range(100, 900), *range(1000, 1800))}
    with pytest.raises(InvalidArgument) as caught:
        once(1, 0.0, "x" * 129)
    assert caught.value.field == "request_id"
    once(1, 0.0, "x" * 128)


@pytest.mark.parametrize("service", ["auth", "registry", "scheduler"])
def test_migrations_make_the_tables_that_the_store_uses(service: str, tmp_path: Path) -> None:
    import importlib

    store = importlib.import_module(f"sealane_{service}.store_sql")
    folder = Path(store.__file__).parent / "migrations"
    engine = sa.create_engine(f"sqlite:///{tmp_path}/m.db")
    with engine.begin() as connection:
        migrate(connection, folder)
        migrate(connection, folder)
    inspector = sa.inspect(engine)
    for metadata in (*store.METADATA, tables.metadata):
        for table in metadata.sorted_tables:
            made = {column["name"]: column for column in inspector.get_columns(table.name)}
            assert set(made) == {column.name for column in table.columns}
            keys = set(inspector.get_pk_constraint(table.name)["constrained_columns"])
            assert keys == {column.name for column in table.primary_key}
    engine.dispose()


def test_page_tokens_come_back() -> None:
    assert read_token(write_token("projects/p/x")) == "projects/p/x"
