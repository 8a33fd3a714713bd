"""The Open Inference Protocol at the gateway: bodies pass through unread but for the model's name.

Questions that the routes can answer are answered here: they stay right while a worker is busy.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from importlib import metadata

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import NotFound, Unavailable
from sealane.protocols import openinference, openinference_model
from sealane.protocols.openinference_model import IndexEntry
from sealane.protocols.peek import peek, peek_options
from sealane.rpc.call import Call
from sealane_inference.chains import VERSION, sequence_key
from sealane_inference.finder import Finder
from sealane_inference.routing import Route, refusal
from sealane_inference.way import Way

#: Paths whose bodies are not parsed here.
RAW = frozenset(
    "/inference.GRPCInferenceService/" + method
    for method in ("ModelReady", "ModelMetadata", "ModelConfig", "ModelInfer")
)


class OpenInferenceServicer:
    """inference.GRPCInferenceService."""

    def __init__(self, way: Way) -> None:
        self._present = way.present
        self._forwarder = way.forwarder
        self._chains = way.chains
        self._repository = way.repository
        self._streams = way.streams
        self._finder = Finder(way.present, openinference.unknown_model, "the request names no model; set its name")

    async def ServerLive(self, request: oip.ServerLiveRequest, call: Call) -> oip.ServerLiveResponse:
        """Up."""
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, request: oip.ServerReadyRequest, call: Call) -> oip.ServerReadyResponse:
        """Ready once there are routes."""
        return oip.ServerReadyResponse(ready=self._present.ready)

    async def ServerMetadata(self, request: oip.ServerMetadataRequest, call: Call) -> oip.ServerMetadataResponse:
        """Name, version, extensions."""
        return oip.ServerMetadataResponse(
            name="sealane", version=metadata.version("sealane"), extensions=openinference.EXTENSIONS
        )

    async def ModelReady(self, request: None, call: Call) -> oip.ModelReadyResponse:
        """Ready while a worker that serves the model has an open lane; an unknown one is not ready, as with Triton."""
        try:
            route = self._finder.route(call, peek(call.method.path, call.body or b""))
        except NotFound:
            return oip.ModelReadyResponse(ready=False)
        return oip.ModelReadyResponse(ready=self._chains.available(route))

    async def ModelMetadata(self, request: None, call: Call) -> bytes:
        """Forwarded."""
        return await self._forward(call)

    async def ModelConfig(self, request: None, call: Call) -> bytes:
        """Forwarded."""
        return await self._forward(call)

    async def ModelStatistics(self, request: oip.ModelStatisticsRequest, call: Call) -> oip.ModelStatisticsResponse:
        """Asked of all workers that serve the model, or each of the caller's, and added up.

        Each version of a name is told for itself; one that no worker in reach serves has nothing to tell.
        """
        if request.name:
            wanted = openinference.target(request)
            # A version is one route; a name without one is all of its versions.
            routes = [self._finder.route(call, wanted)] if wanted.version else self._finder.versions(call, wanted)
            named = [(request.name, route) for route in routes]
        else:
            named = [(route.served_name or route.deployment, route) for route in self._finder.mine(call)]
        parts, failure = [], None
        for name, route in sorted(named, key=lambda item: (item[0], int(item[1].version))):
            try:
                parts.append(await self._statistics(call, name, route))
            except Unavailable as error:
                failure = error
        if request.name and not parts and failure is not None:
            raise failure
        return oip.ModelStatisticsResponse(model_stats=parts)

    async def RepositoryIndex(self, request: oip.RepositoryIndexRequest, call: Call) -> oip.RepositoryIndexResponse:
        """From the routes."""
        entries = [self._entry(route) for route in self._finder.mine(call)]
        return openinference_model.encode_index(entries, ready=request.ready)

    async def RepositoryModelLoad(
        self, request: oip.RepositoryModelLoadRequest, call: Call
    ) -> oip.RepositoryModelLoadResponse:
        """Serve the latest version of a model."""
        name = openinference_model.repository_target(request)
        await self._repository.load(call, name)
        return oip.RepositoryModelLoadResponse(model_name=name, isLoaded=True)

    async def RepositoryModelUnload(
        self, request: oip.RepositoryModelUnloadRequest, call: Call
    ) -> oip.RepositoryModelUnloadResponse:
        """Serve it no longer."""
        name = openinference_model.repository_target(request)
        await self._repository.unload(call, name)
        return oip.RepositoryModelUnloadResponse(model_name=name, isUnloaded=True)

    async def ModelInfer(self, request: None, call: Call) -> bytes:
        """Forwarded; a request of a sequence to the worker that keeps it."""
        target = self._finder.target(call)
        if self._present.has_chains and self._chains.here(route := self._finder.route(call, target)):
            return await self._chains.answer(call, route)
        sequence = peek_options(call.body).sequence if call.body and b"sequence_id" in call.body else ""
        if sequence:
            key = sequence_key(call, sequence)
            return await self._forwarder.kept(call, lambda: self._finder.route(call, target), key)
        return await self._forwarder.repeatable(call, lambda: self._finder.route(call, target))

    def ModelStreamInfer(self, bodies: AsyncIterator[bytes], call: Call) -> AsyncIterator[bytes]:
        """Each request of the stream forwarded by itself."""
        return self._streams.run(bodies, call)

    async def _forward(self, call: Call) -> bytes:
        target = self._finder.target(call)
        if self._present.has_chains and self._chains.here(route := self._finder.route(call, target)):
            return await self._chains.answer(call, route)
        return await self._forwarder.repeatable(call, lambda: self._finder.route(call, target))

    async def _statistics(self, call: Call, name: str, route: Route) -> oip.ModelStatistics:
        if self._chains.here(route):
            return openinference_model.encode_statistics(name, VERSION, self._chains.counts(route))
        asked = replace(call, body=oip.ModelStatisticsRequest(name=name).SerializeToString())
        answers = await self._forwarder.everywhere(asked, route)
        return openinference_model.add_statistics(
            part for answer in answers for part in oip.ModelStatisticsResponse.FromString(answer).model_stats
        )

    def _entry(self, route: Route) -> IndexEntry:
        refused = refusal(route)
        if refused is not None:
            return IndexEntry(route.served_name or route.deployment, route.version, "UNAVAILABLE", refused.message)
        state = "READY" if self._chains.available(route) else "LOADING"
        return IndexEntry(route.served_name or route.deployment, route.version, state)
