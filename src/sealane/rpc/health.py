"""``grpc.health.v1``, with true readiness: NOT_SERVING until the service says otherwise, and in a drain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from grpc_health.v1 import health_pb2

from sealane.errors import NotFound
from sealane.rpc.call import Call
from sealane.rpc.dispatch import Served

_POLL_SECONDS = 0.2


class Health:
    """Whether this process serves. The empty service name and every name in `services` answer alike."""

    def __init__(self, services: tuple[str, ...] = ()) -> None:
        self._services = ("", *services)
        self._serving = False

    def set(self, serving: bool) -> None:
        """Say whether new work is welcome."""
        self._serving = serving

    def status(self, service: str) -> health_pb2.HealthCheckResponse:
        """The answer for one service name.

        Raises:
            NotFound: a name that is not served here.
        """
        if service not in self._services:
            raise NotFound(f"service {service!r} is not served here; ask for '' or one of {self._services[1:]}")
        kind = health_pb2.HealthCheckResponse.ServingStatus
        return health_pb2.HealthCheckResponse(status=kind.SERVING if self._serving else kind.NOT_SERVING)

    def served_aio(self) -> Served:
        """For the asyncio server: Check, List and Watch."""
        return Served(_AioServicer(self), health_pb2.DESCRIPTOR.services_by_name["Health"])

    def served_sync(self) -> Served:
        """For the synchronous server, which carries unary methods only."""
        return Served(_SyncServicer(self), health_pb2.DESCRIPTOR.services_by_name["Health"])


class _SyncServicer:
    def __init__(self, health: Health) -> None:
        self._health = health

    def Check(self, request: health_pb2.HealthCheckRequest, call: Call) -> health_pb2.HealthCheckResponse:
        return self._health.status(request.service)

    def List(self, request: health_pb2.HealthListRequest, call: Call) -> health_pb2.HealthListResponse:
        return health_pb2.HealthListResponse(statuses={"": self._health.status("")})


class _AioServicer:
    def __init__(self, health: Health) -> None:
        self._health = health

    async def Check(self, request: health_pb2.HealthCheckRequest, call: Call) -> health_pb2.HealthCheckResponse:
        return self._health.status(request.service)

    async def List(self, request: health_pb2.HealthListRequest, call: Call) -> health_pb2.HealthListResponse:
        return health_pb2.HealthListResponse(statuses={"": self._health.status("")})

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, call: Call
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        last = None
        while call.remaining > 0:
            status = self._health.status(request.service)
            if last is None or status.status != last.status:
                last = status
                yield status
            await asyncio.sleep(_POLL_SECONDS)
