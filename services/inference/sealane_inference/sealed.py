"""Sealed calls at the gateway: it sees where an envelope may go and nothing of what it holds."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator

from sealane.errors import NotFound, Unavailable
from sealane.inference.v1 import sealed_inference_service_pb2 as pb
from sealane.protocols import sealed
from sealane.protocols.call import Target
from sealane.protocols.peek import SealedRoute, inner, peek_sealed
from sealane.rpc.async_dispatch import AsyncDispatcher, Source
from sealane.rpc.call import Call
from sealane.rpc.dispatch import carried
from sealane.security.sealing_messages import message_of
from sealane_inference.finder import may_use
from sealane_inference.forward import Forwarder
from sealane_inference.loads import Loads
from sealane_inference.present import Present
from sealane_inference.routing import Endpoint, Route, RouteTable, refusal, resolve

#: Paths whose bodies are not parsed here.
RAW = frozenset({sealed.INFER, sealed.OPEN_SESSION})


class SealedServicer:
    """SealedInferenceService."""

    def __init__(self, present: Present, loads: Loads, forwarder: Forwarder) -> None:
        self._present = present
        self._loads = loads
        self._forwarder = forwarder
        self._dispatcher: AsyncDispatcher | None = None

    def attach(self, dispatcher: AsyncDispatcher) -> None:
        """Say what serves the messages of streams; it serves the streams too, so it is there later."""
        self._dispatcher = dispatcher

    async def GetSealingContext(self, request: pb.GetSealingContextRequest, call: Call) -> pb.SealingContext:
        """Deployment, version and the workers to seal to, cheapest first."""
        may = functools.partial(may_use, call)
        route = resolve(
            self._present.table, call.caller.project, Target(request.model, request.version, request.label), may
        )
        if route is None:
            raise _absent(request.model)
        if (refused := refusal(route)) is not None:
            raise refused
        candidates = [endpoint for endpoint in self._present.reachable(route) if endpoint.key_id]
        if not candidates:
            whole = "" if route.chain is None else " all models of the chain"
            raise Unavailable(
                f"no worker with a sealing key serves{whole} {request.model!r} now; retry in a moment"
                + (", or place its models where they share a worker" if whole else ""),
                reason="NO_WORKER",
                retry_after=0.2,
            )
        loads = self._loads.of(route.name)
        candidates.sort(key=lambda endpoint: loads.of(endpoint.node))
        return pb.SealingContext(
            deployment=route.name,
            model_version=f"projects/{route.project}/models/{route.model}/versions/{route.version}",
            candidates=[_candidate(endpoint) for endpoint in candidates],
        )

    async def SealedInfer(self, request: None, call: Call) -> bytes:
        """Forwarded, to a worker that the sender sealed to, or that keeps its session."""
        return await self._forward(call, peek_sealed(call.body or b""))

    async def OpenSealedSession(self, request: None, call: Call) -> bytes:
        """Forwarded, to the worker that the sender sealed to."""
        return await self._forward(call, peek_sealed(inner(call.body or b"")))

    async def SealedInferStream(self, bodies: AsyncIterator[bytes], call: Call) -> AsyncIterator[bytes]:
        """Each message of the stream is a call of its own; the next one is read when it is answered."""
        if self._dispatcher is None:
            raise Unavailable("not ready; try again in a moment")
        first = True
        async for body in bodies:
            path, request = sealed.step_of_stream(body, first=first)
            answer = await self._dispatcher.unary(carried(call, self._dispatcher.method(path), request), _body(request))
            if not isinstance(answer, bytes):
                raise answer
            yield sealed.answer_of_stream(answer, first=first)
            first = False

    async def _forward(self, call: Call, wanted: SealedRoute) -> bytes:
        route = _named(self._present.table, call.caller.project, wanted.deployment)
        if route is None or not may_use(call, route):
            raise _absent(wanted.deployment)
        return await self._forwarder.once(call, route, wanted.key_ids)


def _body(request: bytes) -> Source:
    async def source(_: Call) -> bytes:
        return request

    return source


def _named(table: RouteTable, project: str, deployment: str) -> Route | None:
    """The route of a deployment's resource name, inside the caller's project only."""
    owner, _, name = deployment.removeprefix("projects/").partition("/deployments/")
    return table.routes.get(project, {}).get(name) if owner == project else None


def _absent(name: str) -> NotFound:
    return NotFound(f"{name!r} is no deployment, or is not yours to see; check the name", reason="DEPLOYMENT_NOT_FOUND")


def _candidate(endpoint: Endpoint) -> pb.SealingCandidate:
    return pb.SealingCandidate(
        statement=endpoint.statement,
        variant_digest=endpoint.variant_digest,
        address=endpoint.address,
        tls_name=endpoint.tls_name,
        policies=[message_of(policy) for policy in endpoint.policies],
    )
