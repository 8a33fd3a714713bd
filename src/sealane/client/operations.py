"""What an operator does: nodes, service accounts, join tokens, tokens."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sealane.auth.v1 import enrollment_service_pb2 as enrollment_pb
from sealane.auth.v1 import enrollment_service_pb2_grpc, identity_service_pb2_grpc
from sealane.auth.v1 import identity_service_pb2 as identity_pb
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


class Accounts:
    """The service accounts of the project."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def create(self, account: str, scopes: Sequence[str]) -> identity_pb.ServiceAccount:
        """Create an account; its secret is in this answer and nowhere else.

        Args:
            account: its id.
            scopes: scopes it may ask for, such as ``infer``.

        Raises:
            AlreadyExists: the id is taken.
        """
        request = identity_pb.CreateServiceAccountRequest(
            parent=self._session.parent,
            service_account_id=account,
            scopes=scopes,
            request_id=str(uuid.uuid4()),
        )
        return self._stub().CreateServiceAccount(request, timeout=self._session.timeout)

    def list(self) -> Iterator[identity_pb.ServiceAccount]:
        """All accounts, by id, without secrets."""

        def fetch(token: str) -> identity_pb.ListServiceAccountsResponse:
            request = identity_pb.ListServiceAccountsRequest(parent=self._session.parent, page_token=token)
            return self._stub().ListServiceAccounts(request, timeout=self._session.timeout)

        return pages(fetch, lambda page: page.service_accounts)

    def _stub(self) -> identity_service_pb2_grpc.IdentityServiceStub:
        return identity_service_pb2_grpc.IdentityServiceStub(self._session.channel("auth"))


@dataclass(frozen=True, slots=True)
class NodePlace:
    """Where a node stands and what it is trusted with; fixed by its join token.

    Args:
        tier: ``cloud`` or ``edge``.
        zone: failure and residency zone, such as ``site-a``.
        region: region, such as ``eu``.
        pool: pool id.
        clearance: highest data class it may see: ``public``, ``internal``, ``restricted``.
    """

    tier: str
    zone: str = ""
    region: str = ""
    pool: str = ""
    clearance: str = "internal"


class JoinTokens:
    """Secrets that enroll one service or node, once."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def create(
        self, *, service: str = "", node: str = "", place: NodePlace | None = None, hosts: Sequence[str] = ()
    ) -> enrollment_pb.JoinToken:
        """Create a join token, valid for an hour.

        Args:
            service: service that is to join: ``registry``, ``scheduler``, ``inference``; or
            node: id of the worker that is to join, with
            place: its attributes.
            hosts: further names and addresses for its certificate.
        """
        if bool(service) == bool(node) or (node and place is None):
            raise InvalidArgument("name either a service, or a node and its place", field="subject")
        request = enrollment_pb.CreateJoinTokenRequest(hosts=hosts)
        if service:
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
                )
            )
        stub = enrollment_service_pb2_grpc.EnrollmentServiceStub(self._session.channel("auth"))
        return stub.CreateJoinToken(request, timeout=self._session.timeout)
