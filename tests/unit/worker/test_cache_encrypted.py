"""The encrypted cache: a stolen disk holds nothing readable, memory holds it only while somebody needs it."""

from __future__ import annotations

import errno
import hashlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealane.errors import DataLoss, FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable
from sealane.security.encrypted_blob import CHUNK_BYTES, HEADER_BYTES, Records, copy_key, new_header
from sealane.security.key_file import KeyFile
from sealane_worker import cache_encrypted
from sealane_worker.cache import ArtifactCache, Blob
from sealane_worker.cache_encrypted import EncryptedCache, memory_folder, wipe

CANARY = b"canary-" + bytes(range(97, 123)) * 4
WEIGHTS = CANARY + random.Random(2).randbytes(CHUNK_BYTES + 500) + CANARY
ROOT = b"r" * 32


class Registry:
    """Encrypted copies by digest, and what was asked for."""

    def __init__(self, *contents: bytes) -> None:
        self.contents = {hashlib.sha256(content).hexdigest(): content for content in contents}
        self.copies = {digest: self.encrypt(content) for digest, content in self.contents.items()}
        self.fetched: list[str] = []
        self.released: list[str] = []
        self.away = False

    @staticmethod
    def encrypt(content: bytes) -> bytes:
        digest, header = hashlib.sha256(content).hexdigest(), new_header()
        records = Records(copy_key(ROOT, header, digest, len(content)), digest, len(content))
        chunks = [content[start : start + CHUNK_BYTES] for start in range(0, len(content), CHUNK_BYTES)]
        return header + b"".join(records.seal(index, chunk) for index, chunk in enumerate(chunks))

    def __call__(self, blob: Blob) -> Iterator[bytes]:
        raise AssertionError("an encrypted cache asks for nothing in the clear")

    def encrypted(self, blob: Blob) -> Iterator[bytes]:
        self._answer()
        self.fetched.append(blob.digest)
        copy = self.copies[blob.digest]
        for start in range(0, len(copy), 70_000):
            yield copy[start : start + 70_000]

    def key(self, blob: Blob, header: bytes) -> bytes:
        self._answer()
        self.released.append(blob.digest)
        return copy_key(ROOT, header, blob.digest, len(self.contents[blob.digest]))

    def _answer(self) -> None:
        if self.away:
            raise Unavailable("the registry is out of reach")


def blob_of(content: bytes) -> Blob:
    return Blob(hashlib.sha256(content).hexdigest(), len(content))


NAME = "ab" * 32
FILES = {"graph.pb": blob_of(b"graph"), "variables/data": blob_of(WEIGHTS)}


class Site:
    def __init__(self, root: Path) -> None:
        self.disk, self.memory = root / "disk", root / "memory"
        self.registry = Registry(b"graph", WEIGHTS)
        self.cache = self.again()

    def again(self, key_file: KeyFile | None = None) -> EncryptedCache:
        """The cache as another process finds it."""
        self.cache = EncryptedCache(self.disk, self.memory, key_file)
        return self.cache

    def readable(self, folder: Path) -> list[Path]:
        return [path for path in folder.rglob("*") if path.is_file() and CANARY in path.read_bytes()]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_the_disk_holds_nothing_readable_and_memory_only_while_it_is_held(site: Site) -> None:
    held = site.cache.hold(NAME, FILES, site.registry)
    assert (held.path / "variables/data").read_bytes() == WEIGHTS
    assert (held.path / "graph.pb").read_bytes() == b"graph"
    assert held.path.is_relative_to(site.memory) and not site.readable(site.disk)
    assert (held.path / "graph.pb").stat().st_mode & 0o077 == 0
    other = site.cache.hold(NAME, FILES, site.registry)
    held.give_back()
    held.give_back()
    assert (other.path / "graph.pb").exists(), "somebody else needs it"
    other.give_back()
    assert not other.path.exists() and not site.readable(site.memory)
    other.take()
    assert (other.path / "variables/data").read_bytes() == WEIGHTS
    assert len(site.registry.fetched) == 2 and len(site.registry.released) == 2, "copies and keys are known by now"


def test_a_file_by_itself(site: Site) -> None:
    with site.cache.hold_file(blob_of(WEIGHTS), site.registry) as path:
        assert path.read_bytes() == WEIGHTS
    assert not path.exists() and not site.readable(site.disk)


def test_what_is_wiped_is_overwritten_first(site: Site) -> None:
    held = site.cache.hold(NAME, FILES, site.registry)
    with (held.path / "variables/data").open("rb") as file:
        held.give_back()
        assert file.read() == bytes(len(WEIGHTS))


def test_another_process_asks_for_keys_again_and_finds_its_copies(site: Site) -> None:
    site.cache.hold(NAME, FILES, site.registry)
    cache = site.again()
    assert not site.readable(site.memory), "what a killed process left is gone"
    site.registry.away = True
    with pytest.raises(Unavailable):
        cache.hold(NAME, FILES, site.registry)
    site.registry.away = False
    assert (cache.hold(NAME, FILES, site.registry).path / "variables/data").read_bytes() == WEIGHTS
    assert len(site.registry.fetched) == 2 and len(site.registry.released) == 4


