"""Auth's rules of joining around real keys and certificates, on records in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from auth_records import prepare
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealane.clock import ManualClock
from sealane.records.tables import Actor
from sealane.security import device, jws, tls
from sealane.security.keys import KeySet, Published
from sealane.security.revocations import Revocations
from sealane_auth import bootstrap
from sealane_auth.accounts import AccountRules
from sealane_auth.bootstrap import Secrets
from sealane_auth.config import Config
from sealane_auth.enrollment import Enrollment, IssuedCertificate
from sealane_auth.peer_store import JoinToken, Offline
from sealane_auth.site_grants import SiteGrants
from sealane_auth.store_sql import SqlStore

WHO = Actor("projects/platform/serviceAccounts/admin", "platform")
PLACE = {"tier": "edge", "zone": "site-a", "region": "eu", "pool": "edge", "clearance": "restricted"}


@dataclass
class Site:
    """Auth, and a device that joins."""

    clock: ManualClock
    store: SqlStore
    secrets: Secrets
    rules: Enrollment
    grants: SiteGrants
    device: Ed25519PrivateKey

    def join_token(self, kind: str = "node", name: str = "edge-1", offline: Offline | None = None) -> str:
        attributes = PLACE if kind == "node" else {}
        wanted = JoinToken("", kind, name, attributes, ("10.0.0.1",), 0.0, offline or Offline())
        return self.rules.create_join_token(self.store, WHO, wanted)[0]

    def enroll(self, token: str | None = None, kind: str = "node", name: str = "edge-1") -> IssuedCertificate:
        request = tls.new_request()[1]
        return self.rules.enroll(self.store, token or self.join_token(kind, name), request, self.proof(request))

    def proof(self, request: bytes, key: Ed25519PrivateKey | None = None) -> str:
        return device.prove(key or self.device, request, self.clock.now())

    def key_set(self) -> KeySet:
        found = self.secrets.keyring.public_keys(self.store.keys)
        keys = KeySet(lambda: Published({kid: jws.encode(raw) for kid, raw in found.items()}))
        keys.refresh()
        return keys

    def revocations(self) -> Revocations:
        known = Revocations(self.clock)
        known.take(
            self.store.revocations.last(), [each for _, each in self.store.revocations.after(0, self.clock.now())]
        )
        return known


@contextmanager
def joining(folder: Path) -> Iterator[Site]:
    """A site on a folder of its own."""
    # Certificates are looked at by libraries that know only the machine's clock.
    clock = ManualClock(time.time())
    secrets = bootstrap.open_secrets(Config(folder / "auth"), clock)
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        prepare(connection)
        store = SqlStore(connection)
        AccountRules(clock).create_first_admin(store, "platform")
        secrets.keyring.prepare(store.keys)
        clock.advance(1)
        rules = Enrollment(clock, secrets.authority, secrets.keyring)
        yield Site(clock, store, secrets, rules, SiteGrants(clock, secrets.keyring), Ed25519PrivateKey.generate())
    engine.dispose()
