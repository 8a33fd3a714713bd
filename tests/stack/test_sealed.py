"""Sealed calls on a running suite: every way in, and a model whose owner refuses plaintext on all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import requests
from light_site import CAMERA_B, EDGE, LIGHT, LightSite, running

from sealane.cli import main
from sealane.client import Step
from sealane.client.proxy import Proxy, ProxyOptions
from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.compat.tfserving.v1 import example_pb2
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import FailedPrecondition, InvalidArgument, NotFound, SealaneError
from sealane.protocols import openinference, tfserving
from sealane.protocols.call import InferenceCall, Target
from sealane.rpc.status import from_rpc_error
from sealane.security.sealing_policy import SealingPolicy

pytestmark = pytest.mark.stack
PRIVATE, FENCED = "private", "fenced"
OIP, TFS = "/inference.GRPCInferenceService/", "/tensorflow.serving.PredictionService/"
SCRIPTS = Path(__file__).parents[1] / "contract" / "real_clients"
TRITON = Path(__file__).parents[2] / ".venv-triton" / "bin" / "python"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightSite]:
    with running(tmp_path_factory.mktemp("sealed")) as site:
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


WAYS: dict[str, dict[str, object]] = {
    "gateway": {},
    "direct": {"via": "direct"},
    "session": {"sealed": "session"},
    "session, direct": {"sealed": "session", "via": "direct"},
    "by signature": {"signature": "serving_default"},
    "by version": {"version": "1"},
    "hedged": {"via": "direct", "hedge": 0.001},
    "edge only": {"require": {"tier": "edge", "clearance": "internal"}},
}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("model", [CAMERA_B, PRIVATE])
def test_every_way_of_the_sdk(site: LightSite, model: str, options: dict[str, object]) -> None:
    for rows in (1, 5):
        outputs = site.client.inference.predict(model, {"image": site.rows[:rows]}, **{"sealed": True, **options})  # type: ignore[arg-type]
        np.testing.assert_allclose(outputs["probabilities"], expected(site, rows), atol=1e-6)


@pytest.mark.parametrize("via", ["gateway", "direct"])
def test_a_stream(site: LightSite, via: str) -> None:
    inputs = [{"image": site.rows[index : index + 1]} for index in range(40)]
    outputs = list(site.client.inference.sealed_stream(PRIVATE, inputs, via=via))  # type: ignore[arg-type]
    assert len(outputs) == 40
    found = np.concatenate([output["probabilities"] for output in outputs])
    np.testing.assert_allclose(found, expected(site, 40), atol=1e-6)


@pytest.mark.parametrize("via", ["gateway", "direct"])
def test_what_the_model_refuses_comes_back_out_of_the_seal(site: LightSite, via: str) -> None:
    for sealed in (True, "session"):
        with pytest.raises(InvalidArgument) as told:
            site.client.inference.predict(PRIVATE, {"image": np.zeros((1, 3), np.float32)}, sealed=sealed, via=via)  # type: ignore[arg-type]
        assert told.value.reason == "INPUT_SHAPE_MISMATCH"
    with pytest.raises(InvalidArgument):
        list(site.client.inference.sealed_stream(PRIVATE, [{"image": np.zeros((1, 3), np.float32)}], via=via))  # type: ignore[arg-type]
    with pytest.raises(NotFound):
        site.client.inference.predict("nobody", {"image": site.rows[:1]}, sealed=True, via=via)  # type: ignore[arg-type]


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


@pytest.mark.parametrize("place", ["inference", EDGE])
@pytest.mark.parametrize("method", plaintext_bodies("m", np.zeros((1, 1), np.float32)))
def test_plaintext_is_refused_by_every_method(site: LightSite, place: str, method: str) -> None:
    metadata = (("authorization", f"Bearer {site.client.token('sealane-inference')}"),)
    with site.channel(place) as channel, pytest.raises(grpc.RpcError) as told:
        channel.unary_unary(method)(plaintext_bodies(PRIVATE, site.rows[:1])[method], timeout=20, metadata=metadata)
    error = from_rpc_error(told.value)
    assert (error.kind, error.reason) == ("FAILED_PRECONDITION", "SEALED_REQUIRED"), error.message
    assert "sealane proxy" in error.message


@pytest.mark.parametrize("place", ["inference", EDGE])
def test_plaintext_is_refused_in_streams(site: LightSite, place: str) -> None:
    body = plaintext_bodies(PRIVATE, site.rows[:1])[OIP + "ModelInfer"]
    metadata = (("authorization", f"Bearer {site.client.token('sealane-inference')}"),)
    with site.channel(place) as channel:
        stream = channel.stream_stream(OIP + "ModelStreamInfer")
        (answer,) = stream(iter([body]), timeout=20, metadata=metadata)
        assert "wants requests sealed" in oip.ModelStreamInferResponse.FromString(answer).error_message
        with pytest.raises(grpc.RpcError) as told:
            list(stream(iter([body]), timeout=20, metadata=(*metadata, ("triton_grpc_error", "true"))))
    assert from_rpc_error(told.value).reason == "SEALED_REQUIRED"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "v2/models/private/infer",
            {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 8, 8], "data": [0.0] * 64}]},
        ),
        ("v1/models/private:predict", {"instances": [[[0.0] * 8] * 8]}),
        ("v1/models/private:classify", {"examples": [{"image": [0.0] * 64}]}),
        ("v1/models/private:regress", {"examples": [{"image": [0.0] * 64}]}),
    ],
)
def test_plaintext_is_refused_over_http(site: LightSite, path: str, body: object) -> None:
    with requests.Session() as session:
        session.trust_env = False
        answered = session.post(
            f"https://{site.endpoints['inference_http']}/{path}",
            json=body,
            headers={"authorization": f"Bearer {site.client.token('sealane-inference')}"},
            verify=str(site.data / "pki" / "ca.pem"),
            timeout=20,
        )
    assert answered.status_code == 400
    assert "wants requests sealed" in answered.text


def test_what_holds_no_tensors_may_be_asked_in_plaintext(site: LightSite) -> None:
    assert site.client.inference.signature(PRIVATE).inputs[0].name == "image"


def test_the_sdk_is_told_what_to_do(site: LightSite) -> None:
    for via in ("gateway", "direct"):
        with pytest.raises(FailedPrecondition, match="sealed=True"):
            site.client.inference.predict(PRIVATE, site.image, via=via)  # type: ignore[arg-type]


def test_a_chain_with_such_a_model_takes_sealed_requests_alone(site: LightSite) -> None:
    steps = [
        Step(PRIVATE, {"image": "left"}, {"probabilities": "p"}),
        Step(CAMERA_B, {"image": "right"}, {"probabilities": "q"}),
    ]
    site.client.deployments.create_chain("pair", steps)
    site.client.deployments.wait("pair", 20)
    try:
        rows = {"left": site.rows[:2], "right": site.rows[:2]}
        outputs = site.client.inference.predict("pair", rows, sealed=True)
        np.testing.assert_allclose(outputs["p"], expected(site, 2), atol=1e-6)
        np.testing.assert_allclose(outputs["q"], expected(site, 2), atol=1e-6)
        with pytest.raises(FailedPrecondition) as told:
            site.client.inference.predict("pair", rows)
        assert told.value.reason == "SEALED_REQUIRED"
    finally:
        site.client.deployments.delete("pair")


def test_the_policy_decides_where_the_model_is_placed_and_explains_it(site: LightSite) -> None:
    assert {node for node, _ in site.places(PRIVATE)} == {EDGE}
    found = site.client.deployments.get(FENCED)
    assert not found.placements
    told = [rejection.detail for rejection in found.decision.rejections if rejection.filter == "sealing"]
    assert any("sealed to region mars, the node is in eu" in detail for detail in told), found.decision


def test_another_form_of_a_variant_demands_the_same(site: LightSite) -> None:
    added = site.client.models.add_variant(f"{PRIVATE}@1", LIGHT / "litert-float.tflite", variant="litert-float")
    assert added.sealing.required and list(added.sealing.tiers) == ["edge"]
    assert "sealane.json" in [file.path for file in added.files]


def test_the_command_pushes_a_policy_and_predicts_sealed(
    site: LightSite, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEALANE_HOME", str(site.data))
    file = str(LIGHT / "litert-int8.tflite")
    pushed = ["models", "push", file, "by-hand", "--require-sealed", "--sealed-to", "tier=edge", "--output", "json"]
    assert main.run(pushed) == 0
    version = json.loads(capsys.readouterr().out)
    assert version["variants"][0]["sealing"] == {"required": True, "tiers": ["edge"]}
    inputs = str(LIGHT / "test.npz")
    assert main.run(["predict", PRIVATE, "--inputs", inputs, "--sealed", "--require", "region=eu"]) == 0
    assert main.run(["predict", PRIVATE, "--inputs", inputs, "--sealed", "--require", "region=us"]) == 1
    assert "region us required, it says eu" in capsys.readouterr().err
    assert main.run(["models", "push", file, "by-hand", "--sealed-to", "colour=green"]) == 2


@pytest.fixture(scope="module", params=[True, False], ids=["sessions", "by itself"])
def proxy(site: LightSite, request: pytest.FixtureRequest) -> Iterator[str]:
    served = Proxy(site.client.inference, ProxyOptions({"tier": "edge"}, session=request.param))
    port = served.listen("127.0.0.1:0")
    yield f"127.0.0.1:{port}"
    served.stop()


def test_the_proxy_seals_every_method_of_both_protocols(site: LightSite, proxy: str) -> None:
    with grpc.insecure_channel(proxy) as channel:
        for method, body in plaintext_bodies(PRIVATE, site.rows[:1]).items():
            # The model has no signatures for examples with classes; what it says of them comes through the seal.
            call: Callable[..., bytes] = channel.unary_unary(method)
            try:
                answer = call(body, timeout=20)
            except grpc.RpcError as failure:
                assert method.rpartition("/")[2] in ("Classify", "Regress", "MultiInference")
                told = from_rpc_error(failure)
                assert told.reason not in ("SEALED_REQUIRED", "CANNOT_OPEN"), told
                continue
            if method == OIP + "ModelInfer":
                found = openinference.decode_response(oip.ModelInferResponse.FromString(answer))["probabilities"]
                np.testing.assert_allclose(found, expected(site), atol=1e-6)
            if method == TFS + "Predict":
                found = tfserving.decode_response(tfs.PredictResponse.FromString(answer))["probabilities"]
                np.testing.assert_allclose(found, expected(site), atol=1e-6)


def test_the_proxy_carries_streams_in_order(site: LightSite, proxy: str) -> None:
    bodies = [
        openinference.encode_request(
            InferenceCall(Target(PRIVATE), {"image": site.rows[index : index + 1]}, request_id=str(index))
        ).SerializeToString()
        for index in range(30)
    ]
    bodies.insert(3, openinference.encode_request(InferenceCall(Target("nobody"), site.image)).SerializeToString())
    with grpc.insecure_channel(proxy) as channel:
        stream = channel.stream_stream(OIP + "ModelStreamInfer")
        answers = [oip.ModelStreamInferResponse.FromString(item) for item in stream(iter(bodies), timeout=30)]
    assert answers[3].error_message and not answers[3].infer_response.outputs
    found = [item.infer_response for item in answers if not item.error_message]
    assert [item.id for item in found] == [str(index) for index in range(30)]
    outputs = np.concatenate([openinference.decode_response(item)["probabilities"] for item in found])
    np.testing.assert_allclose(outputs, expected(site, 30), atol=1e-6)


@pytest.mark.skipif(not TRITON.exists(), reason="tritonclient's environment .venv-triton is not built")
def test_tritonclient_calls_the_proxy_unchanged(site: LightSite, proxy: str, tmp_path: Path) -> None:
    assert _plain(str(TRITON), "triton_plain.py", proxy, site, tmp_path) == expected(site, 5).tolist()


@pytest.mark.tensorflow
def test_tensorflow_serving_api_calls_the_proxy_unchanged(site: LightSite, proxy: str, tmp_path: Path) -> None:
    found = _plain(sys.executable, "tfs_plain.py", proxy, site, tmp_path)
    np.testing.assert_allclose(found, expected(site, 5), atol=1e-6)


def _plain(python: str, script: str, proxy: str, site: LightSite, folder: Path) -> object:
    inputs = folder / "inputs.npz"
    np.savez(inputs, image=site.rows[:5])
    command = [python, str(SCRIPTS / script), proxy, PRIVATE, str(inputs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])["probabilities"]


def test_the_proxy_passes_questions_on_and_refuses_what_it_does_not_know(site: LightSite, proxy: str) -> None:
    with grpc.insecure_channel(proxy) as channel:
        body = oip.ModelMetadataRequest(name=PRIVATE).SerializeToString()
        answer = oip.ModelMetadataResponse.FromString(channel.unary_unary(OIP + "ModelMetadata")(body, timeout=20))
        assert answer.inputs[0].name == "image"
        with pytest.raises(grpc.RpcError) as told:
            channel.unary_unary("/sealane.registry.v1.ModelService/ListModels")(b"", timeout=20)
        assert told.value.code() == grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]
        with pytest.raises(grpc.RpcError) as told:
            channel.unary_unary(OIP + "ModelInfer")(b"\xff\xff", timeout=20)
        assert told.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "10.0.0.1:80", "example.org:80", ":80", "127.0.0.1"])
def test_the_proxy_listens_where_nobody_else_can_call(site: LightSite, address: str) -> None:
    with pytest.raises(InvalidArgument, match="loopback"):
        Proxy(site.client.inference).listen(address)


def test_the_directory_says_who_could_open(
    site: LightSite, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {item.node: item for item in site.client.keys.sealing()}
    assert set(found) == {EDGE, "cloud-1"}
    assert found[EDGE].attributes["clearance"] == "restricted"
    monkeypatch.setenv("SEALANE_HOME", str(site.data))
    assert main.run(["keys", "sealing"]) == 0
    shown = capsys.readouterr().out
    assert found[EDGE].key_id in shown and "MLKEM768_X25519" in shown


def test_the_proxy_listens_on_a_socket_of_its_user(site: LightSite, tmp_path: Path) -> None:
    path = tmp_path / "proxy.sock"
    served = Proxy(site.client.inference)
    served.listen(f"unix:{path}")
    try:
        assert path.stat().st_mode & 0o077 == 0
        with grpc.insecure_channel(f"unix:{path}") as channel:
            body = plaintext_bodies(PRIVATE, site.rows[:1])[OIP + "ModelInfer"]
            assert channel.unary_unary(OIP + "ModelInfer")(body, timeout=20)
    finally:
        served.stop()


def test_the_command_runs_the_proxy_until_it_is_told_to_stop(site: LightSite) -> None:
    command = [
        str(Path(sys.executable).with_name("sealane")),
        "proxy",
        "--listen",
        "127.0.0.1:0",
        "--data",
        str(site.data),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("listening on 127.0.0.1:"), line
        with grpc.insecure_channel(line.split()[-1]) as channel:
            body = plaintext_bodies(PRIVATE, site.rows[:1])[OIP + "ModelInfer"]
            assert channel.unary_unary(OIP + "ModelInfer")(body, timeout=20)
    finally:
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 0


def test_a_served_name_is_called_by_its_versions_and_labels(site: LightSite) -> None:
    """What ReloadConfig made is called through the proxy as TensorFlow Serving's clients do."""
    reload = tfs.ReloadConfigRequest()
    config = reload.config.model_config_list.config.add(name="shown", base_path="digits", model_platform="tensorflow")
    config.model_version_policy.specific.versions.append(1)
    config.version_labels["stable"] = 1
    metadata = (("authorization", f"Bearer {site.client.token('sealane-inference')}"),)
    with site.channel("inference") as channel:
        answer = channel.unary_unary("/tensorflow.serving.ModelService/HandleReloadConfigRequest")(
            reload.SerializeToString(), timeout=60, metadata=metadata
        )
    assert tfs.ReloadConfigResponse.FromString(answer).status.error_code == 0, answer
    served = Proxy(site.client.inference)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{served.listen('127.0.0.1:0')}") as channel:
            for target in (Target("shown"), Target("shown", "1"), Target("shown", label="stable")):
                body = tfserving.encode_request(InferenceCall(target, site.image)).SerializeToString()
                answer = channel.unary_unary(TFS + "Predict")(body, timeout=20)
                found = tfserving.decode_response(tfs.PredictResponse.FromString(answer))["probabilities"]
                np.testing.assert_allclose(found, expected(site), atol=1e-2)
            for target in (Target("shown", "2"), Target("shown", label="canary")):
                body = tfserving.encode_request(InferenceCall(target, site.image)).SerializeToString()
                with pytest.raises(grpc.RpcError) as told:
                    channel.unary_unary(TFS + "Predict")(body, timeout=20)
                assert isinstance(from_rpc_error(told.value), SealaneError)
                assert told.value.code() == grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]
    finally:
        served.stop()
