"""A server for object stores, one for the session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from object_servers import MOTO, FaultyProxy, s3_server


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
