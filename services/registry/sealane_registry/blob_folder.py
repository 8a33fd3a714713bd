"""Blobs in a folder: synced, then renamed to their place. Links that somebody planted are neither read nor followed."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from sealane.errors import ResourceExhausted, SealaneError, Unavailable
from sealane_registry.blob_store import Stored

_PIECE = 1 << 20
_MAKING = ".making-"


class FolderStore:
    """Implements :class:`sealane_registry.blob_store.BlobStore`.

    Args:
        root: the folder; sources of :meth:`put` lie on the same file system, or are copied.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)
        for left_over in root.rglob(_MAKING + "*"):  # a crash was faster
            left_over.unlink()

    def put(self, key: str, source: Path) -> None:
        """See :class:`BlobStore`."""
        with self._folder(key, make=True) as folder, _translated():
            sync(source)
            temporary = _MAKING + secrets.token_hex(8)
            try:
                os.link(source, temporary, dst_dir_fd=folder, follow_symlinks=False)
            except OSError:  # another file system, or one without links
                _copy(source, temporary, folder)
            self._publish(temporary, key, folder)

    def put_bytes(self, key: str, data: bytes) -> None:
        """See :class:`BlobStore`."""
        with self._folder(key, make=True) as folder, _translated():
            temporary = _MAKING + secrets.token_hex(8)
            try:
                with os.fdopen(_create(temporary, folder), "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                os.unlink(temporary, dir_fd=folder)
                raise
            self._publish(temporary, key, folder)

    def stat(self, key: str) -> Stored | None:
        """See :class:`BlobStore`."""
        opened = self.open(key)
        if opened is None:
            return None
        opened.close()
        return opened.stored

    def open(self, key: str) -> _OpenFile | None:
        """See :class:`BlobStore`. A link, a folder or a device is nothing."""
        try:
            with self._folder(key) as folder:
                # Not blocking: somebody's pipe must not hold a thread for ever.
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                descriptor = os.open(_name(key), flags, dir_fd=folder)
        except OSError:
            return None
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            return None
        return _OpenFile(_stored(key, found), descriptor)

    def move(self, stored: Stored, key: str) -> bool:
        """See :class:`BlobStore`."""
        with self._folder(key, make=True) as to, _translated():
            try:
                with self._folder(stored.key) as folder:
                    os.rename(_name(stored.key), _name(key), src_dir_fd=folder, dst_dir_fd=to)
            except FileNotFoundError:
                return False
            moved = self.stat(key)
            if moved is not None and moved.tag == stored.tag:
                return True
            # It was replaced in between: the new one goes back, unless a newer one took its place.
            with self._folder(stored.key) as folder, contextlib.suppress(FileExistsError):
                os.link(_name(key), _name(stored.key), src_dir_fd=to, dst_dir_fd=folder, follow_symlinks=False)
            os.unlink(_name(key), dir_fd=to)
            return False

    def delete(self, key: str) -> None:
        """See :class:`BlobStore`."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), self._folder(key) as folder:
            os.unlink(_name(key), dir_fd=folder)

    def list(self, prefix: str) -> Iterator[Stored]:
        """See :class:`BlobStore`."""
        for folder, _, names in os.walk(self._root / prefix.rstrip("/"), followlinks=False):
            for name in names:
                key = str((Path(folder) / name).relative_to(self._root))
                if not name.startswith(_MAKING) and (stored := self.stat(key)) is not None:
                    yield stored

    def _publish(self, temporary: str, key: str, folder: int) -> None:
        os.utime(temporary, dir_fd=folder)
        os.rename(temporary, _name(key), src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)

    @contextlib.contextmanager
    def _folder(self, key: str, *, make: bool = False) -> Iterator[int]:
        """The folder of a key, opened step by step so that no planted link leads out of the root."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in key.split("/")[:-1]:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, 0o700, dir_fd=descriptor)
                        os.fsync(descriptor)
                try:
                    inner = os.open(part, flags, dir_fd=descriptor)
                except NotADirectoryError as error:
                    if not make:
                        raise
                    raise Unavailable(
                        "a folder of the artifact store was replaced by a link; have the operator look at it",
                        reason="BLOB_FOLDER_REPLACED",
                    ) from error
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)


class _OpenFile:
    """Implements :class:`sealane_registry.blob_store.OpenBlob`."""

    def __init__(self, stored: Stored, descriptor: int) -> None:
        self.stored = stored
        self._file = os.fdopen(descriptor, "rb", buffering=0)

    def read(self, offset: int, length: int) -> Iterator[bytes]:
        """See :class:`OpenBlob`."""
        end = offset + length
        while offset < end:
            try:
                data = os.pread(self._file.fileno(), min(_PIECE, end - offset), offset)
            except OSError as error:
                raise Unavailable("the disk of the artifact store fails; try again", retry_after=5.0) from error
            if not data:
                return
            yield data
            offset += len(data)

    def close(self) -> None:
        """See :class:`OpenBlob`."""
        self._file.close()


def sync(path: Path) -> None:
    """Have the disk keep a file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_error(error: OSError) -> SealaneError:
    """What a caller is told when the disk fails."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceExhausted("the disk took no more; free space and go on", reason="DISK_FULL", retry_after=30.0)
    return Unavailable("the disk of the artifact store fails; try again", reason="DISK_FAILED", retry_after=5.0)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise disk_error(error) from error


def _copy(source: Path, name: str, folder: int) -> None:
    try:
        with source.open("rb") as read, os.fdopen(_create(name, folder), "wb") as write:
            while data := read.read(_PIECE):
                write.write(data)
            write.flush()
            os.fsync(write.fileno())
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
        raise


def _create(name: str, folder: int) -> int:
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)


def _name(key: str) -> str:
    return key.rpartition("/")[2]


def _stored(key: str, found: os.stat_result) -> Stored:
    return Stored(key, found.st_size, found.st_mtime, f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}")
