"""The public keys of auth, cached: in memory, on disk for a start without auth, refreshed in time."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from sealane.errors import SealaneError
from sealane.security import jws

#: A key id that is not known may trigger one fetch in this many seconds.
REFRESH_LIMIT_SECONDS = 10.0
#: Keys are fetched again after this many seconds.
CACHE_SECONDS = 300.0

Fetch = Callable[[], Mapping[str, str]]
"""Returns key id -> base64url of the raw Ed25519 public key."""


class KeySet:
    """Verifying keys by id.

    Args:
        fetch: gets the present key set from auth; may raise SealaneError.
        path: file that keeps the last set, for a start while auth is out of reach.
    """

    def __init__(self, fetch: Fetch, path: Path | None = None) -> None:
        self._fetch = fetch
        self._path = path
        self._keys: dict[str, Ed25519PublicKey] = {}
        self._fetched = float("-inf")
        self._tried = float("-inf")
        self._refreshing = False
        self._lock = threading.Lock()
        if path is not None and path.exists():
            self._load(json.loads(path.read_text()))

    def get(self, kid: str) -> Ed25519PublicKey | None:
        """The key of this id, from memory only."""
        return self._keys.get(kid)

    def stale(self, kid: str) -> bool:
        """Whether a fetch is due: for an unknown `kid`, or because the cache is old; rate limited."""
        now = time.monotonic()
        due = kid not in self._keys or now - self._fetched > CACHE_SECONDS
        # Those who come while a fetch is under way wait for it, however lately it began.
        return due and (self._refreshing or now - self._tried > REFRESH_LIMIT_SECONDS)

    def refresh(self) -> None:
        """Fetch now. A failed fetch keeps the keys that are there: a running data plane needs nobody."""
        with self._lock:
            if time.monotonic() - self._tried < REFRESH_LIMIT_SECONDS and self._keys:
                return
            self._refreshing = True
            self._tried = time.monotonic()
            try:
                self._take(dict(self._fetch()))
            except SealaneError:
                return
            finally:
                self._refreshing = False

    def _take(self, fetched: dict[str, str]) -> None:
        self._load(fetched)
        self._fetched = time.monotonic()
        if self._path is not None:
            temporary = self._path.with_suffix(".new")
            temporary.write_text(json.dumps(fetched))
            temporary.replace(self._path)

    def _load(self, keys: Mapping[str, str]) -> None:
        self._keys = {kid: Ed25519PublicKey.from_public_bytes(jws.decode(x)) for kid, x in keys.items()}
