"""Blobs in an object store (S3, GCS, Azure) by obstore: whole objects appear, nothing half.

Errors of the store become ours: full is RESOURCE_EXHAUSTED, everything else that a retry may heal UNAVAILABLE.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import obstore
from obstore.exceptions import BaseError, NotFoundError, PermissionDeniedError, PreconditionError, UnauthenticatedError
from obstore.store import ObjectStore, from_url

from sealane.errors import DataLoss, InvalidArgument, ResourceExhausted, SealaneError, Unavailable
from sealane_registry.blob_store import Stored

#: Parts of an upload, of which two are in memory.
PART_BYTES = 8 << 20
_PIECE = 1 << 20
#: More cannot be copied by one request on S3.
_COPY_BYTES = 5 << 30
_SCHEMES = ("s3", "gs", "az")
_RETRY_SECONDS = 5.0
_FULL = (" 507", "QuotaExceeded", "InsufficientStorage", "Insufficient Storage", "XMinioStorageFull", "StorageFull")


@dataclass(frozen=True, slots=True)
class Access:
    """How the store is reached.

    Args:
        url: ``s3://bucket/prefix``, ``gs://bucket/prefix`` or ``az://container/prefix``.
        endpoint: ``https://host:port`` of a server that speaks the same protocol; empty for the provider's own.
        credentials: file with ``name=value`` lines, by obstore's names; None takes the provider's usual variables.
        allow_http: whether the endpoint may be plain HTTP.
        timeout: seconds for one request.
        retries: how often one request is tried again.
    """

    url: str
    endpoint: str = ""
    credentials: Path | None = None
    allow_http: bool = False
    timeout: float = 30.0
    retries: int = 3


def open_store(access: Access) -> ObjectStore:
    """The store behind a URL; nothing is asked of it yet.

    Raises:
        InvalidArgument: a URL, an endpoint or credentials that cannot be used.
    """
    scheme = access.url.partition("://")[0]
    if scheme not in _SCHEMES or not access.url.partition("://")[2].strip("/"):
        raise InvalidArgument(
            f"the artifact store {access.url!r} must begin with s3://, gs:// or az:// and name a bucket",
            reason="SETTING_INVALID",
        )
    if access.endpoint.startswith("http://") and not access.allow_http:
        raise InvalidArgument(
            "the endpoint of the artifact store is plain HTTP; use https, or set "
            "SEALANE_REGISTRY_ARTIFACT_STORE_ALLOW_HTTP=1 where the network is yours alone",
            reason="SETTING_INVALID",
        )
    config: dict[str, Any] = _credentials(access.credentials)
    if access.endpoint:
        config["google_base_url" if scheme == "gs" else f"{'aws' if scheme == 's3' else 'azure'}_endpoint"] = (
            access.endpoint
        )
    options: dict[str, Any] = {
        "timeout": timedelta(seconds=access.timeout),
        "connect_timeout": timedelta(seconds=min(access.timeout, 5.0)),
        "allow_http": access.allow_http,
    }
    backoff = {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2}
    retry = {"max_retries": access.retries, "retry_timeout": timedelta(seconds=60), "backoff": backoff}
    try:
        return cast(
            ObjectStore,
            from_url(access.url, config=config, client_options=options, retry_config=retry),  # type: ignore[call-overload]  # one call for three kinds of store
        )
    except (BaseError, ValueError) as error:
        raise InvalidArgument(
            f"the artifact store {access.url!r} cannot be used; check its URL and credentials", reason="SETTING_INVALID"
        ) from error


def _credentials(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    lines = [line.strip() for line in path.read_text().splitlines()]
    return {
        name.strip(): value.strip()
        for name, _, value in (line.partition("=") for line in lines if line and not line.startswith("#"))
    }


class BucketStore:
    """Implements :class:`sealane_registry.blob_store.BlobStore`.

    Args:
        store: obstore's.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def put(self, key: str, source: Path) -> None:
        """See :class:`BlobStore`. A large file goes in parts, which are seen together once all are there."""
        try:
            with _translated():
                obstore.put(self._store, key, source, chunk_size=PART_BYTES, max_concurrency=2)
        except DataLoss as error:  # the request that joins the parts was repeated: its first answer was lost
            raise Unavailable("the artifact store lost an answer; try again", retry_after=0.0) from error

    def put_bytes(self, key: str, data: bytes) -> None:
        """See :class:`BlobStore`."""
        with _translated():
            obstore.put(self._store, key, data, use_multipart=False)

    def stat(self, key: str) -> Stored | None:
        """See :class:`BlobStore`."""
        try:
            with _translated():
                return _stored(obstore.head(self._store, key))
        except DataLoss:
            return None

    def open(self, key: str) -> _OpenObject | None:
        """See :class:`BlobStore`."""
        stored = self.stat(key)
        return None if stored is None else _OpenObject(self._store, stored)

    def move(self, stored: Stored, key: str) -> bool:
        """See :class:`BlobStore`. A copy and a deletion."""
        found = self.stat(stored.key)
        if found is None or found.tag != stored.tag:
            return False
        with _translated():
            if stored.size < _COPY_BYTES:
                obstore.copy(self._store, stored.key, key)
            else:
                through = _OpenObject(self._store, stored).read(0, stored.size)
                obstore.put(self._store, key, through, chunk_size=PART_BYTES, max_concurrency=2)
        self.delete(stored.key)
        return True

    def delete(self, key: str) -> None:
        """See :class:`BlobStore`."""
        with contextlib.suppress(DataLoss), _translated():
            obstore.delete(self._store, key)

    def list(self, prefix: str) -> Iterator[Stored]:
        """See :class:`BlobStore`."""
        with _translated():
            for page in obstore.list(self._store, prefix.rstrip("/"), chunk_size=500):
                yield from (_stored(each) for each in page)


