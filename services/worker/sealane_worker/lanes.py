"""Lanes: streams that this worker dials to the gateways and over which they call it.

A call from a lane runs through the same dispatcher as one on the worker's own listener: the caller's token is
verified again here, for a gateway may be taken over.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable

import grpc

from sealane.errors import SealaneError
from sealane.inference.v1.lane_service_pb2_grpc import LaneServiceStub
from sealane.rpc.lane import GRACE_SECONDS, LANE_CONFUSED
from sealane_worker.lane_session import LaneSession, LaneWork

log = logging.getLogger("sealane.worker.lanes")

FIRST_BACKOFF = 0.1
LAST_BACKOFF = 2.0


#: Makes a channel to a gateway's mesh address, with the certificate of this moment.
Dial = Callable[[str], grpc.Channel]


class Lanes:
    """One lane per gateway."""

    def __init__(self, work: LaneWork, dial: Dial) -> None:
        self._work = work
        self._dial = dial
        self._lanes: dict[str, Lane] = {}

    def keep(self, addresses: Iterable[str]) -> None:
        """Have a lane to each of these gateways.

        A lane to another one goes once it is broken: a scheduler that has just started does not know its
        gateways yet, and calls in flight need nobody's leave.
        """
        wanted = set(addresses)
        for address in [name for name in self._lanes.keys() - wanted if not self._lanes[name].healthy]:
            self._lanes.pop(address).stop()
        for address in wanted - self._lanes.keys():
            self._lanes[address] = lane = Lane(self._work, self._dial, address)
            lane.start()

    def stop(self) -> None:
        """Close all."""
        while self._lanes:
            self._lanes.popitem()[1].stop()


class Lane:
    """Keeps one lane open, in a thread of its own."""

    def __init__(self, work: LaneWork, dial: Dial, address: str) -> None:
        self._dial = dial
        self._address = address
        self._session = LaneSession(work)
        self._opened: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lane-{address}", daemon=True)

    @property
    def healthy(self) -> bool:
        """Whether the stream has held for longer than a refusal takes."""
        opened = self._opened
        return opened is not None and time.monotonic() - opened > LAST_BACKOFF

    def start(self) -> None:
        """Begin to dial."""
        self._thread.start()

    def stop(self) -> None:
        """Close."""
        self._stop.set()
        self._session.close()

    def _run(self) -> None:
        """Supervise: one stream after another."""
        backoff, broken = FIRST_BACKOFF, time.monotonic()
        while not self._stop.is_set():
            if time.monotonic() - broken > GRACE_SECONDS:
                self._session.forget()  # the gateway has, too
            self._opened = opened = time.monotonic()
            try:
                with self._dial(self._address) as channel:
                    self._session.run(LaneServiceStub(channel))
            except SealaneError as error:
                if error.reason == LANE_CONFUSED:
                    self._session.forget()
                log.info("lane closed, dialling again", extra={"gateway": self._address, "reason": error.reason})
            except Exception:  # supervisor: the lane is opened again whatever ended it
                log.exception("lane failed, dialling again")
            self._opened = None
            lived = time.monotonic() - opened > LAST_BACKOFF
            backoff = FIRST_BACKOFF if lived else min(backoff * 2, LAST_BACKOFF)
            if self._session.take_welcomed():
                broken = time.monotonic()
            self._stop.wait(random.uniform(0, backoff))
        self._session.forget()
