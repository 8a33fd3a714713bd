"""FederationService: proto to plain, call the rules, plain to proto."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from sealane.auth.v1 import federation_service_pb2 as pb
from sealane.names import parse
from sealane.records.paging import page_of, read_token, write_token
from sealane.records.transactions import Transactions, actor
from sealane.rpc.call import Call
from sealane.rpc.times import time_of
from sealane_auth.federation import ISSUER, FederationRules
from sealane_auth.issuer_store import ClaimRule, TrustedIssuer
from sealane_auth.revocations import Hub
from sealane_auth.store import Store


class FederationServicer:
    """FederationService."""

    def __init__(self, records: Transactions[Store], rules: FederationRules, hub: Hub) -> None:
        self._records = records
        self._rules = rules
        self._hub = hub

    async def CreateTrustedIssuer(self, request: pb.CreateTrustedIssuerRequest, call: Call) -> bytes:
        (project,) = parse(request.parent, "projects/*", "parent")
        who, given = actor(call, project), request.trusted_issuer
        wanted = TrustedIssuer(
            project=project,
            issuer_id=request.trusted_issuer_id,
            issuer=given.issuer,
            audience=given.audience,
            jwks_uri=given.jwks_uri,
            jwks=given.jwks,
            rules=tuple(ClaimRule(dict(rule.claims), tuple(rule.roles), rule.model_prefix) for rule in given.rules),
        )
        return await self._records.once(
            call, request, request.request_id, lambda store: _issuer(self._rules.trust(store, who, wanted))
        )

    async def ListTrustedIssuers(
        self, request: pb.ListTrustedIssuersRequest, call: Call
    ) -> pb.ListTrustedIssuersResponse:
        (project,) = parse(request.parent, "projects/*", "parent")
        size, after = page_of(request.page_size), read_token(request.page_token)
        found = await self._records.read(lambda store: store.issuers.issuers(project, after, size + 1))
        more = write_token(found[size - 1].issuer_id) if len(found) > size else ""
        return pb.ListTrustedIssuersResponse(
            trusted_issuers=[_issuer(each) for each in found[:size]], next_page_token=more
        )

    async def DeleteTrustedIssuer(self, request: pb.DeleteTrustedIssuerRequest, call: Call) -> Empty:
        project, issuer = parse(request.name, ISSUER)
        who = actor(call, project)
        await self._records.write(lambda store: self._rules.distrust(store, who, project, issuer))
        await self._hub.changed()
        return Empty()


def _issuer(issuer: TrustedIssuer) -> pb.TrustedIssuer:
    answer = pb.TrustedIssuer(
        name=issuer.name,
        issuer=issuer.issuer,
        audience=issuer.audience,
        rules=[
            pb.ClaimRule(claims=rule.claims, roles=rule.roles, model_prefix=rule.model_prefix) for rule in issuer.rules
        ],
        create_time=time_of(issuer.create_time),
    )
    if issuer.jwks:
        answer.jwks = issuer.jwks
    elif issuer.jwks_uri:
        answer.jwks_uri = issuer.jwks_uri
    return answer
