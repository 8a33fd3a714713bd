"""The nodes as arrays, kept up to date one node at a time, and snapshots of them that never change.

A snapshot shares the table's arrays; the table copies an array before it changes one that a snapshot may hold. So a
snapshot costs nothing, and a change costs only the columns that it touches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sealane_scheduler.filters import CLEARANCE, SANDBOX, NodeView, ms_per_byte
from sealane_scheduler.pools import Pool, Pools
from sealane_scheduler.transcript import canonical, of_node

Rows = NDArray[np.int64]
Column = NDArray[Any]

#: Freed memory that a process keeps between decisions, whose arrays come and go.
KEPT_BYTES = 64 << 20
_CHUNK_BITS = 8
_CHUNK = 1 << _CHUNK_BITS
_DIGEST_BITS = 128
#: Fleets up to this size have a digest; of larger ones no decision is made again.
DIGESTED = 256
#: Changes that are remembered; who saw an older state looks at everything again.
_CHANGES = 4096
#: Numbers of pooled values that others are looked up by are as wide as an index: others are made so at every look.
_COLUMNS: dict[str, type[np.generic]] = {
    "alive": np.bool_,
    "draining": np.bool_,
    "edge": np.bool_,
    "zone": np.int64,
    "clearance": np.int8,
    "accelerator": np.int32,
    "accelerated": np.float64,
    "kit": np.int64,
    "facts": np.int64,
    "sandbox_gap": np.int8,
    "free_memory": np.int64,
    "free_cpu": np.int64,
    "per_memory": np.float64,
    "per_cpu": np.float64,
    "left_over": np.float64,
    "rtt": np.float64,
    "in_ms": np.float64,
    "out_ms": np.float64,
    "price": np.float64,
    "egress": np.float64,
    "watts": np.float64,
    "tie": np.uint64,
}


class Taken(dict[str, Column]):
    """Some rows of columns, each taken when it is first asked for."""

    def __init__(self, whole: Mapping[str, Column], rows: Rows) -> None:
        super().__init__()
        self.whole = whole
        self._rows = rows

    def __missing__(self, name: str) -> Column:
        taken = self[name] = self.whole[name][self._rows]
        return taken


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All nodes at one moment, or some of them.

    Args:
        version: grows with every change of the table.
        digest: of the content of all nodes, whatever their order; empty where there are more than DIGESTED.
        total: how many nodes the table had.
        columns: one array of `len(self)` each.
        pools: what numbers in columns stand for.
        index: row of each node in the whole table.
        chunks: the nodes themselves, by row of the whole table.
        holders: digest of a variant -> rows of the whole table where it is loaded.
        avoided: id of a variant -> rows of the whole table that refused it lately.
        rows: rows of the whole table that these are; None for all.
        changes: the row of each change of the table, in their order; the inverse (``~row``) where a node only has
            less room than before. The table goes on writing it.
        since: version before the first of them.
    """

    version: int
    digest: str
    total: int
    columns: Mapping[str, Column]
    pools: Pools
    index: Mapping[str, int]
    chunks: tuple[tuple[NodeView, ...], ...]
    holders: Mapping[str, frozenset[int]]
    avoided: Mapping[str, frozenset[int]]
    rows: Rows | None = None
    changes: Sequence[int] = ()
    since: int = 0

    def __len__(self) -> int:
        return self.total if self.rows is None else len(self.rows)

    def __getitem__(self, column: str) -> Column:
        return self.columns[column]

    def node(self, position: int) -> NodeView:
        """The node at a position of this snapshot."""
        row = position if self.rows is None else int(self.rows[position])
        return self.chunks[row >> _CHUNK_BITS][row & (_CHUNK - 1)]

    def nodes(self) -> list[NodeView]:
        """All of them, in their order."""
        return [self.node(position) for position in range(len(self))]

    def take(self, positions: Rows) -> Snapshot:
        """Only the nodes at these positions."""
        rows = positions if self.rows is None else self.rows[positions]
        whole = self.columns.whole if isinstance(self.columns, Taken) else self.columns
        return replace(self, columns=Taken(whole, rows), rows=rows)

    def positions(self, rows: Iterable[int]) -> Rows:
        """Where rows of the whole table are in this snapshot; those that are not are left out."""
        wanted = np.fromiter(rows, np.int64)
        return wanted if self.rows is None else np.flatnonzero(np.isin(self.rows, wanted))

    def changed_since(self, earlier: Snapshot) -> tuple[Rows, Rows] | None:
        """Rows that are otherwise than in an earlier snapshot of the same table, and rows that only have less room.

        Returns:
            None where that is not known.
        """
        if self.changes is not earlier.changes:
            return None
        seen = set(self.changes[earlier.version - self.since : self.version - self.since])
        other = {row for row in seen if row >= 0}
        fuller = {~row for row in seen if row < 0} - other
        return np.array(sorted(other), np.int64), np.array(sorted(fuller), np.int64)


