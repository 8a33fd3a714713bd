"""What an operator does: nodes and join tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sealane.auth.v1 import enrollment_service_pb2 as enrollment_pb
from sealane.auth.v1 import enrollment_service_pb2_grpc
from sealane.client.paging import pages
from sealane.client.session import Session
from sealane.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument
from sealane.scheduler.v1 import node_service_pb2 as pb
from sealane.scheduler.v1 import node_service_pb2_grpc

_POLL_SECONDS = 0.2


class Nodes:
    """The workers."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def list(self) -> Iterator[pb.Node]:
        """All nodes, by id."""
        stub = self._stub()

        def fetch(token: str) -> pb.ListNodesResponse:
            return stub.ListNodes(pb.ListNodesRequest(page_token=token), timeout=self._session.timeout)

        return pages(fetch, lambda page: page.nodes)

    def get(self, node: str) -> pb.Node:
        """A node by id, with what it holds."""
        return self._stub().GetNode(pb.GetNodeRequest(name=f"nodes/{node}"), timeout=self._session.timeout)

    def cordon(self, node: str) -> pb.Node:
        """Have a node take nothing new; what is there stays. Ends a drain."""
        return self._stub().CordonNode(pb.CordonNodeRequest(name=f"nodes/{node}"), timeout=self._session.timeout)

    def uncordon(self, node: str) -> pb.Node:
        """Have a node take new work again; ends a drain."""
        return self._stub().UncordonNode(pb.UncordonNodeRequest(name=f"nodes/{node}"), timeout=self._session.timeout)

    def drain(self, node: str, seconds: float | None = None) -> pb.Node:
        """Have a node get empty: copies are placed elsewhere first, tasks may end. Returns at once.

        Args:
            node: its id.
            seconds: after which what is left goes anyway; None for never.
        """
        request = pb.DrainNodeRequest(name=f"nodes/{node}")
        if seconds is not None:
            request.deadline_time.FromNanoseconds(int((time.time() + seconds) * 1e9))
        return self._stub().DrainNode(request, timeout=self._session.timeout)

    def wait_drained(self, node: str, seconds: float) -> pb.Node:
        """Wait until a node that is drained has nothing left.

        Args:
            node: its id.
            seconds: how long to wait.

        Raises:
            FailedPrecondition: nobody drains it (any more).
            DeadlineExceeded: something is left; the message says what the first copy waits for.
        """
        deadline = time.monotonic() + seconds
        while True:
            found = self.get(node)
            if found.admission == pb.Node.ADMISSION_DRAINED:
                return found
            if found.admission != pb.Node.ADMISSION_DRAINING:
                raise FailedPrecondition(f"{node} is not drained any more; drain it first", reason="NOT_DRAINED")
            if time.monotonic() >= deadline:
                raise DeadlineExceeded(_left(found, seconds), reason="DRAIN_UNFINISHED")
            time.sleep(_POLL_SECONDS)

    def _stub(self) -> node_service_pb2_grpc.NodeServiceStub:
        return node_service_pb2_grpc.NodeServiceStub(self._session.channel("scheduler"))


def _left(node: pb.Node, seconds: float) -> str:
    first = next((copy.message for copy in node.copies if copy.message), "")
    left = f"{node.held_copies} copies and {node.held_tasks} tasks are left after {seconds:g} s"
    return f"{left}: {first or 'they may still go'}; wait longer, or drain with a deadline"


@dataclass(frozen=True, slots=True)
class NodePlace:
    """Where a node stands and what it is trusted with; fixed by its join token.

    Args:
        tier: ``cloud`` or ``edge``.
        zone: failure and residency zone, such as ``site-a``.
        region: region, such as ``eu``.
        pool: pool id.
        clearance: highest data class it may see: ``public``, ``internal``, ``restricted``.
        relay: id of the relay that may carry its stream to the scheduler; empty for none.
    """

    tier: str
    zone: str = ""
    region: str = ""
    pool: str = ""
    clearance: str = "internal"
    relay: str = ""


@dataclass(frozen=True, slots=True)
class OfflineTime:
    """What an edge node may do while auth is out of reach.

    Args:
        seconds: for how long, 30 days at most. An evicted node that stays offline is cut off then, and not before.
        accounts: resource names of the service accounts that may call it then, by their Ed25519 keys.
    """

    seconds: float
    accounts: tuple[str, ...] = ()


class JoinTokens:
    """Secrets that enroll one service, node, relay or account, once."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def create(
        self,
        *,
        service: str = "",
        node: str = "",
        account: str = "",
        relay: str = "",
        place: NodePlace | None = None,
        hosts: Sequence[str] = (),
        offline: OfflineTime | None = None,
    ) -> enrollment_pb.JoinToken:
        """Create a join token, valid for an hour.

        Args:
            service: service that is to join: ``registry``, ``scheduler``, ``inference``; or
            account: resource name of a service account that is to have a certificate; or
            relay: id of what is to carry the streams of nodes that name it in their place; or
            node: id of the worker that is to join, with
            place: its attributes.
            hosts: further names and addresses for its certificate.
            offline: what an edge node may do while auth is out of reach; None for nothing.
        """
        if sum(map(bool, (service, node, account, relay))) != 1 or (node and place is None):
            raise InvalidArgument("name a service, an account, a relay, or a node and its place", field="subject")
        request = enrollment_pb.CreateJoinTokenRequest(hosts=hosts)
        if offline is not None:
            request.offline_ttl.FromNanoseconds(int(offline.seconds * 1e9))
            request.site_accounts.extend(offline.accounts)
        if account:
            request.account = account
        elif relay:
            request.relay = relay
        elif service:
            request.service = service
        elif place is not None:
            request.node = node
            request.attributes.CopyFrom(
                enrollment_pb.NodeAttributes(
                    tier=place.tier,
                    zone=place.zone,
                    region=place.region,
                    pool=place.pool,
                    clearance=place.clearance,
                    relay=place.relay,
                )
            )
        stub = enrollment_service_pb2_grpc.EnrollmentServiceStub(self._session.channel("auth"))
        return stub.CreateJoinToken(request, timeout=self._session.timeout)
