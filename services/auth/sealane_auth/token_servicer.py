"""TokenService: proto to plain, call the rules, plain to proto. The HTTPS face asks it too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from google.protobuf.empty_pb2 import Empty

from sealane.auth.v1 import token_service_pb2 as pb
from sealane.errors import InvalidArgument, PermissionDenied, SealaneError, Unauthenticated
from sealane.names import parse
from sealane.records.transactions import Transactions, actor
from sealane.rpc.call import Call, Identity, Peer
from sealane.security import jws
from sealane.security.external_jwt import ExternalKey
from sealane.security.tokens import identity_of
from sealane_auth import exchange
from sealane_auth.clients import Proof, Proven, refused
from sealane_auth.exchange import Federated
from sealane_auth.grants import TokenRules
from sealane_auth.issuer_store import TrustedIssuer
from sealane_auth.minting import ACCESS_TOKEN, OFFLINE, Issued, Wanted
from sealane_auth.revocations import Hub
from sealane_auth.rights import grants_of
from sealane_auth.store import Store

_SERVICES = ("auth", "registry", "scheduler", "inference", "node")
INTROSPECT = "tokens:introspect"
#: An account's id, an at sign and its project's are shorter.
_MAX_CLIENT_ID = 150


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request for a token comes from.

    Args:
        peer: who is at the other end of the connection.
        endpoint: URL of the token endpoint, where it came by HTTPS.
    """

    peer: Peer = field(default_factory=Peer)
    endpoint: str = ""


