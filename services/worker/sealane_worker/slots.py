"""The sockets over which a front calls one model process: a slot carries one request at a time.

The caller's own thread writes and reads its slot, so no thread stands between it and the model. A caller that gives up
leaves its slot behind; the slot comes back when the model has answered, because until then the model may still read
the request's memory.
"""

from __future__ import annotations

import contextlib
import json
import math
import socket
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from sealane.errors import BY_KIND, DeadlineExceeded, Internal, SealaneError
from sealane.tensors import Array
from sealane_worker import wire
from sealane_worker.callers import Bell, Caller
from sealane_worker.control import Disconnected
from sealane_worker.rings import FrontRings
from sealane_worker.spec import Ran, Run

_TIMEVAL = struct.Struct("@ll")
#: What a box says of itself; a model that says the same must not steer the front with it.
_OUR_REASONS = {"MODEL_CLOSED", "MODEL_CRASHED", "MODEL_RESTARTING", "MODEL_QUARANTINED", "MODEL_LOADING"}
_LONGEST_RETRY = 60.0
#: How long a reader waits in the kernel before it asks to hear of a caller that leaves: most answers are there by then,
#: and have paid nothing for it.
_FIRST_WAIT = 0.005


@dataclass(slots=True, eq=False)
class _Slot:
    index: int
    sock: socket.socket
    last_id: int = 0
    offset: int = wire.INLINE
    due: float = math.inf
    wait: float = 0.0
    bell: Bell | None = None


