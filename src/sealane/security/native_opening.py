"""What a worker keeps of sealed requests in the native library, where that is installed.

There both ways into the worker find it: the native front, which opens requests of callers that are known, and
:class:`sealane.security.opener.Opener`, which opens all others and says what is wrong with those that do not open.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature, InvalidTag

from sealane.clock import Clock
from sealane.inference.v1 import sealed_inference_service_pb2 as pb
from sealane.native import library
from sealane.protocols.sealed import RUNS
from sealane.rpc.call import Identity
from sealane.security import jws, seen
from sealane.security.envelope import KEY_BYTES
from sealane.security.kept_sessions import MAX_OF_SENDER, KeptSessions
from sealane.security.opener import Opened, Opener
from sealane.security.sealed_session import MAX_REQUESTS
from sealane.security.suites import KeyPair


class NativeMemory:
    """Ids of requests, and numbers and keys of sessions; may be used from any thread.

    Args:
        pair: the worker's key pair.
        clock: time.
        capacity: most ids that are kept.
        project_capacity: most of them of one project; default: half.
    """

    def __init__(
        self, pair: KeyPair, clock: Clock, capacity: int = seen.CAPACITY, project_capacity: int | None = None
    ) -> None:
        of_project = seen.share_of(capacity) if project_capacity is None else project_capacity
        self.opening = library.Opening(
            pair.suite,
            pair.private_bytes,
            pair.key_id,
            (capacity, of_project, seen.KEEP_SECONDS, seen.BUCKET_SECONDS),
        )
        self._clock = clock

    def __len__(self) -> int:
        """Ids kept."""
        return self.opening.known

    def add(self, request_id: bytes, project: str, issued_at_ms: int) -> bool:
        """As :meth:`sealane.security.seen.SeenRequests.add`."""
        new, full = self.opening.see(request_id, project, issued_at_ms, self._clock.monotonic())
        if full is not None:
            raise seen.no_room(full)
        return new

    def keep(self, session_id: bytes, keys: tuple[bytes, bytes], sender: str, until: float) -> library.Numbers:
        """Keep a session; gives what counts its requests."""
        return self.opening.keep(session_id, keys, sender, MAX_REQUESTS, until)

    def end(self, session_id: bytes) -> None:
        """Forget a session."""
        self.opening.end(session_id)

    def unwrap(self, wrapped: bytes, info: bytes) -> bytes:
        """As :func:`sealane.security.suites.unwrap`."""
        secret = self.opening.unwrap(wrapped, info)
        if secret is None:
            raise InvalidTag
        return secret

    def verify(self, key: bytes, signature: bytes, message: bytes) -> None:
        """Check an Ed25519 signature.

        Raises:
            InvalidSignature: it is another one.
        """
        if not library.verified(key, message, signature):
            raise InvalidSignature


@dataclass(frozen=True, slots=True)
class NativeOpened(Opened):
    """A request that the library opened; `seal_wire` gives the sealed answer, serialized."""

    seal_wire: Callable[[bytes], bytes] = field(default=bytes, repr=False)

    def answer(self, plaintext: bytes) -> bytes:
        """As :meth:`Opened.answer`."""
        return self.seal_wire(plaintext)


class NativeOpener(Opener):
    """Opens by the library; what does not open so is opened as in Python, which says what is wrong with it.

    Args:
        pair: the key pair of this process start.
        clock: time.
        sessions: most sessions of one sender.
    """

    def __init__(self, pair: KeyPair, clock: Clock, sessions: int = MAX_OF_SENDER) -> None:
        self.memory = NativeMemory(pair, clock)
        """Shared with the front, which opens too."""
        kept = KeptSessions(clock, of_sender=sessions, keeper=self.memory)
        super().__init__(pair, clock, self.memory, kept, self.memory)

    def open_body(self, body: bytes, caller: Identity, variant_of: Callable[[str], str]) -> Opened:
        """As :meth:`Opener.open_body`."""
        sent = library.Sent.parse(body)
        if sent is not None and sent.method in RUNS and caller.key_thumbprint:
            opened = self._opened(sent, caller, variant_of(sent.deployment))
            if opened is not None:
                return opened
        return super().open_body(body, caller, variant_of)

    def _opened(self, sent: library.Sent, caller: Identity, variant: str) -> Opened | None:
        key = sent.sender
        if len(key) != KEY_BYTES or jws.thumbprint(key) != caller.key_thumbprint:
            key = b""
        context = (caller.project, caller.token_id, caller.key_thumbprint, key, variant)
        found = self.memory.opening.open(sent, context, (int(self._clock.now() * 1000), self._clock.monotonic()))
        if found is None:
            return None
        plaintext, answering = found

        # It knows nothing of what it is a part of: a plaintext is not kept until the collector finds a circle.
        def seal_wire(answer: bytes) -> bytes:
            sealed = answering.seal(answer)
            if sealed is None:
                raise ValueError("an answer is sealed once")
            return sealed

        def seal(answer: bytes) -> pb.SealedInferResponse:
            return pb.SealedInferResponse.FromString(seal_wire(answer))

        return NativeOpened(plaintext, sent.method, seal, False, sent.deployment, variant, key, seal_wire)
