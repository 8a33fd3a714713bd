"""A worker's artifacts where its disk may be stolen: encrypted copies on it, in the clear in memory alone, while used.

Layout below the cache's root::

    cas/encrypted/ab/abcd...  copies as the registry keeps them
    keys/abcd...              their keys under a key file, where the operator gave one
    incoming/, corrupt/       as in :mod:`sealane_worker.cache`, all encrypted

and below the memory folder ``models/`` and ``files/``, laid out when first asked for, overwritten and removed when the
last who needed it gives it back. A key comes from the registry, sealed to this process.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cryptography.exceptions import InvalidTag

from sealane.errors import DataLoss, FailedPrecondition, Internal, ResourceExhausted, SealaneError
from sealane.security.encrypted_blob import (
    HEADER_BYTES,
    RECORD_BYTES,
    Records,
    content_size,
    copy_size,
    is_header,
)
from sealane.security.key_file import KeyFile, write_secret
from sealane_worker.cache import ENCRYPTED, MAX_UNANNOUNCED_BYTES, Blob, Held, Source, arriving, set_aside
from sealane_worker.file_names import check_digest, check_paths

log = logging.getLogger("sealane.worker.cache")


@dataclass(slots=True)
class _Laid:
    """Something in memory, and how many need it."""

    count: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class EncryptedCache:
    """Implements :class:`sealane_worker.cache.Cache`.

    Args:
        root: folder on the disk.
        memory: folder in memory; what it holds is removed.
        key_file: keys are kept under it, so that models load while the registry is out of reach; None keeps none.
    """

    def __init__(self, root: Path, memory: Path, key_file: KeyFile | None = None) -> None:
        self._root, self._memory, self._key_file = root, memory, key_file
        self.scratch = memory / "scratch"
        for left_over in (root / "cas/sha256", root / "models", root / "incoming", root / "corrupt", root / "scratch"):
            wipe(left_over)  # in the clear, from before it was encrypted; or half a download
        wipe(memory)
        if key_file is None:
            wipe(root / "keys")
        for folder in (root / ENCRYPTED, root / "keys", root / "incoming", root / "corrupt"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in (memory, memory / "models", memory / "files", self.scratch):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._laid: defaultdict[Path, _Laid] = defaultdict(_Laid)
        self._files_of: dict[str, set[str]] = {}
        self._keys: dict[bytes, bytes] = {}
        self._lock = threading.Lock()

    def hold(self, name: str, files: Mapping[str, Blob], source: Source) -> Held:
        """See :class:`Cache`.

        Raises:
            InvalidArgument: a path or digest that is not acceptable.
            FailedPrecondition: what was fetched is not what the manifest says, or the registry does not encrypt.
            DataLoss: a copy does not match; it was put aside, so a second call fetches it again.
            ResourceExhausted: the memory folder is full (MEMORY_FOLDER_FULL).
        """
        check_digest(name)
        check_paths(files)
        self._files_of[name] = {blob.digest for blob in files.values()}
        place = self._memory / "models" / name
        lay = partial(self._lay_folder, place, dict(files), source)
        return self._held(place, lay)

    def hold_file(self, blob: Blob, source: Source) -> Held:
        """See :class:`Cache`; raises as :meth:`hold`."""
        check_digest(blob.digest)
        place = self._memory / "files" / blob.digest
        return self._held(place, partial(self._lay_file, place, blob, source))

    def keep_only(self, names: set[str], unused_seconds: float = 0.0) -> None:
        """See :class:`Cache`. What is in memory is somebody's who holds it."""
        wanted = {digest for name in names for digest in self._files_of.get(name, ())}
        before = time.time() - unused_seconds
        for copy in (self._root / ENCRYPTED).glob("*/*"):
            if copy.name not in wanted and copy.stat().st_mtime <= before:
                copy.unlink()
                (self._root / "keys" / copy.name).unlink(missing_ok=True)

    def close(self) -> None:
        """See :class:`Cache`. Also what a task still holds that did not end in time."""
        wipe(self._memory)

    def _held(self, place: Path, lay: Callable[[], None]) -> Held:
        take, give_back = partial(self._take, place, lay), partial(self._give_back, place)
        take()
        return Held(place, take, give_back)

    def _take(self, place: Path, lay: Callable[[], None]) -> None:
        with self._lock:
            laid = self._laid[place]
        with laid.lock:
            if laid.count == 0:
                try:
                    lay()
                except OSError as error:
                    wipe(place)
                    if error.errno != errno.ENOSPC:
                        raise
                    raise ResourceExhausted(
                        f"the memory folder {self._memory} is full; enlarge it or use a smaller variant",
                        reason="MEMORY_FOLDER_FULL",
                    ) from error
            laid.count += 1

    def _give_back(self, place: Path) -> None:
        with self._lock:
            laid = self._laid[place]
        with laid.lock:
            laid.count -= 1
            if laid.count == 0:
                wipe(place)

    def _lay_folder(self, place: Path, files: Mapping[str, Blob], source: Source) -> None:
        staging = Path(tempfile.mkdtemp(dir=self._memory))
        try:
            for path, blob in files.items():
                (staging / path).parent.mkdir(parents=True, exist_ok=True)
                self._lay_file(staging / path, blob, source)
            staging.rename(place)
        finally:
            wipe(staging)

    def _lay_file(self, place: Path, blob: Blob, source: Source) -> None:
        """Decrypt one copy into memory, every record and the whole verified."""
        copy = self._copy(blob.digest)
        if not copy.is_file():
            try:
                self._download(blob, copy, source)
            except OSError as error:
                raise _disk_error(error, copy.parent.parent) from error
        os.utime(copy)
        try:
            with copy.open("rb") as file:
                header = file.read(HEADER_BYTES)
                size = content_size(copy.stat().st_size)
                if size < 0 or not is_header(header) or blob.size not in (None, size):
                    raise InvalidTag
                records = Records(self._key(blob, header, source), blob.digest, size)
                _write(place, blob.digest, _opened(file.read, records))
        except InvalidTag as error:
            set_aside(copy, self._root)
            raise DataLoss(
                f"the encrypted copy {blob.digest[:12]} does not open or is not what its digest says, and was put "
                "aside; load again to fetch it anew",
                reason="BLOB_CORRUPT",
                digest=blob.digest,
            ) from error

    def _download(self, blob: Blob, copy: Path, source: Source) -> None:
        most, size = copy_size(MAX_UNANNOUNCED_BYTES if blob.size is None else blob.size), 0
        with arriving(self._root / "incoming", copy) as file:
            for piece in source.encrypted(blob):
                size += len(piece)
                if size > most:  # never write more than was announced
                    break
                file.write(piece)
            if size > most or (blob.size is not None and size != most):
                raise FailedPrecondition(
                    f"what was fetched for {blob.digest[:12]} is not what the manifest says; fetch it again",
                    reason="DIGEST_MISMATCH",
                )

    def _copy(self, digest: str) -> Path:
        check_digest(digest)
        return self._root / ENCRYPTED / digest[:2] / digest

    def _key(self, blob: Blob, header: bytes, source: Source) -> bytes:
        """The key of a copy: known, kept under the key file, or released by the registry."""
        known = self._keys.get(header) or self._kept_key(blob, header)
        if known is None:
            known = source.key(blob, header)
            if self._key_file is not None:
                kept = self._key_file.seal(_key_name(blob, header), known)
                write_secret(self._root / "keys" / blob.digest, kept)
        self._keys[header] = known
        return known

    def _kept_key(self, blob: Blob, header: bytes) -> bytes | None:
        path = self._root / "keys" / blob.digest
        if self._key_file is None or not path.is_file():
            return None
        try:
            return self._key_file.open(_key_name(blob, header), path.read_bytes())
        except FailedPrecondition:
            return None  # of another copy or key file: the registry is asked again


