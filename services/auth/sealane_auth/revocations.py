"""Tells who watches what was revoked, and keeps auth's own view of it."""

from __future__ import annotations

import asyncio
import secrets
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
#: Revocations in one update: some 100 bytes each, and a message has at most 4 MiB.
_CHUNK = 1000


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
        self._era = secrets.token_hex(8)

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
        """What is revoked, from the request's sequence on, for as long as the caller stays.

        A snapshot comes in chunks without a pause: the first replaces what the watcher knew, the others add to it, as
        any later change does. A watcher that is cut off in between asks for the rest, since it knows where it was.
        """
        snapshot = not request.after_sequence or request.era != self._era
        seen = 0 if snapshot else request.after_sequence
        first = True
        while True:
            change = self._change
            update = await self._update(seen, snapshot=first and snapshot)
            if first or update.sequence != seen:
                yield update
                seen, first = update.sequence, False
                continue
            try:
                async with asyncio.timeout(WORD_SECONDS):
                    await change.wait()
            except TimeoutError:
                yield pb.RevocationUpdate(sequence=seen, era=self._era)

    async def _update(self, after: int, *, snapshot: bool) -> pb.RevocationUpdate:
        now = self._clock.now()
        last, found = await self._records.read(
            lambda store: (store.revocations.last(), store.revocations.after(after, now, _CHUNK))
        )
        return pb.RevocationUpdate(
            # Those that no longer matter are passed over, but what is not in this chunk is still to come.
            sequence=found[-1][0] if len(found) == _CHUNK else last,
            snapshot=snapshot,
            revocations=written(revoked for _, revoked in found),
            era=self._era,
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
