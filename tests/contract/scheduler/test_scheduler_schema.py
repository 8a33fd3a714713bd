"""The scheduler's migrations make the tables that its code declares, and its store works on both databases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import postgres
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

import sealane_scheduler
from sealane.errors import AlreadyExists
from sealane.records import tables
from sealane.records.migrate import migrate
from sealane.records.once import Asked, once_each
from sealane_scheduler.store import KEPT_DECISIONS, DecisionRow, DeploymentRow, EnsembleRow, HoldRow, PlacementRow
from sealane_scheduler.store_sql import METADATA, SqlStore

MIGRATIONS = Path(sealane_scheduler.__file__).parent / "migrations"


@pytest.fixture(params=["sqlite", "postgresql"])
def connection(request: pytest.FixtureRequest) -> Iterator[sa.Connection]:
    """A database with every migration, in a transaction that is undone."""
    if request.param == "sqlite":
        yield from migrated(sa.create_engine("sqlite://", poolclass=sa.pool.StaticPool))
        return
    with postgres.server() as url:
        yield from migrated(sa.create_engine(url))


def migrated(engine: sa.Engine) -> Iterator[sa.Connection]:
    with engine.connect() as connection:
        migrate(connection, MIGRATIONS)
        yield connection
        connection.rollback()
    engine.dispose()


def test_migrations_make_what_the_code_declares(connection: sa.Connection) -> None:
    context = MigrationContext.configure(connection, opts={"include_name": _ours})
    found = compare_metadata(context, [*METADATA, tables.metadata])
    assert [item for item in found if "sqlite_sequence" not in str(item)] == []


def test_what_a_node_may_take_is_kept_once(connection: sa.Connection) -> None:
    store = SqlStore(connection)
    store.put_hold(HoldRow("b", "CORDONED", 0.0, 1.0))
    store.put_hold(HoldRow("a", "CORDONED", 0.0, 2.0))
    store.put_hold(HoldRow("b", "DRAINING", 9.5, 3.0))
    assert store.holds() == [HoldRow("a", "CORDONED", 0.0, 2.0), HoldRow("b", "DRAINING", 9.5, 3.0)]
    store.drop_hold("b")
    store.drop_hold("nobody")
    assert [row.node for row in store.holds()] == ["a"]


def test_deployments_are_read_whole_and_by_what_they_are_of(connection: sa.Connection) -> None:
    store = SqlStore(connection)
    rows = [DeploymentRow("p", name, "v", b"\x00d", b"\xffv", 1.0, 1.0, "e") for name in ("a", "b")]
    store.add_deployments(rows)
    assert store.deployments() == rows
    assert store.deployed() == [("p", name, "v", "") for name in ("a", "b")]


def test_a_name_is_taken_by_deployments_chains_and_served_names_of_its_project(connection: sa.Connection) -> None:
    store = SqlStore(connection)
    row = DeploymentRow("p", "a", "v", b"", b"", 1.0, 1.0, "e")
    store.add_deployments([row, replace(row, deployment="b-v1", served_name="b")])
    store.add_ensemble(EnsembleRow("p", "c", b"", 1.0, "e"))
    wanted = {(project, name) for project in "pq" for name in ("a", "b", "b-v1", "c", "d")}
    assert store.taken(wanted) == {("p", "a"), ("p", "b"), ("p", "b-v1"), ("p", "c")}
    with pytest.raises(AlreadyExists, match="deployment b exists"):
        store.add_ensemble(EnsembleRow("p", "b", b"", 1.0, "e"))


def test_no_statement_of_a_placement_looks_through_a_table(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/s.db")
    run: dict[str, object] = {}
    with engine.connect() as connection:
        migrate(connection, MIGRATIONS)
        sa.event.listen(
            engine, "before_cursor_execute", lambda c, cursor, sql, values, context, many: run.setdefault(sql, values)
        )
        store = SqlStore(connection)
        rows = [DeploymentRow("p", name, "v", b"", b"", 1.0, 1.0, "e") for name in ("a", "b")]

        def place(_: Sequence[int]) -> list[bytes]:
            assert not store.taken((row.project, row.deployment) for row in rows)
            store.add_deployments(rows)
            store.bind([PlacementRow("p", name, 0, "n", "v") for name in "ab"])
            store.bind([PlacementRow("p", "a", 0, "n", "v")])
            store.add_decisions([DecisionRow("p", name, 1.0, b"x") for name in "ab"])
            return [b"answer"]

        assert once_each(connection, [Asked("p", "id", "content")], 1.0, place) == [b"answer"]
        asked = {sql: values for sql, values in run.items() if sql.startswith(("SELECT", "UPDATE", "DELETE"))}
        assert len(asked) >= 6
        names = {name for part in (*METADATA, tables.metadata) for name in part.tables}
        for sql, values in asked.items():
            one = values[0] if isinstance(values, list) else values
            plan = [str(row[3]) for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", one)]
            scans = [line for line in plan if line.startswith("SCAN") and line.split()[1] in names]
            assert not scans, (sql, plan)


def test_many_decisions_leave_the_newest_of_each(connection: sa.Connection) -> None:
    store = SqlStore(connection)
    for number in range(KEPT_DECISIONS + 3):
        store.add_decisions([DecisionRow("p", name, float(number), b"x") for name in ("a", "b")])
    store.add_decisions([DecisionRow("p", "a", 99.0, b"x")])
    for name, newest in (("a", 99.0), ("b", float(KEPT_DECISIONS + 2))):
        kept = [item.time for item in store.decisions("p", name)]
        assert len(kept) == KEPT_DECISIONS and kept[0] == newest


def test_epochs_grow_and_decisions_are_kept(connection: sa.Connection) -> None:
    store = SqlStore(connection)
    row = PlacementRow("p", "d", 0, "n", "v")
    assert store.bind([row]) + store.bind([row, row]) == [1, 2, 3]
    store.release(PlacementRow("p", "d", 1, "n", "v"))
    assert [item.epoch for item in store.placements()] == [2, 3]
    for time in (1.0, 2.0):
        store.add_decisions([DecisionRow("p", "d", time, b"\x00\xff")])
    assert [item.time for item in store.decisions("p", "d")] == [2.0, 1.0]


def _ours(name: str | None, kind: str, parents: object) -> bool:
    return name != "alembic_version"
