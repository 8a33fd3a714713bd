"""What auth does by itself as time passes: its own certificate, the intermediate and the signing key, each in time."""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Callable

from sealane.clock import Clock
from sealane.errors import SealaneError
from sealane.records.tables import Actor
from sealane.records.transactions import Transactions
from sealane.security import tls
from sealane_auth.authority_files import Authority
from sealane_auth.signing import Keyring
from sealane_auth.store import Store

log = logging.getLogger("sealane.auth.upkeep")

_LONGEST_PAUSE = 60.0
_ACTOR = Actor("spiffe://sealane/service/auth", "")


class Upkeep:
    """Changes keys and certificates before their time is over.

    Args:
        records: the database.
        keyring: the signing keys.
        authority: the certificates.
        clock: tells the time.
        renew: makes auth's own certificate anew and has the listeners use it.
    """

    def __init__(
        self,
        records: Transactions[Store],
        keyring: Keyring,
        authority: Authority,
        clock: Clock,
        renew: Callable[[], tls.PeerIdentity],
    ) -> None:
        self._records = records
        self._keyring = keyring
        self._authority = authority
        self._clock = clock
        self._renew = renew
        self._turn = asyncio.Lock()

    async def renewed(self) -> None:
        """The intermediate has changed: show a leaf of the new one."""
        async with self._turn:  # key and chain are two files: two renewals at once would mix them
            await asyncio.to_thread(self._renew)

    async def run(self, identity: tls.PeerIdentity) -> None:
        """Look after everything for as long as auth runs."""
        life = (identity.leaf.not_valid_after_utc - identity.leaf.not_valid_before_utc).total_seconds()
        while True:
            await asyncio.sleep(min(_LONGEST_PAUSE, life / 30))
            try:
                await self._look(identity)
            except SealaneError as error:
                log.warning("keys were not looked after, trying again", extra={"reason": error.reason})

    async def _look(self, identity: tls.PeerIdentity) -> None:
        now = datetime.datetime.fromtimestamp(self._clock.now(), datetime.UTC)
        if self._authority.due(now):
            self._change_intermediate(now)
            await self.renewed()
        elif identity.renewal_due(now):
            await self.renewed()
        await self._records.write(self._tick)

    def _change_intermediate(self, now: datetime.datetime) -> None:
        try:
            self._authority.rotate(now)
        except SealaneError as error:
            until = self._authority.signer.certificate.not_valid_after_utc
            log.error("the intermediate must be changed", extra={"until": str(until), "cause": error.message})

    def _tick(self, store: Store) -> None:
        key = self._keyring.tick(store.keys, store.peers.longest_offline())
        if key is not None:
            store.record(_ACTOR, "RotateSigningKey", f"signingKeys/{key.kid}", self._clock.now(), cause="age")
