"""NodeService."""

from __future__ import annotations

from sealane import names
from sealane.clock import Clock
from sealane.errors import InvalidArgument
from sealane.records.paging import page_of, read_token, write_token
from sealane.records.transactions import actor
from sealane.rpc.call import Call
from sealane.rpc.times import seconds_of
from sealane.scheduler.v1 import node_service_pb2 as pb
from sealane_scheduler import present_nodes
from sealane_scheduler.cluster import Deployed
from sealane_scheduler.controller import Controller
from sealane_scheduler.deployment_names import may_see
from sealane_scheduler.drains import Drains
from sealane_scheduler.holds import CORDONED, DRAINING, OPEN


class NodeServicer:
    """NodeService."""

    def __init__(self, controller: Controller, drains: Drains, clock: Clock) -> None:
        self._controller = controller
        self._drains = drains
        self._clock = clock

    async def ListNodes(self, request: pb.ListNodesRequest, call: Call) -> pb.ListNodesResponse:
        size, after = page_of(request.page_size), read_token(request.page_token)
        states = [state for state in self._controller.fleet if state.node > after]
        more = write_token(states[size - 1].node) if len(states) > size else ""
        now, monotonic = self._clock.now(), self._clock.monotonic()
        found = [present_nodes.node(self._drains.standing(state.node), now, monotonic) for state in states[:size]]
        return pb.ListNodesResponse(nodes=found, next_page_token=more)

    async def GetNode(self, request: pb.GetNodeRequest, call: Call) -> pb.Node:
        return self._told(_node(request.name), call)

    async def CordonNode(self, request: pb.CordonNodeRequest, call: Call) -> pb.Node:
        return await self._held(request.name, CORDONED, 0.0, call)

    async def UncordonNode(self, request: pb.UncordonNodeRequest, call: Call) -> pb.Node:
        return await self._held(request.name, OPEN, 0.0, call)

    async def DrainNode(self, request: pb.DrainNodeRequest, call: Call) -> pb.Node:
        if not request.HasField("deadline_time"):
            return await self._held(request.name, DRAINING, 0.0, call)
        deadline = seconds_of(request.deadline_time, "deadline_time")
        if deadline <= 0:
            raise InvalidArgument("the deadline must be a time after 1970", field="deadline_time")
        return await self._held(request.name, DRAINING, deadline, call)

    async def _held(self, name: str, admission: str, deadline: float, call: Call) -> pb.Node:
        await self._drains.hold(actor(call), _node(name), admission, deadline)
        return self._told(_node(name), call)

    def _told(self, node: str, call: Call) -> pb.Node:
        standing = self._drains.standing(node)
        message = present_nodes.node(standing, self._clock.now(), self._clock.monotonic())
        message.copies.extend(present_nodes.copies(standing, lambda item: _visible(item, call)))
        return message


def _node(name: str) -> str:
    (node,) = names.parse(name, "nodes/*")
    return node


def _visible(item: Deployed, call: Call) -> bool:
    """Deployments are their project's; an operator of the platform sees all."""
    if "fleet" in call.caller.scopes:
        return True
    return item.row.project == call.caller.project and may_see(call, item.row.model_version)