class TokenServicer:
    """TokenService."""

    def __init__(self, records: Transactions[Store], rules: TokenRules, hub: Hub) -> None:
        self._records = records
        self._rules = rules
        self._hub = hub
        # Of their own: issuers that do not answer must not hold up those who log in.
        self._fetching = ThreadPoolExecutor(4, "issuer-keys")

    async def IssueToken(self, request: pb.IssueTokenRequest, call: Call) -> pb.IssueTokenResponse:
        return await self.issue(request, self._origin(call))

    async def issue(self, request: pb.IssueTokenRequest, origin: Origin) -> pb.IssueTokenResponse:
        """A token for client credentials or a refresh token."""
        if request.grant_type not in ("client_credentials", "refresh_token"):
            raise InvalidArgument(
                "grant_type must be 'client_credentials' or 'refresh_token'",
                field="grant_type",
                reason="UNSUPPORTED_GRANT_TYPE",
            )
        wanted = Wanted(request.audience, request.scope, request.key_thumbprint, _certificate(request, origin))
        proof = _proof(request, origin)
        if request.grant_type == "refresh_token":
            return await self._refresh(request, proof, wanted)
        proven = await self.authenticate(proof)
        run = self._records.write if OFFLINE in request.scope.split() else self._records.read
        return _response(await run(lambda store: self._rules.issue(store, proven, wanted)))

    async def ExchangeToken(self, request: pb.ExchangeTokenRequest, call: Call) -> pb.IssueTokenResponse:
        kind = call.peer.kind
        acting = call.peer.spiffe_id if kind in _SERVICES else call.peer.account
        return await self.exchange(request, self._origin(call), acting)

    async def exchange(
        self, request: pb.ExchangeTokenRequest, origin: Origin, acting: str = ""
    ) -> pb.IssueTokenResponse:
        """A token for another one; `acting` is who will act with it, empty for the subject itself."""
        if request.grant_type != exchange.GRANT_TYPE:
            raise InvalidArgument(
                f"grant_type must be {exchange.GRANT_TYPE!r}", field="grant_type", reason="UNSUPPORTED_GRANT_TYPE"
            )
        wanted = Wanted(
            audience=request.audience,
            scope=request.scope,
            key_thumbprint=request.key_thumbprint,
            model_prefixes=tuple(request.model_prefixes),
            lifetime=request.lifetime_seconds,
        )
        rules, token = self._rules.exchange, request.subject_token
        if request.subject_token_type == ACCESS_TOKEN:
            claims = await asyncio.to_thread(self._rules.claims, token)
            return _response(await self._records.read(lambda store: rules.narrow(store, claims, wanted, acting)))
        if request.subject_token_type in exchange.EXTERNAL:
            federated = await self._identify(request.project, token)
            return _response(
                await self._records.write(lambda store: rules.for_federated(store, federated, wanted, acting))
            )
        if request.subject_token_type == exchange.CERTIFICATE:
            return await self._for_certificate(token.encode(), origin, wanted)
        raise InvalidArgument(
            f"subject_token_type is unknown; use one of {list(exchange.TYPES)}", field="subject_token_type"
        )

    async def RevokeToken(self, request: pb.RevokeTokenRequest, call: Call) -> Empty:
        await self.revoke(request, self._origin(call))
        return Empty()

    async def revoke(self, request: pb.RevokeTokenRequest, origin: Origin) -> None:
        """Take back a token of the client that asks."""
        proof, claims = _proof(request.client, origin), None
        proven = None if proof.empty else await self.authenticate(proof)
        try:
            if request.token.count(".") == 2:
                claims = await asyncio.to_thread(self._rules.claims, request.token)
        except Unauthenticated:
            claims = None  # RFC 7009 section 2.2: an invalid token is as good as a revoked one
        await self._records.write(lambda store: self._rules.revoke(store, proven, request.token, claims))
        await self._hub.changed()

    async def RevokeTokenId(self, request: pb.RevokeTokenIdRequest, call: Call) -> Empty:
        (project,) = parse(request.parent, "projects/*", "parent")
        who = actor(call, project)
        await self._records.write(lambda store: self._rules.revoke_id(store, who, project, request.token_id))
        await self._hub.changed()
        return Empty()

    async def RevokeSubject(self, request: pb.RevokeSubjectRequest, call: Call) -> pb.RevokeSubjectResponse:
        who = actor(call)
        epoch = await self._records.write(lambda store: self._rules.revoke_subject(store, who, request.subject))
        await self._hub.changed()
        return pb.RevokeSubjectResponse(epoch=epoch)

    async def IntrospectToken(self, request: pb.IntrospectTokenRequest, call: Call) -> pb.IntrospectTokenResponse:
        return await self._introspect(request.token, lambda found: call.caller.project in ("", found.project))

    async def introspect(self, token: str, proven: Proven) -> pb.IntrospectTokenResponse:
        """What a token says, for a client that proved itself: its own, or its project's where it may ask (RFC 7662)."""
        account = proven.account
        grants = await self._records.read(lambda store: grants_of(store, account))

        def allowed(found: Identity) -> bool:
            return found.client_id == account.client_id or (
                found.project == account.project and INTROSPECT in grants.scopes
            )

        return await self._introspect(token, allowed)

    async def GetJsonWebKeySet(self, request: pb.GetJsonWebKeySetRequest, call: Call | None) -> pb.JsonWebKeySet:
        keys = await self._records.read(lambda store: self._rules.keyring.public_keys(store.keys))
        return pb.JsonWebKeySet(
            keys=[pb.JsonWebKey(kid=kid, alg="EdDSA", use="sig", **jws.public_jwk(raw)) for kid, raw in keys.items()],
            max_age_seconds=self._rules.settings.key_cache_seconds,
        )

    async def WatchRevocations(
        self, request: pb.WatchRevocationsRequest, call: Call
    ) -> AsyncIterator[pb.RevocationUpdate]:
        async for update in self._hub.watch(request):
            yield update

    async def authenticate(self, proof: Proof) -> Proven:
        """The client that a proof proves.

        Raises:
            Unauthenticated: none.
        """
        if len(proof.client_id) > _MAX_CLIENT_ID:  # nobody has it, and it is kept and written nowhere
            raise refused()
        known = await self._records.read(lambda store: self._rules.clients.look_up(store, proof))
        # Passphrases and RSA signatures take their time: neither the event loop nor the database thread gives it.
        proven = await asyncio.to_thread(self._rules.clients.prove, known, proof)
        if proven.used_id:
            await self._records.write(lambda store: self._rules.use_up(store, proven))
        return proven

    def _origin(self, call: Call) -> Origin:
        # Methods without a permission pass the middleware unseen, and here a certificate is a credential.
        self._rules.check_peer(call.peer)
        return Origin(call.peer)

    async def _refresh(self, request: pb.IssueTokenRequest, proof: Proof, wanted: Wanted) -> pb.IssueTokenResponse:
        proven = None if proof.empty else await self.authenticate(proof)
        outcome = await self._records.write(
            lambda store: self._rules.refresh(store, proven or request.client_id, request.refresh_token, wanted)
        )
        if isinstance(outcome, SealaneError):
            await self._hub.changed()
            raise outcome
        return _response(outcome)

    async def _identify(self, project: str, token: str) -> Federated:
        federation = self._rules.federation
        candidates = await self._records.read(lambda store: federation.candidates(store, project, token))
        for last, trusted in enumerate(candidates, 1 - len(candidates)):
            try:
                try:
                    keys = await self._keys_of(trusted)
                    return await asyncio.to_thread(federation.identify, trusted, keys, token)
                except Unauthenticated as error:
                    if error.reason != "TOKEN_KEY":
                        raise
                keys = await self._keys_of(trusted, newer=True)
                return await asyncio.to_thread(federation.identify, trusted, keys, token)
            except Unauthenticated:
                if last == 0:
                    raise
        raise Unauthenticated("the project does not trust the token's issuer", reason="ISSUER_UNKNOWN")

    async def _keys_of(self, trusted: TrustedIssuer, *, newer: bool = False) -> tuple[ExternalKey, ...]:
        loop, keys = asyncio.get_running_loop(), self._rules.issuer_keys
        return await loop.run_in_executor(self._fetching, lambda: keys.get(trusted, unknown_key=newer))

    async def _for_certificate(self, chain: bytes, origin: Origin, wanted: Wanted) -> pb.IssueTokenResponse:
        if origin.peer.kind != "inference":
            raise PermissionDenied("only the gateway may bring a certificate", reason="CALLER_NOT_ALLOWED")
        rules, gateway = self._rules.exchange, origin.peer.spiffe_id
        return _response(await self._records.read(lambda store: rules.for_certificate(store, chain, wanted, gateway)))

    async def _introspect(self, token: str, allowed: Callable[[Identity], bool]) -> pb.IntrospectTokenResponse:
        try:
            claims = await asyncio.to_thread(self._rules.claims, token)
        except Unauthenticated:
            return pb.IntrospectTokenResponse(active=False)
        found = identity_of(claims)
        if not allowed(found):
            return pb.IntrospectTokenResponse(active=False)  # RFC 7662 section 2.2: as if it were not good
        return pb.IntrospectTokenResponse(
            active=True,
            scope=" ".join(sorted(found.scopes)),
            client_id=found.client_id,
            sub=found.subject,
            aud=str(claims["aud"]),
            iss=str(claims["iss"]),
            jti=found.token_id,
            exp=int(found.expires),
            iat=int(float(str(claims["iat"]))),
            project=found.project,
            token_type="DPoP" if found.key_thumbprint else "Bearer",
            key_thumbprint=found.key_thumbprint,
            certificate_thumbprint=found.certificate_thumbprint,
        )


def _proof(request: pb.IssueTokenRequest, origin: Origin) -> Proof:
    return Proof(
        client_id=request.client_id,
        secret=request.client_secret,
        assertion_type=request.client_assertion_type,
        assertion=request.client_assertion,
        account=origin.peer.account,
        endpoint=origin.endpoint,
    )


def _certificate(request: pb.IssueTokenRequest, origin: Origin) -> str:
    if not request.certificate_bound:
        return ""
    if not origin.peer.certificate_pem:
        raise InvalidArgument(
            "there is no certificate to bind the token to; ask on the mesh port with one", field="certificate_bound"
        )
    return origin.peer.certificate.thumbprint


def _response(issued: Issued) -> pb.IssueTokenResponse:
    return pb.IssueTokenResponse(
        access_token=issued.token,
        token_type=issued.token_type,
        expires_in=issued.expires_in,
        scope=issued.scope,
        refresh_token=issued.refresh_token,
        issued_token_type=issued.issued_type,
    )
