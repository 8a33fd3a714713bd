"""Which nodes take no new work, and which of them are to get empty. In memory; the records have the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sealane_scheduler.store import HoldRow

OPEN, CORDONED, DRAINING = "OPEN", "CORDONED", "DRAINING"


class Holds:
    """What operators let nodes take. Lives on the event loop."""

    def __init__(self) -> None:
        self.touched: set[str] = set()
        """Nodes of which something has changed; whoever keeps a picture of them empties it."""
        self._rows: dict[str, HoldRow] = {}

    def __iter__(self) -> Iterator[HoldRow]:
        return iter(list(self._rows.values()))

    def put(self, row: HoldRow) -> None:
        """A node is held from now on, or no longer, where it is open."""
        self.touched.add(row.node)
        if row.admission == OPEN:
            self._rows.pop(row.node, None)
        else:
            self._rows[row.node] = row

    def load(self, rows: Iterable[HoldRow]) -> None:
        """Take up where the last process stopped."""
        for row in rows:
            self.put(row)

    def get(self, node: str) -> HoldRow:
        """What a node may take."""
        return self._rows.get(node) or HoldRow(node, OPEN, 0.0, 0.0)

    def closed(self, node: str) -> bool:
        """Whether a node takes nothing new."""
        return node in self._rows

    def draining(self, node: str) -> bool:
        """Whether what a node has is to go elsewhere."""
        row = self._rows.get(node)
        return row is not None and row.admission == DRAINING

    def over(self, node: str, now: float) -> bool:
        """Whether what is left on a node goes anyway.

        Args:
            node: its id.
            now: seconds since 1970.
        """
        row = self._rows.get(node)
        return row is not None and row.admission == DRAINING and 0 < row.deadline <= now
