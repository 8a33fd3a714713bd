"""Serves one model: takes requests from the slots, queues, batches, runs, replies.

Every instance is a thread with the same loop. One of them at a time is the leader: it collects what has come, picks a
batch and hands the lead on before it runs the batch itself, so that a lone request crosses no thread. Where all of them
are in runs that take long, a listener leads: who is to be refused hears it at once, and who leaves is struck off.
"""

from __future__ import annotations

import json
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sealane.tensors import Array, Signature
from sealane_worker import wire
from sealane_worker.model.failures import CANCELLED, busy, failure, late
from sealane_worker.model.latency import LatencyModel
from sealane_worker.model.queueing import Batching, BatchQueue
from sealane_worker.rings import ModelRings
from sealane_worker.runtimes import Runtime

#: Finer waits than the milliseconds of epoll are slept, at most so long at a time.
_FINE_WAIT = 0.0005
#: Runs that are expected to take longer have a listener; for shorter ones it would cost more than it gives.
LONG_RUN = 0.005
#: How often a listener looks whether somebody's time in the queue is over.
_LISTEN = 0.005
_TEXT, _MESSAGE = 100, 2000


@dataclass(frozen=True, slots=True, eq=False)
class SlotRequest:
    """A request that came in on a slot; see :class:`sealane_worker.model.queueing.Request`."""

    slot: int
    id: int
    flow: int
    priority: int
    deadline: float
    layout: wire.Layout
    body: memoryview
    key: object
    arrived: float

    @property
    def rows(self) -> int:
        """Rows of it."""
        return self.layout.rows

    @property
    def size(self) -> int:
        """Bytes of it."""
        return self.layout.size


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready: its runtime, what callers send and get, how it is run."""

    runtime: Runtime
    signatures: tuple[Signature, ...]
    batching: Batching
    instances: int = 1
    batchable: frozenset[str] = frozenset()
    """Signatures whose rows do not influence each other, so that requests can run together."""


class ModelServer:
    """Answers the slots until the front hangs up."""

    def __init__(self, loaded: Loaded, slots: Sequence[socket.socket], rings: ModelRings) -> None:
        self._loaded = loaded
        self._slots = slots
        self._by_fd = {sock.fileno(): index for index, sock in enumerate(slots)}
        self._rings = rings
        self._layouts = wire.Layouts()
        self._packer = wire.Packer()
        self._latency = LatencyModel(loaded.batching.max_rows, loaded.batching.latency_objective_ms / 1000)
        self._queue: BatchQueue[SlotRequest] = BatchQueue(loaded.batching, self._latency, loaded.instances)
        self._at_once = not loaded.batching.max_queue_delay_microseconds
        self._batchable = set(loaded.batchable)
        self._observed: deque[tuple[int, float]] = deque(maxlen=1024)
        self._lead = threading.Lock()  # the queue, the latency model, reading the slots
        self._count = threading.Lock()
        self._running = 0
        self._listen = threading.Semaphore(0)
        self._listening = False
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.epoll()
        self._poll.register(self._bell, select.EPOLLIN)
        for sock in slots:
            sock.setblocking(False)
            self._poll.register(sock, select.EPOLLIN)

    def serve(self) -> None:
        """Run all instances; the calling thread is one of them. Never returns: the process ends with its front."""
        threading.Thread(target=self._hear, name="listener", daemon=True).start()
        for index in range(1, self._loaded.instances):
            threading.Thread(target=self._work, name=f"instance-{index}", daemon=True).start()
        self._work()

    def _work(self) -> None:
        while True:
            with self._lead:
                batch = self._next_batch()
                run = self._begin(batch)
            try:
                self._run(batch)
            finally:
                self._end(run)

    def _begin(self, batch: Sequence[SlotRequest]) -> int:
        if self._observed and self._observed[-1][1] >= LONG_RUN:
            self._learn()  # short runs are learned from when somebody has to wait, and cost the others nothing
        seconds = self._latency.mean(sum(request.rows for request in batch))
        with self._count:
            self._running += 1
            everybody = self._running == self._loaded.instances
        if seconds >= LONG_RUN and everybody:
            self._listen.release()
        return self._queue.begin(time.monotonic() + seconds)

    def _end(self, run: int) -> None:
        with self._count:
            self._running -= 1
        self._queue.end(run)
        if self._listening:
            os.eventfd_write(self._bell, 1)

    def _hear(self) -> None:
        """Lead while every instance runs."""
        while True:
            self._listen.acquire()
            with self._lead:
                self._listening = True
                while self._running == self._loaded.instances:
                    self._take_in(self._collect(_LISTEN if len(self._queue) else None), time.monotonic())
                self._listening = False

    def _next_batch(self) -> list[SlotRequest]:
        wait: float | None = 0.0 if len(self._queue) else None
        while True:
            come = self._collect(wait)
            now = time.monotonic()
            if len(come) == 1 and not len(self._queue) and self._at_once and now < come[0].deadline:
                return come  # nobody to wait for and nobody to be fair to
            self._take_in(come, now)
            batch, wait = self._queue.take(now)
            if batch:
                return batch

    def _take_in(self, come: Sequence[SlotRequest], now: float) -> None:
        for request in come:
            refused = self._queue.put(request, now)
            if refused is not None:
                self._fail(request, *busy(refused))
        self._learn()
        for dead in self._queue.expire(now):
            self._fail(dead, *late())

    def _learn(self) -> None:
        while self._observed:
            self._latency.observe(*self._observed.popleft(), waiting=self._queue.rows)

    def _collect(self, wait: float | None) -> list[SlotRequest]:
        """What has come; waits up to `wait` seconds for something, None for ever."""
        if wait is not None and 0.0 < wait < 2 * _FINE_WAIT:
            time.sleep(min(wait, _FINE_WAIT))
            wait = 0.0
        come: dict[int, SlotRequest] = {}
        ready = self._poll.poll(wait)
        while ready:
            for descriptor, _ in ready:
                self._take_packet(descriptor, come)
            # Behind a request that waited here may stand the word that nobody wants it any more.
            ready = self._poll.poll(0)
        return list(come.values())

    def _take_packet(self, descriptor: int, come: dict[int, SlotRequest]) -> None:
        if descriptor == self._bell:
            os.eventfd_read(self._bell)
            return
        slot = self._by_fd[descriptor]
        request = self._receive(slot, come)
        if request is not None:
            come[slot] = request

    def _receive(self, slot: int, come: dict[int, SlotRequest]) -> SlotRequest | None:
        sock = self._slots[slot]
        try:
            packet = sock.recv(wire.PACKET_BYTES)
        except OSError:
            packet = b""
        if not packet:  # the front closed the slot; the control socket ends the process
            self._poll.unregister(sock)
            return None
        kind, priority, layout_size, flow, number, deadline, offset, size = wire.REQUEST.unpack_from(packet)
        if kind == wire.CANCEL:
            self._cancel(slot, number, come)
            return None
        at = wire.REQUEST.size
        start = at + layout_size
        layout = self._layouts.read(packet[at:start])
        inline = offset == wire.INLINE
        body = memoryview(packet)[start : start + size] if inline else self._rings.requests[offset : offset + size]
        key = layout.key if layout.signature in self._batchable else None
        return SlotRequest(slot, number, flow, priority, deadline, layout, body, key, time.monotonic())

    def _cancel(self, slot: int, number: int, come: dict[int, SlotRequest]) -> None:
        """Strike off a request that was not begun; one that runs cannot be stopped in the middle."""
        just_come = come.get(slot)
        if just_come is not None and just_come.id == number:
            del come[slot]
            self._fail(just_come, *CANCELLED)
            return
        for request in self._queue.requests():
            if (request.slot, request.id) == (slot, number):
                self._queue.cancel(request)
                self._fail(request, *CANCELLED)
                return

    def _run(self, batch: Sequence[SlotRequest]) -> None:
        started = time.monotonic()
        alive = [request for request in batch if started < request.deadline]
        for request in batch:
            if started >= request.deadline:
                self._fail(request, *late())
        if not alive:
            return
        try:
            outputs = self._outputs(alive)
        except Exception as error:  # supervisor: one bad request must not end the others
            if len(alive) > 1:  # nor spoil its company: each gets its own answer
                for request in alive:
                    self._run([request])
                return
            self._fail(alive[0], *failure(error))
            return
        seconds = time.monotonic() - started
        rows = sum(request.rows for request in alive)
        self._observed.append((rows, seconds))
        for request, arrays in zip(alive, outputs, strict=True):
            try:
                self._reply(request, arrays, rows, (seconds, started - request.arrived))
            except Exception as error:  # supervisor: outputs that cannot be sent fail their own request alone
                self._fail(request, *failure(error))

    def _outputs(self, batch: Sequence[SlotRequest]) -> list[dict[str, Array]]:
        inputs = [wire.unpack(request.layout, request.body) for request in batch]
        signature = batch[0].layout.signature
        if len(batch) == 1:
            return [_wanted(self._loaded.runtime.run(inputs[0], signature), batch[0].layout.outputs)]
        joined = {name: np.concatenate([item[name] for item in inputs]) for name in inputs[0]}
        together = self._loaded.runtime.run(joined, signature)
        rows = sum(request.rows for request in batch)
        if any(array.shape[:1] != (rows,) for array in together.values()):
            # Its signature promised rows and it gives something else: never together again.
            self._batchable.discard(signature)
            return [self._outputs([request])[0] for request in batch]
        split: list[dict[str, Array]] = []
        at = 0
        for request in batch:
            mine_at = slice(at, at + request.rows)
            at += request.rows
            mine = {name: array[mine_at] for name, array in together.items()}
            split.append(_wanted(mine, request.layout.outputs))
        return split

    def _reply(self, request: SlotRequest, arrays: Mapping[str, Array], rows: int, times: tuple[float, float]) -> None:
        body = self._packer.pack(arrays)
        offset = wire.INLINE
        if body.size > wire.INLINE_BYTES:
            offset = self._rings.take(request.slot, request.id, body.size)
            body.copy_to(self._rings.replies[offset : offset + body.size])
        head = wire.REPLY.pack(wire.OK, len(body.layout), rows, request.id, offset, body.size, *times)
        self._send(request.slot, [head, body.layout, *(body.parts if offset == wire.INLINE else ())])

    def _fail(self, request: SlotRequest, kind: str, reason: str, field: str, message: str, retry_after: float) -> None:
        told = {"kind": kind, "reason": reason[:_TEXT], "field": field[:_TEXT], "retry_after": retry_after}
        told["message"] = message[:_MESSAGE]  # at most six bytes a character: the whole stays within a packet
        encoded = json.dumps(told).encode()
        head = wire.REPLY.pack(wire.FAILED, len(encoded), 0, request.id, wire.INLINE, 0, 0.0, 0.0)
        self._send(request.slot, [head, encoded])

    def _send(self, slot: int, parts: Sequence[bytes | memoryview]) -> None:
        try:
            self._slots[slot].sendmsg(parts)
        except OSError:
            return  # the front is gone; the control socket ends the process


def _wanted(outputs: dict[str, Array], names: Sequence[str]) -> dict[str, Array]:
    return {name: outputs[name] for name in names} if names else outputs
