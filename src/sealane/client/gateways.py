"""The gateways of a site: where one is away, calls go to the next."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from sealane.client.calls import Caller
from sealane.client.session import Session
from sealane.errors import Unavailable
from sealane.rpc.channel import Target

T = TypeVar("T")


class Gateways:
    """Runs attempts at gateways; may be used from any thread."""

    def __init__(self, session: Session, caller: Caller) -> None:
        self._session = session
        self._caller = caller
        self._all: tuple[Target, ...] = ()
        self._turn = 0

    def once(self, attempt: Callable[[Target], T]) -> T:
        """One attempt; where the gateway is away, the next one is at another."""
        if not self._all:
            self._all = self._session.targets("inference")
            self._turn = random.randrange(len(self._all))  # noqa: S311  # only so that clients spread
        turn = self._turn
        try:
            return attempt(self._all[turn % len(self._all)])
        except Unavailable:
            if self._turn == turn:  # else another thread has seen it before
                self._turn = turn + 1
            raise

    def repeat(self, attempt: Callable[[Target], T], deadline: float) -> T:
        """The same until it answers, fails for good, or the time is over."""
        return self._caller.repeat(lambda: self.once(attempt), deadline)
