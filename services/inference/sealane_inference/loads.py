"""How busy the workers are, deployment by deployment; see :mod:`sealane.rpc.loads`."""

from __future__ import annotations

from sealane.clock import Clock
from sealane.rpc.loads import NodeLoads


class Loads:
    """What is known of every deployment that was called. Lives on the event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._deployments: dict[str, NodeLoads] = {}

    def of(self, deployment: str) -> NodeLoads:
        """The workers of a deployment, by its resource name."""
        found = self._deployments.get(deployment)
        if found is None:
            found = self._deployments[deployment] = NodeLoads(self._clock)
        return found

    def forget(self, node: str) -> None:
        """Drop what is known of a node whose lane is gone, unless calls are still out."""
        for loads in self._deployments.values():
            loads.forget(node)
        self._deployments = {name: loads for name, loads in self._deployments.items() if not loads.empty}
