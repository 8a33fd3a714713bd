"""The worker's artifacts on disk: blobs by SHA-256, and model folders made of them.

Layout below the cache's root::

    cas/sha256/ab/abcd...     verified blobs, read-only
    incoming/                 blobs on their way
    corrupt/                  blobs that no longer matched their digest
    models/<manifest digest>/ folders that model processes read, hard links into cas/

A blob is hashed while it comes in and again at every load: disks and their owners change files.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Protocol

from sealane.errors import DataLoss, FailedPrecondition
from sealane.protocols.chunks import Data
from sealane_worker.file_names import check_digest, check_paths

#: Gives a blob's bytes in order; what it raises goes to the caller.
Fetch = Callable[["Blob"], Iterator[Data]]

#: Most bytes taken for a blob whose size was not announced.
MAX_UNANNOUNCED_BYTES = 1 << 30
_HASH_CHUNK = 1 << 20
#: Where encrypted copies lie.
ENCRYPTED = "cas/encrypted"


@dataclass(frozen=True, slots=True)
class Blob:
    """A file's content: SHA-256 as 64 lower-case hex digits, and its size in bytes where it is known."""

    digest: str
    size: int | None = None


class Source(Protocol):
    """Where blobs come from: called, it is a :data:`Fetch` of their content."""

    def __call__(self, blob: Blob) -> Iterator[Data]:
        """The content."""
        ...

    def encrypted(self, blob: Blob) -> Iterator[Data]:
        """The encrypted copy, :mod:`sealane.security.encrypted_blob`."""
        ...

    def key(self, blob: Blob, header: bytes) -> bytes:
        """The key of the copy with this header."""
        ...


class Held:
    """Files that are needed: implements :class:`sealane_worker.spec.Files`, and is given back at the end of a ``with``.

    Args:
        path: the file or folder.
        take: has it there, verified.
        give_back: told that it is not needed any more.
    """

    def __init__(self, path: Path, take: Callable[[], object], give_back: Callable[[], None]) -> None:
        self.path = path
        self._take, self._give_back = take, give_back
        self._held = True
        self._lock = threading.Lock()

    def take(self) -> None:
        """See :class:`Files`."""
        with self._lock:
            if not self._held:
                self._take()
                self._held = True

    def give_back(self) -> None:
        """See :class:`Files`."""
        with self._lock:
            if self._held:
                self._held = False
                self._give_back()

    def __enter__(self) -> Path:
        self.take()
        return self.path

    def __exit__(self, *_: object) -> None:
        self.give_back()


class Cache(Protocol):
    """The artifacts of a worker, in the clear or encrypted."""

    @property
    def scratch(self) -> Path:
        """Folder for what is being made of them."""
        ...

    def hold(self, name: str, files: Mapping[str, Blob], source: Source) -> Held:
        """The folder `name`, as :meth:`ArtifactCache.materialise` gives it, until it is given back."""
        ...

    def hold_file(self, blob: Blob, source: Source) -> Held:
        """The file of one blob, as :meth:`ArtifactCache.read` gives it, until it is given back."""
        ...

    def keep_only(self, names: set[str], unused_seconds: float = 0.0) -> None:
        """Remove what nobody has asked for during the last `unused_seconds`: folders not in `names`, free blobs."""
        ...

    def close(self) -> None:
        """The worker ends: what must not stay behind it is wiped, whoever holds it."""
        ...


