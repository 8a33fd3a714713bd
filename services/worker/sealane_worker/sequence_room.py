"""How many sequences a model may have at the same time, and how much they may keep: in all, and of one caller.

The states lie in the worker's own memory, whatever limits the model's process has. A caller may have as much as it
leaves free, so there is always room for one more caller.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from sealane.errors import ResourceExhausted
from sealane.protocols.elements import byte_elements
from sealane.tensors import Array

#: Sequences of one model at the same time, of all callers and of one.
MAX_SEQUENCES = 1024
MAX_OF_A_CALLER = 256
#: Bytes of their states together.
MAX_BYTES = 256 << 20
_RETRY_SECONDS = 1.0


@dataclass(slots=True)
class _Share:
    count: int = 0
    size: int = 0


@dataclass(slots=True)
class SequenceRoom:
    """The room of one model, for all of its signatures. Whoever calls it holds one lock for all of them."""

    total: _Share = field(default_factory=_Share)
    shares: defaultdict[str, _Share] = field(default_factory=lambda: defaultdict(_Share))

    def enter(self, caller: str) -> None:
        """A caller begins a sequence.

        Raises:
            ResourceExhausted: it has as many as it may.
        """
        count = self.shares[caller].count if caller in self.shares else 0
        if count >= MAX_OF_A_CALLER or count + 1 > MAX_SEQUENCES - self.total.count - 1:
            raise ResourceExhausted(
                f"{count} sequences of this caller are live, {self.total.count} of {MAX_SEQUENCES} of all; end some, "
                "or try again in a moment",
                reason="SEQUENCES_FULL",
                retry_after=_RETRY_SECONDS,
            )
        for share in (self.total, self.shares[caller]):
            share.count += 1

    def grow(self, caller: str, size: int) -> None:
        """What a caller's sequence keeps is so much larger now, or smaller.

        Raises:
            ResourceExhausted: it keeps as much as it may.
        """
        share = self.shares[caller]
        if size > 0 and share.size + size > MAX_BYTES - self.total.size - size:
            raise ResourceExhausted(
                f"the states of this caller's sequences would take {share.size + size} bytes, those of all may take "
                f"{MAX_BYTES}; end some sequences, or use a model with smaller states",
                reason="SEQUENCE_STATES_FULL",
                retry_after=_RETRY_SECONDS,
            )
        share.size += size
        self.total.size += size

    def leave(self, caller: str, size: int) -> None:
        """A sequence that kept so much is over."""
        share = self.shares[caller]
        for item in (self.total, share):
            item.count -= 1
            item.size -= size
        if not share.count:
            del self.shares[caller]


def size_of(states: Iterable[Array]) -> int:
    """Bytes that tensors take."""
    return sum(
        array.nbytes + (sum(map(len, byte_elements(array))) if array.dtype.kind == "O" else 0) for array in states
    )


def owned(array: Array) -> Array:
    """A tensor that keeps no larger one in memory: what a model answers may be a part of a whole batch."""
    return array if array.base is None else array.copy()
