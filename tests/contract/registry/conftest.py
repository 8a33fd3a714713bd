"""The registry's store on both databases, and a server for object stores."""

from __future__ import annotations

from collections.abc import Iterator

import postgres
import pytest
import sqlalchemy as sa
from object_servers import MOTO, FaultyProxy, s3_server
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


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """Address of an S3 server."""
    if not MOTO.exists():
        pytest.skip("no S3 server here; make .venv-moto/.ready")
    with s3_server() as address:
        yield address


@pytest.fixture
def proxy(s3: str) -> Iterator[FaultyProxy]:
    """A proxy before it."""
    proxy = FaultyProxy(s3)
    yield proxy
    proxy.close()
