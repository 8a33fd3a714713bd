"""Clients and workers that speak the sealed protocol: ours, and others that were made from its page alone.

A client seals and opens answers; a worker opens and seals answers. Whoever else is to be tried gives the functions of
`sealed_reader`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Protocol

import sealed_reader
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from native_library import OpenerOf, ThroughLibrary
from sealed_reader import INFER, OPEN_SESSION, OPEN_STREAM, Keys, Token, Worker, thumbprint
from sealed_vectors import pair_of

from sealane.clock import ManualClock
from sealane.errors import SealaneError
from sealane.inference.v1.sealed_inference_service_pb2 import SealedInferRequest, SealedInferResponse, SessionPlace
from sealane.rpc.call import Identity
from sealane.security import envelope, native_envelope
from sealane.security.envelope import Bound, Sealed, Target
from sealane.security.opener import Opener
from sealane.security.sealed_chunks import chunk_count
from sealane.security.sealed_session import ClientSession

ROOT = Path(__file__).resolve().parents[3]
#: Where the clocks of all workers stand.
ISSUED_AT_MS = 1_800_000_000_000
DEPLOYMENT = "projects/p1/deployments/triage"
#: What parties raise where something does not open. Anything else is a mistake of theirs.
REFUSALS = (SealaneError, InvalidTag, InvalidSignature, ValueError)


@dataclass(frozen=True)
class World:
    """Who takes part."""

    suite: int
    sender: Ed25519PrivateKey
    token: Token
    workers: tuple[Worker, ...]

    @classmethod
    def new(cls, suite: int) -> World:
        """Two workers and a sender, all with fresh keys."""
        workers = tuple(Worker.with_key(suite, os.urandom(32), f"sha256:{index}") for index in range(2))
        return cls(suite, Ed25519PrivateKey.generate(), Token("p1", "token-1"), workers)

    @property
    def jkt(self) -> str:
        """What a token says of the sender's key."""
        return thumbprint(self.sender.public_key().public_bytes_raw())

    def draft(self, method: str) -> SealedInferRequest:
        """A message that is still to be sealed."""
        return SealedInferRequest(
            version=1, suite=self.suite, issued_at_ms=ISSUED_AT_MS, deployment=DEPLOYMENT, method=method
        )


@dataclass(frozen=True)
class Sent:
    """What a client sealed, and how it opens the answer."""

    message: SealedInferRequest
    open: Callable[[SealedInferResponse], bytes]


@dataclass(frozen=True)
class Got:
    """What a worker opened, and how it seals the answer."""

    plaintext: bytes
    answer: Callable[[bytes], SealedInferResponse]


class ClientSide(Protocol):
    """Seals."""

    def seal(self, plaintext: bytes, workers: tuple[Worker, ...], method: str = INFER) -> Sent:
        """A request by itself."""
        ...

    def begin(self, worker: Worker, method: str) -> Sent:
        """Open a session or stream."""
        ...

    def next(self, plaintext: bytes, token: Token, *, end: bool = False) -> Sent:
        """The next request of the session that began last."""
        ...


class WorkerSide(Protocol):
    """Opens.

    Attributes:
        variant: digest of what it serves.
    """

    variant: str

    def open(self, message: SealedInferRequest, token: Token, jkt: str) -> Got:
        """Whatever it is: a request by itself, an opening, a request of a session."""
        ...


class Functions(Protocol):
    """What `sealed_reader` has."""

    def seal_request(
        self,
        message: SealedInferRequest,
        token: Token,
        sender: Ed25519PrivateKey,
        workers: list[Worker],
        plaintext: bytes | None,
    ) -> dict[str, Keys]: ...

    def open_request(
        self, message: SealedInferRequest, token: Token, jkt: str, worker: Worker
    ) -> tuple[Keys, bytes | None]: ...

    def seal_answer(self, keys: Keys, plaintext: bytes) -> SealedInferResponse: ...

    def open_answer(self, sent: dict[str, Keys], answer: SealedInferResponse) -> bytes: ...

    def seal_in_session(
        self,
        message: SealedInferRequest,
        token: Token,
        secret: bytes,
        place: SessionPlace,
        variant: str,
        plaintext: bytes,
    ) -> dict[str, Keys]: ...

    def open_in_session(
        self, message: SealedInferRequest, token: Token, secret: bytes, variant: str
    ) -> tuple[Keys, bytes]: ...


