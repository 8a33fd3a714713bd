"""Values that many nodes share, as numbers: what is judged of a value is judged once, not for each node."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Judgements of pooled values that are kept.
_JUDGEMENTS = 256


class Pool:
    """Values that many nodes share, numbered as they come; a number is never given to another value."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._codes: dict[Hashable, int] = {}
        self._judged: dict[Hashable, NDArray[np.bool_]] = {}

    def code(self, value: Hashable, content: object = None) -> int:
        """The number of a value; `content` is what is kept of it, if not the value itself."""
        code = self._codes.get(value)
        if code is None:
            code = self._codes[value] = len(self.values)
            self.values.append(value if content is None else content)
        return code

    def known(self, value: Hashable) -> int:
        """The number of a value, -1 where no node has it."""
        return self._codes.get(value, -1)

    def judged(self, key: Hashable, judge: Callable[[Any], bool]) -> NDArray[np.bool_]:
        """What a judgement that `key` names says of each value, by number; each value is judged once."""
        if len(self._judged) >= _JUDGEMENTS and key not in self._judged:
            self._judged.clear()
        verdicts = self._judged.setdefault(key, np.zeros(0, np.bool_))
        if len(verdicts) < len(self.values):
            added = np.fromiter((judge(value) for value in self.values[len(verdicts) :]), np.bool_)
            verdicts = self._judged[key] = np.concatenate([verdicts, added])
        return verdicts


@dataclass(frozen=True, slots=True)
class Pools:
    """What the numbers in the columns stand for."""

    zones: Pool
    accelerators: Pool
    kits: Pool
    facts: Pool
