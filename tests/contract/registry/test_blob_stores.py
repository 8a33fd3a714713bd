"""One suite for all stores: the folder, objects in memory, and a bucket of a real S3 server."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import pytest
from obstore.store import AzureStore, GCSStore, S3Store

from sealane.errors import InvalidArgument, SealaneError, Unavailable
from sealane_registry.blob_objects import PART_BYTES, Access, open_store
from sealane_registry.blob_store import BlobStore, read_all

SMALL = random.Random(3).randbytes(1000)
#: More parts than one.
LARGE = random.Random(4).randbytes(2 * PART_BYTES + 12_345)
KEY = "sha256/ab/abcd"


@pytest.fixture
def store(blob_store: BlobStore) -> BlobStore:
    return blob_store


def put(store: BlobStore, tmp_path: Path, content: bytes, key: str = KEY) -> None:
    source = tmp_path / "source"
    source.unlink(missing_ok=True)
    source.write_bytes(content)
    store.put(key, source)
    assert source.read_bytes() == content, "the source stays"


@pytest.mark.parametrize("content", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
def test_what_is_put_is_there_whole(store: BlobStore, tmp_path: Path, content: bytes) -> None:
    assert store.stat(KEY) is None and store.open(KEY) is None
    before = time.time()
    put(store, tmp_path, content)
    found = store.stat(KEY)
    assert found is not None and found.size == len(content) and found.key == KEY
    assert abs(found.modified - before) < 60
    assert read_all(store, KEY) == content


def test_ranges(store: BlobStore, tmp_path: Path) -> None:
    put(store, tmp_path, LARGE)
    opened = store.open(KEY)
    assert opened is not None
    for offset, length in ((0, 1), (5, PART_BYTES), (len(LARGE) - 3, 3), (len(LARGE) - 3, 100), (10, 0)):
        assert b"".join(opened.read(offset, length)) == LARGE[offset : offset + length]
    opened.close()


def test_a_later_one_takes_the_place_and_is_another(store: BlobStore, tmp_path: Path) -> None:
    put(store, tmp_path, SMALL)
    old, first = store.open(KEY), store.stat(KEY)
    put(store, tmp_path, LARGE)
    second = store.stat(KEY)
    assert first is not None and second is not None and first.tag != second.tag
    assert read_all(store, KEY) == LARGE
    assert old is not None
    try:  # what was opened goes on being itself, or says that it is gone: never bytes of both
        assert b"".join(old.read(0, len(SMALL))) == SMALL
    except Unavailable:
        pass
    finally:
        old.close()
    store.put_bytes(KEY, b"few")
    assert read_all(store, KEY) == b"few"


def test_what_is_listed(store: BlobStore, tmp_path: Path) -> None:
    for key in ("sha256/ab/one", "sha256/cd/two", "trash/three"):
        put(store, tmp_path, SMALL, key)
    assert sorted(found.key for found in store.list("sha256/")) == ["sha256/ab/one", "sha256/cd/two"]
    assert all(found.size == len(SMALL) for found in store.list("sha256/"))
    assert {found.tag for found in store.list("trash/")} == {store.stat("trash/three").tag}  # type: ignore[union-attr]
    assert not list(store.list("nothing/"))


def test_what_is_deleted_is_gone_and_may_be_deleted_again(store: BlobStore, tmp_path: Path) -> None:
    put(store, tmp_path, SMALL)
    store.delete(KEY)
    store.delete(KEY)
    assert store.stat(KEY) is None and not list(store.list("sha256/"))


def test_a_move_takes_what_was_found_and_nothing_newer(store: BlobStore, tmp_path: Path) -> None:
    put(store, tmp_path, SMALL)
    found = store.stat(KEY)
    assert found is not None
    assert store.move(found, "trash/x") and store.stat(KEY) is None
    assert read_all(store, "trash/x") == SMALL
    assert not store.move(found, "trash/y") and store.stat("trash/y") is None
    put(store, tmp_path, LARGE)
    assert not store.move(found, "trash/y")
    assert read_all(store, KEY) == LARGE and store.stat("trash/y") is None


def test_readers_see_one_or_the_other_while_it_is_replaced(store: BlobStore, tmp_path: Path) -> None:
    versions = [bytes([value]) * 100_000 for value in range(4)]
    put(store, tmp_path, versions[0])
    done, seen = threading.Event(), list[bytes | None]()

    def read() -> None:
        while not done.is_set():
            try:
                seen.append(read_all(store, KEY))
            except SealaneError as error:
                assert isinstance(error, Unavailable)  # replaced while it was read

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for version in versions * 5:
        put(store, tmp_path, version)
    done.set()
    for reader in readers:
        reader.join()
    assert seen and all(content in versions for content in seen)


def test_stores_by_their_url(tmp_path: Path) -> None:
    """GCS and Azure take the same way through obstore; no server of theirs is asked here."""
    keys = tmp_path / "gcs.json"
    keys.write_text('{"type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "t"}')
    azure, google = tmp_path / "azure", tmp_path / "google"
    azure.write_text("# by obstore's names\nazure_storage_account_name=a\nazure_storage_account_key=a2V5\n")
    google.write_text(f"google_application_credentials={keys}\n")
    assert isinstance(open_store(Access("s3://bucket/prefix")), S3Store)
    assert isinstance(open_store(Access("gs://bucket/prefix", credentials=google)), GCSStore)
    store = open_store(Access("az://container/prefix", credentials=azure))
    assert isinstance(store, AzureStore) and store.prefix == "prefix"


@pytest.mark.parametrize(
    "access",
    [
        Access("ftp://bucket"),
        Access("s3://"),
        Access("bucket"),
        Access("s3://bucket", endpoint="http://127.0.0.1:1"),
        Access("file:///etc"),
    ],
    ids=lambda access: access.url + access.endpoint,
)
def test_stores_that_cannot_be(access: Access) -> None:
    with pytest.raises(InvalidArgument):
        open_store(access)
