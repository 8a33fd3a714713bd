"""Which routes changed when, so that who watches them is told of these alone. In memory, on the event loop."""

from __future__ import annotations

from collections.abc import Iterable

#: Names beyond those of live deployments that are remembered.
_KEPT = 1000


class RouteLog:
    """Names of deployments in the order in which their routes changed last."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._first = 0
        self.number = 0
        """Grows with every change."""

    def touch(self, names: Iterable[str]) -> None:
        """These routes may be otherwise than they were."""
        for name in names:
            self.number += 1
            self._numbers.pop(name, None)
            self._numbers[name] = self.number

    def since(self, number: int) -> list[str] | None:
        """Names that were touched after a number; None where that is not known any more."""
        if number < self._first:
            return None
        found = []
        for name, touched in reversed(self._numbers.items()):
            if touched <= number:
                break
            found.append(name)
        return found

    def forget(self, live: int) -> None:
        """Drop the oldest names where there are many more than live deployments."""
        while len(self._numbers) > 2 * live + _KEPT:
            name = next(iter(self._numbers))
            self._first = self._numbers.pop(name)
