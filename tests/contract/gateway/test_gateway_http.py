"""What HTTP clients of the gateway see: both protocols, the same tokens and refusals as over gRPC, limits, events."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import json
import ssl
import struct
import time
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from gateway_harness import PREDICTION, TLS_NAME, Gateway, LaneWorker, double, refuse, wait_for
from http_client import HttpClient

from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import InvalidArgument, ResourceExhausted
from sealane.inference.v1 import lane_service_pb2 as lane_pb
from sealane.rest import bodies, openinference_endpoints, tfserving_endpoints
from sealane.rest.table import Table
from sealane.security import jws
from sealane_inference.routing import Endpoint, Route

StartWorker = Callable[..., LaneWorker]
X = np.arange(8, dtype=np.float32).reshape(2, 4)
INFER = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 4], "data": X.tolist()}]}
DOUBLED = [[0.0, 2.0, 4.0, 6.0], [8.0, 10.0, 12.0, 14.0]]


def route(*endpoints: Endpoint, deployment: str = "d") -> Route:
    return Route("p", deployment, "m", "3", endpoints)


@pytest.fixture
def client(gateway: Gateway) -> Iterator[HttpClient]:
    client = HttpClient(gateway)
    yield client
    client.close()


@pytest.fixture
def serving(gateway: Gateway, start_worker: StartWorker, client: HttpClient) -> HttpClient:
    gateway.routes(route(start_worker("w1").endpoint()))
    return client


def test_health_is_json_for_everybody_and_true_when_it_is(gateway: Gateway, client: HttpClient) -> None:
    assert client.get("/v2/health/live", token="").json == {"live": True}
    before = client.get("/v2/health/ready", token="")
    assert (before.status, before.json["ready"]) == (400, False)
    gateway.routes(route())
    after = client.get("/v2/health/ready", token="")
    assert (after.status, after.json) == (200, {"ready": True, "live": True})
    waiting = client.get("/v2/models/d/ready")
    assert (waiting.status, waiting.json) == (400, {"name": "d", "ready": False})


def test_open_inference_in_json_and_binary(serving: HttpClient) -> None:
    answered = serving.post("/v2/models/d/infer", {**INFER, "id": "7"})
    assert answered.json["id"] == "7"
    assert (answered.json["model_name"], answered.json["model_version"]) == ("d", "3")
    assert answered.json["outputs"] == [
        {"name": "y", "datatype": "FP32", "shape": [2, 4], "data": np.ravel(DOUBLED).tolist()}
    ]
    inputs = [{"name": "x", "datatype": "FP32", "shape": [2, 4], "parameters": {"binary_data_size": 32}}]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    sent = head + X.tobytes()
    for path in ("/v2/models/d/infer", "/v2/models/d/versions/3/infer", "/v2/models/m/infer"):
        answered = serving.post(path, sent, Inference_Header_Content_Length=str(len(head)))
        length = int(answered.headers["inference-header-content-length"])
        assert json.loads(answered.body[:length])["outputs"][0]["parameters"] == {"binary_data_size": 32}
        assert answered.body[length:] == (X * 2).tobytes()
    raw = serving.post("/v2/models/d/infer", X.tobytes(), Inference_Header_Content_Length="0")
    assert raw.body.endswith((X * 2).tobytes())


def test_large_tensors_pass(serving: HttpClient) -> None:
    x = np.random.default_rng(0).random((15_000, 4), dtype=np.float32)
    inputs = [{"name": "x", "datatype": "FP32", "shape": [*x.shape], "parameters": {"binary_data_size": x.nbytes}}]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    answered = serving.post("/v2/models/d/infer", head + x.tobytes(), Inference_Header_Content_Length=str(len(head)))
    assert answered.status == 200
    length = int(answered.headers["inference-header-content-length"])
    assert answered.body[length:] == (x * 2).tobytes()


@pytest.mark.parametrize(
    ("coding", "pack", "unpack"),
    [("gzip", gzip.compress, gzip.decompress), ("deflate", zlib.compress, zlib.decompress)],
)
def test_compression_both_ways(
    serving: HttpClient, coding: str, pack: Callable[[bytes], bytes], unpack: Callable[[bytes], bytes]
) -> None:
    x = np.zeros((300, 4), dtype=np.float32)
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [300, 4], "data": x.tolist()}]}).encode()
    answered = serving.post("/v2/models/d/infer", pack(body), Content_Encoding=coding, Accept_Encoding=coding)
    assert answered.headers["content-encoding"] == coding
    assert json.loads(unpack(answered.body))["outputs"][0]["shape"] == [300, 4]
    predicted = serving.post(
        "/v1/models/d:predict", pack(json.dumps({"instances": x.tolist()}).encode()), Content_Encoding=coding
    )
    assert np.shape(predicted.json["predictions"]) == (300, 4)


def test_a_bomb_costs_its_limit_and_no_more(serving: HttpClient) -> None:
    bomb = gzip.compress(b" " * (bodies.BODY_BYTES + 1), 9)
    assert serving.post("/v2/models/d/infer", bomb, Content_Encoding="gzip").status == 413
    for wrong in (b"x", gzip.compress(b"{}")[:-4], gzip.compress(b"{}") + b"x"):
        assert serving.post("/v2/models/d/infer", wrong, Content_Encoding="gzip").status == 400
    assert serving.post("/v2/models/d/infer", b"{}", Content_Encoding="br").status == 415
    assert serving.post("/v2/models/d/infer", INFER).status == 200


def test_bodies_have_a_limit_and_json_a_smaller_one(serving: HttpClient) -> None:
    wide = b'{"inputs":[' + b" " * bodies.JSON_BYTES
    answered = serving.post("/v2/models/d/infer", wide)
    assert (answered.status, "binary" in answered.error) == (413, True)
    connection = raw_connection(serving.gateway)
    connection.putrequest("POST", "/v2/models/d/infer")
    connection.putheader("authorization", f"Bearer {serving.gateway.authority.token()}")
    connection.putheader("content-length", str(bodies.BODY_BYTES + 1))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def raw_connection(gateway: Gateway) -> http.client.HTTPSConnection:
    context = ssl.create_default_context(cafile=str(gateway.ca_file))
    context.check_hostname = False
    return http.client.HTTPSConnection("127.0.0.1", gateway.ports["http"], context=context, timeout=20)


def test_nobody_older_than_tls_1_3_is_heard(gateway: Gateway) -> None:
    context = ssl.create_default_context(cafile=str(gateway.ca_file))
    context.check_hostname = False
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    for port in ("http", "metrics"):
        connection = http.client.HTTPSConnection("127.0.0.1", gateway.ports[port], context=context, timeout=20)
        with pytest.raises(ssl.SSLError):
            connection.request("GET", "/v2/health/live")


def test_who_is_nobody_is_refused_before_his_body_is_read(serving: HttpClient) -> None:
    connection = raw_connection(serving.gateway)
    connection.putrequest("POST", "/v2/models/d/infer")
    connection.putheader("content-length", "1000")
    connection.endheaders()  # and no body
    answered = connection.getresponse()
    assert answered.status == 401
    assert answered.getheader("www-authenticate") == "Bearer"
    assert "no access token" in json.loads(answered.read())["error"]
    connection.close()


def test_tensorflow_serving_in_rows_and_columns(serving: HttpClient) -> None:
    for at in ("/v1/models/d", "/v1/models/m/versions/3"):
        assert serving.post(f"{at}:predict", {"instances": X.tolist()}).json == {"predictions": DOUBLED}
        assert serving.post(f"{at}:predict", {"inputs": {"x": X.tolist()}}).json == {"outputs": DOUBLED}
        assert serving.get(at).json == {
            "model_version_status": [
                {"version": "3", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
            ]
        }
        told = serving.get(f"{at}/metadata").json
        assert told["model_spec"]["version"] == "3"
        signature = told["metadata"]["signature_def"]["signature_def"]["serving_default"]
        assert signature["inputs"]["x"]["dtype"] == "DT_FLOAT"
        assert signature["inputs"]["x"]["tensor_shape"]["dim"][0]["size"] == "-1"
    answered = serving.post("/v1/models/d:predict", b'{"instances":[[NaN,Infinity,-Infinity,0.1]]}')
    assert answered.body == b'{"predictions":[[NaN,Infinity,-Infinity,0.2]]}'


def test_classify_and_regress(gateway: Gateway, start_worker: StartWorker, client: HttpClient) -> None:
    asked: list[tfs.ClassificationRequest | tfs.RegressionRequest] = []

    def answer(call: lane_pb.CallFrame) -> lane_pb.ReplyFrame:
        if call.method == PREDICTION + "Classify":
            asked.append(tfs.ClassificationRequest.FromString(call.payload))
            classified = tfs.ClassificationResponse()
            classified.result.classifications.add().classes.add(label="cat", score=0.5)
            return lane_pb.ReplyFrame(payload=classified.SerializeToString())
        asked.append(tfs.RegressionRequest.FromString(call.payload))
        regressed = tfs.RegressionResponse()
        regressed.result.regressions.add(value=0.1)
        return lane_pb.ReplyFrame(payload=regressed.SerializeToString())

    gateway.routes(route(start_worker("w1", answer).endpoint()))
    body = {"examples": [{"a": 1.5}]}
    assert client.post("/v1/models/d:classify", body).json == {"results": [[["cat", 0.5]]]}
    assert client.post("/v1/models/d:regress", body).json == {"results": [0.1]}
    for request in asked:
        assert request.input.example_list.examples[0].features.feature["a"].float_list.value == [1.5]


def test_signatures_are_asked_for_once_and_shown_to_nobody_else(
    gateway: Gateway, start_worker: StartWorker, client: HttpClient
) -> None:
    worker = start_worker("w1")
    gateway.routes(route(worker.endpoint()))
    for _ in range(3):
        assert client.post("/v1/models/d:predict", {"instances": X.tolist()}).status == 200
    assert [call.method.rpartition("/")[2] for call in worker.calls].count("GetModelMetadata") == 1
    other = f"Bearer {gateway.authority.token(project='q')}"
    stranger = client.post("/v1/models/d:predict", {"instances": [["no float"]]}, token=other)
    assert (stranger.status, stranger.error) == (404, "Servable not found for request: Latest(d)")
    viewer = f"Bearer {gateway.authority.token('deploy')}"
    assert client.post("/v1/models/d:predict", {"instances": [[1]]}, token=viewer).status == 403


def test_refusals_have_the_known_statuses_and_texts(
    gateway: Gateway, start_worker: StartWorker, client: HttpClient
) -> None:
    gateway.routes(route(start_worker("w1").endpoint()), route(deployment="e"))
    wrong_shape = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}]}
    deployer = f"Bearer {gateway.authority.token('deploy')}"
    cases = [
        (client.post("/v2/models/x/infer", INFER), 404, "Request for unknown model: 'x'"),
        (client.post("/v2/models/d/versions/9/infer", INFER), 404, "'d' version 9"),
        (client.post("/v2/models/d/infer", wrong_shape), 400, "has shape [2], the model takes [-1, 4]"),
        (client.post("/v2/models/d/infer", b"{"), 400, "JSON Parse error"),
        (client.post("/v2/models/d/infer", {}), 400, "Unable to parse 'inputs'"),
        (client.post("/v2/models/d/infer", INFER, token=deployer), 403, "'infer'"),
        (client.post("/v2/models/d/infer", INFER, token=""), 401, "no access token"),
        (client.post("/v2/models/d/infer", INFER, token="Bearer x"), 401, ""),
        (client.post("/v2/models/d/infer", INFER, grpc_timeout="soon"), 400, "grpc-timeout"),
        (client.get("/v1/models/x"), 404, "Servable not found for request: Latest(x)"),
        (client.post("/v1/models/d/versions/9:predict", {"instances": [1]}), 404, "Specific(d, 9)"),
        (client.get("/v1/models/d/versions/abc"), 400, "Failed to convert version: abc to numeric."),
        (client.post("/v1/models/d:predict", {"x": 1}), 400, "Missing 'inputs' or 'instances' key"),
        (client.get("/v1/models/d:other"), 400, "Malformed request: GET /v1/models/d:other"),
        (client.get("/v2/nix"), 404, "/openapi.json"),
        (client.get("/v2/models/d/infer"), 405, "Method Not Allowed"),
        (client.get("/v2/systemsharedmemory/status"), 501, "not served"),
        (client.get("/v2/logging", token=""), 401, "no access token"),
    ]
    for answered, status, text in cases:
        assert answered.status == status, answered
        assert text in answered.error
        assert answered.headers["content-type"] == "application/json"


def test_overload_and_quota_say_when_to_come_again(
    gateway: Gateway, start_worker: StartWorker, client: HttpClient
) -> None:
    def full(call: lane_pb.CallFrame) -> lane_pb.ReplyFrame:
        return refuse(ResourceExhausted("the queue is full; back off", reason="QUEUE_FULL", retry_after=1.4))

    gateway.routes(route(start_worker("w1", full).endpoint()))
    answered = client.post("/v2/models/d/infer", INFER)
    assert (answered.status, answered.headers["retry-after"]) == (503, "2")


def test_a_deadline_is_the_calls(gateway: Gateway, start_worker: StartWorker, client: HttpClient) -> None:
    worker = start_worker("w1", lambda call: None)
    gateway.routes(route(worker.endpoint()))
    answered = client.post("/v2/models/d/infer", INFER, grpc_timeout="300m")
    assert answered.status == 504
    assert worker.calls[0].timeout_us <= 300_000


@pytest.mark.parametrize("method", ["infer", "infer_stream"])
def test_who_leaves_takes_his_call_with_him(gateway: Gateway, start_worker: StartWorker, method: str) -> None:
    worker = start_worker("w1", lambda call: None)
    gateway.routes(route(worker.endpoint()))
    connection = raw_connection(gateway)
    headers = {"authorization": f"Bearer {gateway.authority.token()}"}
    connection.request("POST", f"/v2/models/d/{method}", json.dumps(INFER), headers)
    assert worker.received.wait(10)
    lane = gateway.present.lane("w1")
    assert lane is not None
    assert lane.in_flight == 1
    assert connection.sock is not None
    connection.sock.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SO_LINGER: leave without a word
    connection.close()
    wait_for(lambda: lane.in_flight == 0)


def proof(key: Ed25519PrivateKey, token: str, verb: str, url: str, identifier: str) -> str:
    public = jws.public_jwk(key.public_key().public_bytes_raw())
    ath = jws.encode(hashlib.sha256(token.encode()).digest())
    claims = {"jti": identifier, "htm": verb, "htu": url, "iat": int(time.time()), "ath": ath}
    return jws.sign(key, {"typ": "dpop+jwt", "jwk": public}, claims)


def test_bound_tokens_need_a_proof_for_this_very_request(gateway: Gateway, serving: HttpClient) -> None:
    key = Ed25519PrivateKey.generate()
    token = gateway.authority.token(thumbprint=jws.thumbprint(key.public_key().public_bytes_raw()))
    url = f"{serving.base}/v2/models/d/infer"

    def call(dpop: str, scheme: str = "DPoP", **headers: str) -> int:
        return serving.post(
            "/v2/models/d/infer", INFER, token=f"{scheme} {token}", **headers, **({"dpop": dpop} if dpop else {})
        ).status

    good = proof(key, token, "POST", url, "1")
    assert call(good) == 200
    assert call(good) == 401  # used
    assert call("") == 401
    assert call(proof(key, token, "GET", url, "2")) == 401
    assert call(proof(key, token, "POST", f"{serving.base}/v2/models/e/infer", "3")) == 401
    assert call(proof(key, token, "POST", "/inference.GRPCInferenceService/ModelInfer", "4")) == 401
    assert call(proof(key, token, "POST", "https://elsewhere/v2/models/d/infer", "5"), host="elsewhere") == 401
    assert call(proof(key, token, "POST", "", "6"), host="elsewhere") == 401
    assert call(proof(Ed25519PrivateKey.generate(), token, "POST", url, "7")) == 401


def test_generate_in_one_answer_and_as_events(serving: HttpClient) -> None:
    row = {"x": [1.0, 2.0, 3.0, 4.0], "id": "7"}
    expected = {"id": "7", "model_name": "d", "model_version": "3", "y": [2.0, 4.0, 6.0, 8.0]}
    assert serving.post("/v2/models/d/generate", row).json == expected
    assert list(serving.events("/v2/models/d/generate_stream", row)) == [expected]
    (event,) = serving.events("/v2/models/d/versions/3/infer_stream", INFER)
    assert event["outputs"][0]["data"] == np.ravel(DOUBLED).tolist()
    assert "parameters" not in event


def test_a_stream_that_cannot_begin_is_a_refusal(
    gateway: Gateway, start_worker: StartWorker, client: HttpClient
) -> None:
    def answer(call: lane_pb.CallFrame) -> lane_pb.ReplyFrame:
        if call.method.endswith("ModelInfer"):
            return refuse(InvalidArgument("the model does not like it; send less"))
        return double(call)

    gateway.routes(route(start_worker("w1", answer).endpoint()))
    cases = [
        (client.post("/v2/models/d/generate_stream", {"x": [1, 2, 3, 4]}), 400, "does not like it"),
        (client.post("/v2/models/d/generate_stream", {"x": [1, 2, 3]}), 400, "can not convert input 'x'"),
        (client.post("/v2/models/x/generate_stream", {"x": [1]}), 404, "unknown model"),
        (client.post("/v2/models/d/generate_stream", {"x": [1]}, token=""), 401, "no access token"),
    ]
    for answered, status, text in cases:
        assert (answered.status, answered.headers["content-type"]) == (status, "application/json")
        assert text in answered.error


def test_the_repository_is_told_as_triton_and_kserve_tell_it(gateway: Gateway, serving: HttpClient) -> None:
    gateway.routes(
        route(*gateway.present.reachable(next(iter(gateway.present.table.routes["p"].values())))), route(deployment="e")
    )
    assert serving.get("/v2/models").json == {"models": ["d", "e"]}
    found = serving.post("/v2/repository/index").json
    assert [(model["name"], model["version"]) for model in found] == [("d", "3"), ("e", "3")]
    assert [model["name"] for model in serving.post("/v2/repository/index", {"ready": True}).json] == ["d"]
    assert serving.post("/v2/repository/index", {"ready": "yes"}).status == 400


def test_the_document_says_what_is_served_and_nothing_else(
    gateway: Gateway, start_worker: StartWorker, client: HttpClient
) -> None:
    gateway.routes(route(start_worker("w1", lambda call: refuse(InvalidArgument("no"))).endpoint()))
    serving = client
    document = serving.get("/openapi.json", token="").json
    assert document["openapi"].startswith("3.1")
    routed = {
        (item.verb.lower(), item.path)
        for item in Table([*openinference_endpoints.endpoints(), *tfserving_endpoints.endpoints()]).endpoints
    }
    assert {(verb, path) for path, verbs in document["paths"].items() for verb in verbs} == routed
    names = [operation["operationId"] for verbs in document["paths"].values() for operation in verbs.values()]
    assert len(set(names)) == len(names)
    values = {"model": "nothing", "version": "1", "label": "l", "region": "r"}
    for path, verbs in document["paths"].items():
        for verb, operation in verbs.items():
            assert {item["name"] for item in operation["parameters"]} <= values.keys()
            answered = serving.call(verb.upper(), path.format(**values), b"{}")
            assert answered.status in (200, 400, 403, 404, 501), (path, answered)
            nobody = serving.call(verb.upper(), path.format(**values), b"{}", token="")
            assert nobody.status == (200 if operation.get("security") == [] else 401)


def test_what_was_counted_is_told_at_the_known_paths(gateway: Gateway, serving: HttpClient) -> None:
    for _ in range(3):
        assert serving.post("/v2/models/d/infer", INFER).status == 200
    assert serving.post("/v2/models/d/infer", {"inputs": []}).status == 400
    assert serving.post("/v1/models/d:predict", {"instances": X.tolist()}).status == 200
    for index in range(5):
        serving.post(f"/v2/models/unknown-{index}/infer", INFER)
        serving.get(f"/v2/unknown/{index}")
    scraper = HttpClient(gateway, "metrics")
    pages = [scraper.get(path, token="") for path in ("/metrics", "/monitoring/prometheus/metrics")]
    for page in pages:
        assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
        lines = page.body.decode().splitlines()
        assert 'nv_inference_request_success{model="d",version="3",project="p"} 4' in lines
        assert 'nv_inference_request_failure{model="d",version="3",project="p"} 1' in lines
        assert ':tensorflow:serving:request_count{model_name="d",status="OK",project="p"} 1' in lines
        assert "unknown-" not in page.body.decode()
        assert not any(secret in page.body.decode() for secret in (gateway.authority.token()[:20], "camera"))
    assert scraper.get("/v2/health/live", token="").status == 404
    assert serving.get("/metrics").status == 404
    scraper.close()


def test_callers_are_told_apart_by_their_headers_alone(serving: HttpClient) -> None:
    token = f"Bearer {serving.gateway.authority.token()}"
    connection = raw_connection(serving.gateway)
    connection.putrequest("GET", "/v2/models/d")
    for _ in range(2):
        connection.putheader("authorization", token)
    connection.endheaders()
    assert connection.getresponse().status == 401
    connection.close()
    basic = base64.b64encode(b"a:b").decode()
    assert serving.get("/v2/models/d", token=f"Basic {basic}").status == 401
    assert TLS_NAME not in serving.get("/v2/models/d").body.decode()


PATHS = [
    "//",
    "/v2//",
    "/v2/models//infer",
    "/v2/models/%00/infer",
    "/v2/models/%ff%fe/infer",
    "/v2/models/..%2f..%2fetc/infer",
    "/v2/models/d/versions/%F0%9F%98%80/infer",
    "/v2/models/d/versions/99999999999999999999999/infer",
    "/v1/models/d/versions/-1:predict",
    "/v1/models/d/versions/99999999999999999999999:predict",
    "/v1/models/d/labels/a%20b:predict",
    "/v2/models/" + "x" * 5000 + "/infer",
    "/v2/models/d/infer?a=1&b",
]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[:30])
def test_odd_paths_are_refused_and_harm_nobody(serving: HttpClient, path: str) -> None:
    answered = serving.post(path, b'{"instances":[[1,2,3,4]]}')
    assert answered.status in (400, 404), answered
    assert serving.post("/v2/models/d/infer", INFER).status == 200


def test_mutated_bodies_are_never_a_bug_of_ours(serving: HttpClient) -> None:
    """Bytes changed, cut out, doubled: answers and refusals of the caller's, and nothing else."""
    random = np.random.default_rng(5)
    bodies = {
        "/v2/models/d/infer": json.dumps({**INFER, "parameters": {"priority": 1}, "outputs": [{"name": "y"}]}).encode(),
        "/v2/models/d/generate": b'{"x": [1, 2, 3, 4], "parameters": {"priority": 2}}',
        "/v1/models/d:predict": b'{"signature_name": "serving_default", "instances": [{"x": [1, 2, 3, 4]}]}',
        "/v2/repository/index": b'{"ready": true}',
        "/v2/repository/models/d/load": b'{"parameters": {"config": "{}", "file:1/m": "YQ=="}}',
    }
    for path, body in bodies.items():
        for _ in range(60):
            changed = bytearray(body)
            for _ in range(random.integers(1, 4)):
                at, size = int(random.integers(len(changed))), int(random.integers(1, 6))
                what = random.integers(3)
                if what == 0:
                    changed[at : at + size] = random.bytes(size)
                elif what == 1:
                    changed[at : at + size] = b""
                else:
                    changed[at:at] = changed[at : at + size] * 2
                changed = changed or bytearray(b" ")
            answered = serving.post(path, bytes(changed))
            assert answered.status in (200, 400, 403, 404), (bytes(changed), answered)
            for leak in ("Traceback", "/src/", "site-packages", "Error:"):
                assert leak not in answered.body.decode()


def test_a_head_has_a_limit(serving: HttpClient) -> None:
    assert serving.get("/v2", x_large="x" * 20_000).status in (400, 431)  # as it comes in pieces or whole
    assert serving.get("/v2", x_large="x" * 8_000).status == 200
