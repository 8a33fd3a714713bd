"""Chains of models that no worker serves all of: run from here, each model where it is.

The tensors between the models pass through the gateway then. A chain whose models share a worker is forwarded to it
whole, as any other call is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from sealane import ensembles
from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.ensembles import Step
from sealane.errors import FailedPrecondition, InvalidArgument, SealaneError, Unavailable
from sealane.protocols import openinference, openinference_model, tfserving
from sealane.protocols.call import InferenceAnswer, InferenceCall, ModelDescription, Target
from sealane.protocols.openinference_model import EnsembleStep, ModelCounts, ModelSettings
from sealane.rpc.call import Call
from sealane.rpc.policy import Method, methods_of
from sealane.tensors import Array
from sealane_inference.chain_counts import ChainCounts
from sealane_inference.forward import Forwarder
from sealane_inference.present import Present
from sealane_inference.routing import ChainRoute, Route

_OIP = "/inference.GRPCInferenceService/"
_PREDICTION = "/tensorflow.serving.PredictionService/"
M = TypeVar("M", bound=Message)
T = TypeVar("T")

#: Chains have one version: they are replaced, not changed.
VERSION = "1"


class Chains:
    """Answers for chains from here."""

    def __init__(self, present: Present, forwarder: Forwarder) -> None:
        self._present = present
        self._forwarder = forwarder
        self._infer = _method_of("GRPCInferenceService", "ModelInfer")
        self._counts = ChainCounts()

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

    def counts(self, route: Route) -> ModelCounts:
        """What a chain has done from here."""
        return self._counts.of(route)

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
            answer = await self._counted(call, route, inference, outputs)
            return openinference.encode_response(answer).SerializeToString()
        if chain is not None and path == _PREDICTION + "Predict":
            inference = tfserving.decode_request(_parsed(tfs.PredictRequest(), call))
            outputs = tfserving.check(inference, chain.signature)
            answer = await self._counted(call, route, inference, outputs)
            return tfserving.encode_response(answer).SerializeToString()
        raise FailedPrecondition(
            f"no worker serves all models of the chain {route.deployment!r}; call ModelInfer or Predict, or deploy "
            "them where they share a worker",
            reason="ENSEMBLE_SPREAD",
        )

    async def _counted(
        self, call: Call, route: Route, inference: InferenceCall, outputs: tuple[str, ...]
    ) -> InferenceAnswer:
        table, begun = self._present.table, time.monotonic()
        try:
            answer = await self._run(call, route, inference, outputs)
        except SealaneError:
            self._counts.failed(table, route, time.monotonic() - begun)
            raise
        first = next(iter(inference.inputs.values()))
        self._counts.succeeded(table, route, first.shape[0] if first.ndim else 1, time.monotonic() - begun)
        return answer

    async def _run(
        self, call: Call, route: Route, inference: InferenceCall, outputs: tuple[str, ...]
    ) -> InferenceAnswer:
        assert route.chain is not None
        timed = replace(call, deadline=_deadline(call, inference))
        tensors: dict[str, Array] = dict(inference.inputs)
        for stage in ensembles.stages(route.chain.chain, outputs):
            steps = [self._step(timed, (inference, route.chain), step, tensors) for step in stage]
            for found in await _together(steps):
                tensors.update(found)
        wanted = {name: tensors[name] for name in outputs}
        return InferenceAnswer(inference, VERSION, ensembles.DEFAULT_SIGNATURE, wanted)

    async def _step(
        self, call: Call, of: tuple[InferenceCall, ChainRoute], step: Step, tensors: dict[str, Array]
    ) -> dict[str, Array]:
        inference, chain = of
        asked = InferenceCall(Target(step.deployment), ensembles.inputs_of(step, tensors), tuple(step.outputs))
        request = openinference.encode_request(asked)
        if inference.priority:
            request.parameters["priority"].int64_param = inference.priority
        place = inference.sequence
        if place is not None:
            request.parameters["sequence_id"].string_param = place.id
            request.parameters["sequence_start"].bool_param = place.start
            request.parameters["sequence_end"].bool_param = place.end
        inner = replace(call, method=self._infer, body=request.SerializeToString(), message=None)

        def find() -> Route:
            return self._member(call.caller.project, step.deployment, chain)

        if place is not None:
            answer = await self._forwarder.kept(inner, find, sequence_key(call, place.id))
        else:
            answer = await self._forwarder.repeatable(inner, find)
        return ensembles.outputs_of(step, openinference.decode_response(oip.ModelInferResponse.FromString(answer)))

    def _member(self, project: str, deployment: str, chain: ChainRoute) -> Route:
        """The route of a deployment, by its own id, while it serves a model that the chain was checked with.

        Its callers were asked for the right to those models and to no other.
        """
        route = self._present.table.routes.get(project, {}).get(deployment)
        if route is None or route.model not in chain.models:
            raise Unavailable(f"model {deployment!r} of the chain is gone; deploy it again", reason="ENSEMBLE_PART")
        return route

    def _members(self, route: Route, chain: ChainRoute) -> list[Route | None]:
        names = dict.fromkeys(step.deployment for step in chain.chain.steps)
        routes = self._present.table.routes.get(route.project, {})
        found = [routes.get(name) for name in names]
        return [member if member is not None and member.model in chain.models else None for member in found]


def sequence_key(call: Call, sequence: str) -> str:
    """What a sequence is kept by: the same id of another caller is another one."""
    return f"{call.caller.subject}\0{sequence}"


def _deadline(call: Call, inference: InferenceCall) -> float:
    """When nobody waits for the chain any more: its caller's timeout is for all of its models together."""
    if not inference.timeout_us:
        return call.deadline
    return min(call.deadline, call.started + inference.timeout_us / 1e6)


async def _together(steps: list[Coroutine[None, None, T]]) -> list[T]:
    """What the steps give; the first that fails ends the others, and its failure is the chain's.

    Raises:
        SealaneError: of the step that failed.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(step) for step in steps]
    except ExceptionGroup as failures:
        told, defects = failures.split(SealaneError)
        if told is None or defects is not None:
            raise  # a defect must not hide behind what a model answered
        first = told.exceptions[0]
        raise first from first.__cause__
    return [task.result() for task in tasks]


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