class NodeTable:
    """The nodes as they are now. Owned by one writer."""

    def __init__(self, nodes: Iterable[NodeView] = (), version: int | None = None) -> None:
        """A table of some nodes, as of a version; by default one for each of them."""
        self._columns: dict[str, Column] = {name: np.zeros(_CHUNK, kind) for name, kind in _COLUMNS.items()}
        self._shared: set[str] = set()
        self._shared_rows = 0
        self._pools = Pools(Pool(), Pool(), Pool(), Pool())
        self._index: dict[str, int] = {}
        self._index_shared = False
        self._chunks: list[tuple[NodeView, ...]] = []
        self._holders: dict[str, frozenset[int]] = {}
        self._avoided: dict[str, frozenset[int]] = {}
        self._hashes: list[int] = []
        self._digest = 0
        self._unhashed: set[int] = set()
        self._version = 0
        for node in nodes:
            self.put(node)
        if version is not None:
            self._version = version
        self._begin_changes()

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, node: str) -> bool:
        return node in self._index

    def get(self, node: str) -> NodeView | None:
        """A node as it is now."""
        row = self._index.get(node)
        return None if row is None else self._at(row)

    def put(self, node: NodeView) -> None:
        """Add a node, or say how it is now."""
        row = self._index.get(node.node)
        old = None if row is None else self._at(row)
        if node == old:
            return
        if row is None:
            row = self._grow(node.node)
        self._write(row, node, old)

    def drop(self, name: str) -> None:
        """Forget a node; the last one takes its row."""
        row = self._index.get(name)
        if row is None:
            return
        last = len(self) - 1
        moved, gone = self._at(last), self._at(row)
        if row != last:
            self._write(row, moved, gone)
        self._marks(last, moved, None)
        self._digest -= self._hashes.pop()
        self._unhashed.discard(last)
        self._index = {node: place for node, place in self._index.items() if node != name}
        if row != last:
            self._index[moved.node] = row
        self._index_shared = False
        self._chunks[-1] = self._chunks[-1][:-1]
        if not self._chunks[-1]:
            self._chunks.pop()
        self._version += 1
        self._begin_changes()

    def snapshot(self) -> Snapshot:
        """All nodes as they are now."""
        count = len(self)
        self._shared, self._shared_rows = set(_COLUMNS), max(self._shared_rows, count)
        self._index_shared = True
        columns = {name: column[:count] for name, column in self._columns.items()}
        for column in columns.values():
            column.flags.writeable = False
        return Snapshot(
            self._version,
            self._digested() if count <= DIGESTED else "",
            count,
            columns,
            self._pools,
            self._index,
            tuple(self._chunks),
            self._holders,
            self._avoided,
            changes=self._changes,
            since=self._since,
        )

    def _digested(self) -> str:
        for row in self._unhashed:
            hashed = _hash(self._at(row))
            self._digest += hashed - self._hashes[row]
            self._hashes[row] = hashed
        self._unhashed.clear()
        return f"{self._digest % (1 << _DIGEST_BITS):032x}"

    def _begin_changes(self) -> None:
        self._changes: list[int] = []
        self._since = self._version

    def _at(self, row: int) -> NodeView:
        return self._chunks[row >> _CHUNK_BITS][row & (_CHUNK - 1)]

    def _grow(self, name: str) -> int:
        row = len(self)
        if row == len(self._columns["alive"]):
            self._columns = {key: np.concatenate([column, column]) for key, column in self._columns.items()}
            self._shared, self._shared_rows = set(), 0
        if self._index_shared:
            self._index, self._index_shared = dict(self._index), False
        self._index[name] = row
        self._hashes.append(0)
        if row & (_CHUNK - 1) == 0:
            self._chunks.append(())
        self._begin_changes()
        return row

    def _write(self, row: int, node: NodeView, old: NodeView | None) -> None:
        for name, value in self._values(node).items():
            column = self._columns[name]
            if column[row] != value:
                if name in self._shared and row < self._shared_rows:
                    self._shared.discard(name)
                    column = self._columns[name] = column.copy()
                column[row] = value
        chunk, place = self._chunks[row >> _CHUNK_BITS], row & (_CHUNK - 1)
        self._chunks[row >> _CHUNK_BITS] = (*chunk[:place], node, *chunk[place + 1 :])
        self._marks(row, old, node)
        self._unhashed.add(row)
        self._version += 1
        if len(self._changes) == _CHANGES:
            self._begin_changes()
        else:
            self._changes.append(~row if _is_fuller(node, old) else row)

    def _values(self, node: NodeView) -> dict[str, Any]:
        kit = tuple(sorted((name, tuple(sorted(formats))) for name, formats in node.runtimes.items()))
        return {
            "alive": node.alive,
            "draining": node.draining,
            "edge": node.tier == "edge",
            "zone": self._pools.zones.code(node.zone),
            "clearance": CLEARANCE.get(node.clearance, 0),
            "accelerator": self._pools.accelerators.code(node.accelerator),
            "accelerated": float(bool(node.accelerator)),
            "kit": self._pools.kits.code(kit, dict(kit)),
            "facts": self._pools.facts.code(tuple(sorted(node.facts.items())), dict(node.facts)),
            "sandbox_gap": SANDBOX.get(node.sandbox, 0) - SANDBOX[node.sandbox_wanted],
            "free_memory": node.free_memory,
            "free_cpu": node.free_cpu_milli,
            "per_memory": 1 / node.memory if node.memory > 0 else 0.0,
            "per_cpu": 1 / node.cpu_milli if node.cpu_milli > 0 else 0.0,
            "left_over": left_over(node, node.free_memory, node.free_cpu_milli),
            "rtt": node.rtt_ms,
            "in_ms": ms_per_byte(node.in_bytes_per_second),
            "out_ms": ms_per_byte(node.out_bytes_per_second),
            "price": node.price_per_hour,
            "egress": node.egress_per_gib,
            "watts": node.watts,
            "tie": tie_of(node.node),
        }

    def _marks(self, row: int, old: NodeView | None, new: NodeView | None) -> None:
        """Who holds and who refused what."""
        for field, attribute in (("_holders", "resident"), ("_avoided", "avoid")):
            before: frozenset[str] = getattr(old, attribute) if old is not None else frozenset()
            after: frozenset[str] = getattr(new, attribute) if new is not None else frozenset()
            if before == after:
                continue
            marks: dict[str, frozenset[int]] = dict(getattr(self, field))
            for key in before - after:
                marks[key] = marks[key] - {row}
                if not marks[key]:
                    del marks[key]
            for key in after - before:
                marks[key] = marks.get(key, frozenset()) | {row}
            setattr(self, field, marks)


def _is_fuller(node: NodeView, old: NodeView | None) -> bool:
    """Whether it only has less room than before."""
    if old is None or node.free_memory > old.free_memory or node.free_cpu_milli > old.free_cpu_milli:
        return False
    return replace(node, free_memory=old.free_memory, free_cpu_milli=old.free_cpu_milli) == old


def left_over(node: NodeView, free_memory: int, free_cpu_milli: int) -> float:
    """Share of its processor that is free, less that of its memory: what of one is left when the other is used up."""
    cpu = free_cpu_milli / node.cpu_milli if node.cpu_milli > 0 else 0.0
    return cpu - (free_memory / node.memory if node.memory > 0 else 0.0)


@lru_cache(1024)
def tie_of(name: str) -> int:
    """Number by which nodes of equal score are told apart, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def _hash(node: NodeView) -> int:
    content = canonical(of_node(node))
    return int.from_bytes(hashlib.blake2b(content, digest_size=_DIGEST_BITS // 8).digest(), "big")