def test_with_a_key_file_it_loads_while_the_registry_is_away(site: Site, tmp_path: Path) -> None:
    key_file = KeyFile.at(tmp_path / "stick" / "cache.key", create=True)
    cache = site.again(key_file)
    cache.hold(NAME, FILES, site.registry).give_back()
    site.registry.away = True
    assert (site.again(key_file).hold(NAME, FILES, site.registry).path / "variables/data").read_bytes() == WEIGHTS
    # Another key file opens nothing, and without one nothing is left of the keys.
    with pytest.raises(Unavailable):
        site.again(KeyFile(os.urandom(32))).hold(NAME, FILES, site.registry)
    site.again()
    assert not list((site.disk / "keys").iterdir())


@pytest.mark.parametrize("at", [0, 9, HEADER_BYTES + 3, -1])
def test_a_copy_that_was_altered_is_put_aside_and_fetched_again(site: Site, at: int) -> None:
    site.cache.hold(NAME, FILES, site.registry).give_back()
    copy = next(path for path in (site.disk / "cas/encrypted").glob("*/*") if path.name == blob_of(WEIGHTS).digest)
    data = bytearray(copy.read_bytes())
    data[at] ^= 1
    copy.write_bytes(data)
    with pytest.raises(DataLoss) as told:
        site.cache.hold(NAME, FILES, site.registry)
    assert told.value.reason == "BLOB_CORRUPT"
    assert not list((site.memory / "models").iterdir()) and not site.readable(site.memory)
    held = site.cache.hold(NAME, FILES, site.registry)
    assert (held.path / "variables/data").read_bytes() == WEIGHTS


def test_a_copy_of_another_content_is_refused(site: Site) -> None:
    digest, other = blob_of(WEIGHTS).digest, b"x" * len(WEIGHTS)
    header = new_header()
    records = Records(copy_key(ROOT, header, digest, len(other)), digest, len(other))
    site.registry.copies[digest] = header + records.seal(0, other[:CHUNK_BYTES]) + records.seal(1, other[CHUNK_BYTES:])
    with pytest.raises(DataLoss):
        site.cache.hold(NAME, FILES, site.registry)
    assert not list((site.memory / "models").iterdir())


@pytest.mark.parametrize("change", [-1, 1, 100_000])
def test_a_copy_of_another_size_is_not_kept(site: Site, change: int) -> None:
    digest = blob_of(WEIGHTS).digest
    copy = site.registry.copies[digest]
    site.registry.copies[digest] = copy[:change] if change < 0 else copy + bytes(change)
    with pytest.raises(FailedPrecondition):
        site.cache.hold(NAME, FILES, site.registry)
    assert not list((site.disk / "incoming").iterdir())
    assert digest not in {path.name for path in (site.disk / "cas/encrypted").glob("*/*")}


def test_what_lay_in_the_clear_before_is_removed(tmp_path: Path) -> None:
    source = Registry(b"graph", WEIGHTS)
    plain = ArtifactCache(tmp_path / "disk")
    plain.materialise(NAME, FILES, lambda blob: iter([source.contents[blob.digest]]))
    EncryptedCache(tmp_path / "disk", tmp_path / "memory")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_copies_that_nobody_wants_go(site: Site) -> None:
    site.registry = Registry(b"graph", WEIGHTS, b"other")
    site.cache.hold(NAME, FILES, site.registry)
    site.cache.hold_file(blob_of(b"other"), site.registry).give_back()
    site.cache.keep_only({NAME}, 3600.0)
    assert len(list((site.disk / "cas/encrypted").glob("*/*"))) == 3
    site.cache.keep_only({NAME}, -1.0)
    assert {path.name for path in (site.disk / "cas/encrypted").glob("*/*")} == {blob.digest for blob in FILES.values()}


def test_a_full_disk_is_not_called_a_full_memory_folder(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ResourceExhausted) as told:
            site.cache.hold(NAME, FILES, site.registry)
    assert told.value.reason == "DISK_FULL"
    assert list((site.disk / "incoming").iterdir()) == []
    site.cache.hold(NAME, FILES, site.registry)


def test_a_full_memory_folder_says_so_and_leaves_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_encrypted, "_write", full)
    with pytest.raises(ResourceExhausted) as told:
        site.cache.hold(NAME, FILES, site.registry)
    assert told.value.reason == "MEMORY_FOLDER_FULL"
    monkeypatch.undo()
    assert (site.cache.hold(NAME, FILES, site.registry).path / "graph.pb").read_bytes() == b"graph"


@pytest.mark.parametrize("path", ["../escape", "/etc/passwd", "a\\b"])
def test_paths_are_checked_as_ever(site: Site, path: str) -> None:
    with pytest.raises(InvalidArgument):
        site.cache.hold(NAME, {path: blob_of(b"graph")}, site.registry)


def test_a_folder_on_a_disk_is_no_memory(tmp_path: Path) -> None:
    assert memory_folder(Path("/dev/shm"), tmp_path) != memory_folder(Path("/dev/shm"), tmp_path / "other")
    if not str(tmp_path).startswith("/dev/shm"):
        with pytest.raises(FailedPrecondition) as told:
            memory_folder(Path("/etc"), tmp_path)
        assert told.value.reason == "NOT_IN_MEMORY"


def test_wiping_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "mine")
    wipe(tmp_path / "folder")
    assert (tmp_path / "mine").read_bytes() == b"mine" and not (tmp_path / "folder").exists()


def test_at_the_end_memory_holds_nothing_whoever_holds_it(site: Site) -> None:
    held = site.cache.hold(NAME, FILES, site.registry)
    (site.cache.scratch / "half-made").write_bytes(CANARY)
    site.cache.close()
    assert not held.path.exists() and not site.readable(site.memory) and not site.readable(site.disk)
