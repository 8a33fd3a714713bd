"""Tells who watches what was revoked, and keeps auth's own view of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

from sealane.auth.v1 import token_service_pb2 as pb
from sealane.clock import Clock
from sealane.records.transactions import Transactions
from sealane.security.keys import KeySet
from sealane.security.revocations import Kind, Revocations, Revoked
from sealane_auth.store import Store

#: A watcher hears something at least so often.
WORD_SECONDS = 5.0
#: Revocations of another auth process on the same database are found within this time.
_POLL_SECONDS = 1.0


class Hub:
    """The revocations of the database, watched by many.

    Args:
        records: the database.
        revocations: auth's own view, which its middleware looks at.
        clock: tells what no longer matters.
    """

    def __init__(self, records: Transactions[Store], revocations: Revocations, clock: Clock) -> None:
        self._records = records
        self._revocations = revocations
        self._clock = clock
        self._change = asyncio.Event()

    async def changed(self) -> None:
        """Something may have been revoked: look, and tell."""
        known, now = self._revocations.sequence, self._clock.now()
        last, found = await self._records.read(lambda s: (s.revocations.last(), s.revocations.after(known, now)))
        if last != known:
            self._change.set()
            self._change = asyncio.Event()
        self._revocations.take(last, [revoked for _, revoked in found])

    async def run(self, keys: KeySet) -> None:
        """Keep auth's own view fresh, and the keys that it verifies with."""
        while True:
            await self.changed()
            await asyncio.to_thread(keys.refresh, at_once=True)
            await asyncio.sleep(_POLL_SECONDS)

    async def watch(self, request: pb.WatchRevocationsRequest) -> AsyncIterator[pb.RevocationUpdate]:
        """What is revoked, from the request's sequence on, for as long as the caller stays."""
        seen = request.after_sequence
        first = True
        while True:
            change = self._change
            last = await self._records.read(lambda s: s.revocations.last())
            snapshot = first and (not seen or seen > last)
            if snapshot or last != seen or first:
                yield await self._update(0 if snapshot else seen, last, snapshot=snapshot)
                seen, first = last, False
                continue
            try:
                async with asyncio.timeout(WORD_SECONDS):
                    await change.wait()
            except TimeoutError:
                yield pb.RevocationUpdate(sequence=seen)

    async def _update(self, after: int, last: int, *, snapshot: bool) -> pb.RevocationUpdate:
        now = self._clock.now()
        found = await self._records.read(lambda store: store.revocations.after(after, now))
        return pb.RevocationUpdate(
            sequence=last, snapshot=snapshot, revocations=written(revoked for _, revoked in found)
        )


def written(revoked: Iterable[Revoked]) -> list[pb.Revocation]:
    """Revocations in the contract's form."""
    return [_one(each) for each in revoked]


def _one(revoked: Revoked) -> pb.Revocation:
    match revoked.kind:
        case Kind.TOKEN:
            return pb.Revocation(token=pb.TokenRevocation(project=revoked.project, token_id=revoked.value))
        case Kind.SUBJECT:
            return pb.Revocation(subject=pb.SubjectRevocation(subject=revoked.value, epoch=int(revoked.number)))
        case Kind.KEY:
            return pb.Revocation(key_id=revoked.value)
        case Kind.PEER:
            peer = pb.PeerRevocation(spiffe_id=revoked.value)
            peer.not_before.FromNanoseconds(int(revoked.number * 1e9))
            return pb.Revocation(peer=peer)
        case Kind.ISSUER:
            return pb.Revocation(issuer_key_id=revoked.value)
