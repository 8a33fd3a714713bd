"""SigningKeyService and SealingKeyService: proto to plain, call the rules, plain to proto."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from cryptography.hazmat.primitives import serialization

from sealane.auth.v1 import sealing_key_service_pb2 as sealing_pb
from sealane.auth.v1 import signing_key_service_pb2 as pb
from sealane.clock import Clock
from sealane.records.paging import page_of, read_token, write_token
from sealane.records.transactions import Transactions, actor
from sealane.rpc.call import Call
from sealane.rpc.times import time_of
from sealane.security.certificate import key_id_of
from sealane_auth.enrollment import Enrollment
from sealane_auth.key_store import SigningKey
from sealane_auth.revocations import Hub
from sealane_auth.signing import Keyring, state_of
from sealane_auth.store import Store


class SigningKeyServicer:
    """SigningKeyService.

    Args:
        renewed: called after the intermediate has changed, so that auth shows a leaf of the new one itself.
    """

    def __init__(
        self,
        records: Transactions[Store],
        rules: tuple[Keyring, Enrollment],
        hub: Hub,
        clock: Clock,
        renewed: Callable[[], Awaitable[None]],
    ) -> None:
        self._records = records
        self._keyring, self._enrollment = rules
        self._hub = hub
        self._clock = clock
        self._renewed = renewed

    async def ListSigningKeys(self, request: pb.ListSigningKeysRequest, call: Call) -> pb.ListSigningKeysResponse:
        """List the keys."""
        keys = await self._records.read(lambda store: store.keys.all())
        size, after = page_of(request.page_size), read_token(request.page_token)
        newest = keys[::-1]
        kids = [key.kid for key in newest]
        start = kids.index(after) + 1 if after in kids else 0
        more = write_token(kids[start + size - 1]) if len(kids) > start + size else ""
        found = [self._key(key, keys) for key in newest[start : start + size]]
        return pb.ListSigningKeysResponse(signing_keys=found, next_page_token=more)

    async def RotateSigningKey(self, request: pb.RotateSigningKeyRequest, call: Call) -> pb.SigningKey:
        """Begin a planned rotation."""
        who = actor(call)

        def rotate(store: Store) -> tuple[SigningKey, list[SigningKey]]:
            key = self._keyring.rotate(store.keys, store.peers.longest_offline())
            store.record(who, "RotateSigningKey", f"signingKeys/{key.kid}", self._clock.now())
            return key, store.keys.all()

        return self._key(*await self._records.write(rotate))

    async def RetireSigningKey(self, request: pb.RetireSigningKeyRequest, call: Call) -> pb.SigningKey:
        """Revoke a key at once."""
        who = actor(call)

        def retire(store: Store) -> tuple[SigningKey, list[SigningKey]]:
            key = self._keyring.retire(store.keys, store.revocations, request.kid)
            store.record(who, "RetireSigningKey", f"signingKeys/{key.kid}", self._clock.now())
            return key, store.keys.all()

        answer = self._key(*await self._records.write(retire))
        await self._hub.changed()
        return answer

    async def RotateIntermediate(self, request: pb.RotateIntermediateRequest, call: Call) -> pb.Intermediate:
        """Change the intermediate."""
        who = actor(call)
        certificate = await self._records.write(
            lambda store: self._enrollment.rotate_intermediate(store, who, distrust=request.distrust)
        )
        await self._renewed()
        await self._hub.changed()
        return pb.Intermediate(
            certificate=certificate.public_bytes(serialization.Encoding.PEM),
            key_id=key_id_of(certificate),
            expire_time=time_of(certificate.not_valid_after_utc.timestamp()),
        )

    def _key(self, key: SigningKey, keys: list[SigningKey]) -> pb.SigningKey:
        state = state_of(key, keys, self._clock.now())
        return pb.SigningKey(
            kid=key.kid,
            state=pb.SigningKey.State.Value(f"STATE_{state.value}"),
            create_time=time_of(key.create_time),
            sign_time=time_of(key.sign_time),
            withdraw_time=time_of(key.withdraw_time) if key.withdraw_time else None,
        )


class SealingKeyServicer:
    """SealingKeyService."""

    def __init__(self, records: Transactions[Store], rules: Enrollment, clock: Clock) -> None:
        self._records = records
        self._rules = rules
        self._clock = clock

    async def PublishSealingKey(
        self, request: sealing_pb.PublishSealingKeyRequest, call: Call
    ) -> sealing_pb.SealingStatement:
        """Vouch for the caller's sealing key."""
        node = call.peer.node
        statement, expires = await self._records.write(
            lambda store: self._rules.vouch(store, node, request.suite, request.public_key)
        )
        return sealing_pb.SealingStatement(jws=statement, expire_time=time_of(expires))

    async def ListSealingKeys(
        self, request: sealing_pb.ListSealingKeysRequest, call: Call
    ) -> sealing_pb.ListSealingKeysResponse:
        """List the statements that are good now."""
        size, after, now = page_of(request.page_size), read_token(request.page_token), self._clock.now()
        found = await self._records.read(lambda store: store.peers.statements(now, after, size + 1))
        return sealing_pb.ListSealingKeysResponse(
            statements=[
                sealing_pb.SealingStatement(jws=item.jws, expire_time=time_of(item.expires)) for item in found[:size]
            ],
            next_page_token=write_token(found[size - 1].name if len(found) > size else ""),
        )
