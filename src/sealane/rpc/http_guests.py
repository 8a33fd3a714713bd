"""Who is connected to an HTTPS listener, and who of them is known."""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Callable

#: Connections at the same time; idle ones count. Those above are closed; those inside are served.
CONNECTIONS = 1000
#: Connections from one address on which no known caller has been heard: who is nobody does not take all places.
STRANGERS = 250


class Connection:
    """A connection, as the application sees it."""

    def __init__(self, transport: asyncio.Transport, introduced: Callable[[], None]) -> None:
        self._transport = transport
        self._introduced = introduced
        self._known = False

    @property
    def known(self) -> bool:
        """Whether a known caller has been heard on it; the application says so."""
        return self._known

    @known.setter
    def known(self, known: bool) -> None:
        if known and not self._known:
            self._introduced()
        self._known = known

    def abort(self) -> None:
        """End it, whatever is still on its way."""
        self._transport.abort()


class Guests:
    """Who is connected: so many in all, and so many strangers from one address."""

    def __init__(self) -> None:
        self._all = 0
        self._strangers: Counter[str] = Counter()

    def admit(self, network: str) -> bool:
        """Count a new connection in; False where there is no room for it, and then it is not counted."""
        if self._all >= CONNECTIONS or self._strangers[network] >= STRANGERS:
            return False
        self._all += 1
        self._strangers[network] += 1
        return True

    def introduce(self, network: str) -> None:
        """A connection is a stranger's no longer."""
        self._strangers[network] -= 1
        if not self._strangers[network]:
            del self._strangers[network]

    def leave(self, network: str, *, known: bool) -> None:
        """A connection that was admitted is over."""
        self._all -= 1
        if not known:
            self.introduce(network)


def network_of(address: str) -> str:
    """What counts as one address: in version 6 whoever has one has 2^64 of them."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 4:
        return address
    mapped = found.ipv4_mapped
    return str(mapped) if mapped is not None else str(ipaddress.ip_network((found, 64), strict=False))
