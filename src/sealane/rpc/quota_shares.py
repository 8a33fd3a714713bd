"""How much of each quota this process may give out, as the scheduler divides it among all that enforce.

A name that is seen for the first time is asked about before its call goes on, later ones once a second in a thread, as
long as calls come. Nothing else on the way of a call waits for the scheduler: while it is away the last shares hold.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import grpc

from sealane.clock import Clock
from sealane.errors import SealaneError
from sealane.rpc.middleware import Blocking
from sealane.rpc.times import duration_of
from sealane.scheduler.v1 import routing_service_pb2 as pb
from sealane.scheduler.v1 import routing_service_pb2_grpc

log = logging.getLogger("sealane.quotas")

#: Names that are shared; each further one is given out as if the scheduler were away.
NAMES = 4096
#: A share that nobody has used for so long is given up.
IDLE_SECONDS = 10.0
#: A first call waits so long for the scheduler, and no later one while it is away.
FIRST_SECONDS = 0.5
_ROUND_SECONDS = 1.0
_SHORTEST_SECONDS = 0.05
#: Those that a process which was never told otherwise divides by: itself and one more.
_ENFORCERS = 2


@dataclass(slots=True)
class _Held:
    """A share, when it was last used, and the calls that the scheduler has not been told of."""

    share: float
    used: float
    calls: int = 0


class SharedQuotas:
    """The shares of this process, for :class:`sealane.rpc.quota.QuotaLimits`.

    Args:
        channel: to the scheduler's mesh port.
        clock: measures how long calls were counted.
        gateway: id of the gateway; empty for a worker, which its certificate names.
    """

    def __init__(self, channel: Callable[[], grpc.Channel], clock: Clock, gateway: str = "") -> None:
        self._channel = channel
        self._clock = clock
        self._gateway = gateway
        self._held: dict[str, _Held] = {}
        self._wanted: set[str] = set()
        self._enforcers = _ENFORCERS
        self._away = False
        self._told = clock.monotonic()
        self._pause = _ROUND_SECONDS
        self._asking = threading.Lock()
        self._busy, self._sooner = threading.Event(), threading.Event()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def of(self, name: str) -> float:
        """The share of a project or account.

        Raises:
            Blocking: it is seen for the first time; the work asks for it.
        """
        held = self._held.get(name)
        if held is not None:
            return held.share
        if len(self._held) >= NAMES:
            return 1 / self._enforcers
        if self._away:
            return self._hold(name, 1 / self._enforcers)
        raise Blocking(lambda: self._begin(name))

    def start(self, take_demand: Callable[[], Mapping[str, int]]) -> None:
        """Begin to ask again.

        Args:
            take_demand: gives the calls asked for since it last gave them.
        """
        self._thread = threading.Thread(target=self._run, args=(take_demand,), name="quotas", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, after the question under way."""
        self._stopped = True
        self._sooner.set()
        self._busy.set()

    def again(self, demand: Mapping[str, int]) -> None:
        """One round: tell of the calls, learn the shares, give up what nobody uses."""
        with self._asking:
            told = list(self._held.items())
            for name, held in told:
                held.calls += demand.get(name, 0)
            now = self._clock.monotonic()
            pause = self._ask([name for name, _ in told], now - self._told, _ROUND_SECONDS)
            self._pause = pause or _ROUND_SECONDS
            if not pause:
                return
            self._told = now
            for name, held in told:
                if held.calls:
                    held.calls, held.used = 0, now
                elif now - held.used >= IDLE_SECONDS:
                    del self._held[name]
            if not self._held:
                self._busy.clear()
                if self._held:  # one more came in between
                    self._busy.set()

    def _begin(self, name: str) -> None:
        """Ask for a name, and for all that came while another was asked for."""
        self._wanted.add(name)
        with self._asking:
            wanted, self._wanted = (self._wanted | {name}) - self._held.keys(), set()
            if wanted and not self._away:
                pause = self._ask(wanted, _ROUND_SECONDS, FIRST_SECONDS)
                if 0 < pause < self._pause:
                    self._pause = pause
                    self._sooner.set()
            for each in wanted:
                if each not in self._held:
                    self._hold(each, 1 / self._enforcers)

    def _ask(self, names: Iterable[str], period: float, timeout: float) -> float:
        """Ask about names whose calls were counted over a period; seconds until the next round, 0 without an answer."""
        request = pb.ShareQuotasRequest(gateway=self._gateway, period=duration_of(max(period, 0.0)))
        for name in names:
            held = self._held.get(name)
            calls, share = (1, 0.0) if held is None else (held.calls, held.share)
            request.demands.add(name=name, calls=calls, share=share)
        try:
            answer = routing_service_pb2_grpc.RoutingServiceStub(self._channel()).ShareQuotas(request, timeout=timeout)
        except SealaneError as error:
            if not self._away:
                log.warning("quotas are not shared, the last shares hold", extra={"reason": error.reason})
            self._away = True
            return 0.0
        self._away, self._enforcers = False, max(answer.enforcers, 1)
        for told in answer.shares:
            self._hold(told.name, told.share)
        return max(answer.refresh_after.ToNanoseconds() / 1e9, _SHORTEST_SECONDS)

    def _hold(self, name: str, share: float) -> float:
        now = self._clock.monotonic()
        held = self._held.setdefault(name, _Held(share, now))
        held.share = share
        if not self._busy.is_set():
            self._told = now
            self._busy.set()
        return share

    def _run(self, take_demand: Callable[[], Mapping[str, int]]) -> None:
        while self._busy.wait() and not self._stopped:
            if self._sooner.wait(self._pause):
                self._sooner.clear()
                continue
            try:
                self.again(take_demand())
            except Exception:  # supervisor: without them the shares would stand still unnoticed
                log.exception("a round of sharing quotas failed, the next one follows")
