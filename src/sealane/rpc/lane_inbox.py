"""What both ends of a lane do alike to receive: how pieces are joined, asked for and acknowledged. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from sealane.errors import InvalidArgument
from sealane.rpc.lane import LANE_CONFUSED, MAX_PAYLOAD_BYTES, WINDOW_BYTES, Credit

#: Bytes of payloads that have come in part.
JOINING_BYTES = 4 * MAX_PAYLOAD_BYTES
#: A receiver that has nothing to say acknowledges so many pieces at the latest, or so many bytes.
ACKNOWLEDGE_FRAMES = 64
ACKNOWLEDGE_BYTES = 1024 * 1024

T = TypeVar("T")


@dataclass(slots=True)
class _Joining(Generic[T]):
    item: T
    size: int
    parts: list[bytes] = field(default_factory=list)
    got: int = 0
    granted: int = WINDOW_BYTES


class Inbox(Generic[T]):
    """Payloads that come in pieces. Not for several threads at a time."""

    def __init__(self) -> None:
        self._joining: dict[int, _Joining[T]] = {}
        self._bytes = 0
        self.received = 0
        """Pieces that came, of any kind."""
        self._told = 0
        self._untold_bytes = 0

    def count(self, frames: int, size: int) -> None:
        """So many pieces have come."""
        self.received += frames
        self._untold_bytes += size

    @property
    def acknowledgement_due(self) -> bool:
        """Whether the sender should hear what came even where there is nothing else to say."""
        return self.received - self._told >= ACKNOWLEDGE_FRAMES or self._untold_bytes >= ACKNOWLEDGE_BYTES

    def acknowledge(self) -> int:
        """Pieces that came, to be told to the sender now."""
        self._told, self._untold_bytes = self.received, 0
        return self.received

    def begin(self, call_id: int, item: T, size: int, first: bytes) -> None:
        """A payload of so many bytes of which this is the first piece.

        Raises:
            InvalidArgument: what no honest sender sends.
        """
        if call_id in self._joining or not len(first) < size <= MAX_PAYLOAD_BYTES:
            raise _confused("a payload begins twice or has a size that cannot be")
        self._joining[call_id] = _Joining(item, size)
        self.add(call_id, first)

    def add(self, call_id: int, data: bytes) -> tuple[T, bytes] | None:
        """A further piece: the item and the payload where it was the last; pieces of a dropped payload are too late.

        Raises:
            InvalidArgument: more than was announced or asked for.
        """
        joining = self._joining.get(call_id)
        if joining is None:
            return None
        joining.parts.append(data)
        joining.got += len(data)
        self._bytes += len(data)
        if joining.got > min(joining.size, joining.granted):
            raise _confused("a payload goes on behind its end or its credit")
        if joining.got < joining.size:
            return None
        self.drop(call_id)
        return joining.item, b"".join(joining.parts)

    def drop(self, call_id: int) -> bool:
        """Forget a payload that has not come whole; whether there was one."""
        joining = self._joining.pop(call_id, None)
        if joining is not None:
            self._bytes -= joining.got
        return joining is not None

    def credits(self) -> list[Credit]:
        """What to ask for now: half a window at a time; beyond the bound for the oldest payload alone."""
        asked = []
        room = JOINING_BYTES - self._bytes
        for index, (call_id, joining) in enumerate(self._joining.items()):
            wanted = min(joining.got + WINDOW_BYTES, joining.size) - joining.granted
            last = joining.granted + wanted == joining.size
            if wanted > 0 and (wanted >= WINDOW_BYTES // 2 or last) and (index == 0 or wanted <= room):
                room -= wanted
                joining.granted += wanted
                asked.append(Credit(call_id, wanted))
        return asked

    @property
    def joining(self) -> bool:
        """Whether a payload has come in part."""
        return bool(self._joining)


def _confused(how: str) -> InvalidArgument:
    return InvalidArgument(f"the other end of the lane is confused: {how}; open it anew", reason=LANE_CONFUSED)
