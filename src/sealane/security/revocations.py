"""What is no longer good, as this process knows it: tokens, subjects, keys, peers, issuers of certificates.

Auth streams it (``TokenService.WatchRevocations``, RFC 7009 in spirit); each service keeps it in memory, looks it up on
every call, and on disk for a start without auth.
"""

from __future__ import annotations

import enum
import json
import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sealane.clock import Clock
from sealane.errors import Unauthenticated, Unavailable
from sealane.rpc.call import TRUST_DOMAIN, Carried, Identity, Peer

log = logging.getLogger("sealane.revocations")

#: Who has not heard of auth for so long refuses calls of high risk (SECURITY 3.5).
STALE_SECONDS = 60.0
#: Reason of the refusal of a peer that was put out.
PEER_EVICTED = "PEER_EVICTED"
#: The same of a node whose stream a relay carries.
NODE_EVICTED = "NODE_EVICTED"
#: Tokens live 900 seconds at most, so what is about tokens alone is over then, clocks that differ included.
KEPT_SECONDS = 1200.0
#: The file is written at most so often; signs of life, which come every five seconds, bring what was left.
_SAVE_SECONDS = 1.0
_PRUNE_SECONDS = 60.0


class Kind(enum.Enum):
    """What is revoked."""

    TOKEN = "token"  # noqa: S105 - the name of a kind
    SUBJECT = "subject"
    KEY = "key"
    PEER = "peer"
    ISSUER = "issuer"


_PASSING = frozenset({Kind.TOKEN, Kind.SUBJECT})


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
        # When those that pass were heard of, oldest first.
        self._times: dict[tuple[Kind, str, str], float] = {}
        self._pruned = self._saved = float("-inf")
        self._unsaved = False
        self._listeners: list[Callable[[], None]] = []
        self.version = 0
        if path is not None and path.exists():
            self._start(path)

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
            self._heard = now = self._clock.monotonic()
            changed = self._learn(revoked, now, snapshot=snapshot)
            self.version += changed
            self._unsaved |= changed or sequence != self._sequence
            self._sequence = sequence
            self._unsaved |= self._prune(now)
            if self._unsaved and now - self._saved >= _SAVE_SECONDS:
                self._save()
                self._saved, self._unsaved = now, False
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
        if not peer.spiffe_id:
            return
        if peer.certificate_pem and not peer.certificate.issuer_key_id:
            # What a certificate says of its issuer is its maker's to write. Where it names the issuer's key, TLS takes
            # none but the right one; without it there would be nothing to know a distrusted issuer by.
            raise Unauthenticated("the certificate does not name its issuer's key", reason="CERTIFICATE_REFUSED")
        known = self._known
        if not known:
            return
        begin = known.get((Kind.PEER, "", peer.spiffe_id))
        if begin is not None and (not begin or peer.certificate.not_before < begin):
            raise Unauthenticated("the certificate's holder was evicted; join again", reason=PEER_EVICTED)
        if (Kind.ISSUER, "", peer.certificate.issuer_key_id) in known:
            raise Unauthenticated(
                "the certificate's issuer is no longer trusted; enroll again with the device key",
                reason="CERTIFICATE_REVOKED",
            )

    def check_carried(self, carried: Carried) -> None:
        """Refuse a node whose stream a relay carries where it was evicted since its statement was signed.

        Raises:
            Unauthenticated: so it is.
        """
        begin = self._known.get((Kind.PEER, "", f"{TRUST_DOMAIN}node/{carried.node}"))
        # One that was signed within the second of the eviction may be of before it.
        if begin is not None and (not begin or carried.issued <= begin):
            raise Unauthenticated(f"node {carried.node} was evicted; let it join again", reason=NODE_EVICTED)

    def _learn(self, revoked: Iterable[Revoked], now: float, *, snapshot: bool) -> bool:
        before: dict[tuple[Kind, str, str], float] = {} if snapshot else self._known
        fresh: dict[tuple[Kind, str, str], float] = {}
        for each in revoked:
            key = (each.kind, each.project, each.value)
            number = max(before.get(key, 0.0), fresh.get(key, 0.0), each.number)
            if before.get(key) != number:
                fresh[key] = number
        if snapshot:
            changed, self._known, self._times = fresh != self._known, fresh, {}
        else:
            changed = bool(fresh)
            if changed:
                self._known = self._known | fresh
        for key in fresh:
            if key[0] in _PASSING:
                self._times.pop(key, None)
                self._times[key] = now
        return changed

    def _prune(self, now: float) -> bool:
        if now - self._pruned < _PRUNE_SECONDS:
            return False
        self._pruned = now
        over: set[tuple[Kind, str, str]] = set()
        for key, heard in self._times.items():
            if now - heard <= KEPT_SECONDS:
                break
            over.add(key)
        if over:
            # No news for listeners: no token that this was about is good any more.
            self._known = {key: number for key, number in self._known.items() if key not in over}
            self._times = {key: heard for key, heard in self._times.items() if key not in over}
        return bool(over)

    def _start(self, path: Path) -> None:
        try:
            self._load(json.loads(path.read_text()))
        except (ValueError, TypeError, KeyError, AttributeError):
            # Torn by a power cut or a full disk: as good as absent, and auth sends all anew.
            log.warning("the kept revocations cannot be read and are asked for anew", extra={"path": str(path)})

    def _save(self) -> None:
        if self._path is None:
            return
        rows = [
            {"kind": kind.value, "value": value, "project": project, "number": number}
            for (kind, project, value), number in self._known.items()
        ]
        temporary = self._path.with_suffix(".new")
        temporary.write_text(json.dumps({"sequence": self._sequence, "revoked": rows}))
        temporary.replace(self._path)

    def _load(self, stored: dict[str, object]) -> None:
        rows = stored["revoked"]
        if not isinstance(rows, list):
            raise TypeError("a list of revocations is expected")
        sequence = int(str(stored["sequence"]))
        self._known = {(Kind(row["kind"]), row["project"], row["value"]): float(row["number"]) for row in rows}
        self._sequence, now = sequence, self._clock.monotonic()
        self._times = {key: now for key in self._known if key[0] in _PASSING}
        self.version = 1
