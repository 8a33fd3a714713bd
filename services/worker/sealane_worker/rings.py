"""Shared memory between a front and a model process, for bodies too large to travel on a socket.

Each side writes one ring and reads the other's. The front makes both, because a sandboxed model process cannot grow a
file. The request ring is sealed against later writers and handed over read-only, so that a model can never change what
another request, or the front, is about to read. A body lies in one piece; regions are taken first fit from the front,
so that the memory in use stays small and warm. Pages that were touched stay with the ring until its model goes.

The front tells which replies it has read through a page at the start of the request ring (a counter per slot): no
message is needed to give a region back.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
import time

from sealane.errors import ResourceExhausted

#: Room for one request of the largest size, and others beside it. Untouched pages cost nothing.
RING_BYTES = 192 << 20
#: The end of the request ring, where a native front has slots of its own.
NATIVE_BYTES = 64 << 20
HEAD_BYTES = 4096
MAX_SLOTS = HEAD_BYTES // 8
_ALIGNMENT = 4096
_F_ADD_SEALS = 1033
_F_SEAL_SHRINK, _F_SEAL_GROW, _F_SEAL_FUTURE_WRITE = 0x2, 0x4, 0x10
_COUNTER = struct.Struct("<Q")


class Regions:
    """First-fit allocation within ``[start, end)``; safe from any thread."""

    def __init__(self, start: int, end: int) -> None:
        self._start, self._end = start, end
        self._taken: list[tuple[int, int]] = []
        self._changed = threading.Condition()

    @property
    def taken_bytes(self) -> int:
        """Bytes given out now."""
        return sum(end - start for start, end in self._taken)

    def take(self, size: int, deadline: float) -> int:
        """Offset of a free region; waits until `deadline` (``time.monotonic()``) for one.

        Raises:
            ResourceExhausted: none became free (RING_FULL), or the ring is smaller than that.
        """
        size += -size % _ALIGNMENT
        if size > self._end - self._start:
            raise ResourceExhausted(
                f"tensors of {size >> 20} MiB in one call are more than a model takes; send fewer rows a call",
                reason="REQUEST_TOO_LARGE",
            )
        with self._changed:
            while (offset := self._fit(size)) < 0:
                wait = deadline - time.monotonic()
                if wait <= 0:
                    raise ResourceExhausted(
                        "the memory for requests of this model is in use; send less at a time or add replicas",
                        reason="RING_FULL",
                        retry_after=0.1,
                    )
                self._changed.wait(min(wait, 1.0))
            return offset

    def _fit(self, size: int) -> int:
        at = self._start
        for index, (start, end) in enumerate(self._taken):
            if start - at >= size:
                self._taken.insert(index, (at, at + size))
                return at
            at = end
        if self._end - at < size:
            return -1
        self._taken.append((at, at + size))
        return at

    def give(self, offset: int) -> None:
        """Give a region back."""
        with self._changed:
            self._taken = [region for region in self._taken if region[0] != offset]
            self._changed.notify_all()


class FrontRings:
    """Both rings as the front holds them; the last `native_bytes` for requests are not its own."""

    def __init__(self, native_bytes: int = 0) -> None:
        self.request_fd = _memfd("sealane-requests")
        self.reply_fd = _memfd("sealane-replies")
        os.ftruncate(self.request_fd, RING_BYTES)
        os.ftruncate(self.reply_fd, RING_BYTES)
        self._request_map = mmap.mmap(self.request_fd, RING_BYTES, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        # After this nobody can map the file for writing any more; the mapping above goes on working.
        fcntl.fcntl(self.request_fd, _F_ADD_SEALS, _F_SEAL_SHRINK | _F_SEAL_GROW | _F_SEAL_FUTURE_WRITE)
        fcntl.fcntl(self.reply_fd, _F_ADD_SEALS, _F_SEAL_SHRINK | _F_SEAL_GROW)
        self._reply_map = mmap.mmap(self.reply_fd, RING_BYTES, mmap.MAP_SHARED, mmap.PROT_READ)
        # Read-only, and no way back: the description itself must not be writable in the model's hands.
        self.request_read_fd = os.open(f"/proc/self/fd/{self.request_fd}", os.O_RDONLY | os.O_CLOEXEC)
        self.requests = memoryview(self._request_map)
        self.replies = memoryview(self._reply_map)
        self.regions = Regions(HEAD_BYTES, RING_BYTES - native_bytes)

    def mark_read(self, slot: int, request_id: int) -> None:
        """Tell the model that the reply to `request_id` was read."""
        _COUNTER.pack_into(self.requests, slot * 8, request_id)

    def passed_fds(self) -> tuple[int, int]:
        """Descriptors for the model process: requests to read, replies to write."""
        return self.request_read_fd, self.reply_fd

    def close_passed(self) -> None:
        """Close the descriptors; the mappings stay."""
        for descriptor in (self.request_fd, self.request_read_fd, self.reply_fd):
            os.close(descriptor)


class ModelRings:
    """Both rings as a model process holds them."""

    def __init__(self, request_fd: int, reply_fd: int) -> None:
        self._request_map = mmap.mmap(request_fd, RING_BYTES, mmap.MAP_SHARED, mmap.PROT_READ)
        self._reply_map = mmap.mmap(reply_fd, RING_BYTES, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        os.close(request_fd)
        os.close(reply_fd)
        self.requests = memoryview(self._request_map)
        self.replies = memoryview(self._reply_map)
        self._regions = Regions(0, RING_BYTES)
        self._unread: dict[int, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def take(self, slot: int, request_id: int, size: int) -> int:
        """A region for the reply to `request_id`; what the front has read is given back first.

        Raises:
            ResourceExhausted: the front reads nothing any more.
        """
        until = time.monotonic() + 5.0
        while True:
            self._reclaim()
            try:
                offset = self._regions.take(size, 0.0)
            except ResourceExhausted as error:
                if error.reason != "RING_FULL" or time.monotonic() > until:
                    raise
                time.sleep(0.001)
                continue
            with self._lock:
                self._unread[slot] = (request_id, offset)
            return offset

    def _reclaim(self) -> None:
        with self._lock:
            for slot, (request_id, offset) in list(self._unread.items()):
                (read,) = _COUNTER.unpack_from(self.requests, slot * 8)
                if read >= request_id:
                    self._regions.give(offset)
                    del self._unread[slot]


def _memfd(name: str) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    return os.memfd_create(name, flags)
