"""The public keys of auth, cached: in memory, on disk for a start without auth, refreshed in time."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from sealane.errors import SealaneError
from sealane.security import jws

log = logging.getLogger("sealane.keys")

#: A key id that is not known may trigger one fetch in this many seconds.
REFRESH_LIMIT_SECONDS = 10.0
#: Keys are fetched again after this many seconds.
CACHE_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Published:
    """What auth publishes.

    Args:
        keys: key id -> base64url of the raw Ed25519 public key.
        max_age: seconds after which to ask again.
    """

    keys: Mapping[str, str]
    max_age: float = CACHE_SECONDS


Fetch = Callable[[], Published]


class KeySet:
    """Verifying keys by id.

    Args:
        fetch: gets the present key set from auth; may raise SealaneError.
        path: file that keeps the last set, for a start while auth is out of reach.
        limit: seconds in which a key id that is not known triggers one fetch.
    """

    def __init__(self, fetch: Fetch, path: Path | None = None, limit: float = REFRESH_LIMIT_SECONDS) -> None:
        self._limit = limit
        self._fetch = fetch
        self._path = path
        self._keys: dict[str, Ed25519PublicKey] = {}
        self._max_age = CACHE_SECONDS
        self._fetched = float("-inf")
        self._tried = float("-inf")
        self._refreshing = False
        self._lock = threading.Lock()
        if path is not None and path.exists():
            self._start(path)

    def get(self, kid: str) -> Ed25519PublicKey | None:
        """The key of this id, from memory only."""
        return self._keys.get(kid)

    def stale(self, kid: str) -> bool:
        """Whether a fetch is due: for an unknown `kid`, or because the cache is old; rate limited."""
        now = time.monotonic()
        due = kid not in self._keys or now - self._fetched > self._max_age
        # Those who come while a fetch is under way wait for it, however lately it began.
        return due and (self._refreshing or now - self._tried > self._limit)

    @property
    def max_age(self) -> float:
        """Seconds after which auth wants the keys to be asked for again."""
        return self._max_age

    def known(self) -> tuple[str, ...]:
        """Ids of the keys in memory."""
        return tuple(self._keys)

    @property
    def due(self) -> bool:
        """Whether the keys are so old that auth wants them to be asked for again."""
        return time.monotonic() - self._fetched > self._max_age

    def expect(self) -> None:
        """Auth has just changed its keys in an emergency: the next unknown key id is worth a fetch at once."""
        self._tried = float("-inf")

    def refresh(self, *, at_once: bool = False) -> None:
        """Fetch now. A failed fetch keeps the keys that are there: a running data plane needs nobody.

        Args:
            at_once: however lately it was fetched; for what no stranger can cause.
        """
        with self._lock:
            if not at_once and time.monotonic() - self._tried < self._limit and self._keys:
                return
            self._refreshing = True
            self._tried = time.monotonic()
            try:
                self._take(self._fetch())
            except SealaneError:
                return
            finally:
                self._refreshing = False

    def _start(self, path: Path) -> None:
        try:
            self._load(json.loads(path.read_text()))
        except (ValueError, TypeError, AttributeError, SealaneError):
            # Torn by a power cut or a full disk: as good as absent, since auth is asked anyway.
            log.warning("the kept keys cannot be read and are fetched anew", extra={"path": str(path)})

    def _take(self, published: Published) -> None:
        self._load(published.keys)
        self._max_age = published.max_age
        self._fetched = time.monotonic()
        if self._path is not None:
            temporary = self._path.with_suffix(".new")
            temporary.write_text(json.dumps(dict(published.keys)))
            temporary.replace(self._path)

    def _load(self, keys: Mapping[str, str]) -> None:
        self._keys = {kid: Ed25519PublicKey.from_public_bytes(jws.decode(x)) for kid, x in keys.items()}
