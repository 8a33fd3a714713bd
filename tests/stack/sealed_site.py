"""A suite with a model whose owner refuses plaintext, and what tests of sealed calls say to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from light_site import CAMERA_B, LIGHT, LightSite, running

from sealane.client.calls import Request
from sealane.client.credentials import Token
from sealane.compat.tfserving.v1 import example_pb2
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.protocols import openinference, tfserving
from sealane.protocols.call import InferenceCall, Target
from sealane.protocols.sealed import RUNS
from sealane.rpc.channel import Target as Channel
from sealane.security.sealing_policy import SealingPolicy

PRIVATE, FENCED = "private", "fenced"
OIP, TFS = "/inference.GRPCInferenceService/", "/tensorflow.serving.PredictionService/"


@contextmanager
def sealed_site(folder: Path) -> Iterator[LightSite]:
    """The suite with both cameras, the private model, and one that nobody may hold."""
    with running(folder) as site:
        site.deploy_cameras(site.push())
        for name, policy in (
            (PRIVATE, SealingPolicy(required=True, tiers=("edge",), min_clearance="restricted")),
            (FENCED, SealingPolicy(regions=("mars",))),
        ):
            version = site.client.models.push(LIGHT / "litert-int8.tflite", name, variant="litert-int8", sealing=policy)
            site.client.deployments.create(name, version.name)
        site.client.deployments.wait(PRIVATE, 30)
        yield site


def expected(site: LightSite, rows: int = 1) -> np.ndarray:
    """What the model says, unsealed: the private model is camera B's int8 variant."""
    (answer,) = site.client.inference.predict(CAMERA_B, {"image": site.rows[:rows]}).values()
    return answer


def plaintext_bodies(model: str, rows: np.ndarray) -> dict[str, bytes]:
    """A plaintext request of each method that carries tensors."""
    call = InferenceCall(Target(model), {"image": rows})
    example = example_pb2.Example()
    example.features.feature["image"].float_list.value.extend(rows[0].ravel().tolist())
    inputs = tfs.Input()
    inputs.example_list.examples.append(example)
    spec = tfs.ModelSpec(name=model)
    task = tfs.InferenceTask(model_spec=spec, method_name="tensorflow/serving/regress")
    return {
        OIP + "ModelInfer": openinference.encode_request(call).SerializeToString(),
        TFS + "Predict": tfserving.encode_request(call).SerializeToString(),
        TFS + "Classify": tfs.ClassificationRequest(model_spec=spec, input=inputs).SerializeToString(),
        TFS + "Regress": tfs.RegressionRequest(model_spec=spec, input=inputs).SerializeToString(),
        TFS + "MultiInference": tfs.MultiInferenceRequest(tasks=[task], input=inputs).SerializeToString(),
    }


class Sent:
    """What a site's client sends to the suite from now on."""

    def __init__(self, site: LightSite, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: list[Request] = []
        caller = site.client.inference.caller
        send = caller.send

        def noted(target: Channel, request: Request, deadline: float, token: Token | None = None) -> bytes:
            self.requests.append(request)
            return send(target, request, deadline, token)

        monkeypatch.setattr(caller, "send", noted)

    @property
    def paths(self) -> list[str]:
        """The methods that were called."""
        return [request.path for request in self.requests]

    def check_sealed(self, rows: np.ndarray) -> None:
        """That something was sent, and nothing of it holds `rows`."""
        assert "/sealane.inference.v1.SealedInferenceService/SealedInfer" in self.paths
        assert not RUNS & set(self.paths)
        assert not any(rows.tobytes() in request.body for request in self.requests)
