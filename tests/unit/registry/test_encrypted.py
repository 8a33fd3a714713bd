"""Encryption at rest: nothing readable on the disk, nothing altered out, no key but for one copy and one recipient."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidTag

from sealane.clock import ManualClock
from sealane.errors import DataLoss, FailedPrecondition, InvalidArgument, SealaneError, Unavailable
from sealane.security import encrypted_blob, suites
from sealane.security.encrypted_blob import CHUNK_BYTES, HEADER_BYTES, RECORD_BYTES, Records
from sealane_registry.blob_folder import FolderStore
from sealane_registry.blob_store import Stored
from sealane_registry.blobs import Blobs, Encryption
from sealane_registry.collection import drop_blobs
from sealane_registry.encrypted_copies import EncryptedForms, drop_in_the_clear, encrypted_key
from sealane_registry.plain_copies import PlainForms, plain_key
from sealane_registry.root_secret import PLACE, check_apart, root_secret
from sealane_registry.scrub import Scrub
from sealane_registry.spool import Spool
from sealane_registry.store import UploadRow
from sealane_registry.upkeep import Encrypting

CANARY = b"canary-" + bytes(range(97, 123)) * 8
CONTENT = CANARY + random.Random(3).randbytes(5 * CHUNK_BYTES // 2) + CANARY
SHA = hashlib.sha256(CONTENT).hexdigest()
KEY, ROOT = b"k" * 32, b"r" * 32
WHO, PROJECT = "spiffe://sealane/node/edge-1", "p"


@dataclass
class Site:
    root: Path

    def __post_init__(self) -> None:
        incoming = self.root / "incoming"
        self.spool = Spool(incoming, EncryptedForms(ROOT))
        self.store = FolderStore(self.root / "cas")
        self.blobs = Blobs(self.store, KEY, Encryption(ROOT, incoming))
        self.before = Blobs(self.store, KEY)
        self.old_spool = Spool(incoming, PlainForms(KEY))

    def path(self, sha256: str = SHA) -> Path:
        return self.root / "cas" / encrypted_key(sha256)

    def row(self, content: bytes = CONTENT, name: str = "u") -> UploadRow:
        return UploadRow("p", name, hashlib.sha256(content).hexdigest(), len(content), 0.0)

    def send(self, row: UploadRow, content: bytes, sizes: int = CHUNK_BYTES) -> None:
        offset = self.spool.open(row)
        while offset < len(content):
            offset = self.spool.append(row, offset, content[offset : offset + sizes])

    def put(self, content: bytes = CONTENT, name: str = "u") -> str:
        row = self.row(content, name)
        self.send(row, content)
        self.blobs.publish(self.spool.finish(row))
        self.spool.discard(name)
        return row.sha256

    def put_in_the_clear(self, content: bytes = CONTENT) -> str:
        row = self.row(content, "old")
        offset = self.old_spool.open(row)
        while offset < len(content):
            offset = self.old_spool.append(row, offset, content[offset : offset + CHUNK_BYTES])
        self.before.publish(self.old_spool.finish(row))
        self.old_spool.discard("old")
        return row.sha256

    def read(self, sha256: str = SHA, offset: int = 0, length: int = 0) -> bytes:
        return b"".join(data for _, data in self.blobs.read(sha256, offset, length))

    def on_disk(self, needle: bytes = CANARY) -> list[str]:
        files = [path for path in self.root.rglob("*") if path.is_file()]
        return [str(path) for path in files if needle in path.read_bytes()]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_nothing_readable_lies_on_the_disk_and_all_of_it_comes_out(site: Site) -> None:
    row = site.row()
    site.send(row, CONTENT)
    assert site.on_disk() == []
    site.blobs.publish(site.spool.finish(row))
    assert site.on_disk() == [] and site.blobs.has(SHA)
    assert site.read() == CONTENT
    for offset, length in ((10, 20), (0, 1), (CHUNK_BYTES - 5, 10), (CHUNK_BYTES, 0), (len(CONTENT), 0)):
        assert site.read(SHA, offset, length) == CONTENT[offset : offset + length if length else None]
    assert [item.sha256 for item in site.blobs.list()] == [SHA]
    assert sum(site.blobs.verify(SHA)) == len(CONTENT)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES])
def test_sizes_around_the_edges(site: Site, size: int) -> None:
    content = random.Random(size).randbytes(size)
    sha256 = site.put(content)
    assert site.read(sha256) == content
    stored = site.path(sha256).stat().st_size
    assert stored == encrypted_blob.copy_size(size)
    assert encrypted_blob.content_size(stored) == size


@pytest.mark.parametrize("seed", range(12))
def test_an_upload_goes_on_from_whatever_a_crash_left(site: Site, seed: int) -> None:
    rng = random.Random(seed)
    content = rng.randbytes(2 * CHUNK_BYTES + 1000)
    row, path = site.row(content), site.root / "incoming" / "u"
    held = site.spool.open(row)
    for _ in range(200):
        if held == len(content):
            break
        held = site.spool.append(row, held, content[held : held + rng.choice([100, 70_000, CHUNK_BYTES])])
        if rng.random() < 0.4:
            if held < len(content):
                length = path.stat().st_size
                os.truncate(path, max(HEADER_BYTES, length - rng.choice([0, 1, 7, 15, 16, 17, 5000])))
            site.spool = Spool(site.root / "incoming", EncryptedForms(ROOT))  # another process
            held = site.spool.open(row)
    site.blobs.publish(site.spool.finish(row))
    assert site.read(row.sha256) == content


def test_a_header_that_was_cut_is_made_anew(site: Site) -> None:
    row = site.row(b"abc")
    site.spool.open(row)
    os.truncate(site.root / "incoming" / "u", 7)
    site.spool = Spool(site.root / "incoming", EncryptedForms(ROOT))
    site.send(row, b"abc")
    site.blobs.publish(site.spool.finish(row))
    assert site.read(row.sha256) == b"abc"


def test_a_full_disk_loses_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    row = site.row()
    held = site.spool.append(row, site.spool.open(row), CONTENT[:1000])
    real, calls = os.pwrite, []

    def full(descriptor: int, data: bytes, offset: int) -> int:
        calls.append(offset)
        if len(calls) == 1:
            return real(descriptor, data[:100], offset)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(SealaneError):
        site.spool.append(row, held, CONTENT[1000:5000])
    monkeypatch.undo()
    assert site.spool.open(row) == 1000
    site.send(row, CONTENT)
    site.blobs.publish(site.spool.finish(row))
    assert site.read() == CONTENT


def test_another_content_than_promised_is_refused(site: Site) -> None:
    row = site.row()
    wrong = CONTENT[:-1] + b"!"
    site.send(row, wrong)
    with pytest.raises(FailedPrecondition) as told:
        site.spool.finish(row)
    assert told.value.reason == "DIGEST_MISMATCH"
    assert not (site.root / "incoming" / "u").exists()


@pytest.mark.parametrize("at", [0, 5, HEADER_BYTES, HEADER_BYTES + CHUNK_BYTES, HEADER_BYTES + RECORD_BYTES + 9, -1])
def test_what_was_altered_does_not_go_out(site: Site, at: int) -> None:
    site.put()
    data = bytearray(site.path().read_bytes())
    data[at] ^= 4
    site.path().write_bytes(data)
    for read in (site.blobs.read, site.blobs.read_encrypted):
        if not site.path().exists():
            site.path().write_bytes(data)
        got = bytearray()
        with pytest.raises(DataLoss) as told:
            for _, piece in read(SHA, 0, 0):
                got += piece
        assert told.value.reason == "BLOB_CORRUPT"
        assert len(got) <= RECORD_BYTES * 2 + HEADER_BYTES
        assert not site.path().exists() and not site.blobs.has(SHA)


def test_records_are_of_their_place_and_their_copy(site: Site) -> None:
    site.put()
    data = site.path().read_bytes()
    first, second = data[HEADER_BYTES : HEADER_BYTES + RECORD_BYTES], data[HEADER_BYTES + RECORD_BYTES :][:RECORD_BYTES]
    for other in (
        data[:HEADER_BYTES] + second + first + data[HEADER_BYTES + 2 * RECORD_BYTES :],
        data[: HEADER_BYTES + 2 * RECORD_BYTES],
        data[:HEADER_BYTES] + data[HEADER_BYTES + RECORD_BYTES :],
    ):
        site.path().write_bytes(other)
        with pytest.raises(DataLoss):
            site.read()
    assert site.put(name="again") == SHA  # the same content, another copy: another key, another ciphertext
    assert site.path().read_bytes()[HEADER_BYTES:] != data[HEADER_BYTES:]
    assert site.read() == CONTENT


def test_a_copy_and_its_key_give_the_content(site: Site) -> None:
    site.put()
    copy = b"".join(data for _, data in site.blobs.read_encrypted(SHA, 0, 0))
    assert copy == site.path().read_bytes()
    assert CANARY not in copy
    pair = suites.generate(suites.X25519)
    key = site.blobs.key_of(SHA, len(CONTENT), copy[:HEADER_BYTES])
    wrapped = encrypted_blob.release(key, (pair.suite, pair.public_key), WHO, (PROJECT, SHA))
    records = Records(encrypted_blob.take(wrapped, pair, WHO, (PROJECT, SHA)), SHA, len(CONTENT))
    body = copy[HEADER_BYTES:]
    parts = [body[start : start + RECORD_BYTES] for start in range(0, len(body), RECORD_BYTES)]
    assert b"".join(records.open(index, part) for index, part in enumerate(parts)) == CONTENT
    for who, artifact, to in (
        ("spiffe://sealane/node/edge-2", (PROJECT, SHA), pair),
        (WHO, ("q", SHA), pair),
        (WHO, (PROJECT, "0" * 64), pair),
        (WHO, (PROJECT, SHA), suites.generate(suites.X25519)),
    ):
        with pytest.raises(InvalidTag):
            encrypted_blob.take(wrapped, to, who, artifact)


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 1), (0, 25), (3, 5), (HEADER_BYTES, 0), (15, 40), (RECORD_BYTES, 100), (RECORD_BYTES + 25, 2 * RECORD_BYTES)],
)
def test_any_part_of_a_copy_can_be_read(site: Site, offset: int, length: int) -> None:
    site.put()
    copy = site.path().read_bytes()
    at = offset
    for start, piece in site.blobs.read_encrypted(SHA, offset, length):
        assert start == at and 0 < len(piece) <= CHUNK_BYTES + 64
        assert piece == copy[at : at + len(piece)]
        at += len(piece)
    assert at == (len(copy) if length == 0 else min(offset + length, len(copy)))


def test_the_key_of_one_copy_opens_no_other(site: Site) -> None:
    site.put()
    copy = site.path().read_bytes()
    other = Records(site.blobs.key_of(SHA, len(CONTENT), encrypted_blob.new_header()), SHA, len(CONTENT))
    with pytest.raises(InvalidTag):
        other.open(0, copy[HEADER_BYTES : HEADER_BYTES + RECORD_BYTES])
    with pytest.raises(InvalidArgument):
        site.blobs.key_of(SHA, len(CONTENT), b"SLE1" + bytes(15))
    with pytest.raises(FailedPrecondition) as told:
        site.before.key_of(SHA, len(CONTENT), copy[:HEADER_BYTES])
    assert told.value.reason == "NOT_ENCRYPTED"


def test_what_lay_in_the_clear_is_encrypted(site: Site) -> None:
    site.put_in_the_clear()
    assert site.on_disk() and site.read() == CONTENT  # it is served all the while
    assert Encrypting(site.blobs, 1e12).round()
    assert site.on_disk() == []
    assert site.read() == CONTENT
    assert [item.key for item in site.blobs.list()] == [encrypted_key(SHA)]
    assert list((site.root / "incoming").iterdir()) == []


def test_a_copy_that_is_asked_for_is_encrypted_at_once(site: Site) -> None:
    site.put_in_the_clear()
    copy = b"".join(data for _, data in site.blobs.read_encrypted(SHA, 0, 0))
    assert len(copy) == encrypted_blob.copy_size(len(CONTENT))
    assert site.on_disk() == []


def damage(site: Site, place: str) -> None:
    data = (site.root / "cas" / place).read_bytes()
    (site.root / "cas" / place).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def test_one_that_is_damaged_in_the_clear_goes_for_good(site: Site) -> None:
    site.put_in_the_clear()
    damage(site, plain_key(SHA))
    assert not Encrypting(site.blobs, 1e12).round()
    assert not site.blobs.has(SHA) and site.on_disk() == []
    assert Encrypting(site.blobs, 1e12).round()


def test_what_was_set_aside_in_the_clear_before_goes_and_copies_stay(site: Site) -> None:
    site.put_in_the_clear()
    damage(site, plain_key(SHA))
    with pytest.raises(DataLoss):
        b"".join(data for _, data in site.before.read(SHA, 0, 0))
    copied = site.put(b"another one")
    damage(site, encrypted_key(copied))
    with pytest.raises(DataLoss):
        site.read(copied)
    assert len(site.on_disk()) == 1
    assert Encrypting(site.blobs, 1e12).round()
    assert site.on_disk() == []
    assert [path.name[:64] for path in (site.root / "cas" / "corrupt").iterdir()] == [copied]


def test_an_upload_begun_in_the_clear_is_begun_again(site: Site) -> None:
    old, row = site.row(name="old"), site.row(name="new")
    site.old_spool.open(old)
    site.old_spool.append(old, 0, CONTENT[:CHUNK_BYTES])
    site.spool.open(row)
    site.spool.append(row, 0, CONTENT[:CHUNK_BYTES])
    drop_in_the_clear(site.root / "incoming")
    assert site.on_disk() == []
    assert (site.spool.open(old), site.spool.open(row)) == (0, CHUNK_BYTES)


def test_a_store_out_of_reach_is_tried_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(prefix: str) -> Iterator[Stored]:
        raise Unavailable("the store is out of reach")

    site.put_in_the_clear()
    with monkeypatch.context() as patch:
        patch.setattr(site.store, "list", away)
        assert not Encrypting(site.blobs, 1e12).round()
    assert Encrypting(site.blobs, 1e12).round() and site.on_disk() == []


def test_a_stop_leaves_the_clear_one_until_the_next_start(site: Site) -> None:
    site.put_in_the_clear()
    stopped = Encrypting(site.blobs, 1e12)
    stopped.stop()
    assert stopped.round()
    assert site.read() == CONTENT
    assert list((site.root / "incoming").iterdir()) == []
    assert [item.key for item in site.blobs.in_the_clear()] == [plain_key(SHA)]


def test_scrub_and_collection_see_copies(site: Site) -> None:
    site.put()
    other = site.put(b"other", "v")
    data = bytearray(site.path().read_bytes())
    data[-3] ^= 1
    site.path().write_bytes(data)
    found: list[str] = []
    scrub = Scrub(site.blobs, found.append, lambda seconds: True, 1e12, ManualClock())
    assert scrub.round() and found == [SHA]
    assert drop_blobs(site.blobs, ManualClock(), lambda sha256: True, grace=-1e12) == 1
    assert not site.blobs.has(other)


class TestRootSecret:
    def test_it_stays_and_moves_to_another_master_key_without_touching_a_blob(self, tmp_path: Path) -> None:
        store, first, second = FolderStore(tmp_path / "cas"), tmp_path / "a.key", tmp_path / "b.key"
        root = root_secret(store, first)
        assert root is not None and root == root_secret(store, first)
        sealed = (tmp_path / "cas" / PLACE).read_bytes()
        assert root not in sealed and first.read_bytes() not in sealed
        assert root_secret(store, second, first) == root
        assert root_secret(store, second) == root
        assert root_secret(store, second, first) == root  # the setting may stay
        with pytest.raises(FailedPrecondition) as told:
            root_secret(store, first)
        assert told.value.reason == "KEY_FILE_INVALID"

    def test_what_is_encrypted_is_not_begun_anew_without_its_key(self, tmp_path: Path) -> None:
        store, master = FolderStore(tmp_path / "cas"), tmp_path / "master.key"
        root_secret(store, master)
        with pytest.raises(FailedPrecondition) as told:
            root_secret(store, None)
        assert told.value.reason == "ARTIFACTS_ENCRYPTED"
        master.unlink()
        with pytest.raises(FailedPrecondition) as told:
            root_secret(store, master)
        assert told.value.reason == "KEY_FILE_MISSING"
        assert not master.exists()
        master.write_bytes(os.urandom(32))
        with pytest.raises(FailedPrecondition) as told:
            root_secret(store, master)
        assert told.value.reason == "KEY_FILE_INVALID"

    def test_without_one_nothing_is_made(self, tmp_path: Path) -> None:
        store = FolderStore(tmp_path / "cas")
        assert root_secret(store, None) is None
        assert list(store.list("keys/")) == []

    def test_a_key_beside_what_it_protects_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidArgument):
            check_apart(tmp_path / "data" / "keys" / "master.key", tmp_path / "data")
        check_apart(tmp_path / "keys" / "master.key", tmp_path / "data")


def test_a_key_that_is_released_is_bound_to_the_size(site: Site) -> None:
    site.put()
    header = site.path().read_bytes()[:HEADER_BYTES]
    row = replace(site.row(), size=1)
    assert site.blobs.key_of(SHA, row.size, header) != site.blobs.key_of(SHA, len(CONTENT), header)
