"""The keys that sign tokens and statements, and how one follows another. Pure but for the randomness of a new key.

A planned rotation loses no call: the next key is published at least twice as long as verifiers cache keys before it
signs, and the one before is published until the last thing it signed has ended (SECURITY 3.5). An emergency revokes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealane.clock import Clock
from sealane.errors import FailedPrecondition, NotFound
from sealane.security import jws, statements
from sealane.security.key_file import KeyFile
from sealane.security.revocations import Kind, Revoked
from sealane_auth.key_store import KeyStore, SigningKey
from sealane_auth.revocation_store import RevocationStore

#: Withdrawn keys are listed for so long.
_REMEMBER_SECONDS = 365 * 86_400.0
#: Clocks that differ, and answers under way.
_MARGIN_SECONDS = 60.0
_OLD_FORM = b"-----BEGIN"


class State(enum.Enum):
    """Where a key stands."""

    PUBLISHED = "PUBLISHED"
    SIGNING = "SIGNING"
    RETIRING = "RETIRING"
    WITHDRAWN = "WITHDRAWN"
    REVOKED = "REVOKED"


@dataclass(frozen=True, slots=True)
class Lives:
    """How long things hold, in seconds.

    Args:
        token: an access token.
        key_cache: how long verifiers may keep the key set before they ask again.
        signing_key: from one signing key to the next.
    """

    token: float = 300.0
    key_cache: float = 300.0
    signing_key: float = 30 * 86_400.0


class Keyring:
    """The rules of signing keys."""

    def __init__(self, clock: Clock, keyfile: KeyFile, lives: Lives) -> None:
        self._clock = clock
        self._keyfile = keyfile
        self._lives = lives
        self._opened: dict[str, Ed25519PrivateKey] = {}

    def prepare(self, store: KeyStore) -> None:
        """Make the first key where there is none, and encrypt those of older versions."""
        for key in store.all():
            if key.sealed_private.startswith(_OLD_FORM):
                private = serialization.load_pem_private_key(key.sealed_private, None)
                assert isinstance(private, Ed25519PrivateKey)
                store.put_key(
                    replace(
                        key,
                        public=private.public_key().public_bytes_raw(),
                        sealed_private=self._keyfile.seal(key.kid, private.private_bytes_raw()),
                    )
                )
        if not store.all():
            store.put_key(self._new(self._clock.now()))
        self.signing(store)  # opens it, so that a wrong key file stops the start

    def signing(self, store: KeyStore) -> Ed25519PrivateKey:
        """The key that signs now."""
        now = self._clock.now()
        signing = next((key for key in store.all() if state_of(key, store.all(), now) is State.SIGNING), None)
        if signing is None:
            raise FailedPrecondition("no key signs now; rotate the signing key")
        if signing.kid not in self._opened:
            raw = self._keyfile.open(signing.kid, signing.sealed_private)
            self._opened[signing.kid] = Ed25519PrivateKey.from_private_bytes(raw)
        return self._opened[signing.kid]

    def public_keys(self, store: KeyStore) -> dict[str, bytes]:
        """Raw public keys by kid, of every key whose signatures may be about now or soon."""
        now, keys = self._clock.now(), store.all()
        return {
            key.kid: key.public
            for key in keys
            if state_of(key, keys, now) in (State.PUBLISHED, State.SIGNING, State.RETIRING)
        }

    def rotate(self, store: KeyStore, longest: float = 0.0) -> SigningKey:
        """Begin a planned rotation; the key that waits, if one is under way.

        Args:
            store: the keys.
            longest: life of the longest-lived thing that is signed, beside tokens and statements (offline grants).
        """
        now, keys = self._clock.now(), store.all()
        waiting = next((key for key in keys if state_of(key, keys, now) is State.PUBLISHED), None)
        if waiting is not None:
            return waiting
        key = self._new(now + 2 * self._lives.key_cache)
        lived = max(self._lives.token, statements.LIFETIME_SECONDS, longest)
        for before in keys:
            if state_of(before, keys, now) is State.SIGNING:
                store.put_key(replace(before, withdraw_time=key.sign_time + lived + _MARGIN_SECONDS))
        store.put_key(key)
        return key

    def retire(self, store: KeyStore, revocations: RevocationStore, kid: str) -> SigningKey:
        """Revoke a key at once; another one signs from now on."""
        now, keys = self._clock.now(), store.all()
        found = next((key for key in keys if key.kid == kid), None)
        if found is None:
            raise NotFound(f"there is no signing key {kid}; list them")
        if found.revoke_time:
            return found
        waiting = next((key for key in keys if state_of(key, keys, now) is State.PUBLISHED and key.kid != kid), None)
        if state_of(found, keys, now) is State.SIGNING:
            store.put_key(replace(waiting, sign_time=now) if waiting is not None else self._new(now))
        revoked = replace(found, revoke_time=now, withdraw_time=now)
        store.put_key(revoked)
        revocations.add(Revoked(Kind.KEY, kid), now)
        self._opened.pop(kid, None)
        return revoked

    def tick(self, store: KeyStore, longest: float = 0.0) -> SigningKey | None:
        """Rotate where it is time, forget what is long gone; the new key, if there is one."""
        now, keys = self._clock.now(), store.all()
        for key in keys:
            if key.withdraw_time and key.withdraw_time < now - _REMEMBER_SECONDS:
                store.delete_key(key.kid)
        signing = next((key for key in keys if state_of(key, keys, now) is State.SIGNING), None)
        if signing is None:
            return self.rotate(store, longest)
        waits = any(state_of(key, keys, now) is State.PUBLISHED for key in keys)
        # It signs until the next one does, so that one is made early enough to sign when this one's time is over.
        if waits or now < signing.sign_time + self._lives.signing_key - 2 * self._lives.key_cache:
            return None
        return self.rotate(store, longest)

    def _new(self, sign_time: float) -> SigningKey:
        private = Ed25519PrivateKey.generate()
        public = private.public_key().public_bytes_raw()
        kid = jws.thumbprint(public)
        sealed = self._keyfile.seal(kid, private.private_bytes_raw())
        return SigningKey(kid, public, sealed, self._clock.now(), sign_time)


def state_of(key: SigningKey, keys: list[SigningKey], now: float) -> State:
    """Where a key stands among all `keys`."""
    if key.revoke_time:
        return State.REVOKED
    good = [each for each in keys if not each.revoke_time]
    # A clock that was set back must not leave nobody to sign: then it is the one that is the first to.
    begun = [each for each in good if each.sign_time <= now] or [min(good, key=lambda each: (each.sign_time, each.kid))]
    if now < key.sign_time and key not in begun:
        return State.PUBLISHED
    if key.kid == max(begun, key=lambda each: (each.sign_time, each.kid)).kid:
        return State.SIGNING
    return State.WITHDRAWN if key.withdraw_time and now >= key.withdraw_time else State.RETIRING
