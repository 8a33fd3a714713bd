"""The client's half of sealed payloads by the native library, where that is installed.

What it makes is what :mod:`sealane.security.envelope` makes, for a fraction of the time, and keys are wrapped while the
interpreter does something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealane.inference.v1 import sealed_inference_service_pb2 as pb
from sealane.native import library
from sealane.security import envelope, suites
from sealane.security.envelope import Bound, Prepared, Sealed, Target


def installed() -> bool:
    """Whether the library is used."""
    return library is not None


class NativeSealed(Sealed):
    """A request that the library sealed.

    Args:
        wire: the serialized SealedInferRequest.
        digest: what request and answer are bound to.
        key_ids: of its recipients.
        open_: opens a serialized answer; None where none of them made it.
    """

    def __init__(
        self, wire: bytes, digest: bytes, key_ids: Iterable[str], open_: Callable[[bytes], bytes | None]
    ) -> None:
        super().__init__(wire, digest, dict.fromkeys(key_ids, _opens_nothing))
        self._open = open_

    def open(self, response: pb.SealedInferResponse) -> bytes | bytearray:
        """As :meth:`Sealed.open`."""
        return self.read(response.SerializeToString())

    def read(self, answer: bytes) -> bytes | bytearray:
        """As :meth:`Sealed.read`."""
        plaintext = self._open(answer)
        if plaintext is None:
            return super().open(envelope.parsed_answer(answer))  # says what is wrong with it
        return plaintext


def _opens_nothing(_: pb.SealedInferResponse) -> bytes | bytearray:
    raise InvalidTag


class NativePrepared:
    """An envelope for a plaintext that is still to come; as :class:`sealane.security.envelope.Prepared`.

    Args:
        chunks: that the plaintext must have.
        bound: what it is bound to.
        targets: who can open it.
        sender: the client's key.
        ahead: it is made in a thread of the library, and whoever seals with it waits for that.
    """

    def __init__(
        self,
        chunks: int,
        bound: Bound,
        targets: Sequence[Target],
        sender: Ed25519PrivateKey,
        *,
        ahead: bool = False,
    ) -> None:
        envelope.check_targets(targets)
        said = (bound.suite, bound.project, bound.deployment, bound.method, bound.request_id, bound.token_id)
        recipients = [(item.key_id, item.public_key, item.variant_digest) for item in targets]
        private = sender.private_bytes_raw()
        try:
            self._made = library.Envelope(chunks, (*said, bound.issued_at_ms), recipients, private, ahead)
        except ValueError as error:
            raise suites.unusable() from error
        self._key_ids = [item.key_id for item in targets]

    def seal(self, plaintext: bytes) -> Sealed:
        """Seal it; once.

        Raises:
            ValueError: for the second time, or with another number of chunks.
        """
        try:
            wire = self._made.seal(plaintext)
        except ValueError as error:
            raise suites.unusable() from error
        if wire is None:
            raise envelope.used_up()
        return NativeSealed(wire, self._made.digest, self._key_ids, self._made.open)


AnyPrepared = Prepared | NativePrepared


def prepare(
    chunks: int, bound: Bound, targets: Sequence[Target], sender: Ed25519PrivateKey, *, ahead: bool = False
) -> AnyPrepared:
    """As :func:`sealane.security.envelope.prepare`.

    Args:
        chunks: that the plaintext must have.
        bound: what it is bound to.
        targets: who can open it.
        sender: the client's key.
        ahead: return at once where the library makes it.
    """
    if not installed():
        return envelope.prepare(chunks, bound, targets, sender)
    return NativePrepared(chunks, bound, targets, sender, ahead=ahead)


class NativeSession:
    """Seals the requests of one session; as :class:`sealane.security.sealed_session.ClientSession` does."""

    def __init__(self, secret: bytes, bound: Bound, target: Target) -> None:
        with_whom = (bound.suite, target.key_id, bound.project, bound.deployment, target.variant_digest)
        self._keys = library.SessionKeys(secret, *with_whom, bound.request_id)
        self._key_ids = (target.key_id,)

    def seal(self, plaintext: bytes, said: tuple[str, str, int], counter: int, *, end: bool) -> Sealed:
        """Seal request `counter`, which is for one plaintext.

        Args:
            plaintext: bytes.
            said: its method, the id of the token that it goes with, and the time in milliseconds.
            counter: its number.
            end: whether it is the last.
        """
        wire, digest = self._keys.seal(plaintext, said, counter, end)
        return NativeSealed(wire, digest, self._key_ids, lambda answer: self._keys.open(answer, digest, counter))
