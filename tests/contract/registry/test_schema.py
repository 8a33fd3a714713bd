"""Migrations make the tables that the code declares, on both databases; and bring an old registry along."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import postgres
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import sealane_registry
from sealane.records import tables
from sealane.records.migrate import migrate
from sealane.registry.v1 import variant_service_pb2
from sealane.security import alias_history
from sealane_registry import schema
from sealane_registry.rows import Scope
from sealane_registry.store_sql import SqlStore

MIGRATIONS = Path(sealane_registry.__file__).parent / "migrations"


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest) -> Iterator[sa.Engine]:
    if request.param == "sqlite":
        engine = sa.create_engine("sqlite://", poolclass=sa.pool.StaticPool)
        yield engine
        engine.dispose()
        return
    with postgres.server() as url:
        engine = sa.create_engine(url)
        yield engine
        engine.dispose()


def test_migrations_make_what_the_code_declares(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        migrate(connection, MIGRATIONS)
        context = MigrationContext.configure(connection)
        wanted = [*schema.METADATA, tables.metadata]
        differences = [
            item for item in compare_metadata(context, wanted) if "alembic" not in str(item) and _matters(item)
        ]
        assert differences == []


def _matters(difference: object) -> bool:
    # SQLite's autoincrement keeps a table of its own.
    return "sqlite_sequence" not in str(difference)


def test_an_old_registry_comes_along(engine: sa.Engine) -> None:
    content = variant_service_pb2.Variant(files=[{"path": "a", "sha256": "f" * 64, "size_bytes": 3}])
    with engine.begin() as connection:
        _migrate_to(connection, "0002")
        for statement, values in (
            ("insert into models values ('p','m','',1,1,'e',2)", {}),
            ("insert into versions values ('p','m',1,:c,1,'e')", {"c": b""}),
            ("insert into variants values ('p','m',1,'onnx','d',:c,1)", {"c": content.SerializeToString()}),
            ("insert into aliases values ('p','m','production',1,5.5,'e')", {}),
            ("insert into artifacts values ('p',:s,3,1)", {"s": "f" * 64}),
        ):
            connection.execute(sa.text(statement), values)
        migrate(connection, MIGRATIONS)
        store = SqlStore(connection)
        assert store.models_with_file("p", "f" * 64) == ["m"]
        assert (store.usage("p").bytes, store.usage("p").models) == (3, 1)
        version = store.version(Scope("p", "m", 1))
        assert version is not None and version.state == "PUSHED"
        scope = Scope("p", "m", name="production")
        alias, first = store.alias(scope), store.move_as_of(scope, 5_500_000)
        assert alias is not None and first is not None and (alias.moves, alias.head) == (1, first.hash)
        move = alias_history.Move(alias.name, 1, 1, 0, 5_500_000, "", "", alias_history.GENESIS)
        assert alias_history.verify([(move, bytes.fromhex(first.hash))]) == 1


def _migrate_to(connection: sa.Connection, revision: str) -> None:
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    script = ScriptDirectory.from_config(config)
    with EnvironmentContext(config, script, fn=lambda rev, _: script._upgrade_revs(revision, rev)) as environment:
        environment.configure(connection=connection)
        environment.run_migrations()
