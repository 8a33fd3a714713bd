"""TensorFlow Serving's reload and Triton's load and unload on a running suite, as their clients ask for them."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from light_site import CAMERA_A, MODEL, LightSite, eventually, running

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.protocols import openinference, tfserving
from sealane.protocols.call import InferenceCall, Target

OIP = "/inference.GRPCInferenceService/"
PREDICT = "/tensorflow.serving.PredictionService/Predict"
STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
RELOAD = "/tensorflow.serving.ModelService/HandleReloadConfigRequest"


class Caller:
    """A client of the gateway that speaks bytes."""

    def __init__(self, site: LightSite, token: str) -> None:
        self._channel = site.channel("inference")
        self._token = token

    def __call__(self, path: str, message: Message, seconds: float = 60.0) -> bytes:
        metadata = [("authorization", f"Bearer {self._token}")]
        answer: bytes = self._channel.unary_unary(path)(message.SerializeToString(), timeout=seconds, metadata=metadata)
        return answer

    def reload(self, *models: tfs.ModelConfig) -> tfs.StatusProto:
        config = tfs.ModelServerConfig(model_config_list=tfs.ModelConfigList(config=models))
        return tfs.ReloadConfigResponse.FromString(self(RELOAD, tfs.ReloadConfigRequest(config=config))).status

    def versions(self, model: str) -> dict[int, str]:
        request = tfs.GetModelStatusRequest(model_spec=tfs.ModelSpec(name=model))
        status = tfs.GetModelStatusResponse.FromString(self(STATUS, request)).model_version_status
        return {item.version: tfs.ModelVersionStatus.State.Name(item.state) for item in status}

    def predict(self, site: LightSite, model: str, version: str = "", label: str = "") -> tfs.PredictResponse:
        call = InferenceCall(Target(model, version, label), site.image)
        return tfs.PredictResponse.FromString(self(PREDICT, tfserving.encode_request(call)))

    def index(self) -> dict[tuple[str, str], str]:
        index = oip.RepositoryIndexResponse.FromString(self(OIP + "RepositoryIndex", oip.RepositoryIndexRequest()))
        return {(item.name, item.version): item.state for item in index.models}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightSite]:
    with running(tmp_path_factory.mktemp("served")) as site:
        for _ in range(2):
            version = site.push()
        site.client.deployments.create(CAMERA_A, version)
        site.client.deployments.wait(CAMERA_A, 30)
        yield site


@pytest.fixture
def caller(site: LightSite) -> Caller:
    return Caller(site, site.client.token("sealane-inference"))


def config(name: str, *versions: int, base_path: str = MODEL, **labels: int) -> tfs.ModelConfig:
    message = tfs.ModelConfig(name=name, base_path=base_path, version_labels=labels)
    message.model_version_policy.specific.versions.extend(versions)
    return message


def test_a_reload_serves_versions_and_labels_and_takes_away_the_rest(site: LightSite, caller: Caller) -> None:
    assert caller.reload(config("mnist", 1, 2, stable=1, canary=2), config("other", 1)).error_code == tfs.OK
    eventually(lambda: caller.versions("mnist") == {1: "AVAILABLE", 2: "AVAILABLE"}, "both versions are served")
    answered = [
        caller.predict(site, "mnist", **spec).model_spec for spec in ({}, {"version": "1"}, {"label": "stable"})
    ]
    assert [(spec.name, spec.version.value) for spec in answered] == [("mnist", 2), ("mnist", 1), ("mnist", 1)]

    assert caller.reload(config("mnist", 2, stable=2)).error_code == tfs.OK
    eventually(lambda: caller.versions("mnist") == {2: "AVAILABLE"}, "the first version is gone")
    assert caller.predict(site, "mnist", label="stable").model_spec.version.value == 2
    with pytest.raises(grpc.RpcError, match=r"Servable not found for request: Latest\(other\)"):
        caller.predict(site, "other")
    assert caller.predict(site, CAMERA_A).model_spec.version.value == 2, "what was made otherwise is served as before"

    assert caller.reload().error_code == tfs.OK
    eventually(lambda: set(caller.index()) == {(CAMERA_A, "2")}, "an empty list leaves the others alone")


def test_a_reload_that_cannot_be_changes_nothing_and_says_why(caller: Caller) -> None:
    assert caller.reload(config("mnist", 1)).error_code == tfs.OK
    for refused, code in (
        (config("mnist", 9), tfs.NOT_FOUND),
        (config("mnist", 1, stable=2), tfs.FAILED_PRECONDITION),
        (config(CAMERA_A, 1), tfs.FAILED_PRECONDITION),
        (config("mnist", 1, base_path="/models/mnist"), tfs.INVALID_ARGUMENT),
    ):
        status = caller.reload(refused)
        assert status.error_code == code, status
        assert status.error_message
    eventually(lambda: caller.versions("mnist") == {1: "AVAILABLE"}, "the version from before is served")
    caller.reload()


def test_a_model_is_loaded_and_unloaded(site: LightSite, caller: Caller) -> None:
    load = oip.RepositoryModelLoadRequest(model_name=MODEL)
    answer = oip.RepositoryModelLoadResponse.FromString(caller(OIP + "RepositoryModelLoad", load))
    assert (answer.model_name, answer.isLoaded) == (MODEL, True)
    eventually(lambda: caller.index().get((MODEL, "2")) == "READY", "the latest version is there")
    request = openinference.encode_request(InferenceCall(Target(MODEL), site.image))
    outputs = openinference.decode_response(oip.ModelInferResponse.FromString(caller(OIP + "ModelInfer", request)))
    assert np.asarray(outputs["probabilities"]).shape == (1, 10)

    kserve = oip.RepositoryModelUnloadRequest(repository_name=MODEL)  # its dialect
    assert oip.RepositoryModelUnloadResponse.FromString(caller(OIP + "RepositoryModelUnload", kserve)).isUnloaded
    eventually(lambda: (MODEL, "2") not in caller.index(), "it is gone")
    with pytest.raises(grpc.RpcError, match="not loaded"):
        caller(OIP + "RepositoryModelUnload", kserve)
    with pytest.raises(grpc.RpcError, match="made otherwise"):
        caller(OIP + "RepositoryModelUnload", oip.RepositoryModelUnloadRequest(model_name=CAMERA_A))


def test_only_who_may_deploy_may_load(site: LightSite, caller: Caller) -> None:
    made = site.client.accounts.create("only-infers", roles=["invoker"])
    with site.client_of(made.client_id, made.client_secret) as invoker:
        stranger = Caller(site, invoker.token("sealane-inference"))
    for path, message in (
        (OIP + "RepositoryModelLoad", oip.RepositoryModelLoadRequest(model_name=MODEL)),
        (RELOAD, tfs.ReloadConfigRequest()),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            stranger(path, message)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED  # type: ignore[attr-defined]
    assert stranger.predict(site, CAMERA_A).outputs
