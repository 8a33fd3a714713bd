"""What an operator does: nodes and join tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sealane.auth.v1 import enrollment_service_pb2 as enrollment_pb
from sealane.auth.v1 import enrollment_service_pb2_grpc
from sealane.client.paging import pages
from sealane.client.session import Session
from sealane.errors import InvalidArgument
from sealane.scheduler.v1 import node_service_pb2, node_service_pb2_grpc


class Nodes:
    """The workers."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def list(self) -> Iterator[node_service_pb2.Node]:
        """All nodes, by id."""
        stub = node_service_pb2_grpc.NodeServiceStub(self._session.channel("scheduler"))

        def fetch(token: str) -> node_service_pb2.ListNodesResponse:
            request = node_service_pb2.ListNodesRequest(page_token=token)
            return stub.ListNodes(request, timeout=self._session.timeout)

        return pages(fetch, lambda page: page.nodes)


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
