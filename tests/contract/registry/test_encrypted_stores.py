"""Encrypted artifacts in every store: what lies there is unreadable, what differs never goes out."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from sealane.errors import DataLoss, FailedPrecondition
from sealane.security import encrypted_blob
from sealane.security.encrypted_blob import CHUNK_BYTES, HEADER_BYTES
from sealane_registry.blob_folder import FolderStore
from sealane_registry.blob_objects import PART_BYTES
from sealane_registry.blob_store import BlobStore, read_all
from sealane_registry.blobs import Blobs, Encryption
from sealane_registry.encrypted_copies import EncryptedForms, encrypted_key
from sealane_registry.plain_copies import PlainForms, plain_key
from sealane_registry.root_secret import root_secret
from sealane_registry.spool import Forms, Spool
from sealane_registry.store import UploadRow

KEY, ROOT = b"k" * 32, b"r" * 32
CANARY = b"canary-" * 40
#: Parts of a bucket's upload: more than one.
CONTENT = CANARY + random.Random(7).randbytes(PART_BYTES + CHUNK_BYTES // 2) + CANARY
SHA = hashlib.sha256(CONTENT).hexdigest()


class Site:
    """Blobs that are encrypted, and those of before, in one store."""

    def __init__(self, store: BlobStore, folder: Path) -> None:
        self.store, self.folder = store, folder
        self.blobs = Blobs(store, KEY, Encryption(ROOT, folder))
        self.before = Blobs(store, KEY)

    def put(self, blobs: Blobs, forms: Forms) -> None:
        spool = Spool(self.folder, forms)
        row = UploadRow("p", "u", SHA, len(CONTENT), 0.0)
        offset = spool.open(row)
        while offset < len(CONTENT):
            offset = spool.append(row, offset, CONTENT[offset : offset + CHUNK_BYTES])
        blobs.publish(spool.finish(row))
        spool.discard(row.upload)

    def read(self) -> bytes:
        return b"".join(data for _, data in self.blobs.read(SHA, 0, 0))

    def stored(self) -> list[str]:
        return sorted(stored.key for stored in self.store.list(""))


@pytest.fixture
def site(blob_store: BlobStore, tmp_path: Path) -> Site:
    return Site(blob_store, tmp_path / "incoming")


def test_what_lies_there_is_unreadable_and_comes_out_whole(site: Site) -> None:
    site.put(site.blobs, EncryptedForms(ROOT))
    assert site.stored() == [encrypted_key(SHA)]
    stored = read_all(site.store, encrypted_key(SHA))
    assert stored is not None and CANARY not in stored and len(stored) == encrypted_blob.copy_size(len(CONTENT))
    assert site.read() == CONTENT
    middle = b"".join(data for _, data in site.blobs.read(SHA, CHUNK_BYTES - 5, CHUNK_BYTES))
    assert middle == CONTENT[CHUNK_BYTES - 5 : 2 * CHUNK_BYTES - 5]
    assert b"".join(data for _, data in site.blobs.read_encrypted(SHA, 0, 0)) == stored


def test_a_byte_that_differs_never_goes_out(site: Site) -> None:
    site.put(site.blobs, EncryptedForms(ROOT))
    stored = bytearray(read_all(site.store, encrypted_key(SHA)) or b"")
    stored[HEADER_BYTES + CHUNK_BYTES + 100] ^= 1
    site.store.put_bytes(encrypted_key(SHA), bytes(stored))
    sent = b""
    with pytest.raises(DataLoss) as lost:
        for _, data in site.blobs.read(SHA, 0, 0):
            sent += data
    assert lost.value.reason == "BLOB_CORRUPT" and sent == CONTENT[:CHUNK_BYTES]
    assert not site.blobs.has(SHA) and CANARY not in b"".join(read_all(site.store, key) or b"" for key in site.stored())
    site.put(site.blobs, EncryptedForms(ROOT))
    assert site.read() == CONTENT


def test_those_of_before_are_encrypted_and_leave_nothing_readable(site: Site) -> None:
    site.put(site.before, PlainForms(KEY))
    assert plain_key(SHA) in site.stored()
    assert site.read() == CONTENT
    site.blobs.encrypt(SHA)
    assert site.stored() == [encrypted_key(SHA)] and site.read() == CONTENT
    assert not list(site.folder.iterdir())


def test_a_removal_that_a_crash_cut_short_is_ended_or_undone(site: Site) -> None:
    site.put(site.blobs, EncryptedForms(ROOT))
    for kept in (True, False):
        stored = site.store.stat(encrypted_key(SHA))
        assert stored is not None and site.store.move(stored, f"trash/{stored.key}.0")
        site.blobs.empty_trash(lambda sha256, kept=kept: sha256 == SHA and not kept)  # type: ignore[misc]
        assert site.stored() == [encrypted_key(SHA)] * kept
        assert site.blobs.has(SHA) == kept


def test_the_secret_opens_with_its_master_key_alone(blob_store: BlobStore, tmp_path: Path) -> None:
    master, wrong = tmp_path / "master", tmp_path / "wrong"
    root = root_secret(blob_store, master)
    assert root is not None and root_secret(blob_store, master) == root
    assert root not in b"".join(read_all(blob_store, stored.key) or b"" for stored in blob_store.list(""))
    root_secret(FolderStore(tmp_path / "another"), wrong)
    for key, reason in (
        (None, "ARTIFACTS_ENCRYPTED"),
        (wrong, "KEY_FILE_INVALID"),
        (tmp_path / "x", "KEY_FILE_MISSING"),
    ):
        with pytest.raises(FailedPrecondition) as refused:
            root_secret(blob_store, key)
        assert refused.value.reason == reason
    assert root_secret(blob_store, wrong, former=master) == root
    assert root_secret(blob_store, wrong) == root
