"""The registry's store on both databases, and a server for object stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import postgres
import pytest
import sqlalchemy as sa
from object_servers import MOTO, FaultyProxy, new_bucket, reach, s3_server
from obstore.store import MemoryStore
from registry_site import Site

from sealane.records import tables
from sealane_registry.blob_folder import FolderStore
from sealane_registry.blob_objects import BucketStore
from sealane_registry.blob_store import BlobStore
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


@pytest.fixture(params=["folder", "memory", "s3"])
def blob_store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    """Where artifacts may lie."""
    if request.param == "folder":
        return FolderStore(tmp_path / "cas")
    if request.param == "memory":
        return BucketStore(MemoryStore())
    address = request.getfixturevalue("s3")
    return BucketStore(reach(new_bucket(address), address, tmp_path))


@pytest.fixture
def proxy(s3: str) -> Iterator[FaultyProxy]:
    """A proxy before it."""
    proxy = FaultyProxy(s3)
    yield proxy
    proxy.close()
