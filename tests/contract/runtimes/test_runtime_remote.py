"""Models behind other servers: Triton's and TensorFlow Serving's own stubs answer, our runtime asks."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from concurrent import futures
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sealane.errors import BY_KIND, FailedPrecondition, Internal, NotFound, SealaneError, Unavailable
from sealane.tensors import TensorSpec
from sealane_worker.runtimes import Runtime, RuntimeOptions, create_runtime

ROOT = Path(__file__).resolve().parents[3]
TRITON = ROOT / ".venv-triton/bin/python"
A = np.array([[1, 2], [3, 4]], np.float32)
WORD = np.array([b"abc"], np.object_)


def remote(folder: Path, model: str, address: str, protocol: str = "oip", version: str = "") -> Runtime:
    told = {"endpoint": "there", "protocol": protocol, "model": model, "version": version}
    (folder / "remote.json").write_text(json.dumps(told))
    runtime = create_runtime("remote")
    runtime.load(folder, RuntimeOptions(settings={"endpoint.there": address}))
    return runtime


@pytest.fixture(scope="module")
def triton() -> Iterator[str]:
    """Address of a server on Triton's stubs, in their environment."""
    if not TRITON.exists():
        pytest.skip("no environment with tritonclient; make .venv-triton/.ready")
    command = [TRITON, "-W", "ignore", Path(__file__).with_name("oip_server.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"127.0.0.1:{int(process.stdout.readline())}"
        assert process.stdin is not None
        process.stdin.close()


def test_a_model_behind_triton(triton: str, tmp_path: Path) -> None:
    runtime = remote(tmp_path, "sum", triton)
    answer = runtime.run({"a": A, "b": A, "word": WORD}, "serving_default")
    assert answer["sum"].tolist() == [[2, 4], [6, 8]]
    assert answer["turned"].tolist() == [b"cba"]
    runtime.close()
    with pytest.raises(FailedPrecondition, match="closed"):
        runtime.run({"a": A, "b": A, "word": WORD}, "serving_default")


def test_its_signature_is_the_servers(triton: str, tmp_path: Path) -> None:
    (tmp_path / "remote.json").write_text('{"endpoint": "there", "protocol": "oip", "model": "sum"}')
    runtime = create_runtime("remote")
    (signature,) = runtime.load(tmp_path, RuntimeOptions(settings={"endpoint.there": triton}))
    assert signature.inputs[0] == TensorSpec("a", "FP32", (-1, 2))
    assert signature.outputs[1] == TensorSpec("turned", "BYTES", (1,))
    runtime.close()


def test_many_threads_share_the_connection(triton: str, tmp_path: Path) -> None:
    runtime = remote(tmp_path, "sum", triton)
    wrong: list[int] = []

    def ask(number: int) -> None:
        rows = np.full((1, 2), number, np.float32)
        for _ in range(20):
            if runtime.run({"a": rows, "b": rows, "word": WORD}, "serving_default")["sum"][0, 0] != 2 * number:
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    runtime.close()


@pytest.mark.parametrize(
    "kind", ["INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL"]
)
def test_errors_of_the_server_keep_their_kind(kind: str, triton: str, tmp_path: Path) -> None:
    runtime = remote(tmp_path, "refuses", triton)
    number = grpc.StatusCode[kind].value[0]
    with pytest.raises(SealaneError) as caught:
        runtime.run({"status": np.array([number], np.int32)}, "serving_default")
    assert type(caught.value) is BY_KIND[kind]
    assert caught.value.message == "as asked for"
    runtime.close()


def test_an_unknown_model_and_an_absent_server(triton: str, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="unknown model"):
        remote(tmp_path, "absent", triton)
    with pytest.raises(Unavailable):
        remote(tmp_path, "sum", "127.0.0.1:1")


def test_a_server_that_breaks_its_word_is_not_the_callers_fault(triton: str, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        remote(tmp_path, "odd", triton)
    assert caught.value.reason == "MODEL_SIGNATURES"
    runtime = remote(tmp_path, "lying", triton)
    with pytest.raises(Internal, match="turned"):
        runtime.run({"a": A, "b": A, "word": WORD}, "serving_default")
    runtime.close()


def certificate(folder: Path) -> tuple[bytes, bytes]:
    """A self-signed certificate for localhost, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    (folder / "ca.pem").write_bytes(pem)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return secret, pem


@pytest.mark.tensorflow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")
class TestTensorFlowServing:
    """TensorFlow Serving, on its own stubs."""

    @pytest.fixture
    def serving(self, tmp_path: Path) -> Iterator[dict[str, str]]:
        """Addresses, in plain text and under TLS."""
        tf = pytest.importorskip("tensorflow", reason="needs the [tensorflow] extra")
        from tensorflow_serving.apis import (
            get_model_metadata_pb2,
            predict_pb2,
            prediction_service_pb2_grpc,
        )

        class Server(prediction_service_pb2_grpc.PredictionServiceServicer):  # type: ignore[misc]
            def GetModelMetadata(self, request: object, context: grpc.ServicerContext) -> object:
                if request.model_spec.name != "double":  # type: ignore[attr-defined]
                    context.abort(grpc.StatusCode.NOT_FOUND, "Servable not found for request")
                signatures = get_model_metadata_pb2.SignatureDefMap()
                definition = signatures.signature_def["serving_default"]
                for side, name in ((definition.inputs, "x"), (definition.outputs, "y")):
                    side[name].name, side[name].dtype = f"{name}:0", tf.float32.as_datatype_enum
                    side[name].tensor_shape.CopyFrom(tf.TensorShape([None, 2]).as_proto())
                answer = get_model_metadata_pb2.GetModelMetadataResponse()
                answer.metadata["signature_def"].Pack(signatures)
                return answer

            def Predict(self, request: object, context: grpc.ServicerContext) -> object:
                rows = tf.make_ndarray(request.inputs["x"])  # type: ignore[attr-defined]
                version = request.model_spec.version.value  # type: ignore[attr-defined]
                if version not in (0, 3):
                    context.abort(grpc.StatusCode.NOT_FOUND, "no such version")
                answer = predict_pb2.PredictResponse()
                # In the lists that TensorFlow Serving answers with, not as content.
                answer.outputs["y"].dtype = 1
                answer.outputs["y"].tensor_shape.CopyFrom(tf.TensorShape(rows.shape).as_proto())
                answer.outputs["y"].float_val.extend((rows * 2).ravel().tolist())
                return answer

        secret, pem = certificate(tmp_path)
        server = grpc.server(futures.ThreadPoolExecutor(2))
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Server(), server)
        plain = server.add_insecure_port("127.0.0.1:0")
        tls = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([(secret, pem)]))
        server.start()
        yield {
            "plain": f"127.0.0.1:{plain}",
            "tls": f"localhost:{tls},ca={tmp_path / 'ca.pem'},timeout=20",
            "wrong": f"localhost:{tls},ca={self.other(tmp_path)}",
        }
        server.stop(None).wait()

    @staticmethod
    def other(folder: Path) -> Path:
        """Roots that did not sign the server's certificate."""
        (folder / "other").mkdir()
        certificate(folder / "other")
        return folder / "other/ca.pem"

    def test_a_model_behind_tensorflow_serving(self, serving: dict[str, str], tmp_path: Path) -> None:
        for address in (serving["plain"], serving["tls"]):
            for version in ("", "3"):
                runtime = remote(tmp_path, "double", address, "tfserving", version)
                assert runtime.run({"x": A}, "serving_default")["y"].tolist() == [[2, 4], [6, 8]]
                runtime.close()
        with pytest.raises(NotFound):
            remote(tmp_path, "absent", serving["plain"], "tfserving")
        with pytest.raises(Unavailable):
            remote(tmp_path, "double", serving["wrong"], "tfserving")
        runtime = remote(tmp_path, "double", serving["plain"], "tfserving", "9")
        with pytest.raises(NotFound, match="no such version"):
            runtime.run({"x": A}, "serving_default")
        runtime.close()
