"""What a service or worker has of auth while it runs: its certificate, the keys, what is revoked; all kept fresh."""

from __future__ import annotations

import datetime
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sealane.clock import Clock
from sealane.errors import SealaneError
from sealane.rpc.authentication import CertificateTokens
from sealane.rpc.middleware import Middleware
from sealane.rpc.order import Guard
from sealane.security import enroll, tls
from sealane.security.certificate import key_id_of_issuer
from sealane.security.keys import KeySet
from sealane.security.revocation_watch import RevocationWatch
from sealane.security.revocations import Kind, Revocations, Revoked
from sealane.security.tokens import ISSUER, TokenVerifier

log = logging.getLogger("sealane.membership")

_LONGEST_PAUSE = 60.0
_PAUSE_AFTER_FAILURE = 2.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process keeps what it has of auth.

    Args:
        data_dir: its folder; certificate and keys lie below ``identity``.
        auth: client port of auth.
        auth_mesh: mesh port of auth.
        trust_bundle: file with the root certificates.
        join_token: file with the join token, for the first start.
    """

    data_dir: Path
    auth: str
    auth_mesh: str
    trust_bundle: Path
    join_token: Path | None = None

    @property
    def enrollment(self) -> enroll.EnrollConfig:
        """How it gets its certificate."""
        return enroll.EnrollConfig(
            self.data_dir / "identity", self.auth, self.auth_mesh, self.trust_bundle, self.join_token
        )


class Membership:
    """The membership of one process. Threads begin with :meth:`start`.

    Args:
        place: where it keeps what it has of auth.
        identity: its certificate.
        audience: whom tokens must be for to be good here.
        clock: tells the time.
    """

    def __init__(self, place: Place, identity: tls.PeerIdentity, audience: str, clock: Clock) -> None:
        self.identity = identity
        self._place = place
        channel = enroll.MeshChannel(identity, "auth", place.auth_mesh)
        self.keys = KeySet(enroll.fetch_keys(channel), place.data_dir / "jwks.json")
        self.revocations = Revocations(clock, place.data_dir / "revocations.json")
        self.verifier = TokenVerifier(
            self.keys, issuer=ISSUER, audience=audience, clock=clock, revocations=self.revocations
        )
        self._keys_revoked = 0
        self._distrusted = False
        self._wake, self._stop = threading.Event(), False
        self.revocations.subscribe(self._look)
        self._watch = RevocationWatch(channel, self.revocations, self._distrust)
        self._upkeep = threading.Thread(target=self._run, name="membership", daemon=True)

    @classmethod
    def join(cls, place: Place, audience: str, clock: Clock) -> Membership:
        """Enroll where there is no certificate yet. Blocks for a minute at most.

        Raises:
            SealaneError: auth refused or could not be reached.
        """
        return cls(place, enroll.ensure(place.enrollment), audience, clock)

    def channel(self, service: str, address: str) -> enroll.MeshChannel:
        """A channel to a service's mesh port."""
        return enroll.MeshChannel(self.identity, service, address)

    def guard(
        self, clock: Clock, *, certificates: CertificateTokens | None = None, quota: Sequence[Middleware] = ()
    ) -> Guard:
        """What decides who may call this process."""
        return Guard(self.verifier, self.revocations, clock, certificates, quota)

    def start(self) -> None:
        """Begin to keep everything fresh."""
        self._watch.start()
        self._upkeep.start()

    def stop(self) -> None:
        """End the threads."""
        self._stop = True
        self._wake.set()
        self._watch.stop()

    def _look(self) -> None:
        """Something was revoked: it may be a key, or the issuer of our own certificate."""
        keys = sum(self.revocations.key_revoked(kid) for kid in self.keys.known())
        mine = Revoked(Kind.ISSUER, key_id_of_issuer(self.identity.leaf))
        if self.revocations.has(mine):
            self._distrusted = True
        if keys:
            self.keys.expect()
        if keys or self._distrusted:
            self._keys_revoked += keys
            self._wake.set()

    def _distrust(self) -> None:
        self._distrusted = True
        self._wake.set()

    def _run(self) -> None:
        pause = 0.0
        while not self._stop:
            self._wake.wait(pause)
            self._wake.clear()
            if self._stop:
                return
            try:
                pause = self._keep()
            except SealaneError as error:
                log.warning("the certificate was not renewed, trying again", extra={"reason": error.reason})
                pause = _PAUSE_AFTER_FAILURE

    def _keep(self) -> float:
        """Renew what is due; seconds until it is to be looked at again."""
        if self._keys_revoked or self.keys.due:
            self._keys_revoked = 0
            self.keys.refresh(at_once=True)
        now = datetime.datetime.now(datetime.UTC)
        leaf = self.identity.leaf
        if self._distrusted or self.identity.expired(now) or not self.identity.fits():
            enroll.reenroll(self._place.enrollment, self.identity)
            self._distrusted = False
        elif self.identity.renewal_due(now):
            enroll.renew(self._place.enrollment, self.identity)
        life = (leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds()
        return min(_LONGEST_PAUSE, life / 30, max(self.keys.max_age / 3, 0.2))
