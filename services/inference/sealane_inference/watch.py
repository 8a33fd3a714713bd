"""Keeps the route table fresh: one stream from the scheduler, opened again whenever it ends.

A thread of its own, because outgoing channels are synchronous; it posts to the event loop.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import threading
from collections.abc import Callable

from sealane import ensemble_messages
from sealane.errors import SealaneError
from sealane.rpc.channel import Target, connect
from sealane.scheduler.v1 import deployment_service_pb2 as deployment_pb
from sealane.scheduler.v1 import routing_service_pb2 as pb
from sealane.scheduler.v1 import routing_service_pb2_grpc
from sealane.security import statements
from sealane.security.sealing_messages import policy_of
from sealane_inference.present import Present
from sealane_inference.routing import ChainRoute, Endpoint, Route, RouteTable

log = logging.getLogger("sealane.inference.watch")

_FIRST_BACKOFF = 0.1
_LAST_BACKOFF = 2.0


class Watch:
    """The stream of routes.

    Args:
        dial: gives the scheduler's mesh port; asked anew for each stream, as certificates are renewed.
        request: who this gateway is and where its lane can be opened.
        present: takes the tables.
    """

    def __init__(self, dial: Callable[[], Target], request: pb.WatchRoutesRequest, present: Present) -> None:
        self._dial = dial
        self._request = request
        self._present = present
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="routes", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin; tables arrive on `loop`."""
        self._loop = loop
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its present stream; it is a daemon and nobody waits for it."""
        self._stop.set()

    def _run(self) -> None:
        backoff = _FIRST_BACKOFF
        while not self._stop.is_set():
            try:
                if self._stream():
                    backoff = _FIRST_BACKOFF
            except (SealaneError, OSError) as error:
                log.warning("routes not watched, trying again", extra={"reason": str(error)})
            self._post(self._present.lose)
            self._stop.wait(random.uniform(backoff / 2, backoff))
            backoff = min(backoff * 2, _LAST_BACKOFF)

    def _stream(self) -> bool:
        """Read one stream to its end; whether it brought a table."""
        seen = False
        with connect(self._dial()) as channel:
            stub = routing_service_pb2_grpc.RoutingServiceStub(channel)
            present = RouteTable()
            for table in stub.WatchRoutes(self._request):
                seen = True
                present = to_plain(table, present)
                self._post(functools.partial(self._present.replace, present))
                if self._stop.is_set():
                    break
        return seen

    def _post(self, change: Callable[[], None]) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(change)


def to_plain(table: pb.RouteTable, before: RouteTable) -> RouteTable:
    """A route table without protobuf; routes with malformed names are left out.

    Args:
        table: what the scheduler told.
        before: the table of which it may tell changes alone.
    """
    routes = []
    for route in table.routes:
        plain = _route(route)
        if plain is None:
            log.error("route left out, its names are malformed", extra={"deployment": route.deployment})
        else:
            routes.append(plain)
    if not table.changes_only:
        return RouteTable.of(table.revision, routes)
    gone = [(parts[1], parts[3]) for name in table.removed if len(parts := name.split("/")) == 4]
    return before.changed(table.revision, routes, gone)


def _route(route: pb.Route) -> Route | None:
    deployment = route.deployment.split("/")
    version = route.model_version.split("/")
    if route.HasField("ensemble"):
        # A chain is a model of its own, of one version.
        version = ["projects", "", "models", deployment[-1], "versions", "1"]
    if len(deployment) != 4 or len(version) != 6 or not version[5].isdigit():
        return None
    return Route(
        project=deployment[1],
        deployment=deployment[3],
        model=version[3],
        version=version[5],
        endpoints=tuple(_endpoint(endpoint) for endpoint in route.endpoints),
        unavailable_reason=route.unavailable_reason,
        constraint=route.binding_constraint,
        served_name=route.served_name,
        labels=tuple(route.labels),
        sealing_required=route.sealing_required,
        chain=_chain(route.ensemble) if route.HasField("ensemble") else None,
    )


def _chain(message: deployment_pb.Ensemble) -> ChainRoute:
    signature = ensemble_messages.signature_of(message.signature)
    return ChainRoute(ensemble_messages.chain_of(message), signature, tuple(message.models))


def _endpoint(endpoint: pb.Endpoint) -> Endpoint:
    return Endpoint(
        node=endpoint.node,
        epoch=endpoint.epoch,
        address=endpoint.address,
        tls_name=endpoint.tls_name,
        variant_digest=endpoint.variant_digest,
        statement=endpoint.sealing_statement,
        # Not verified here: the client is the one who must not be fooled.
        key_id=statements.claims_of(endpoint.sealing_statement).get("key_id", ""),
        policies=tuple(policy_of(item) for item in endpoint.sealing),
    )
