"""What both ends of a lane do alike to send: which piece is next, what is kept until it has arrived.

Pure: no stream, no clock, no generated code. A payload up to :data:`CHUNK_BYTES` is one piece. A larger one travels in
several, one to a message and in turn with others, and no further ahead than its receiver gave credit for: so it holds
up small ones by one piece at most. Every piece has a number, which is its place in the order of sending: after a break
the receiver says how many it got, and the sender goes on behind them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from sealane.rpc.limits import DATA_MESSAGE_BYTES

#: Largest payload of one call, either way.
MAX_PAYLOAD_BYTES = DATA_MESSAGE_BYTES
#: Bytes of a payload that travel in one piece.
CHUNK_BYTES = 256 * 1024
#: Bytes of one payload that may be under way before its receiver has asked for more.
WINDOW_BYTES = 4 * CHUNK_BYTES
#: Pieces that wait together travel together, up to these.
BATCH_FRAMES = 64
BATCH_BYTES = 1024 * 1024
#: Messages that follow one another at less than this wait for company, after the first few, and the longer the more
#: calls are under way: a message costs as much as the call that it carries, whose answer then takes as long anyway.
#: One with plenty of pieces does not wait, nor does a lone call.
SPACING_SECONDS = 0.0005
SPACING_SECONDS_EACH = 0.0003
LONGEST_SPACING = 0.004
BURST_SECONDS = 0.008
PLENTY = 16
#: Bytes that may wait to be sent, and as many that may wait to be acknowledged.
LANE_BYTES = 2 * MAX_PAYLOAD_BYTES
#: Pieces that are kept for a receiver that acknowledges none; then there is no way back after a break.
KEPT_FRAMES = 8192
#: An end did what it cannot have been told to: its session is over.
LANE_CONFUSED = "LANE_CONFUSED"
#: How long a session outlives its stream.
GRACE_SECONDS = 5.0

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Parcel(Generic[T]):
    """A payload on its way: of a call or of an answer.

    Attributes:
        call_id: number of the call.
        item: what the sender wants to say with the first piece.
        payload: the bytes; none once it was dropped or given up.
        deadline: when it is not worth to be begun any more, on the clock of :meth:`Outbox.batch`.
        sent: bytes sent.
        credit: bytes that may be sent.
        lost: whether it was given up to make room; see :attr:`Outbox.kept_bytes`.
    """

    call_id: int
    item: T
    payload: bytes
    deadline: float
    size: int = 0
    sent: int = 0
    credit: int = WINDOW_BYTES
    begun: bool = False
    lost: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Piece(Generic[T]):
    """Bytes of a parcel; the first piece carries its item too."""

    parcel: Parcel[T]
    start: int
    end: int

    @property
    def data(self) -> bytes:
        """The bytes; none of what was dropped meanwhile."""
        payload = self.parcel.payload
        return payload if self.end - self.start == len(payload) else payload[self.start : self.end]


@dataclass(frozen=True, slots=True, eq=False)
class Cancel:
    """Nobody waits for the call any more."""

    call_id: int


@dataclass(frozen=True, slots=True, eq=False)
class Credit:
    """More bytes of the call's payload may be sent."""

    call_id: int
    size: int


Sent = Piece[T] | Cancel | Credit


class Pace:
    """How soon the next message may follow. A lone call, whose caller waits for the answer, is never held up."""

    def __init__(self) -> None:
        self._next = 0.0

    def pause(self, now: float, in_flight: int) -> float:
        """Seconds to wait before the message that is to be sent now, while so many calls are under way."""
        earliest = max(self._next, now - BURST_SECONDS)
        if in_flight <= 1:
            self._next = 0.0
            return 0.0
        self._next = earliest + min(SPACING_SECONDS + SPACING_SECONDS_EACH * in_flight, LONGEST_SPACING)
        return max(earliest - now, 0.0)