def _disk_error(error: OSError, folder: Path) -> SealaneError:
    """Of the disk, which is another place than the memory folder."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceExhausted(f"the disk of {folder} is full; free some of it", reason="DISK_FULL")
    return Internal(f"the disk of {folder} fails: {error.strerror}; look at the machine")


def _key_name(blob: Blob, header: bytes) -> str:
    return f"sealane/cached-key/v1/{blob.digest}/{header.hex()}"


def _opened(read: Callable[[int], bytes], records: Records) -> Iterator[bytes]:
    index = 0
    while record := read(RECORD_BYTES):
        yield records.open(index, record)
        index += 1


def _write(place: Path, digest: str, chunks: Iterator[bytes]) -> None:
    """Write a file for its owner alone; raises InvalidTag where its digest is another one, and leaves none."""
    hasher, whole = hashlib.sha256(), False
    descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for chunk in chunks:
                hasher.update(chunk)
                file.write(chunk)
        whole = hasher.hexdigest() == digest
    finally:
        if not whole:
            wipe(place)
    if not whole:
        raise InvalidTag


def wipe(path: Path) -> None:
    """Overwrite and remove a file, or all files of a folder: freed memory keeps what was in it for a while."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else []
    for file in files:
        if not file.is_symlink() and file.stat().st_nlink == 1:
            _overwrite(file)
        file.unlink()
    shutil.rmtree(path, ignore_errors=True)


def _overwrite(file: Path) -> None:
    file.chmod(0o600)
    zeros, left = bytes(1 << 20), file.stat().st_size
    with file.open("r+b", buffering=0) as out:
        while left:
            left -= out.write(zeros[:left])


def memory_folder(parent: Path, root: Path) -> Path:
    """The folder in memory that belongs to a cache on the disk.

    Args:
        parent: a folder on a file system that lives in memory.
        root: the cache's folder.

    Raises:
        FailedPrecondition: `parent` lies on a disk (NOT_IN_MEMORY).
    """
    kind = _file_system(parent.resolve())
    if kind not in ("tmpfs", "ramfs"):
        raise FailedPrecondition(
            f"{parent} lies on {kind or 'no known file system'}, not in memory; set SEALANE_WORKER_MEMORY_DIR to a "
            "folder on tmpfs",
            reason="NOT_IN_MEMORY",
        )
    if len(Path("/proc/swaps").read_text().splitlines()) > 1:
        log.warning("memory may be swapped to a disk; switch swap off or encrypt it")
    return parent / f"sealane-{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]}"


def _file_system(path: Path) -> str:
    """Type of the file system of a path (proc(5), ``/proc/self/mountinfo``)."""
    best, kind = -1, ""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        mount = fields.split()[4].encode().decode("unicode_escape")
        if path.is_relative_to(mount) and len(mount) >= best:
            best, kind = len(mount), rest.split()[0]
    return kind
