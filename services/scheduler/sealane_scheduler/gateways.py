"""The gateways that are watching, and where workers dial their lanes."""

from __future__ import annotations


class Gateways:
    """Lane addresses by gateway. An address is kept while the gateway is away: workers keep dialling."""

    def __init__(self) -> None:
        self._addresses: dict[str, str] = {}
        self._open: dict[str, int] = {}

    def open(self, gateway: str, address: str) -> bool:
        """A gateway began to watch; whether workers have to hear of it."""
        new = self._addresses.get(gateway) != address
        self._addresses[gateway] = address
        self._open[gateway] = self._open.get(gateway, 0) + 1
        return new

    def close(self, gateway: str) -> None:
        """A watch ended."""
        self._open[gateway] -= 1

    def addresses(self) -> list[str]:
        """Lane addresses, sorted."""
        return sorted(set(self._addresses.values()))
