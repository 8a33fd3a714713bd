"""Streams under way, so that one whose caller is cut off ends now and not by itself days later."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Protocol

from sealane.clock import Clock, SystemClock
from sealane.errors import SealaneError, Unauthenticated
from sealane.rpc.call import Call
from sealane.security.revocations import Revocations
from sealane.security.tokens import LEEWAY_SECONDS

#: The machine's clock may be set while a stream runs: its time is looked at again at least so often.
_LOOK_SECONDS = 60.0


class _Timer(Protocol):
    def cancel(self) -> None: ...


def _later(seconds: float, look: Callable[[Call], None], call: Call) -> _Timer:
    """Look on the event loop, or on a thread where there is none: streams there are few, each has a thread anyway."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        timer = threading.Timer(seconds, look, (call,))
        timer.daemon = True
        timer.start()
        return timer
    return loop.call_later(seconds, look, call)


class LiveStreams:
    """Ends the streams of callers whose token is over, or whose token or certificate is revoked.

    Stands behind authentication, on the event loop that serves the stream or on its thread.
    """

    def __init__(self, revocations: Revocations, clock: Clock | None = None) -> None:
        self._revocations = revocations
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._live: dict[int, Call] = {}
        self._timers: dict[int, _Timer] = {}
        revocations.subscribe(self._look)

    def before(self, call: Call) -> None:
        """Watch a stream."""
        if call.cancel is not None:
            with self._lock:
                self._live[id(call)] = call
            self._end_if_revoked(call)  # it may have been revoked since the caller was authenticated
            self._end_with_token(call)

    def after(self, call: Call, failure: SealaneError | None) -> None:
        """It is over."""
        if call.cancel is not None:
            with self._lock:
                self._live.pop(id(call), None)
            timer = self._timers.pop(id(call), None)
            if timer is not None:
                timer.cancel()

    def _end_with_token(self, call: Call) -> None:
        """End the stream now where its token is over, else look again when it will be; peers have no token."""
        expires = call.identity.expires if call.identity is not None else 0.0
        if expires <= 0:
            return
        left = expires + LEEWAY_SECONDS - self._clock.now()
        if left > 0:
            self._timers[id(call)] = _later(min(left, _LOOK_SECONDS), self._end_with_token, call)
        else:
            self._end(call, Unauthenticated("the token is over; get a new one and call again", reason="TOKEN_EXPIRED"))

    def _look(self) -> None:
        with self._lock:
            live = list(self._live.values())
        for call in live:
            self._end_if_revoked(call)

    def _end_if_revoked(self, call: Call) -> None:
        try:
            if call.identity is not None:
                self._revocations.check(call.identity)
            self._revocations.check_peer(call.peer)
            if call.carried is not None:
                self._revocations.check_carried(call.carried)
        except Unauthenticated as refusal:
            self._end(call, refusal)

    @staticmethod
    def _end(call: Call, refusal: SealaneError) -> None:
        call.revoked = refusal
        if call.cancel is not None:
            call.cancel()
