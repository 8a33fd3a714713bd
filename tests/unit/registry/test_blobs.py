"""Uploads and blobs: nothing half done becomes visible, nothing altered goes out."""

from __future__ import annotations

import errno
import hashlib
import os
import random
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from sealane.clock import ManualClock
from sealane.errors import Aborted, DataLoss, FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable
from sealane_registry import blob_folder
from sealane_registry.blob_folder import FolderStore
from sealane_registry.blobs import Blobs
from sealane_registry.chunk_tags import CHUNK_BYTES, ChunkHasher, ChunkTags
from sealane_registry.plain_copies import PlainForms
from sealane_registry.scrub import Scrub
from sealane_registry.spool import MAX_KEPT, Spool
from sealane_registry.store import UploadRow

CONTENT = random.Random(1).randbytes(3 * CHUNK_BYTES // 2)
SHA = hashlib.sha256(CONTENT).hexdigest()
KEY = b"k" * 32


@dataclass
class Site:
    root: Path

    def __post_init__(self) -> None:
        self.spool = Spool(self.root / "incoming", PlainForms(KEY))
        self.store = FolderStore(self.root / "cas")
        self.blobs = Blobs(self.store, KEY)

    def path(self, sha256: str = SHA) -> Path:
        return self.root / "cas" / "sha256" / sha256[:2] / sha256

    def send(self, content: bytes = CONTENT, name: str = "u", until: int | None = None) -> UploadRow:
        row = UploadRow("p", name, hashlib.sha256(content).hexdigest(), len(content), 0.0)
        offset = self.spool.open(row)
        end = len(content) if until is None else until
        while offset < end:
            offset = self.spool.append(row, offset, content[offset : min(offset + CHUNK_BYTES, end)])
        return row

    def publish(self, row: UploadRow) -> None:
        self.blobs.publish(self.spool.finish(row))
        self.spool.discard(row.upload)

    def put(self, content: bytes = CONTENT, name: str = "u") -> str:
        row = self.send(content, name)
        self.publish(row)
        return row.sha256

    def read(self, sha256: str = SHA, offset: int = 0, length: int = 0) -> bytes:
        return b"".join(data for _, data in self.blobs.read(sha256, offset, length))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_what_goes_in_comes_out(site: Site) -> None:
    row = site.send()
    assert not site.blobs.has(SHA)
    site.publish(row)
    assert site.read() == CONTENT
    for offset, length in ((10, 20), (0, 1), (CHUNK_BYTES - 5, 10), (CHUNK_BYTES, 0), (len(CONTENT), 0)):
        assert site.read(SHA, offset, length) == CONTENT[offset : offset + length if length else None]
    assert not list((site.root / "incoming").iterdir())
    with pytest.raises(Aborted):  # whether it is stored for this project, the records tell
        site.spool.finish(row)


def test_an_empty_file_is_a_file(site: Site) -> None:
    assert site.read(site.put(b"")) == b""


def test_a_cut_upload_goes_on_where_the_server_is(site: Site) -> None:
    row = site.send(until=100)
    with pytest.raises(FailedPrecondition, match="offset 100"):
        site.spool.finish(row)
    for wrong in (0, 99, 101):
        with pytest.raises(Aborted) as caught:
            site.spool.append(row, wrong, b"x")
        assert caught.value.metadata["offset"] == "100"
    assert site.spool.open(row) == 100
    site.publish(site.send())
    assert site.read() == CONTENT


def test_a_restart_in_the_middle_forgets_nothing(site: Site) -> None:
    site.send(until=100)
    again = Site(site.root)
    assert again.spool.open(UploadRow("p", "u", SHA, len(CONTENT), 0.0)) == 100
    again.put()
    assert again.read() == CONTENT


def test_digests_of_few_uploads_alone_are_in_memory_and_the_others_are_right_too(site: Site) -> None:
    contents = [bytes([index]) * 10 for index in range(MAX_KEPT + 5)]
    rows = [site.send(content, f"u{index}", until=5) for index, content in enumerate(contents)]
    assert len(site.spool._kept) == MAX_KEPT
    for row, content in zip(rows, contents, strict=True):
        site.publish(site.send(content, row.upload))
        assert site.read(row.sha256) == content


def test_more_than_declared_and_a_wrong_digest_are_refused(site: Site) -> None:
    row = UploadRow("p", "u", SHA, 2, 0.0)
    site.spool.open(row)
    with pytest.raises(InvalidArgument, match="declared"):
        site.spool.append(row, 0, b"123")
    site.spool.append(row, 0, b"12")
    with pytest.raises(FailedPrecondition, match="digest"):
        site.spool.finish(row)
    assert not site.blobs.has(SHA)
    assert site.spool.open(row) == 0  # dropped: it starts anew


def test_an_upload_that_was_not_begun_takes_nothing(site: Site) -> None:
    with pytest.raises(Aborted):
        site.spool.append(UploadRow("p", "never", SHA, 1, 0.0), 0, b"x")


@pytest.mark.parametrize("damage", ["truncate", "longer", "remove", "swap chunks", "other"])
def test_a_damaged_blob_never_goes_out_and_can_be_replaced(site: Site, damage: str) -> None:
    content = CONTENT[:CHUNK_BYTES] + CONTENT[::-1][:CHUNK_BYTES]
    sha256 = site.put(content)
    path = site.path(sha256)
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(
            {
                "truncate": content[:-1],
                "longer": content + b"x",
                "swap chunks": content[CHUNK_BYTES:] + content[:CHUNK_BYTES],
                "other": bytes(len(content)),
            }[damage]
        )
    got = b""
    with pytest.raises(DataLoss) as lost:
        for _, data in site.blobs.read(sha256, 0, 0):
            got += data
    assert content.startswith(got) and len(got) < len(content)
    assert not site.blobs.has(sha256)
    kept = list((site.root / "cas" / "corrupt").glob("*")) if damage != "remove" else []
    assert len(kept) == (damage != "remove")
    assert lost.value.reason == ("BLOB_MISSING" if damage == "remove" else "BLOB_CORRUPT")
    site.put(content, "again")
    assert site.read(sha256) == content


def test_one_bit_flipped_in_each_of_100_blobs(site: Site) -> None:
    rng = random.Random(10)
    contents = [rng.randbytes(rng.choice((1, 1000, CHUNK_BYTES, CHUNK_BYTES + 7, 2 * CHUNK_BYTES))) for _ in range(100)]
    for index, content in enumerate(contents):
        sha256 = site.put(content, f"u{index}")
        bit = rng.randrange(8 * len(content))
        flip(site.path(sha256), bit)
        chunk = bit // 8 // CHUNK_BYTES
        for other in set(range(-(-len(content) // CHUNK_BYTES))) - {chunk}:  # the rest is as it was, and says so
            start = other * CHUNK_BYTES
            assert site.read(sha256, start, CHUNK_BYTES) == content[start : start + CHUNK_BYTES]
        offset, length = (0, 0) if index % 2 else (bit // 8, 1)  # whole, and as a range of that byte
        got = b""
        with pytest.raises(DataLoss):
            for _, data in site.blobs.read(sha256, offset, length):
                got += data
        assert content.startswith(got)
        assert not site.blobs.has(sha256), "set aside"
        site.put(content, f"again{index}")
        assert site.read(sha256) == content
    assert len(list((site.root / "cas" / "corrupt").iterdir())) == 100


@pytest.mark.parametrize("what", ["flip", "remove", "empty", "another blob's"])
def test_damaged_chunk_tags_cost_a_reading_and_no_blob(site: Site, what: str) -> None:
    site.put()
    beside = site.path().with_name(SHA + ".chunks")
    whole = beside.read_bytes()
    if what == "flip":
        flip(beside, 8 * 60)
    elif what == "remove":
        beside.unlink()
    elif what == "empty":
        beside.write_bytes(b"")
    else:
        other = site.put(CONTENT[::-1], "other")
        beside.write_bytes(site.path(other).with_name(other + ".chunks").read_bytes())
    assert site.read(SHA, 5, 5) == CONTENT[5:10]
    assert beside.read_bytes() == whole


def forge(site: Site, key: bytes) -> bytes:
    """Another content under the digest, with tags under a key."""
    forged = bytes(len(CONTENT))
    hasher = ChunkHasher(ChunkTags(key, SHA, len(forged)))
    hasher.update(forged)
    site.path().write_bytes(forged)
    site.path().with_name(SHA + ".chunks").write_bytes(hasher.encoded())
    return forged


def test_who_can_write_into_the_store_alone_forges_no_range(site: Site) -> None:
    site.put()
    forge(site, b"x" * 32)
    with pytest.raises(DataLoss):
        site.read(SHA, 5, 1)


def test_what_is_forged_with_the_key_of_the_tags_is_found_by_the_scrub(site: Site) -> None:
    """Until then, who receives it finds that its digest is another."""
    site.put()
    forge(site, KEY)
    with pytest.raises(DataLoss):
        list(site.blobs.verify(SHA))
    assert not site.blobs.has(SHA)


@pytest.mark.parametrize("plant", ["symlink", "hard link", "folder", "fifo", "link for a folder"])
def test_what_is_planted_in_the_store_is_neither_read_nor_followed(site: Site, plant: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / SHA).write_bytes(CONTENT)  # even the right content
    place = site.path()
    place.parent.parent.mkdir(parents=True, exist_ok=True)
    if plant == "link for a folder":
        place.parent.symlink_to(outside)
        row = site.send()
        with pytest.raises(Unavailable):
            site.publish(row)
        assert not site.blobs.has(SHA)
        assert (outside / SHA).read_bytes() == CONTENT and len(list(outside.iterdir())) == 1
        return
    place.parent.mkdir()
    if plant == "symlink":
        place.symlink_to(outside / SHA)
    elif plant == "hard link":
        os.link(outside / SHA, place)
    elif plant == "folder":
        place.mkdir()
    else:
        os.mkfifo(place)
    if plant == "hard link":
        (outside / SHA).write_bytes(bytes(len(CONTENT)))  # altered through its other name
    else:
        assert not site.blobs.has(SHA)
    with pytest.raises(DataLoss):
        site.read()
    if plant != "folder":
        site.put()
        assert site.read() == CONTENT
        (outside / SHA).write_bytes(b"altered")
        assert site.read() == CONTENT


def test_a_link_planted_for_an_upload_is_not_written_through(site: Site, tmp_path: Path) -> None:
    row = site.send(until=10)
    Site(site.root)
    target = tmp_path / "precious"
    target.write_bytes(b"0123456789")
    (site.root / "incoming" / "u").unlink()
    (site.root / "incoming" / "u").symlink_to(target)
    with pytest.raises(Unavailable):
        site.spool.append(row, 10, b"evil")
    assert target.read_bytes() == b"0123456789"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_takes_no_part_of_a_chunk(site: Site, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    row = site.send(until=CHUNK_BYTES)
    real, calls = os.pwrite, 0

    def full(descriptor: int, data: bytes, offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError(number, "full")
        return real(descriptor, data[:1000], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(ResourceExhausted) as refused:
            site.spool.append(row, CHUNK_BYTES, CONTENT[CHUNK_BYTES:])
    assert refused.value.retry_after
    assert (site.root / "incoming" / "u").stat().st_size == CHUNK_BYTES
    site.publish(site.send())
    assert site.read() == CONTENT


def test_what_a_full_disk_did_not_take_is_not_in_the_digest(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    row = site.send(until=CHUNK_BYTES)

    def full(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(ResourceExhausted):
            site.spool.append(row, CHUNK_BYTES, CONTENT[CHUNK_BYTES:])
    rest = len(CONTENT) - CHUNK_BYTES
    site.spool.append(row, CHUNK_BYTES, bytes(rest))  # as many bytes, and others
    with pytest.raises(FailedPrecondition) as refused:
        site.spool.finish(row)
    assert refused.value.reason == "DIGEST_MISMATCH"


def test_a_disk_that_fails_to_sync_has_the_upload_start_anew(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    row = site.send()

    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(blob_folder.os, "fsync", failing)
        with pytest.raises(Unavailable):
            site.spool.finish(row)
    assert not site.blobs.has(SHA)
    assert site.spool.open(row) == 0, "what was in memory may be lost, and a second sync would not tell"


def test_half_made_files_of_a_crash_are_swept(site: Site) -> None:
    site.put()
    (site.path().with_name(".making-1234")).write_bytes(b"half")
    assert [blob.sha256 for blob in Site(site.root).blobs.list()] == [SHA]
    assert not list(site.path().parent.glob(".making-*"))


def test_scrub_sets_aside_what_nobody_asked_for(site: Site) -> None:
    digests = [site.put(bytes([index]) * 100, f"u{index}") for index in range(5)]
    flip(site.path(digests[2]), 3)
    found: list[str] = []
    waited: list[float] = []
    scrub = Scrub(site.blobs, found.append, lambda seconds: not waited.append(seconds), 1000.0, ManualClock())
    assert scrub.round()
    assert found == [digests[2]] and not site.blobs.has(digests[2])
    assert (scrub.counts.blobs, scrub.counts.corrupt, scrub.counts.rounds) == (4, 1, 1)
    assert sum(waited) == pytest.approx(0.4), "100 bytes at 1000 a second, four times"
    assert not Scrub(site.blobs, found.append, lambda seconds: False, 1.0, ManualClock()).round()


def test_a_blob_that_nobody_has_is_removed_and_another_is_not(site: Site) -> None:
    site.put()
    (blob,) = site.blobs.list()
    assert not site.blobs.remove(blob, lambda: False)
    assert site.blobs.has(SHA)
    assert not site.blobs.remove(replace(blob, modified=blob.modified - 1), lambda: True), "published since"
    assert site.blobs.remove(blob, lambda: True)
    assert not site.blobs.has(SHA)
    assert not [path for path in (site.root / "cas").rglob("*") if path.is_file()]


class _Crashed(Exception):
    """The process ends here."""


def cut_short(site: Site) -> None:
    """A removal that ends between the move out of sight and the second question."""
    (blob,) = site.blobs.list()
    answers = [True]

    def free() -> bool:
        if not answers:
            raise _Crashed
        return answers.pop()

    with pytest.raises(_Crashed):
        site.blobs.remove(blob, free)
    assert not site.blobs.has(SHA) and list(site.store.list("trash/"))


def test_a_removal_that_a_crash_cut_short_is_ended_at_the_next_start(site: Site) -> None:
    site.put()
    cut_short(site)
    asked: list[str] = []
    site.blobs.empty_trash(lambda sha256: not asked.append(sha256))
    assert asked == [SHA]
    assert not [path for path in (site.root / "cas").rglob("*") if path.is_file()]


def test_what_was_recorded_before_a_crash_cut_its_removal_short_comes_back(site: Site) -> None:
    site.put()
    cut_short(site)
    site.blobs.empty_trash(lambda sha256: sha256 != SHA)
    assert site.read() == CONTENT and not list(site.store.list("trash/"))


def test_what_is_recorded_while_it_is_removed_comes_back(site: Site) -> None:
    site.put()
    (blob,) = site.blobs.list()
    answers = [True, False]
    assert not site.blobs.remove(blob, lambda: answers.pop(0))
    assert site.read() == CONTENT


def test_what_is_published_while_it_is_removed_stays(site: Site) -> None:
    site.put()
    (blob,) = site.blobs.list()
    answers = [True, True]

    def free() -> bool:
        if len(answers) == 1:  # the old one is out of sight: another upload publishes
            site.put(name="again")
        return answers.pop(0)

    site.blobs.remove(blob, free)
    assert site.read() == CONTENT


def test_a_blob_that_was_healed_is_not_set_aside_for_what_its_predecessor_was(site: Site) -> None:
    site.put()
    flip(site.path(), 8 * (CHUNK_BYTES + 5))
    reading = site.blobs.read(SHA, 0, 0)
    next(reading)
    site.put(name="again")
    with pytest.raises(DataLoss):
        list(reading)
    assert site.read() == CONTENT