class Outbox(Generic[T]):
    """What one end has to send. Not for several threads at a time."""

    def __init__(self) -> None:
        self._small: dict[int, Parcel[T]] = {}
        self._large: dict[int, Parcel[T]] = {}
        self._stalled: dict[int, Parcel[T]] = {}
        self._control: deque[Cancel | Credit] = deque()
        self._again: deque[Sent[T]] = deque()
        self._kept: deque[Sent[T]] = deque()
        self._acknowledged = 0
        self._forgotten = False
        self.unsent_bytes = 0
        """Bytes that wait to be sent."""
        self.kept_bytes = 0
        """Bytes that were sent and not acknowledged."""

    @property
    def ready(self) -> bool:
        """Whether there is something to send."""
        return bool(self._small or self._control or self._large or self._again)

    @property
    def plenty(self) -> bool:
        """Whether what waits is worth a message, whatever else may come."""
        return len(self._small) >= PLENTY or bool(self._large or self._again)

    @property
    def full(self) -> bool:
        """Whether so much waits that more is not welcome."""
        return self.unsent_bytes > LANE_BYTES

    def add(self, call_id: int, item: T, payload: bytes, deadline: float = float("inf")) -> None:
        """Send a payload, in its turn."""
        size = len(payload)
        parcel = Parcel(call_id, item, payload, deadline, size)
        self.unsent_bytes += size
        (self._small if size <= CHUNK_BYTES else self._large)[call_id] = parcel

    def cancel(self, call_id: int) -> None:
        """Say that nobody waits any more, behind all that was sent of the call."""
        self._control.append(Cancel(call_id))

    def credit(self, call_id: int, size: int) -> None:
        """Ask for more of a payload."""
        self._control.append(Credit(call_id, size))

    def drop(self, call_id: int) -> bool:
        """Send nothing more of a payload; false where it was not there, or nothing of it had been sent."""
        for line in (self._small, self._large, self._stalled):
            parcel = line.pop(call_id, None)
            if parcel is not None:
                self.unsent_bytes -= parcel.size - parcel.sent
                return parcel.begun
        return False

    def waits(self, call_id: int) -> bool:
        """Whether nothing of a payload was sent yet."""
        parcel = self._small.get(call_id) or self._large.get(call_id)
        return parcel is not None and not parcel.begun

    def grant(self, call_id: int, size: int) -> None:
        """The receiver takes more of a payload."""
        parcel = self._large.get(call_id) or self._stalled.get(call_id)
        if parcel is not None:
            parcel.credit += size
            if parcel.credit > parcel.sent and self._stalled.pop(call_id, None) is not None:
                self._large[call_id] = parcel

    def batch(self, now: float) -> list[Sent[T]]:
        """What travels in the next message; may be nothing, where all that waited was overdue."""
        if self._again:
            return [self._again.popleft() for _ in range(min(len(self._again), 4))]  # at most one window at a time
        batch: list[Sent[T]] = []
        while self._control and len(batch) < BATCH_FRAMES:
            batch.append(self._control.popleft())
        size, small = 0, self._small
        while small and len(batch) < BATCH_FRAMES and size < BATCH_BYTES:
            parcel = small.pop(next(iter(small)))
            self.unsent_bytes -= parcel.size
            if parcel.deadline > now:
                parcel.begun = True
                parcel.sent = parcel.size
                size += parcel.size
                batch.append(Piece(parcel, 0, parcel.size))
        if self._large:
            batch.extend(self._chunk(now))
        self._keep(batch)
        return batch

    def acknowledge(self, received: int) -> None:
        """The receiver has got so many pieces in all."""
        kept = self._kept
        while kept and self._acknowledged < received:
            self._acknowledged += 1
            piece = kept.popleft()
            if isinstance(piece, Piece) and not piece.parcel.lost:
                self.kept_bytes -= piece.end - piece.start

    def resume(self, received: int) -> bool:
        """After a break: send again what comes behind so many pieces; false where that is not kept any more."""
        self.acknowledge(received)
        if self._forgotten or self._acknowledged != received:
            return False
        self._again = deque(self._kept)
        return True

    def _chunk(self, now: float) -> Iterator[Piece[T]]:
        """The next chunk of those whose turn it is."""
        call_id, parcel = next(iter(self._large.items()))
        del self._large[call_id]
        if not parcel.begun and parcel.deadline <= now:
            self.unsent_bytes -= parcel.size
            return
        start, parcel.begun = parcel.sent, True
        parcel.sent = min(start + CHUNK_BYTES, parcel.size, parcel.credit)
        self.unsent_bytes -= parcel.sent - start
        if parcel.sent < parcel.size:
            (self._large if parcel.sent < parcel.credit else self._stalled)[call_id] = parcel
        yield Piece(parcel, start, parcel.sent)

    def _keep(self, batch: Iterable[Sent[T]]) -> None:
        for piece in batch:
            self._kept.append(piece)
            if isinstance(piece, Piece):
                self.kept_bytes += piece.end - piece.start
        if self.kept_bytes > LANE_BYTES:
            self._give_up()
        if len(self._kept) > KEPT_FRAMES:
            self._forgotten = True
            while len(self._kept) > KEPT_FRAMES // 2:
                self.acknowledge(self._acknowledged + 1)

    def _give_up(self) -> None:
        """Let go of the oldest payloads that were sent whole, until the bound is kept."""
        for piece in self._kept:
            if self.kept_bytes <= LANE_BYTES:
                return
            if isinstance(piece, Piece) and not piece.parcel.lost and piece.parcel.sent == piece.parcel.size:
                self._lose(piece.parcel)

    def _lose(self, parcel: Parcel[T]) -> None:
        pieces = (piece for piece in self._kept if isinstance(piece, Piece) and piece.parcel is parcel)
        self.kept_bytes -= sum(piece.end - piece.start for piece in pieces)
        parcel.lost, parcel.payload = True, b""
