"""What is no longer good, as this process knows it: tokens, subjects, keys, peers, issuers of certificates.

Auth streams it (``TokenService.WatchRevocations``, RFC 7009 in spirit); each service keeps it in memory, looks it up on
every call, and on disk for a start without auth.
"""

from __future__ import annotations

import enum
import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from sealane.clock import Clock
from sealane.errors import Unauthenticated, Unavailable
from sealane.rpc.call import Identity, Peer

#: Who has not heard of auth for so long refuses calls of high risk (SECURITY 3.5).
STALE_SECONDS = 60.0


class Kind(enum.Enum):
    """What is revoked."""

    TOKEN = "token"  # noqa: S105 - the name of a kind
    SUBJECT = "subject"
    KEY = "key"
    PEER = "peer"
    ISSUER = "issuer"


@dataclass(frozen=True, slots=True)
class Revoked:
    """One revocation.

    Args:
        kind: what it is.
        value: token id, subject, key id, SPIFFE id, or key identifier of an intermediate in hex.
        project: of a token.
        number: of a subject the first good epoch; of a peer the time since 1970 from which certificates are good again.
    """

    kind: Kind
    value: str
    project: str = ""
    number: float = 0.0


class Revocations:
    """The revocations known here. Reads take no lock: what they look at is replaced, never changed.

    Args:
        clock: tells how long ago auth was heard.
        path: file that keeps them for a start without auth.
    """

    def __init__(self, clock: Clock, path: Path | None = None) -> None:
        self._clock = clock
        self._path = path
        self._lock = threading.Lock()
        self._sequence = 0
        self._heard = float("-inf")
        self._known: dict[tuple[Kind, str, str], float] = {}
        self._listeners: list[Callable[[], None]] = []
        self.version = 0
        if path is not None and path.exists():
            self._load(json.loads(path.read_text()))

    @property
    def sequence(self) -> int:
        """Sequence of the last revocation known here."""
        return self._sequence

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call `listener` after every change, on the thread that brings it."""
        self._listeners.append(listener)

    def take(self, sequence: int, revoked: Iterable[Revoked], *, snapshot: bool = False) -> None:
        """Learn of more, or of all anew. An update without any is a sign of life."""
        with self._lock:
            known = {} if snapshot else dict(self._known)
            for each in revoked:
                key = (each.kind, each.project, each.value)
                known[key] = max(known.get(key, 0.0), each.number)
            self._heard = self._clock.monotonic()
            changed = known != self._known
            if not changed and sequence == self._sequence:
                return
            self._known, self._sequence = known, sequence
            self.version += changed
            self._save()
        for listener in self._listeners if changed else ():
            listener()

    def fresh(self) -> bool:
        """Whether auth was heard within the last minute."""
        return self._clock.monotonic() - self._heard <= STALE_SECONDS

    def demand_fresh(self) -> None:
        """Refuse where it is not known what was revoked in the last minute.

        Raises:
            Unavailable: auth was not heard for that long.
        """
        if not self.fresh():
            raise Unavailable(
                "auth is out of reach, so calls of high risk are refused; try again when it is back",
                reason="REVOCATIONS_STALE",
                retry_after=5.0,
            )

    def key_revoked(self, kid: str) -> bool:
        """Whether nothing that a key signed is good."""
        return (Kind.KEY, "", kid) in self._known

    def has(self, revoked: Revoked) -> bool:
        """Whether something is revoked, whatever its number."""
        return (revoked.kind, revoked.project, revoked.value) in self._known

    def check(self, identity: Identity) -> None:
        """Refuse a token that was revoked: by its id, its subject's epoch or its key.

        Raises:
            Unauthenticated: it was.
        """
        known = self._known
        if not known:
            return
        revoked = (
            (Kind.TOKEN, identity.project, identity.token_id) in known
            or known.get((Kind.SUBJECT, "", identity.subject), 0.0) > identity.epoch
            or (Kind.KEY, "", identity.key_id) in known
        )
        if revoked:
            raise Unauthenticated("the token was revoked; get a new one", reason="TOKEN_REVOKED")

    def check_peer(self, peer: Peer) -> None:
        """Refuse a certificate whose holder was evicted or whose issuer is no longer trusted.

        Raises:
            Unauthenticated: so it is.
        """
        known = self._known
        if not known or not peer.spiffe_id:
            return
        begin = known.get((Kind.PEER, "", peer.spiffe_id))
        if begin is not None and (not begin or peer.certificate.not_before < begin):
            raise Unauthenticated("the certificate's holder was evicted; join again", reason="PEER_EVICTED")
        if any(kind is Kind.ISSUER for kind, _, _ in known) and (
            (Kind.ISSUER, "", peer.certificate.issuer_key_id) in known
        ):
            raise Unauthenticated(
                "the certificate's issuer is no longer trusted; enroll again with the device key",
                reason="CERTIFICATE_REVOKED",
            )

    def _save(self) -> None:
        if self._path is None:
            return
        rows = [
            asdict(Revoked(kind, value, project, number)) | {"kind": kind.value}
            for (kind, project, value), number in self._known.items()
        ]
        temporary = self._path.with_suffix(".new")
        temporary.write_text(json.dumps({"sequence": self._sequence, "revoked": rows}))
        temporary.replace(self._path)

    def _load(self, stored: dict[str, object]) -> None:
        rows = stored["revoked"]
        assert isinstance(rows, list)
        self._sequence = int(str(stored["sequence"]))
        self._known = {(Kind(row["kind"]), row["project"], row["value"]): float(row["number"]) for row in rows}
        self.version = 1
