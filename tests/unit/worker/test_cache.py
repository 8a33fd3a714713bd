"""Nothing gets out of the cache that does not match its digest, and nothing gets written outside it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealane.errors import DataLoss, FailedPrecondition, InvalidArgument
from sealane_worker.cache import ArtifactCache, Blob


class Source:
    """A fake registry: contents by digest, and a count of downloads."""

    def __init__(self, *contents: bytes) -> None:
        self.contents = {hashlib.sha256(content).hexdigest(): content for content in contents}
        self.fetched: list[str] = []

    def __call__(self, blob: Blob) -> Iterator[bytes]:
        self.fetched.append(blob.digest)
        content = self.contents[blob.digest]
        for start in range(0, len(content), 3):
            yield content[start : start + 3]


def _blob(content: bytes) -> Blob:
    return Blob(hashlib.sha256(content).hexdigest(), len(content))


NAME = "ab" * 32
FILES = {"saved_model.pb": _blob(b"graph"), "variables/data": _blob(b"weights")}


def test_makes_the_folder_and_fetches_each_blob_once(tmp_path: Path) -> None:
    source, cache = Source(b"graph", b"weights"), ArtifactCache(tmp_path)
    folder = cache.materialise(NAME, FILES, source)
    assert (folder / "saved_model.pb").read_bytes() == b"graph"
    assert (folder / "variables/data").read_bytes() == b"weights"
    again = ArtifactCache(tmp_path).materialise(NAME, FILES, source)
    assert again == folder
    assert len(source.fetched) == 2
    assert not list((tmp_path / "incoming").iterdir())


def test_a_changed_file_is_refused_then_fetched_again(tmp_path: Path) -> None:
    source, cache = Source(b"graph", b"weights"), ArtifactCache(tmp_path)
    folder = cache.materialise(NAME, FILES, source)
    changed = folder / "variables/data"
    changed.chmod(0o644)
    changed.write_bytes(b"weighty")
    with pytest.raises(DataLoss, match="load again"):
        cache.materialise(NAME, FILES, source)
    assert (cache.materialise(NAME, FILES, source) / "variables/data").read_bytes() == b"weights"


@pytest.mark.parametrize("content", [b"graph!", b"grap", b"", b"grapx"])
def test_a_download_that_does_not_match_leaves_nothing(tmp_path: Path, content: bytes) -> None:
    cache, blob = ArtifactCache(tmp_path), _blob(b"graph")
    with pytest.raises(FailedPrecondition) as refused:
        cache.read(blob, lambda _: iter([content]))
    assert refused.value.reason == "DIGEST_MISMATCH"
    assert not cache.has(blob)
    assert not list((tmp_path / "incoming").iterdir())


def test_an_endless_download_stops_at_the_announced_size(tmp_path: Path) -> None:
    taken = 0

    def endless(_: Blob) -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b"x" * 10

    with pytest.raises(FailedPrecondition):
        ArtifactCache(tmp_path).read(_blob(b"y" * 25), endless)
    assert taken == 3


@pytest.mark.parametrize(
    "path",
    [
        "",
        "..",
        "../x",
        "a/../x",
        "/etc/x",
        "a//b",
        "./a",
        "a\\b",
        "C:x",
        "a\x00",
        "%2e%2e/x",
        "a.",
        "a ",
        "x" * 600,
        "a/" * 40 + "b",
    ],
)
def test_file_names_that_could_leave_the_folder_are_refused(tmp_path: Path, path: str) -> None:
    source = Source(b"graph")
    with pytest.raises(InvalidArgument) as refused:
        ArtifactCache(tmp_path).materialise(NAME, {path: _blob(b"graph")}, source)
    assert refused.value.reason == "FILE_NAME_REFUSED"
    assert not source.fetched


@pytest.mark.parametrize("pair", [("Model", "model"), ("caf\u00e9", "cafe\u0301"), ("a", "a/b")])
def test_names_that_collide_are_refused(tmp_path: Path, pair: tuple[str, str]) -> None:
    files = dict.fromkeys(pair, _blob(b"graph"))
    with pytest.raises(InvalidArgument):
        ArtifactCache(tmp_path).materialise(NAME, files, Source(b"graph"))


@pytest.mark.parametrize("digest", ["", "../../x", "AB" * 32, "ab" * 31])
def test_digests_that_are_none_are_refused(tmp_path: Path, digest: str) -> None:
    with pytest.raises(InvalidArgument):
        ArtifactCache(tmp_path).read(Blob(digest, 1), Source())
    with pytest.raises(InvalidArgument):
        ArtifactCache(tmp_path).materialise(digest, FILES, Source(b"graph", b"weights"))


def test_what_no_model_uses_is_removed(tmp_path: Path) -> None:
    source, cache = Source(b"graph", b"weights", b"other"), ArtifactCache(tmp_path)
    cache.materialise(NAME, FILES, source)
    cache.materialise("cd" * 32, {"other": _blob(b"other")}, source)
    cache.keep_only({NAME}, 3600)
    assert cache.has(_blob(b"other")), "it was asked for within the hour"
    cache.keep_only({NAME})
    assert not cache.has(_blob(b"other"))
    assert cache.has(FILES["variables/data"])
