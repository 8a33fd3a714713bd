"""What handing a small request to another process costs: a socket for each request under way, or one for all.

``python -m bench.handover`` prints the figures of docs/adr/0008-slots-not-one-socket.md: medians of alternating runs of
an echo, so that what else the machine does meets both alike.
"""

from __future__ import annotations

import os
import select
import socket
import statistics
import struct
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future

ROUNDS, SECONDS, BYTES = 7, 0.4, 512
_NUMBER = struct.Struct("<Q")


def echo(socks: Sequence[socket.socket]) -> None:
    """Answer every packet with itself until all sockets are closed."""
    poll = select.epoll()
    by_fd = {sock.fileno(): sock for sock in socks}
    for descriptor in by_fd:
        poll.register(descriptor, select.EPOLLIN)
    while by_fd:
        for descriptor, _ in poll.poll():
            packet = by_fd[descriptor].recv(1 << 16)
            if packet:
                by_fd[descriptor].send(packet)
            else:
                poll.unregister(descriptor)
                by_fd.pop(descriptor).close()


class SocketEach:
    """A packet socket for each request under way; its caller reads it."""

    def __init__(self, callers: int) -> None:
        self._mine = self._started(callers)
        self._free = list(self._mine)

    def call(self, body: bytes) -> bytes:
        """One request and its answer."""
        sock = self._free.pop()
        sock.send(body)
        answer = sock.recv(1 << 16)
        self._free.append(sock)
        return answer

    def close(self) -> None:
        """End the other process."""
        for sock in self._mine:
            sock.close()
        os.waitpid(self._pid, 0)

    def _started(self, count: int) -> list[socket.socket]:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(count)]
        self._pid = os.fork()
        if not self._pid:
            for mine, _ in pairs:
                mine.close()
            try:
                echo([theirs for _, theirs in pairs])
            finally:
                os._exit(0)
        for _, theirs in pairs:
            theirs.close()
        return [mine for mine, _ in pairs]


class SocketForAll(SocketEach):
    """One packet socket; a thread reads it and wakes the caller whose answer came."""

    def __init__(self, callers: int) -> None:
        (self._sock,) = self._mine = self._started(1)
        self._waiting: dict[int, Future[bytes]] = {}
        self._last = 0
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def call(self, body: bytes) -> bytes:
        """One request and its answer."""
        answer: Future[bytes] = Future()
        with self._lock:
            self._last += 1
            number = self._last
            self._waiting[number] = answer
        self._sock.send(_NUMBER.pack(number) + body[_NUMBER.size :])
        return answer.result()

    def close(self) -> None:
        """End the other process and the reader."""
        self._sock.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        super().close()

    def _read(self) -> None:
        while packet := self._sock.recv(1 << 16):
            self._waiting.pop(_NUMBER.unpack_from(packet)[0]).set_result(packet)


def measure(kind: type[SocketEach], callers: int) -> tuple[float, float, float]:
    """Median microseconds of a call, calls a second, microseconds of the callers' processor a call."""
    way, body, laps = kind(callers), bytes(BYTES), list[float]()
    until = time.monotonic() + SECONDS

    def work() -> None:
        while time.monotonic() < until:
            started = time.perf_counter()
            way.call(body)
            laps.append(time.perf_counter() - started)

    used = time.process_time()
    threads = [threading.Thread(target=work) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    used = time.process_time() - used
    way.close()
    return statistics.median(laps) * 1e6, len(laps) / SECONDS, used / len(laps) * 1e6


def main() -> None:
    """Print a table for one and for eight callers, on one processor and on all."""
    every = os.sched_getaffinity(0)
    for processors in ({min(every)}, every):
        os.sched_setaffinity(0, processors)
        for callers in (1, 8):
            found: dict[type[SocketEach], list[tuple[float, float, float]]] = {SocketEach: [], SocketForAll: []}
            for _ in range(ROUNDS):
                for kind, runs in found.items():
                    runs.append(measure(kind, callers))
            for kind, runs in found.items():
                p50, rate, used = (statistics.median(column) for column in zip(*runs, strict=True))
                where = f"{len(processors)} processors, {callers} callers, {kind.__name__}"
                print(f"{where:44} p50 {p50:5.0f} us  {rate:7.0f}/s  CPU of the callers {used:4.1f} us")


if __name__ == "__main__":
    main()
