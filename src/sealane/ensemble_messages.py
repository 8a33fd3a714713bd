"""Chains of models as messages."""

from __future__ import annotations

from sealane.ensembles import Chain, Step
from sealane.scheduler.v1 import deployment_service_pb2 as pb
from sealane.tensors import Signature, TensorSpec
from sealane.type.v1 import tensor_pb2


def chain_of(message: pb.Ensemble) -> Chain:
    """The chain that a message describes."""
    steps = (Step(step.deployment, dict(step.inputs), dict(step.outputs)) for step in message.steps)
    return Chain(tuple(steps), tuple(message.outputs))


def message_of(chain: Chain) -> pb.Ensemble:
    """A chain as it is asked for, without what is found out about it."""
    message = pb.Ensemble(outputs=chain.outputs)
    for step in chain.steps:
        message.steps.add(deployment=step.deployment, inputs=step.inputs, outputs=step.outputs)
    return message


def signature_of(message: tensor_pb2.Signature) -> Signature:
    """A signature without protobuf."""
    return Signature(
        tuple(TensorSpec(spec.name, spec.datatype, tuple(spec.shape)) for spec in message.inputs),
        tuple(TensorSpec(spec.name, spec.datatype, tuple(spec.shape)) for spec in message.outputs),
        message.name,
    )


def signature_message(signature: Signature) -> tensor_pb2.Signature:
    """A signature as a message."""
    message = tensor_pb2.Signature(name=signature.name)
    for specs, added in ((signature.inputs, message.inputs), (signature.outputs, message.outputs)):
        for spec in specs:
            added.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
    return message
