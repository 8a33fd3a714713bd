"""EnrollmentService: proto to plain, call the rules, plain to proto."""

from __future__ import annotations

from sealane.auth.v1 import enrollment_service_pb2 as pb
from sealane.errors import InvalidArgument
from sealane.records.paging import page_of, read_token, write_token
from sealane.records.transactions import Transactions, actor
from sealane.rpc.call import Call
from sealane.rpc.times import seconds_of, time_of
from sealane_auth.enrollment import Enrollment, IssuedCertificate, spiffe_id_of
from sealane_auth.peer_store import JoinToken, Offline, Peer
from sealane_auth.revocations import Hub
from sealane_auth.site_grants import SiteGrants
from sealane_auth.store import Store

_ATTRIBUTES = tuple(field.name for field in pb.NodeAttributes.DESCRIPTOR.fields)


class EnrollmentServicer:
    """EnrollmentService."""

    def __init__(self, records: Transactions[Store], rules: Enrollment, grants: SiteGrants, hub: Hub) -> None:
        self._records = records
        self._rules = rules
        self._grants = grants
        self._hub = hub

    async def CreateJoinToken(self, request: pb.CreateJoinTokenRequest, call: Call) -> pb.JoinToken:
        """Create a join token."""
        kind = request.WhichOneof("subject")
        if kind is None:
            raise InvalidArgument("say who is to join: service, node, relay or account", field="subject")
        offline = Offline(seconds_of(request.offline_ttl, "offline_ttl"), tuple(request.site_accounts))
        attributes = {name: getattr(request.attributes, name) for name in _ATTRIBUTES}
        wanted = JoinToken("", kind, getattr(request, kind), attributes, tuple(request.hosts), 0.0, offline)
        who = actor(call)
        secret, expires = await self._records.write(lambda store: self._rules.create_join_token(store, who, wanted))
        return pb.JoinToken(token=secret, expire_time=time_of(expires))

    async def Enroll(self, request: pb.EnrollRequest, call: Call) -> pb.EnrollResponse:
        """Exchange a join token for a certificate."""
        issued = await self._records.write(
            lambda store: self._rules.enroll(
                store, request.join_token, request.certificate_request, request.device_proof
            )
        )
        return self._response(issued)

    async def Reenroll(self, request: pb.ReenrollRequest, call: Call) -> pb.EnrollResponse:
        """Exchange a proof by the device key for a certificate."""
        issued = await self._records.write(
            lambda store: self._rules.reenroll(
                store, request.spiffe_id, request.certificate_request, request.device_proof
            )
        )
        return self._response(issued)

    async def RenewCertificate(self, request: pb.RenewCertificateRequest, call: Call) -> pb.EnrollResponse:
        """Renew the certificate that the caller presents."""
        issued = await self._records.write(
            lambda store: self._rules.renew(
                store, call.peer.spiffe_id, request.certificate_request, request.device_proof
            )
        )
        return self._response(issued)

    async def EvictPeer(self, request: pb.EvictPeerRequest, call: Call) -> pb.Peer:
        """Evict a peer."""
        who = actor(call)
        evicted = await self._records.write(
            lambda store: self._rules.evict(store, who, request.spiffe_id, request.cause)
        )
        await self._hub.changed()
        return _peer(evicted)

    async def ListPeers(self, request: pb.ListPeersRequest, call: Call) -> pb.ListPeersResponse:
        """List who has joined."""
        size = page_of(request.page_size)
        kind, _, subject = read_token(request.page_token).partition(" ")
        found = await self._records.read(lambda store: store.peers.peers((kind, subject), size + 1))
        last = found[size - 1] if len(found) > size else None
        return pb.ListPeersResponse(
            peers=[_peer(each) for each in found[:size]],
            next_page_token=write_token(f"{last.kind} {last.subject}" if last is not None else ""),
        )

    async def IssueOfflineGrant(self, request: pb.IssueOfflineGrantRequest, call: Call) -> pb.OfflineGrant:
        """Issue an offline grant to the calling node."""
        grant, expires = await self._records.write(
            lambda store: self._grants.issue(store, call.peer.node, request.public_key)
        )
        return pb.OfflineGrant(jws=grant, expire_time=time_of(expires))

    def _response(self, issued: IssuedCertificate) -> pb.EnrollResponse:
        attributes = pb.NodeAttributes(**issued.peer.attributes) if issued.peer.kind == "node" else None
        return pb.EnrollResponse(
            certificate_chain=issued.chain,
            trust_bundle=self._rules.trust_bundle,
            spiffe_id=issued.spiffe_id,
            expire_time=time_of(issued.leaf.not_valid_after_utc.timestamp()),
            attributes=attributes,
        )


def _peer(peer: Peer) -> pb.Peer:
    return pb.Peer(
        spiffe_id=spiffe_id_of(peer.kind, peer.subject),
        attributes=pb.NodeAttributes(**peer.attributes) if peer.kind == "node" else None,
        state=pb.Peer.STATE_EVICTED if peer.evict_time else pb.Peer.STATE_JOINED,
        join_time=time_of(peer.join_time),
        evict_time=time_of(peer.evict_time) if peer.evict_time else None,
    )
