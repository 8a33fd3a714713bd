"""The registry's store on both databases."""

from __future__ import annotations

from collections.abc import Iterator

import postgres
import pytest
import sqlalchemy as sa
from registry_site import Site

from sealane.records import tables
from sealane_registry.store_sql import SqlStore, metadata


@pytest.fixture(scope="session")
def postgresql() -> Iterator[sa.Engine]:
    """A server with the registry's tables."""
    with postgres.server() as url:
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            metadata.create_all(connection)
            tables.metadata.create_all(connection)
        yield engine
        engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest) -> Iterator[SqlStore]:
    """A store in a transaction that is undone."""
    own = request.param == "sqlite"
    engine = sa.create_engine("sqlite://") if own else request.getfixturevalue("postgresql")
    with engine.connect() as connection:
        if own:
            metadata.create_all(connection)
            tables.metadata.create_all(connection)
        yield SqlStore(connection)
        connection.rollback()
    if own:
        engine.dispose()


@pytest.fixture
def site(store: SqlStore) -> Site:
    return Site(store)
