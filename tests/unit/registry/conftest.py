"""The registry's store on a real database in memory, and rules on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from registry_site import Site

from sealane.records import tables
from sealane_registry.store_sql import SqlStore, metadata


@pytest.fixture
def store() -> Iterator[SqlStore]:
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        metadata.create_all(connection)
        tables.metadata.create_all(connection)
        yield SqlStore(connection)
    engine.dispose()


@pytest.fixture
def site(store: SqlStore) -> Site:
    return Site(store)
