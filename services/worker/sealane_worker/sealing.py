"""This process's sealing key and the statement by which auth vouches for it.

The key pair is made at process start and lives in memory only: a restart makes every older ciphertext dead.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable

import grpc

from sealane.auth.v1 import sealing_key_service_pb2 as pb
from sealane.auth.v1.sealing_key_service_pb2_grpc import SealingKeyServiceStub
from sealane.clock import Clock
from sealane.errors import SealaneError
from sealane.security import statements, suites
from sealane.security.suites import KeyPair

log = logging.getLogger("sealane.worker.sealing")

PUBLISH_SECONDS = 5.0
RETRY_SECONDS = 2.0

Dial = Callable[[], grpc.Channel]


def _nothing() -> None:
    """Nobody wants to hear."""


class SealingKey:
    """The key pair and its present statement; renewed at half of its life in a thread of its own.

    Args:
        pair: the key pair.
        dial: makes a channel to auth's mesh port, with the certificate of this moment.
        clock: time.
    """

    def __init__(self, pair: KeyPair, dial: Dial, clock: Clock) -> None:
        self.pair = pair
        self._dial = dial
        self._clock = clock
        self._statement = ""
        self._expires = 0.0
        self._stopped = False
        self.on_change: Callable[[], None] = _nothing
        """Called where a new statement says something else of this worker."""
        self._wake = threading.Event()
        self._published = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sealing", daemon=True)

    @property
    def statement(self) -> str:
        """The signed statement; empty while auth has not vouched for this process, or no longer does."""
        return self._statement if self._clock.now() < self._expires else ""

    @property
    def ends(self) -> float:
        """Time at which the statement ends, or has ended; endless where there never was one."""
        return self._expires if self._statement else math.inf

    def facts(self) -> dict[str, str]:
        """What the statement says of this worker; empty while there is none."""
        return statements.claims_of(self.statement)

    def publish(self) -> None:
        """Get a statement now.

        Raises:
            SealaneError: auth refused or cannot be reached.
        """
        name = suites.NAMES[self.pair.suite]
        request = pb.PublishSealingKeyRequest(suite=name, public_key=self.pair.public_key)
        with self._dial() as channel:
            answer = SealingKeyServiceStub(channel).PublishSealingKey(request, timeout=PUBLISH_SECONDS)
        before = self.facts()
        self._statement, self._expires = answer.jws, answer.expire_time.ToNanoseconds() / 1e9
        if self.facts() != before:
            self.on_change()
        self._published.set()

    def start(self) -> None:
        """Publish, and keep it published."""
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Wait until a statement is there; whether it is."""
        return self._published.wait(seconds)

    def stop(self) -> None:
        """End the thread."""
        self._stopped = True
        self._wake.set()

    def again(self) -> None:
        """Publish anew now: what vouched for the key before may no longer be good."""
        self._wake.set()

    def _run(self) -> None:
        wait = 0.0
        while True:
            self._wake.wait(wait)
            self._wake.clear()
            if self._stopped:
                return
            try:
                self.publish()
            except SealaneError as error:
                log.warning("sealing key not published, trying again", extra={"reason": error.reason})
                wait = RETRY_SECONDS
            else:
                wait = max((self._expires - self._clock.now()) / 2, 1.0)
