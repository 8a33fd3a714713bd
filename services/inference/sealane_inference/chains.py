"""Chains of models that no worker serves all of: run from here, each model where it is.

The tensors between the models pass through the gateway then. A chain whose models share a worker is forwarded to it
whole, as any other call is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from sealane import ensembles
from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.ensembles import Step
from sealane.errors import FailedPrecondition, InvalidArgument, Unavailable
from sealane.protocols import openinference, openinference_model, tfserving
from sealane.protocols.call import InferenceAnswer, InferenceCall, ModelDescription, Target
from sealane.protocols.openinference_model import EnsembleStep, ModelSettings
from sealane.rpc.call import Call
from sealane.rpc.policy import Method, methods_of
from sealane.tensors import Array
from sealane_inference.forward import Forwarder
from sealane_inference.present import Present
from sealane_inference.routing import ChainRoute, Route, resolve

_OIP = "/inference.GRPCInferenceService/"
_PREDICTION = "/tensorflow.serving.PredictionService/"
M = TypeVar("M", bound=Message)

#: Chains have one version: they are replaced, not changed.
VERSION = "1"


class Chains:
    """Answers for chains from here."""

    def __init__(self, present: Present, forwarder: Forwarder) -> None:
        self._present = present
        self._forwarder = forwarder
        self._infer = _method_of("GRPCInferenceService", "ModelInfer")

    def here(self, route: Route) -> bool:
        """Whether a route is a chain that no worker in reach serves whole."""
        return route.chain is not None and not self._present.reachable(route)

    def available(self, route: Route) -> bool:
        """Whether a worker in reach serves a route, or for a chain workers serve all of its models."""
        if self._present.reachable(route):
            return True
        return route.chain is not None and all(
            member is not None and self._present.reachable(member) for member in self._members(route, route.chain)
        )

    async def answer(self, call: Call, route: Route) -> bytes:
        """The serialized answer to a call of a chain.

        Raises:
            FailedPrecondition: a method that needs a worker which serves all models.
            InvalidArgument: a request that does not fit the chain.
            SealaneError: what a model answers.
        """
        chain = route.chain
        answers: dict[str, Callable[[Call, Route, ChainRoute], bytes]] = {
            _OIP + "ModelMetadata": _oip_metadata,
            _OIP + "ModelConfig": _oip_config,
            _PREDICTION + "GetModelMetadata": _tfs_metadata,
        }
        path = call.method.path
        if chain is not None and path in answers:
            return answers[path](call, route, chain)
        if chain is not None and path == _OIP + "ModelInfer":
            inference = openinference.decode_request(_parsed(oip.ModelInferRequest(), call))
            outputs = openinference.check(inference, chain.signature)
            answer = await self._run(call, route, inference, outputs)
            return openinference.encode_response(answer).SerializeToString()
        if chain is not None and path == _PREDICTION + "Predict":
            inference = tfserving.decode_request(_parsed(tfs.PredictRequest(), call))
            outputs = tfserving.check(inference, chain.signature)
            answer = await self._run(call, route, inference, outputs)
            return tfserving.encode_response(answer).SerializeToString()
        raise FailedPrecondition(
            f"no worker serves all models of the chain {route.deployment!r}; call ModelInfer or Predict, or deploy "
            "them where they share a worker",
            reason="ENSEMBLE_SPREAD",
        )

    async def _run(
        self, call: Call, route: Route, inference: InferenceCall, outputs: tuple[str, ...]
    ) -> InferenceAnswer:
        assert route.chain is not None
        tensors: dict[str, Array] = dict(inference.inputs)
        for stage in ensembles.stages(route.chain.chain, outputs):
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._step(call, inference, step, tensors)) for step in stage]
            for task in tasks:
                tensors.update(task.result())
        wanted = {name: tensors[name] for name in outputs}
        return InferenceAnswer(inference, VERSION, ensembles.DEFAULT_SIGNATURE, wanted)

    async def _step(
        self, call: Call, inference: InferenceCall, step: Step, tensors: dict[str, Array]
    ) -> dict[str, Array]:
        asked = InferenceCall(Target(step.deployment), ensembles.inputs_of(step, tensors), tuple(step.outputs))
        request = openinference.encode_request(asked)
        if inference.priority:
            request.parameters["priority"].int64_param = inference.priority
        inner = replace(call, method=self._infer, body=request.SerializeToString(), message=None)
        answer = await self._forwarder.repeatable(inner, lambda: self._member(call.caller.project, step.deployment))
        return ensembles.outputs_of(step, openinference.decode_response(oip.ModelInferResponse.FromString(answer)))

    def _member(self, project: str, deployment: str) -> Route:
        route = resolve(self._present.table, project, Target(deployment))
        if route is None:
            raise Unavailable(f"model {deployment!r} of the chain is gone; deploy it again", reason="ENSEMBLE_PART")
        return route

    def _members(self, route: Route, chain: ChainRoute) -> list[Route | None]:
        names = dict.fromkeys(step.deployment for step in chain.chain.steps)
        return [resolve(self._present.table, route.project, Target(name)) for name in names]


def _method_of(service: str, name: str) -> Method:
    descriptor = oip.DESCRIPTOR.services_by_name[service]
    return next(method for method in methods_of(descriptor, f"inference.{service}") if method.name == name)


def _parsed(message: M, call: Call) -> M:
    try:
        message.ParseFromString(call.body or b"")
    except DecodeError as error:
        raise InvalidArgument(f"malformed request; send a {message.DESCRIPTOR.name}", reason="MALFORMED") from error
    return message


def _described(name: str, route: Route, chain: ChainRoute) -> ModelDescription:
    return ModelDescription(name, (VERSION,), "ensemble", (chain.signature,))


def _oip_metadata(call: Call, route: Route, chain: ChainRoute) -> bytes:
    request = _parsed(oip.ModelMetadataRequest(), call)
    wanted = openinference.target(request)
    return openinference.encode_metadata(_described(wanted.model, route, chain)).SerializeToString()


def _oip_config(call: Call, route: Route, chain: ChainRoute) -> bytes:
    wanted = openinference.target(_parsed(oip.ModelConfigRequest(), call))
    steps = (EnsembleStep(step.deployment, step.inputs, step.outputs) for step in chain.chain.steps)
    settings = ModelSettings(runtime="ensemble", steps=tuple(steps))
    return openinference_model.encode_config(_described(wanted.model, route, chain), settings).SerializeToString()


def _tfs_metadata(call: Call, route: Route, chain: ChainRoute) -> bytes:
    wanted = tfserving.check_metadata_request(_parsed(tfs.GetModelMetadataRequest(), call))
    return tfserving.encode_metadata(_described(wanted.model, route, chain), VERSION).SerializeToString()
