"""Signatures of models, for those requests that cannot be read without them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.protocols import tfserving
from sealane.protocols.call import ModelDescription, Target
from sealane.rest.tfserving_endpoints import METADATA, metadata_request
from sealane.rpc.async_dispatch import AsyncDispatcher
from sealane.rpc.call import Call
from sealane_inference.routing import Route

_CAPACITY = 1024
#: A version is immutable; the variants that its workers serve are not always the same.
_Key = tuple[str, str, frozenset[str]]


class FindRoute(Protocol):
    """Finds the route of a model for the caller of a call, and refuses as the caller's protocol does."""

    def route(self, call: Call, target: Target) -> Route:
        """The route.

        Raises:
            SealaneError: there is none, or none for this caller.
        """
        ...


class Models:
    """Keeps them, and asks workers for those that it does not have.

    What is kept answers nobody who may not use the model: its route is found for each caller anew.
    """

    def __init__(self, dispatcher: AsyncDispatcher) -> None:
        self._dispatcher = dispatcher
        self._kept: OrderedDict[_Key, ModelDescription] = OrderedDict()

    async def of(self, call: Call, target: Target, finder: FindRoute) -> ModelDescription:
        """The signatures of the model that `target` means for the caller of `call`.

        Raises:
            SealaneError: there is no such model for this caller, or no worker answered.
        """
        request = metadata_request(target)
        route = finder.route(call, target)
        key = (route.name, route.version, frozenset(endpoint.variant_digest for endpoint in route.endpoints))
        found = self._kept.get(key)
        if found is None:
            answer = await self._dispatcher.beside(call, METADATA, request)
            found = tfserving.decode_metadata(tfs.GetModelMetadataResponse.FromString(answer))
            self._kept[key] = found
            if len(self._kept) > _CAPACITY:
                self._kept.popitem(last=False)
        return found
