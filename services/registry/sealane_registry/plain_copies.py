"""Copies of artifacts in the clear, among uploads and in the store: chunk tags prove what is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sealane_registry.beside import beside
from sealane_registry.blob_store import BlobStore, Damaged, OpenBlob, read_all
from sealane_registry.chunk_tags import CHUNK_BYTES, ChunkHasher, ChunkTags, regrouped
from sealane_registry.spool import Finished, Writing, append, create
from sealane_registry.store import UploadRow

#: What the tags of a blob's chunks are called, beside it.
CHUNKS = ".chunks"


def plain_key(sha256: str) -> str:
    """Where a blob lies in the clear."""
    return f"sha256/{sha256[:2]}/{sha256}"


class PlainForms:
    """Implements :class:`sealane_registry.spool.Forms`: uploads lie as they come.

    Args:
        key: of the tags of chunks, 32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def begin(self, path: Path, row: UploadRow) -> None:
        """See :class:`Forms`."""
        create(path, b"")

    def resume(self, path: Path, row: UploadRow) -> Writing:
        """See :class:`Forms`."""
        return _PlainWriting(path, row, self._key)


class _PlainWriting:
    """Implements :class:`sealane_registry.spool.Writing`."""

    def __init__(self, path: Path, row: UploadRow, key: bytes) -> None:
        self._path, self._row = path, row
        self.held = path.lstat().st_size
        self._tags = ChunkTags(key, row.sha256, row.size)
        self._hasher = ChunkHasher(self._tags)

    def append(self, data: bytes | memoryview) -> None:
        """See :class:`Writing`."""
        with beside(lambda: self._hash(data)):
            append(self._path, self.held, data)
        self.held += len(data)

    def sha256(self) -> str:
        """See :class:`Writing`."""
        if self._hasher.size != self.held:
            self._hasher = ChunkHasher(self._tags)
            with self._path.open("rb") as file:
                while data := file.read(CHUNK_BYTES):
                    self._hasher.update(data)
        return self._hasher.sha256()

    def _hash(self, data: bytes | memoryview) -> None:
        if self._hasher.size == self.held:  # else it was begun before the process, and is read at its end
            self._hasher.update(data)

    def finish(self) -> Finished:
        """See :class:`Writing`."""
        key = plain_key(self._row.sha256)
        return Finished(self._path, key, (key + CHUNKS, self._hasher.encoded()))


class PlainCopy:
    """Implements :class:`sealane_registry.blobs.Form`: the content as it is, with a tag for each chunk beside it.

    Args:
        store: where it lies.
        opened: the content.
        key: of the tags of chunks, 32 bytes.
        sha256: digest of the content, hex.

    Raises:
        Damaged: it has no tags, and is not what its digest says.
    """

    def __init__(self, store: BlobStore, opened: OpenBlob, key: bytes, sha256: str) -> None:
        self._opened = opened
        self.stored, self.size = opened.stored, opened.stored.size
        self._tags = ChunkTags(key, sha256, self.size)
        self._known = self._tags.decode(read_all(store, self.stored.key + CHUNKS)) or self._made(store, sha256)

    def _made(self, store: BlobStore, sha256: str) -> bytes:
        """The tags, made anew: there are none, or they are of another key."""
        hasher = ChunkHasher(self._tags)
        for piece in self._opened.read(0, self.size):
            hasher.update(piece)
        if hasher.size != self.size or hasher.sha256() != sha256:
            raise Damaged
        store.put_bytes(self.stored.key + CHUNKS, made := hasher.encoded())
        return self._tags.decode(made) or b""

    def chunks(self, first: int, end: int) -> Iterator[bytes]:
        """See :class:`Form`."""
        start = first * CHUNK_BYTES
        length = min(end * CHUNK_BYTES, self.size) - start
        index = first
        for chunk in regrouped(self._opened.read(start, length), CHUNK_BYTES):
            if not self._tags.matches(self._known, index, chunk):
                raise Damaged
            yield chunk
            index += 1
        if index < end:
            raise Damaged

    def close(self) -> None:
        """See :class:`Form`."""
        self._opened.close()
