"""`sealane proxy` on a running suite: unchanged clients of both protocols, sealed from the proxy on."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from light_site import LightSite
from sealed_site import OIP, PRIVATE, TFS, Sent, expected, plaintext_bodies, sealed_site

from sealane.cli import main
from sealane.client.proxy import STREAMS, Proxy, ProxyOptions
from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import SealaneError
from sealane.protocols import openinference, tfserving
from sealane.protocols.call import InferenceCall, Target
from sealane.protocols.openinference_stream import GRPC_ERRORS
from sealane.rpc.status import from_rpc_error

pytestmark = pytest.mark.stack
SCRIPTS = Path(__file__).parents[1] / "contract" / "real_clients"
TRITON = Path(__file__).parents[2] / ".venv-triton" / "bin" / "python"
MALFORMED = b"\xff\xff"
needs_triton = pytest.mark.skipif(not TRITON.exists(), reason="tritonclient's environment .venv-triton is not built")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightSite]:
    with sealed_site(tmp_path_factory.mktemp("proxy")) as site:
        yield site


@pytest.fixture
def sent(site: LightSite, monkeypatch: pytest.MonkeyPatch) -> Sent:
    return Sent(site, monkeypatch)


@pytest.fixture(scope="module", params=[True, False], ids=["sessions", "by itself"])
def served(site: LightSite, request: pytest.FixtureRequest) -> Iterator[Proxy]:
    served = Proxy(site.client.inference, ProxyOptions({"tier": "edge"}, session=request.param))
    yield served
    served.stop()


@pytest.fixture(scope="module")
def proxy(served: Proxy) -> str:
    return f"127.0.0.1:{served.listen('127.0.0.1:0')}"


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


@needs_triton
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
            channel.unary_unary(OIP + "ModelInfer")(MALFORMED, timeout=20)
        assert told.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]


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


@pytest.mark.parametrize(
    "method",
    [
        TFS + "PredictStreamed",
        OIP + "ModelInferV3",
        TFS + "predict",
        "/tensorflow.serving.SessionService/SessionRun",
        "/sealane.registry.v1.ModelService/ListModels",
        "/",
    ],
)
def test_what_the_proxy_does_not_know_goes_nowhere(site: LightSite, proxy: str, sent: Sent, method: str) -> None:
    body = plaintext_bodies(PRIVATE, site.rows[:1])[TFS + "Predict"]
    with grpc.insecure_channel(proxy) as channel, pytest.raises(grpc.RpcError) as told:
        channel.unary_unary(method)(body, timeout=20)
    assert told.value.code() == grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]
    assert not sent.paths


def test_no_tensor_leaves_in_plaintext(site: LightSite, proxy: str, sent: Sent) -> None:
    row = site.rows[:1] + np.float32(0.123)
    bodies = plaintext_bodies(PRIVATE, row)
    with grpc.insecure_channel(proxy) as channel:
        for method in (OIP + "ModelInfer", TFS + "Predict"):
            channel.unary_unary(method)(bodies[method], timeout=20)
        list(channel.stream_stream(OIP + "ModelStreamInfer")(iter([bodies[OIP + "ModelInfer"]]), timeout=20))
    sent.check_sealed(row)


def good(site: LightSite) -> bytes:
    return plaintext_bodies(PRIVATE, site.rows[:1])[OIP + "ModelInfer"]


def test_a_malformed_request_in_a_stream_is_answered_in_its_place(site: LightSite, proxy: str) -> None:
    bodies = [good(site), MALFORMED, good(site)]
    with grpc.insecure_channel(proxy) as channel:
        stream = channel.stream_stream(OIP + "ModelStreamInfer")
        answers = [oip.ModelStreamInferResponse.FromString(item) for item in stream(iter(bodies), timeout=30)]
        assert [bool(item.error_message) for item in answers] == [False, True, False]
        assert [len(item.infer_response.outputs) for item in answers] == [1, 0, 1]
        with pytest.raises(grpc.RpcError) as told:
            list(stream(iter(bodies), timeout=30, metadata=((GRPC_ERRORS, "true"),)))
    assert told.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]


def test_streams_that_say_nothing_leave_room_for_calls(site: LightSite, proxy: str) -> None:
    ends = [queue.Queue[bytes | None]() for _ in range(STREAMS)]
    with grpc.insecure_channel(proxy) as channel:
        method = channel.stream_stream(OIP + "ModelStreamInfer")
        streams = [method(iter(end.get, None), timeout=60) for end in ends]
        for end, stream in zip(ends, streams, strict=True):
            end.put(MALFORMED)
            next(stream)  # it is under way
        with pytest.raises(grpc.RpcError) as told:
            list(method(iter([good(site)]), timeout=20))
        assert told.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
        assert channel.unary_unary(OIP + "ModelInfer")(good(site), timeout=20)
        for end in ends:
            end.put(None)
        assert [list(stream) for stream in streams] == [[]] * STREAMS
        (answer,) = method(iter([good(site)]), timeout=20)
    assert not oip.ModelStreamInferResponse.FromString(answer).error_message


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--require", "colour=green"], "statements say nothing of ['colour']"),
        (["--require", "tier"], "say NAME=VALUE"),
        (["--listen", "0.0.0.0:0"], "not on loopback"),
        (["--http", "0.0.0.0:0"], "not on loopback"),
        (["--http", "unix:/tmp/http.sock"], "HTTP is served on host:port"),
    ],
)
def test_the_command_refuses_what_cannot_work_before_it_listens(
    site: LightSite, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, options: list[str], told: str
) -> None:
    monkeypatch.setenv("SEALANE_HOME", str(site.data))
    assert main.run(["proxy", "--listen", "127.0.0.1:0", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and told in error
    assert "listening" not in error
