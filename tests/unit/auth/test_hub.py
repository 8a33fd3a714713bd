"""Watchers of revocations hear everything once, in order, and after a restart of auth all anew."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from auth_records import prepare

from sealane.auth.v1 import token_service_pb2 as pb
from sealane.clock import ManualClock
from sealane.records.database import Database
from sealane.records.transactions import Transactions
from sealane.security.revocation_watch import read
from sealane.security.revocations import Kind, Revocations, Revoked
from sealane_auth import revocations
from sealane_auth.revocations import Hub
from sealane_auth.store import Store
from sealane_auth.store_sql import SqlStore

KEY, TOKEN = Revoked(Kind.KEY, "k"), Revoked(Kind.TOKEN, "t", "p")
PEER, ISSUER = Revoked(Kind.PEER, "spiffe://sealane/node/n", number=7.0), Revoked(Kind.ISSUER, "aa")
SUBJECT = Revoked(Kind.SUBJECT, "s", number=3.0)


class Site:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.database = Database("sqlite://")
        self.database.start(prepare)
        self.records: Transactions[Store] = Transactions(self.database, SqlStore, self.clock)
        self.known = Revocations(self.clock)
        self.hub = Hub(self.records, self.known, self.clock)

    async def revoke(self, *revoked: Revoked, until: float = 0.0) -> None:
        for each in revoked:
            await self.records.write(lambda store, each=each: store.revocations.add(each, self.clock.now(), until))
        await self.hub.changed()


async def next_of(updates: AsyncIterator[pb.RevocationUpdate]) -> pb.RevocationUpdate:
    async with asyncio.timeout(5):
        return await anext(updates)


def test_a_snapshot_then_each_change() -> None:
    async def run() -> None:
        site = Site()
        await site.revoke(KEY, TOKEN, PEER, ISSUER, SUBJECT)
        updates = site.hub.watch(pb.WatchRevocationsRequest())
        first = await next_of(updates)
        assert first.snapshot and first.sequence == 5
        assert list(read(first.revocations)) == [KEY, TOKEN, PEER, ISSUER, SUBJECT]
        await site.revoke(Revoked(Kind.KEY, "k2"))
        second = await next_of(updates)
        assert not second.snapshot and second.sequence == 6
        assert list(read(second.revocations)) == [Revoked(Kind.KEY, "k2")]
        assert site.known.sequence == 6 and site.known.key_revoked("k2"), "auth itself knows"
        site.database.close()

    asyncio.run(run())


def test_who_comes_back_hears_what_was_missed_and_after_a_restart_everything() -> None:
    async def run() -> None:
        site = Site()
        await site.revoke(KEY, TOKEN)
        era = (await next_of(site.hub.watch(pb.WatchRevocationsRequest()))).era
        await site.revoke(PEER)
        back = await next_of(site.hub.watch(pb.WatchRevocationsRequest(after_sequence=2, era=era)))
        assert not back.snapshot and list(read(back.revocations)) == [PEER]
        restarted = Hub(site.records, Revocations(site.clock), site.clock)
        whole = await next_of(restarted.watch(pb.WatchRevocationsRequest(after_sequence=3, era=era)))
        assert whole.snapshot and whole.era != era and len(whole.revocations) == 3
        site.database.close()

    asyncio.run(run())


def test_more_than_a_message_holds_comes_in_chunks_that_can_be_gone_on_with(monkeypatch) -> None:
    monkeypatch.setattr(revocations, "_CHUNK", 3)

    async def run() -> None:
        site = Site()
        keys = [Revoked(Kind.KEY, str(number)) for number in range(7)]
        await site.revoke(*keys)
        updates, known = site.hub.watch(pb.WatchRevocationsRequest()), Revocations(site.clock)
        chunks = [await next_of(updates) for _ in range(3)]
        assert [(each.snapshot, each.sequence) for each in chunks] == [(True, 3), (False, 6), (False, 7)]
        for each in chunks:
            known.take(each.sequence, read(each.revocations), snapshot=each.snapshot)
        assert all(known.has(key) for key in keys)
        cut_off = site.hub.watch(pb.WatchRevocationsRequest(after_sequence=3, era=chunks[0].era))
        rest = [await next_of(cut_off) for _ in range(2)]
        assert [list(read(each.revocations)) for each in rest] == [keys[3:6], keys[6:]]
        site.database.close()

    asyncio.run(run())


def test_what_no_longer_matters_is_not_told() -> None:
    async def run() -> None:
        site = Site()
        await site.revoke(TOKEN, until=site.clock.now() + 10)
        await site.revoke(KEY)
        site.clock.advance(11)
        update = await next_of(site.hub.watch(pb.WatchRevocationsRequest()))
        assert list(read(update.revocations)) == [KEY] and update.sequence == 2
        site.database.close()

    asyncio.run(run())


def test_silence_is_broken_by_empty_updates(monkeypatch) -> None:
    monkeypatch.setattr(revocations, "WORD_SECONDS", 0.01)

    async def run() -> None:
        site = Site()
        updates = site.hub.watch(pb.WatchRevocationsRequest())
        await next_of(updates)
        for _ in range(3):
            word = await next_of(updates)
            assert not word.revocations and not word.snapshot and word.era
        site.database.close()

    asyncio.run(run())
