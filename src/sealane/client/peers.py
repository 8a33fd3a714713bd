"""Who has joined the mesh, and how to put one out."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from sealane.auth.v1 import enrollment_service_pb2 as pb
from sealane.auth.v1 import enrollment_service_pb2_grpc
from sealane.client.paging import pages
from sealane.client.session import Session
from sealane.security import enroll, tls

TRUST_DOMAIN = "spiffe://sealane/"


class Peers:
    """Services, nodes and accounts with a certificate."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def list(self) -> Iterator[pb.Peer]:
        """All that have joined, evicted ones included."""

        def fetch(token: str) -> pb.ListPeersResponse:
            return self._stub().ListPeers(pb.ListPeersRequest(page_token=token), timeout=self._session.timeout)

        return pages(fetch, lambda page: page.peers)

    def evict(self, peer: str, cause: str = "") -> pb.Peer:
        """Refuse a peer from now on: every connected service does within a minute, and its streams end.

        Args:
            peer: SPIFFE id, or id of a node.
            cause: why, for the audit log.

        Raises:
            NotFound: nobody of this name has joined.
        """
        name = peer if peer.startswith(TRUST_DOMAIN) else f"{TRUST_DOMAIN}node/{peer}"
        request = pb.EvictPeerRequest(spiffe_id=name, cause=cause)
        return self._stub().EvictPeer(request, timeout=self._session.timeout)

    def certificate(self, account: str, directory: Path) -> tls.PeerIdentity:
        """A certificate for a service account, for tools that have nothing else; renewed by calling this again.

        The gateway's mesh port takes it without a token. The holder needs `directory` alone: ``key.pem``, ``chain.pem``
        and ``trust.pem``.

        Args:
            account: id or resource name of the account.
            directory: where key and certificate come to lie.

        Raises:
            NotFound: there is no such account.
        """
        name = account if "/" in account else f"{self._session.parent}/serviceAccounts/{account}"
        request = pb.CreateJoinTokenRequest(account=name)
        token = self._stub().CreateJoinToken(request, timeout=self._session.timeout).token
        with tempfile.TemporaryDirectory() as folder:
            trust, join = Path(folder) / "trust.pem", Path(folder) / "join.token"
            trust.write_bytes(self._session.site.trust_bundle)
            join.touch(mode=0o600)
            join.write_text(token)
            config = enroll.EnrollConfig(directory, self._session.site.endpoints["auth"], "", trust, join)
            return enroll.ensure(config)

    def _stub(self) -> enrollment_service_pb2_grpc.EnrollmentServiceStub:
        return enrollment_service_pb2_grpc.EnrollmentServiceStub(self._session.channel("auth"))