class ArtifactCache:
    """A content-addressed folder. Several threads may fill it; one process owns it.

    Args:
        root: the folder.
        scratch: folder for what is being made of its files.
    """

    def __init__(self, root: Path, scratch: Path | None = None) -> None:
        self._root = root
        self.scratch = scratch or root / "scratch"
        shutil.rmtree(root / ENCRYPTED, ignore_errors=True)  # of before: without its keys it is nothing
        for name in ("cas/sha256", "incoming", "corrupt", "models"):
            (root / name).mkdir(parents=True, exist_ok=True)
        for left_over in (root / "incoming").iterdir():  # a download that a crash cut off
            if left_over.is_dir():
                shutil.rmtree(left_over)
            else:
                left_over.unlink()

    def hold(self, name: str, files: Mapping[str, Blob], source: Source) -> Held:
        """See :class:`Cache`. What is given back stays for the next load, and is verified then."""
        take = partial(self.materialise, name, files, source)
        return Held(take(), take, _nothing)

    def hold_file(self, blob: Blob, source: Source) -> Held:
        """See :class:`Cache`."""
        take = partial(self.read, blob, source)
        return Held(take(), take, _nothing)

    def materialise(self, name: str, files: Mapping[str, Blob], fetch: Fetch) -> Path:
        """The folder `name` with these files, fetched where missing, every one verified.

        Args:
            name: the manifest's digest, 64 hex digits.
            files: relative path -> content.
            fetch: called for each blob that is not here yet.

        Raises:
            InvalidArgument: a path or digest that is not acceptable.
            FailedPrecondition: what was fetched is not what the manifest says.
            DataLoss: a stored blob no longer matches; it was put aside, so a second call fetches it again.
        """
        check_digest(name)
        check_paths(files)
        folder = self._root / "models" / name
        for blob in files.values():
            self._ensure(blob, fetch)
        if _same_files(folder, {path: self._path(blob) for path, blob in files.items()}):
            os.utime(folder)
            return folder
        staging = Path(tempfile.mkdtemp(dir=self._root / "incoming"))
        for path, blob in files.items():
            target = staging / path
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(self._path(blob), target)
        shutil.rmtree(folder, ignore_errors=True)
        staging.rename(folder)
        _fsync_folder(folder.parent)
        return folder

    def read(self, blob: Blob, fetch: Fetch) -> Path:
        """The verified file of one blob, fetched where missing. Raises as :meth:`materialise`."""
        self._ensure(blob, fetch)
        return self._path(blob)

    def has(self, blob: Blob) -> bool:
        """Whether the blob is here; its content is verified by :meth:`materialise` and :meth:`read`."""
        return self._path(blob).is_file()

    def keep_only(self, names: set[str], unused_seconds: float = 0.0) -> None:
        """See :class:`Cache`."""
        before = time.time() - unused_seconds
        for folder in (self._root / "models").iterdir():
            if folder.name not in names and folder.stat().st_mtime <= before:
                shutil.rmtree(folder, ignore_errors=True)
        for blob in (self._root / "cas/sha256").glob("*/*"):
            found = blob.stat()
            if found.st_nlink == 1 and found.st_mtime <= before:
                blob.unlink()

    def close(self) -> None:
        """See :class:`Cache`. What lies in the clear may stay."""

    def _path(self, blob: Blob) -> Path:
        check_digest(blob.digest)
        return self._root / "cas/sha256" / blob.digest[:2] / blob.digest

    def _ensure(self, blob: Blob, fetch: Fetch) -> None:
        path = self._path(blob)
        if not path.is_file():
            self._download(blob, path, fetch)
        elif not _matches(path, blob):
            set_aside(path, self._root)
            raise DataLoss(
                f"the cached file {blob.digest[:12]} no longer matches its digest and was put aside; load again "
                "to fetch it anew",
                reason="BLOB_CORRUPT",
                digest=blob.digest,
            )
        else:
            os.utime(path)  # asked for just now: see keep_only

    def _download(self, blob: Blob, path: Path, fetch: Fetch) -> None:
        with arriving(self._root / "incoming", path) as file:
            _receive(blob, fetch(blob), file.write)


@contextlib.contextmanager
def arriving(incoming: Path, target: Path) -> Iterator[IO[bytes]]:
    """A file that is at `target`, read-only, whole and kept by the disk, once the block has ended well; else nowhere.

    Args:
        incoming: folder for it until then, on the same file system.
        target: where it goes.
    """
    handle, name = tempfile.mkstemp(dir=incoming)
    path = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        path.chmod(0o444)
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
        _fsync_folder(target.parent)
    finally:
        path.unlink(missing_ok=True)


def set_aside(path: Path, root: Path) -> None:
    """Keep a file that is not what it should be, where nobody takes it for it."""
    path.rename(root / "corrupt" / f"{path.name}.{os.getpid()}.{os.urandom(4).hex()}")


def _nothing() -> None:
    """What lies in the clear may stay."""


def _receive(blob: Blob, chunks: Iterator[Data], write: Callable[[Data], int]) -> None:
    hasher, size = hashlib.sha256(), 0
    limit = MAX_UNANNOUNCED_BYTES if blob.size is None else blob.size
    for chunk in chunks:
        size += len(chunk)
        if size > limit:  # never write more than was announced
            break
        hasher.update(chunk)
        write(chunk)
    if size > limit or (blob.size is not None and size != blob.size) or hasher.hexdigest() != blob.digest:
        raise FailedPrecondition(
            f"what was fetched for {blob.digest[:12]} is not what the manifest says; fetch it again",
            reason="DIGEST_MISMATCH",
        )


def _matches(path: Path, blob: Blob) -> bool:
    if path.is_symlink() or (blob.size is not None and path.stat().st_size != blob.size):
        return False
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest() == blob.digest


def _same_files(folder: Path, wanted: Mapping[str, Path]) -> bool:
    """Whether the folder holds exactly these files as hard links; a copy is never trusted to be unchanged."""
    if not folder.is_dir():
        return False
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    return found == wanted.keys() and all((folder / path).samefile(blob) for path, blob in wanted.items())


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