class Slots:
    """All slots of one model process."""

    def __init__(self, socks: Sequence[socket.socket], rings: FrontRings) -> None:
        self._rings = rings
        self._slots = [_Slot(index, sock) for index, sock in enumerate(socks)]
        # The last one given back is taken first: its memory is warm.
        self._free = list(reversed(self._slots))
        self._owed: set[_Slot] = set()
        self._left: list[_Slot] = []
        self._changed = threading.Condition()
        self._reclaiming = threading.Lock()
        self._waiting = 0
        self._layouts = wire.Layouts()
        self._packer = wire.Packer()
        self._closed = False
        self.lied = False
        """Whether the process sent what it cannot have been asked for; it is to be ended."""

    @property
    def in_flight(self) -> int:
        """Requests that the process owes an answer to."""
        return len(self._owed)

    def overdue_seconds(self, now: float) -> float:
        """How long after its caller's deadline the process still owes its oldest answer."""
        return max((now - slot.due for slot in list(self._owed)), default=0.0)

    def run(self, run: Run) -> Ran:
        """One request and its answer; see :meth:`sealane_worker.child.Child.run`."""
        body = self._packer.pack(run.inputs, run.signature, run.outputs)
        slot = self._take(run)
        sent = answered = False
        try:
            slot.last_id += 1
            if body.size > wire.INLINE_BYTES:
                slot.offset = self._rings.regions.take(body.size, run.deadline)
                body.copy_to(self._rings.requests[slot.offset : slot.offset + body.size])
            slot.due = run.deadline
            self._owed.add(slot)
            sent = True
            self._send(slot, run, body)
            packet = self._read(slot, run)
            answered = True
            return self._ran(slot, packet)
        finally:
            if answered or not sent:
                self._give(slot)
            else:
                self._leave(slot)

    def reclaim(self) -> None:
        """Give back the slots whose late answers have come."""
        # One at a time: a slot given back may be in use again while another thread still looks at it.
        if self._left and self._reclaiming.acquire(blocking=False):
            try:
                self._reclaim()
            finally:
                self._reclaiming.release()

    def _reclaim(self) -> None:
        for slot in list(self._left):
            try:
                packet = slot.sock.recv(wire.PACKET_BYTES, socket.MSG_DONTWAIT)
            except OSError:
                continue
            if not packet:
                continue
            if len(packet) < wire.REPLY.size or wire.REPLY.unpack_from(packet)[3] != slot.last_id:
                self.lied = True
            else:
                self._left.remove(slot)
                self._rings.mark_read(slot.index, slot.last_id)
                self._give(slot)

    def close(self) -> None:
        """Close all; readers get Disconnected."""
        self._closed = True
        for slot in self._slots:
            try:
                slot.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
            finally:
                slot.sock.close()
                if slot.bell is not None:
                    slot.bell.close()
        with self._changed:
            self._changed.notify_all()

    def _take(self, run: Run) -> _Slot:
        if self._left:
            self.reclaim()
        try:
            return self._free.pop()
        except IndexError:
            pass
        with self._changed:
            self._waiting += 1
            caller = Caller(run, self._wake_all)
            try:
                while not self._free:
                    if self._closed:
                        raise Disconnected
                    caller.check()
                    wait = run.deadline - time.monotonic()
                    if wait <= 0:
                        raise DeadlineExceeded(
                            "the model was busy with other requests until the deadline; allow more time or add "
                            "replicas",
                            reason="QUEUE_TIMEOUT",
                        )
                    self._changed.wait(min(wait, 0.1))
                    self.reclaim()
                return self._free.pop()
            finally:
                caller.end()
                self._waiting -= 1

    def _wake_all(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _give(self, slot: _Slot) -> None:
        if slot.offset != wire.INLINE:
            self._rings.regions.give(slot.offset)
            slot.offset = wire.INLINE
        self._owed.discard(slot)
        self._free.append(slot)
        if self._waiting:
            with self._changed:
                self._changed.notify()

    def _leave(self, slot: _Slot) -> None:
        """Nobody waits for this answer any more: tell the model, which drops what it has not begun."""
        head = wire.REQUEST.pack(wire.CANCEL, 0, 0, 0, slot.last_id, 0.0, wire.INLINE, 0)
        with contextlib.suppress(OSError):  # gone, or closed by now: nothing is left to cancel
            slot.sock.send(head, socket.MSG_DONTWAIT)
        self._left.append(slot)

    def _send(self, slot: _Slot, run: Run, body: wire.Body) -> None:
        head = wire.REQUEST.pack(
            wire.RUN, run.priority, len(body.layout), run.flow, slot.last_id, run.deadline, slot.offset, body.size
        )
        parts: tuple[bytes | memoryview, ...] = (head, body.layout, *(body.parts if slot.offset == wire.INLINE else ()))
        try:
            slot.sock.sendmsg(parts)
        except OSError as error:
            raise Disconnected from error

    def _read(self, slot: _Slot, run: Run) -> bytes:
        # A receive timeout in the kernel costs less than a poll before every read, and is seldom set anew.
        step = min(_FIRST_WAIT, run.deadline - time.monotonic())
        if step <= 0:
            raise late()
        try:
            if slot.wait != step:
                slot.wait = step
                slot.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(0, int(step * 1e6) + 1))
            packet = slot.sock.recv(wire.PACKET_BYTES)
        except BlockingIOError:
            packet = self._read_slowly(slot, run)
        except OSError as error:
            raise Disconnected from error
        if not packet:
            raise Disconnected
        return packet

    def _read_slowly(self, slot: _Slot, run: Run) -> bytes:
        """The rest of a wait that is worth to be ended when the caller leaves."""
        bell = slot.bell = slot.bell or Bell(slot.sock)
        caller = Caller(run, bell.ring)
        try:
            while not self._closed:
                caller.check()
                wait = run.deadline - time.monotonic()
                if wait <= 0:
                    raise late()
                bell.wait(wait)
                with contextlib.suppress(BlockingIOError):
                    return slot.sock.recv(wire.PACKET_BYTES, socket.MSG_DONTWAIT)
        except OSError as error:
            raise Disconnected from error
        finally:
            caller.end()
        raise Disconnected

    def _ran(self, slot: _Slot, packet: bytes) -> Ran:
        if len(packet) < wire.REPLY.size:
            self.lied = True
            raise Internal("the model process sent an answer that cannot be read")
        kind, layout_size, rows, number, offset, size, seconds, queued = wire.REPLY.unpack_from(packet)
        if number != slot.last_id:
            self.lied = True
            raise Internal("the model process answered out of turn")
        at = wire.REPLY.size
        if kind != wire.OK:
            raise told(packet[at : at + layout_size])
        layout = self._layouts.read(packet[at : at + layout_size])
        start = at + layout_size
        if offset == wire.INLINE:
            arrays = wire.unpack(layout, memoryview(packet)[start : start + size])
        else:
            arrays = self._copied(layout, offset, size)
            self._rings.mark_read(slot.index, number)
        return Ran(arrays, seconds, queued, rows)

    def _copied(self, layout: wire.Layout, offset: int, size: int) -> dict[str, Array]:
        """The tensors of a reply in the ring, copied: the model could change them under our hands."""
        if offset + size > len(self._rings.replies) or layout.size > size:
            raise Internal("the model process points outside its memory")
        return wire.unpack(layout, memoryview(bytes(self._rings.replies[offset : offset + layout.size])))


def late() -> DeadlineExceeded:
    """For a caller whose time is over while the model owes him an answer."""
    return DeadlineExceeded("the model did not answer before the deadline; allow more time")


def told(encoded: bytes) -> SealaneError:
    """What a model process says that went wrong: JSON, of which nothing is believed that it cannot know."""
    try:
        said = json.loads(encoded)
        # Half a surrogate pair is no text that could be sent on.
        texts = (str(said[key]).encode().decode() for key in ("kind", "reason", "field", "message"))
        kind, reason, field, message = texts
        retry_after = float(said["retry_after"])
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return Internal("the model process sent an error that cannot be read")
    return BY_KIND.get(kind, Internal)(
        message,
        reason=kind if reason in _OUR_REASONS else reason,
        field=field,
        retry_after=min(retry_after, _LONGEST_RETRY) if retry_after > 0 else None,
    )