class _OpenObject:
    """Implements :class:`sealane_registry.blob_store.OpenBlob`."""

    def __init__(self, store: ObjectStore, stored: Stored) -> None:
        self._store = store
        self.stored = stored

    def read(self, offset: int, length: int) -> Iterator[bytes]:
        """See :class:`OpenBlob`. A stream that breaks is taken up again where it broke."""
        end, failures = min(offset + length, self.stored.size), 0
        while offset < end:
            try:
                with _translated():
                    for piece in self._pieces(offset, end):
                        yield piece
                        offset, failures = offset + len(piece), 0
                    return
            except Unavailable:
                failures += 1
                if failures > 3:
                    raise

    def _pieces(self, offset: int, end: int) -> Iterator[bytes]:
        tag = self.stored.tag.rpartition(" ")[0]
        options: Any = {"range": (offset, end)} | ({"if_match": tag} if tag else {})
        for piece in obstore.get(self._store, self.stored.key, options=options).stream(min_chunk_size=_PIECE):
            yield bytes(piece)

    def close(self) -> None:
        """See :class:`OpenBlob`."""


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:  # obstore's NotFoundError is one on some platforms
        raise _translate(error) from error
    except BaseError as error:
        raise _translate(error) from error


def _translate(error: Exception) -> SealaneError:
    text = str(error)
    if isinstance(error, NotFoundError | FileNotFoundError) and "NoSuchBucket" not in text:
        return DataLoss("the artifact's file is missing; upload it again", reason="BLOB_MISSING")
    if any(sign in text for sign in _FULL):
        return ResourceExhausted(
            "the artifact store is full; free space and go on", reason="STORE_FULL", retry_after=30.0
        )
    if isinstance(error, PreconditionError):
        return Unavailable("the artifact was replaced while it was read; ask again", retry_after=0.0)
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return Unavailable(
            "the artifact store refuses the registry; have the operator check its credentials",
            reason="STORE_REFUSED",
            retry_after=30.0,
        )
    return Unavailable(
        "the artifact store is out of reach; try again", reason="STORE_UNAVAILABLE", retry_after=_RETRY_SECONDS
    )


def _stored(meta: Any) -> Stored:
    modified = meta["last_modified"].timestamp()
    return Stored(meta["path"], meta["size"], modified, f"{meta['e_tag'] or ''} {modified}")
