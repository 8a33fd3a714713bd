"""Which worker keeps what belongs to a key, while it is not much busier than the others. Pure.

Consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam 2016) over rendezvous hashing (Thaler and
Ravishankar 1996): a key has its order of the workers, and goes to the first that has room.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

#: Metadata of an inference call: calls of one key go to one worker, which may have what they share at hand.
AFFINITY = "x-sealane-affinity"
#: A worker has room while its calls, the new one among them, are at most so many times the mean.
BOUND = 1.25
#: And while they are at most so many, whatever the mean: with hardly any calls it says nothing.
LEAST_ROOM = 2

#: Of a key so much counts.
_KEY_LENGTH = 256

T = TypeVar("T")


def key_of(project: str, key: str) -> str:
    """What is hashed for a caller's key: keys of two projects are two keys."""
    return f"{project}\0{key[:_KEY_LENGTH]}"


def weight(node: str, key: str) -> bytes:
    """How much a key belongs to a node; the node of the highest weight keeps it."""
    return hashlib.blake2b(f"{node}\0{key}".encode(), digest_size=8).digest()


def bounded(items: Sequence[T], key: str, node_of: Callable[[T], str], calls: Callable[[str], float]) -> T:
    """The item that keeps what belongs to `key`; the next one in the key's order where that one has no room.

    Args:
        items: at least one.
        key: what belongs together.
        node_of: name of an item's node.
        calls: calls that are at a node.
    """
    there = {node_of(item): calls(node_of(item)) for item in items}
    room = max(math.ceil(BOUND * (sum(there.values()) + 1) / len(items)), LEAST_ROOM)
    for item in _in_order(items, key, node_of):
        if there[node_of(item)] + 1 <= room:
            return item
    raise AssertionError("the one with the fewest calls has room")


def _in_order(items: Sequence[T], key: str, node_of: Callable[[T], str]) -> Iterator[T]:
    """The first without looking at the order of the others: it is nearly always taken."""

    def belongs(item: T) -> bytes:
        return weight(node_of(item), key)

    first = max(items, key=belongs)
    yield first
    yield from (item for item in sorted(items, key=belongs, reverse=True) if item is not first)