class OtherClient:
    """A client made of functions."""

    def __init__(self, functions: Functions | ModuleType, world: World) -> None:
        self._functions = functions
        self._world = world
        self._worker = world.workers[0]
        self._secret = b""
        self._session_id = b""
        self._counter = 0

    def seal(self, plaintext: bytes, workers: tuple[Worker, ...], method: str = INFER) -> Sent:
        return self._sealed(method, workers, plaintext)[0]

    def begin(self, worker: Worker, method: str) -> Sent:
        sent, keys = self._sealed(method, (worker,), None)
        self._worker, self._session_id, self._counter = worker, sent.message.request_id, 0
        self._secret = keys[worker.key_id].data_key
        return sent

    def next(self, plaintext: bytes, token: Token, *, end: bool = False) -> Sent:
        message = self._world.draft(INFER)
        place = SessionPlace(key_id=self._worker.key_id, session_id=self._session_id, counter=self._counter, end=end)
        self._counter += 1
        keys = self._functions.seal_in_session(message, token, self._secret, place, self._worker.variant, plaintext)
        return Sent(message, lambda answer: self._functions.open_answer(keys, answer))

    def _sealed(
        self, method: str, workers: tuple[Worker, ...], plaintext: bytes | None
    ) -> tuple[Sent, dict[str, Keys]]:
        message, world = self._world.draft(method), self._world
        keys = self._functions.seal_request(message, world.token, world.sender, list(workers), plaintext)
        return Sent(message, lambda answer: self._functions.open_answer(keys, answer)), keys


class OtherWorker:
    """A worker made of functions. It keeps no count of requests: that is no matter of format."""

    def __init__(self, functions: Functions | ModuleType, worker: Worker) -> None:
        self.variant = worker.variant
        self._functions = functions
        self._worker = worker
        self._sessions: dict[tuple[bytes, str], bytes] = {}

    def open(self, message: SealedInferRequest, token: Token, jkt: str) -> Got:
        if message.HasField("session"):
            secret = self._sessions.get((message.session.session_id, jkt))
            if secret is None or message.session.key_id != self._worker.key_id:
                raise ValueError("no such session")
            keys, plaintext = self._functions.open_in_session(message, token, secret, self.variant)
        else:
            worker = replace(self._worker, variant=self.variant)
            keys, found = self._functions.open_request(message, token, jkt, worker)
            if found is None:
                self._sessions[message.request_id, jkt] = keys.data_key
            plaintext = found or b""
        return Got(plaintext, lambda answer: self._functions.seal_answer(keys, answer))


class OurClient:
    """Our client's half, in Python or by the native library."""

    def __init__(self, world: World, *, native: bool = False) -> None:
        self._world = world
        self._native = native
        self._session: ClientSession | None = None

    def seal(self, plaintext: bytes, workers: tuple[Worker, ...], method: str = INFER) -> Sent:
        targets = [_target(worker) for worker in workers]
        prepare = native_envelope.prepare if self._native else envelope.prepare
        envelope_ = prepare(chunk_count(plaintext), self._bound(method), targets, self._world.sender)
        return _sent(envelope_.seal(plaintext))

    def begin(self, worker: Worker, method: str) -> Sent:
        bound, target = self._bound(method), _target(worker)
        self._session = ClientSession(bound, target, self._world.sender, native=self._native)
        return _sent(self._session.opening)

    def next(self, plaintext: bytes, token: Token, *, end: bool = False) -> Sent:
        assert self._session is not None
        return _sent(self._session.seal(plaintext, INFER, token.token_id, ISSUED_AT_MS, end=end))

    def _bound(self, method: str) -> Bound:
        token = self._world.token
        return Bound(
            suite=self._world.suite,
            project=token.project,
            deployment=DEPLOYMENT,
            method=method,
            request_id=os.urandom(16),
            token_id=token.token_id,
            issued_at_ms=ISSUED_AT_MS,
        )


def _target(worker: Worker) -> Target:
    return Target(worker.key_id, worker.public, worker.variant)


def _sent(sealed: Sealed) -> Sent:
    return Sent(sealed.request, sealed.open)


class OurWorker:
    """Our worker's half, with a clock that stands at the time of all messages."""

    def __init__(self, worker: Worker, opener: OpenerOf = Opener) -> None:
        self.variant = worker.variant
        self._opener = opener(pair_of(worker.suite, worker.private), ManualClock(ISSUED_AT_MS / 1000))

    def open(self, message: SealedInferRequest, token: Token, jkt: str) -> Got:
        caller = Identity("somebody", token.project, token_id=token.token_id, key_thumbprint=jkt)
        opens = message.method in (OPEN_SESSION, OPEN_STREAM) and not message.HasField("session")
        opened = (self._opener.open_session if opens else self._opener.open)(message, caller, self.variant)
        return Got(opened.plaintext, opened.seal)


class Party(Protocol):
    """Whoever can take either side."""

    def client(self, world: World) -> ClientSide: ...

    def worker(self, worker: Worker) -> WorkerSide: ...


class Ours:
    """`sealane.security`."""

    def client(self, world: World) -> ClientSide:
        return OurClient(world)

    def worker(self, worker: Worker) -> WorkerSide:
        return OurWorker(worker)


class Native:
    """The same by the native library."""

    def client(self, world: World) -> ClientSide:
        return OurClient(world, native=True)

    def worker(self, worker: Worker) -> WorkerSide:
        return OurWorker(worker, ThroughLibrary)


@dataclass(frozen=True)
class Other:
    """An implementation from the page."""

    functions: Functions | ModuleType

    def client(self, world: World) -> ClientSide:
        return OtherClient(self.functions, world)

    def worker(self, worker: Worker) -> WorkerSide:
        return OtherWorker(self.functions, worker)


OURS: Party = Ours()
NATIVE: Party = Native()
READER: Party = Other(sealed_reader)
