"""Keeps what is revoked up to date: a thread on auth's stream."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterable, Iterator

import grpc

from sealane.auth.v1 import token_service_pb2 as pb
from sealane.auth.v1 import token_service_pb2_grpc
from sealane.errors import SealaneError
from sealane.rpc.channel import Stream
from sealane.security.revocations import Kind, Revocations, Revoked

log = logging.getLogger("sealane.revocations")

#: Auth says something every five seconds; after so many without a word the stream is dead.
SILENCE_SECONDS = 20.0
_FIRST_BACKOFF, _LAST_BACKOFF = 0.2, 3.0


def read(revocations: Iterable[pb.Revocation]) -> Iterator[Revoked]:
    """The revocations of an update; kinds that this version does not know are left out."""
    for each in revocations:
        match each.WhichOneof("target"):
            case "token":
                yield Revoked(Kind.TOKEN, each.token.token_id, each.token.project)
            case "subject":
                yield Revoked(Kind.SUBJECT, each.subject.subject, number=float(each.subject.epoch))
            case "key_id":
                yield Revoked(Kind.KEY, each.key_id)
            case "peer":
                yield Revoked(Kind.PEER, each.peer.spiffe_id, number=each.peer.not_before.ToNanoseconds() / 1e9)
            case "issuer_key_id":
                yield Revoked(Kind.ISSUER, each.issuer_key_id)


class RevocationWatch:
    """Follows auth's stream, and comes back to it.

    Args:
        channel: to auth's mesh port.
        revocations: what to keep up to date.
        refused: told when auth no longer takes this process's certificate.
    """

    def __init__(
        self, channel: Callable[[], grpc.Channel], revocations: Revocations, refused: Callable[[], None]
    ) -> None:
        self._channel = channel
        self._revocations = revocations
        self._refused = refused
        self._era = ""
        self._stop = threading.Event()
        self._stream: Stream[pb.RevocationUpdate] | None = None
        self._thread = threading.Thread(target=self._run, name="revocations", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """End the stream and the thread."""
        self._stop.set()
        if self._stream is not None:
            self._stream.cancel()

    def _run(self) -> None:
        backoff = _FIRST_BACKOFF
        while not self._stop.is_set():
            try:
                self._follow()
                backoff = _FIRST_BACKOFF
            except SealaneError as error:
                if self._stop.is_set():
                    return
                if error.kind == "UNAUTHENTICATED":
                    self._refused()
                log.info("the stream of revocations ended", extra={"reason": error.reason})
            self._stop.wait(random.uniform(backoff / 2, backoff))
            backoff = min(backoff * 2, _LAST_BACKOFF)

    def _follow(self) -> None:
        stub = token_service_pb2_grpc.TokenServiceStub(self._channel())
        request = pb.WatchRevocationsRequest(after_sequence=self._revocations.sequence, era=self._era)
        self._stream = stub.WatchRevocations(request)  # type: ignore[assignment]  # the interceptor's Stream
        assert self._stream is not None
        for update in self._stream:
            self._era = update.era
            self._revocations.take(update.sequence, read(update.revocations), snapshot=update.snapshot)
