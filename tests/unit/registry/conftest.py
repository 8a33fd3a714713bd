"""The registry's store on a real database in memory, and rules on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from registry_site import Site

from sealane.records import tables
from sealane.records.database import Database
from sealane_registry.store_sql import SqlStore, metadata


def create_tables(connection: sa.Connection) -> None:
    metadata.create_all(connection)
    tables.metadata.create_all(connection)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database.at(tmp_path / "registry.db")
    database.start(create_tables)
    yield database
    database.close()


@pytest.fixture
def store() -> Iterator[SqlStore]:
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        create_tables(connection)
        yield SqlStore(connection)
    engine.dispose()


@pytest.fixture
def site(store: SqlStore) -> Site:
    return Site(store)
