"""A suite whose one worker loads models of every framework, and how tests push, deploy and call them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from framework_models import Array
from light_site import CLOUD, LightSite, eventually
from orphans import descendants

from sealane.client import connect
from sealane.client.inference import METADATA_PATH
from sealane.client.prediction import INFER_PATH
from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.protocols import openinference
from sealane.protocols.call import InferenceCall, Target
from sealane_local import plan
from sealane_local.stack import LocalStack

Metadata = tuple[tuple[str, str], ...]


@contextmanager
def serving(data: Path, environment: Mapping[str, str], runtimes: tuple[str, ...] = ()) -> Iterator[LightSite]:
    """A suite with one cloud worker of these settings."""
    worker = replace(plan.CLOUD, environment=environment, runtimes=runtimes)
    options = plan.Options(data, workers=(worker,), sample_ratio=0.0)
    with LocalStack(options) as stack, connect(data) as client:
        yield LightSite(stack, client)


def authorised(site: LightSite, audience: str) -> Metadata:
    """Metadata with a token."""
    return (("authorization", f"Bearer {site.client.token(f'sealane-{audience}')}"),)


@contextmanager
def deployed(site: LightSite, version: str, name: str, *, pinned: bool = False) -> Iterator[str]:
    """A deployment that serves, gone again afterwards with its model process."""
    site.client.deployments.create(name, version, pinned=pinned)
    try:
        site.client.deployments.wait(name, 120)
        yield name
    finally:
        site.client.deployments.delete(name)
        eventually(lambda: not model_processes(site), "its model process has ended")


def model_processes(site: LightSite) -> set[int]:
    """The model processes of the worker."""
    worker = site.stack.child(CLOUD).pid
    assert worker is not None
    found = set()
    for pid in descendants(worker):
        try:
            if b"sealane_worker.model" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
        except OSError:
            continue  # it has just ended
    return found


def by_tensorflow_serving(site: LightSite, place: str, name: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What the official stubs of TensorFlow Serving get."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    for key, array in inputs.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(array))
    stub = prediction_service_pb2_grpc.PredictionServiceStub(site.channel(place))
    answer = stub.Predict(request, timeout=30, metadata=authorised(site, "inference"))
    return {key: tf.make_ndarray(proto) for key, proto in answer.outputs.items()}


def infer(site: LightSite, name: str, inputs: Mapping[str, Array], metadata: Metadata) -> None:
    """One call of the worker over the Open Inference Protocol, which nothing repeats."""
    request = openinference.encode_request(InferenceCall(Target(name), dict(inputs)))
    call = site.channel(CLOUD).unary_unary(INFER_PATH, oip.ModelInferRequest.SerializeToString)
    call(request, timeout=10, metadata=metadata)


def platform_of(site: LightSite, name: str) -> str:
    """Which runtime the worker says that it runs a deployment with."""
    call = site.channel(CLOUD).unary_unary(METADATA_PATH, oip.ModelMetadataRequest.SerializeToString)
    answer = call(oip.ModelMetadataRequest(name=name), timeout=30, metadata=authorised(site, "inference"))
    return oip.ModelMetadataResponse.FromString(answer).platform
