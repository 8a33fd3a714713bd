"""Auth's services: proto to plain, call the rules, plain to proto."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from sealane.auth.v1 import enrollment_service_pb2 as enrollment_pb
from sealane.auth.v1 import identity_service_pb2 as identity_pb
from sealane.auth.v1 import sealing_key_service_pb2 as sealing_pb
from sealane.auth.v1 import token_service_pb2 as token_pb
from sealane.errors import InvalidArgument
from sealane.names import parse
from sealane.records.paging import page_of, read_token, write_token
from sealane.records.transactions import Transactions, actor
from sealane.rpc.call import Call
from sealane.security import jws, tokens
from sealane_auth import issuer
from sealane_auth.issuer import Issuer, TokenRequest
from sealane_auth.store import Account, JoinToken, Store

Records = Transactions[Store]


class TokenServicer:
    """TokenService."""

    def __init__(self, records: Records, rules: Issuer) -> None:
        self._records = records
        self._rules = rules

    async def IssueToken(self, request: token_pb.IssueTokenRequest, call: Call | None) -> token_pb.IssueTokenResponse:
        if request.grant_type != "client_credentials":
            raise InvalidArgument("grant_type must be 'client_credentials'", field="grant_type")
        wanted = TokenRequest(
            request.client_id, request.client_secret, request.audience, request.scope, request.key_thumbprint
        )
        issued = await self._records.read(lambda store: self._rules.issue_token(store, wanted))
        return token_pb.IssueTokenResponse(
            access_token=issued.token,
            token_type=issued.token_type,
            expires_in=tokens.LIFETIME_SECONDS,
            scope=issued.scope,
        )

    async def GetJsonWebKeySet(
        self, request: token_pb.GetJsonWebKeySetRequest, call: Call | None
    ) -> token_pb.JsonWebKeySet:
        keys = await self._records.read(issuer.public_keys)
        return token_pb.JsonWebKeySet(
            keys=[
                token_pb.JsonWebKey(kid=kid, alg="EdDSA", use="sig", **jws.public_jwk(raw)) for kid, raw in keys.items()
            ]
        )


class IdentityServicer:
    """IdentityService."""

    def __init__(self, records: Records, rules: Issuer) -> None:
        self._records = records
        self._rules = rules

    async def CreateServiceAccount(self, request: identity_pb.CreateServiceAccountRequest, call: Call) -> object:
        who = actor(call)
        secrets: list[str] = []

        def create(store: Store) -> identity_pb.ServiceAccount:
            account, secret = self._rules.create_account(store, who, request.service_account_id, list(request.scopes))
            secrets.append(secret)
            return _account(account)

        stored = await self._records.once(call, request, request.request_id, create)
        answer = identity_pb.ServiceAccount.FromString(stored)
        answer.client_secret = "".join(secrets)
        return answer

    async def ListServiceAccounts(
        self, request: identity_pb.ListServiceAccountsRequest, call: Call
    ) -> identity_pb.ListServiceAccountsResponse:
        (project,) = parse(request.parent, "projects/*", "parent")
        size, after = page_of(request.page_size), read_token(request.page_token)
        found = await self._records.read(lambda store: store.accounts(project, after, size + 1))
        more = found[size - 1].account_id if len(found) > size else ""
        return identity_pb.ListServiceAccountsResponse(
            service_accounts=[_account(account) for account in found[:size]], next_page_token=write_token(more)
        )


class EnrollmentServicer:
    """EnrollmentService."""

    def __init__(self, records: Records, rules: Issuer, trust_bundle: bytes) -> None:
        self._records = records
        self._rules = rules
        self._trust = trust_bundle

    async def CreateJoinToken(
        self, request: enrollment_pb.CreateJoinTokenRequest, call: Call
    ) -> enrollment_pb.JoinToken:
        kind = request.WhichOneof("subject")
        if kind is None:
            raise InvalidArgument("say who is to join: service or node", field="subject")
        names = [field.name for field in enrollment_pb.NodeAttributes.DESCRIPTOR.fields]
        attributes = {name: getattr(request.attributes, name) for name in names}
        wanted = JoinToken("", kind, getattr(request, kind), attributes, tuple(request.hosts), 0.0)
        who = actor(call)
        secret, expires = await self._records.write(lambda store: self._rules.create_join_token(store, who, wanted))
        return enrollment_pb.JoinToken(token=secret, expire_time=_time(expires))

    async def Enroll(self, request: enrollment_pb.EnrollRequest, call: Call) -> enrollment_pb.EnrollResponse:
        issued = await self._records.write(
            lambda store: self._rules.enroll(store, request.join_token, request.certificate_request)
        )
        return self._response(issued)

    async def RenewCertificate(
        self, request: enrollment_pb.RenewCertificateRequest, call: Call
    ) -> enrollment_pb.EnrollResponse:
        kind, subject = ("node", call.peer.node) if call.peer.node else ("service", call.peer.kind)
        issued = await self._records.write(
            lambda store: self._rules.renew(store, kind, subject, request.certificate_request)
        )
        return self._response(issued)

    def _response(self, issued: issuer.IssuedCertificate) -> enrollment_pb.EnrollResponse:
        attributes = enrollment_pb.NodeAttributes(**issued.peer.attributes) if issued.peer.kind == "node" else None
        return enrollment_pb.EnrollResponse(
            certificate_chain=issued.chain,
            trust_bundle=self._trust,
            spiffe_id=issued.names.spiffe_id,
            expire_time=_time(issued.leaf.not_valid_after_utc.timestamp()),
            attributes=attributes,
        )


class SealingKeyServicer:
    """SealingKeyService."""

    def __init__(self, records: Records, rules: Issuer) -> None:
        self._records = records
        self._rules = rules

    async def PublishSealingKey(
        self, request: sealing_pb.PublishSealingKeyRequest, call: Call
    ) -> sealing_pb.SealingStatement:
        node = call.peer.node
        statement, expires = await self._records.write(
            lambda store: self._rules.vouch(store, node, request.suite, request.public_key)
        )
        return sealing_pb.SealingStatement(jws=statement, expire_time=_time(expires))


def _account(account: Account) -> identity_pb.ServiceAccount:
    return identity_pb.ServiceAccount(
        name=f"projects/{account.project}/serviceAccounts/{account.account_id}",
        client_id=account.client_id,
        scopes=account.scopes,
        create_time=_time(account.create_time),
        etag=account.etag,
    )


def _time(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(int(seconds * 1e9))
    return stamp
