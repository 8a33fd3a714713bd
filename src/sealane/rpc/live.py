"""Streams under way, so that one whose caller is cut off ends now and not by itself days later."""

from __future__ import annotations

import threading

from sealane.errors import SealaneError, Unauthenticated
from sealane.rpc.call import Call
from sealane.security.revocations import Revocations


class LiveStreams:
    """Ends the streams of callers whose token or certificate is revoked. Stands behind authentication."""

    def __init__(self, revocations: Revocations) -> None:
        self._revocations = revocations
        self._lock = threading.Lock()
        self._live: dict[int, Call] = {}
        revocations.subscribe(self._look)

    def before(self, call: Call) -> None:
        """Watch a stream."""
        if call.cancel is not None:
            with self._lock:
                self._live[id(call)] = call
            self._end_if_revoked(call)  # it may have been revoked since the caller was authenticated

    def after(self, call: Call, failure: SealaneError | None) -> None:
        """It is over."""
        if call.cancel is not None:
            with self._lock:
                self._live.pop(id(call), None)

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
        except Unauthenticated as refusal:
            call.revoked = refusal
            if call.cancel is not None:
                call.cancel()
