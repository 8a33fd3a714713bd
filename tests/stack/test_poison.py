"""A request that kills the model which runs it, at a deployment with two copies: one of them, and only once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace

import grpc
import numpy as np
import pytest
from light_site import LIGHT, LightSite, eventually
from orphans import descendants, ended

from sealane.client import connect
from sealane.errors import MODEL_CRASHED
from sealane.protocols import openinference
from sealane.protocols.call import InferenceCall, Target
from sealane.registry.v1 import policy_service_pb2
from sealane.rpc.status import from_rpc_error
from sealane.tensors import Signature, TensorSpec
from sealane_local import plan
from sealane_local.stack import LocalStack

DEPLOYMENT = "mortal"
IMAGE = {"name": "image", "datatype": "FP32", "shape": [-1, 8, 8, 1]}
SIGNATURE = Signature((TensorSpec("image", "FP32", (-1, 8, 8, 1)),), (TensorSpec("probabilities", "FP32", (-1, 10)),))
#: A step before the model that ends the process for one value.
STEP = """import os

def run(arrays):
    if arrays["image"].ravel()[0] == 777.0:
        os._exit(3)
    return {"image": arrays["image"]}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightSite]:
    variant = tmp_path_factory.mktemp("variant")
    (variant / "package").mkdir()
    (variant / "package" / "boom.py").write_text(STEP)
    step = {"python": {"function": "boom:run", "inputs": [IMAGE], "outputs": [IMAGE]}}
    (variant / "sealane.json").write_text(json.dumps({"before": [step]}))
    shutil.copy(LIGHT / "litert-float.tflite", variant / "model.tflite")
    data = tmp_path_factory.mktemp("poison")
    workers = tuple(
        replace(kind, environment={"SEALANE_WORKER_EXECUTABLE": "true"}) for kind in (plan.CLOUD, plan.EDGE)
    )
    with LocalStack(plan.Options(data, workers=workers, sample_ratio=0.0)) as stack, connect(data) as client:
        site = LightSite(stack, client)
        # Its step is Python, which a project has to allow.
        client.policies.update(policy_service_pb2.Policy(allow_executable_formats=True))
        version = client.models.push(variant, DEPLOYMENT, signatures=[SIGNATURE])
        client.deployments.create(DEPLOYMENT, version.name, replicas=2)
        eventually(lambda: len(processes(site)) == 2, "both workers have a copy", 60)
        client.deployments.wait(DEPLOYMENT, 60)
        yield site


def processes(site: LightSite) -> set[int]:
    """The models of both workers; they have no other."""
    found: set[int] = set()
    for worker in site.stack.options.workers:
        pid = site.stack.child(worker.node).pid
        found |= set(descendants(pid)) if pid is not None else set()
    return found


def test_it_kills_one_copy_once_and_its_caller_is_told(site: LightSite) -> None:
    before = processes(site)
    poison = np.full((1, 8, 8, 1), 777.0, np.float32)
    body = openinference.encode_request(InferenceCall(Target(DEPLOYMENT), {"image": poison})).SerializeToString()
    metadata = [("authorization", f"Bearer {site.client.token('sealane-inference')}")]
    with site.channel("inference") as channel, pytest.raises(grpc.RpcError) as failed:
        channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(body, metadata=metadata, timeout=30)
    told = from_rpc_error(failed.value)
    assert (told.kind, told.reason) == ("UNAVAILABLE", MODEL_CRASHED) and told.retry_after
    eventually(lambda: sum(ended(pid) for pid in before) > 0, "the process that ran it has ended")
    for _ in range(20):
        assert site.client.inference.predict(DEPLOYMENT, site.image)["probabilities"].shape == (1, 10)
    eventually(lambda: len(processes(site)) == 2, "it is started again")
    assert sum(ended(pid) for pid in before) == 1, "the other copy has never seen it"
