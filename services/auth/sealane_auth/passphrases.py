"""People's passphrases: stored under argon2id, tried slowly, a few at once, and not for ever.

Machine secrets do not come here: 256 random bits need no slow hash.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from sealane.clock import Clock
from sealane.errors import InvalidArgument, ResourceExhausted

MIN_CHARACTERS = 12
MAX_CHARACTERS = 256
#: OWASP password storage cheat sheet, argon2id: m = 19 MiB, t = 2, p = 1.
_MEMORY_KIB = 19 * 1024
_ITERATIONS = 2
_LANES = 1
#: 19 MiB and a few ten milliseconds of a processor each: more at once would be a way to stop the service.
_AT_ONCE = 2
_MACHINE_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")
WRONG_TRIES = 10
WINDOW_SECONDS = 600.0
_REMEMBERED = 10_000


def is_machine_secret(text: str) -> bool:
    """Whether a text has the form of a secret that auth makes (32 bytes in base64url)."""
    return _MACHINE_SECRET.fullmatch(text) is not None


class Passphrases:
    """Hashes and compares. Every method blocks for some ten milliseconds: call them on a thread of their own."""

    def __init__(self) -> None:
        self._places = threading.BoundedSemaphore(_AT_ONCE)
        self._dummy = ""

    def hash(self, passphrase: str) -> str:
        """The hash to store, in PHC form.

        Raises:
            InvalidArgument: too short, too long, or in the form of a machine secret, which is never compared slowly.
            ResourceExhausted: too many at once.
        """
        if not MIN_CHARACTERS <= len(passphrase) <= MAX_CHARACTERS:
            raise InvalidArgument(
                f"a passphrase has {MIN_CHARACTERS} to {MAX_CHARACTERS} characters; choose another",
                field="credential.passphrase",
            )
        if is_machine_secret(passphrase):
            raise InvalidArgument(
                "a passphrase must not look like a secret that auth makes; add a space", field="credential.passphrase"
            )
        with self._place():
            return _argon().derive_phc_encoded(passphrase.encode())

    def matching(self, passphrase: str, hashes: Sequence[str]) -> int:
        """Index of the hash that `passphrase` fits, or -1. Without any hash it costs as much as with one.

        Raises:
            ResourceExhausted: too many at once.
        """
        with self._place():
            if not hashes and not self._dummy:
                self._dummy = _argon().derive_phc_encoded(os.urandom(32))
            found = -1
            for index, stored in enumerate(hashes or (self._dummy,)):
                try:
                    Argon2id.verify_phc_encoded(passphrase[:MAX_CHARACTERS].encode(), stored)
                except InvalidKey:
                    continue
                found = index if hashes else -1
            return found

    @contextmanager
    def _place(self) -> Iterator[None]:
        if not self._places.acquire(blocking=False):
            raise ResourceExhausted("too many passphrases are being checked; try again", retry_after=0.5)
        try:
            yield
        finally:
            self._places.release()


class Lockout:
    """Stops guessing: ten wrong passphrases of one client id within ten minutes close it for the rest of them.

    In memory: a restart forgets it, and each replica counts for itself. Unknown client ids are counted alike, so that
    a refusal does not tell who exists.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._wrong: OrderedDict[bytes, list[float]] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, client_id: str) -> None:
        """Refuse a client id that was guessed at.

        Raises:
            ResourceExhausted: too many wrong passphrases; says when to come again.
        """
        with self._lock:
            tries = self._recent(_short(client_id))
            if len(tries) >= WRONG_TRIES:
                raise ResourceExhausted(
                    "too many wrong passphrases for this client; wait, or use another credential",
                    reason="CLIENT_LOCKED",
                    retry_after=tries[0] + WINDOW_SECONDS - self._clock.monotonic(),
                )

    def wrong(self, client_id: str) -> None:
        """Count a wrong passphrase."""
        key = _short(client_id)
        with self._lock:
            self._wrong[key] = [*self._recent(key), self._clock.monotonic()][-WRONG_TRIES:]
            self._wrong.move_to_end(key)
            if len(self._wrong) > _REMEMBERED:
                self._wrong.popitem(last=False)

    def right(self, client_id: str) -> None:
        """Forget the wrong ones: the person is there."""
        with self._lock:
            self._wrong.pop(_short(client_id), None)

    def _recent(self, key: bytes) -> list[float]:
        begin = self._clock.monotonic() - WINDOW_SECONDS
        return [time for time in self._wrong.get(key, ()) if time > begin]


def _short(client_id: str) -> bytes:
    """What is remembered of a client id: it is the caller's own text, of any length."""
    return hashlib.sha256(client_id.encode("utf-8", "replace")).digest()


def _argon() -> Argon2id:
    return Argon2id(salt=os.urandom(16), length=32, iterations=_ITERATIONS, lanes=_LANES, memory_cost=_MEMORY_KIB)
