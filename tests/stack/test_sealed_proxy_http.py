"""The HTTP port of `sealane proxy` on a running suite: REST in plaintext on loopback, sealed from there on."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import requests
from light_site import LightSite
from sealed_site import OIP, PRIVATE, Sent, expected, plaintext_bodies, sealed_site
from test_sealed_proxy import SCRIPTS, TRITON, needs_triton

from sealane.client import proxy_http
from sealane.client.proxy import Proxy, ProxyOptions
from sealane.client.proxy_http import HttpPort
from sealane.errors import InvalidArgument
from sealane.protocols.json_values import Json
from sealane.rest.bodies import BODY_BYTES, JSON_BYTES

pytestmark = pytest.mark.stack
INFER, PREDICT = f"/v2/models/{PRIVATE}/infer", f"/v1/models/{PRIVATE}:predict"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightSite]:
    with sealed_site(tmp_path_factory.mktemp("proxy-http")) as site:
        yield site


@pytest.fixture
def sent(site: LightSite, monkeypatch: pytest.MonkeyPatch) -> Sent:
    return Sent(site, monkeypatch)


@pytest.fixture(scope="module", params=[True, False], ids=["sessions", "by itself"])
def sealing(site: LightSite, request: pytest.FixtureRequest) -> Iterator[str]:
    """An address whose requests are sealed in both ways, one after the other."""
    yield from port_of(site, session=request.param)


@pytest.fixture(scope="module")
def address(site: LightSite) -> Iterator[str]:
    """An address, for what does not depend on how requests are sealed."""
    yield from port_of(site, session=True)


def port_of(site: LightSite, *, session: bool) -> Iterator[str]:
    proxy = Proxy(site.client.inference, ProxyOptions({"tier": "edge"}, session=session))
    port = HttpPort(proxy)
    yield f"127.0.0.1:{port.listen('127.0.0.1:0')}"
    port.stop()
    proxy.stop()


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


def tensor(rows: np.ndarray, name: str = "image") -> dict[str, Json]:
    return {"name": name, "datatype": "FP32", "shape": [*rows.shape], "data": rows.ravel().tolist()}


def document(site: LightSite, rows: int = 1) -> dict[str, Json]:
    return {"inputs": [tensor(site.rows[:rows])]}


def outputs_of(answer: dict[str, Json]) -> np.ndarray:
    (output,) = answer["outputs"]  # type: ignore[misc,union-attr]  # a list with one object
    return np.reshape(output["data"], output["shape"])  # type: ignore[index,call-overload,arg-type]


def test_open_inference_in_json(site: LightSite, sealing: str, session: requests.Session) -> None:
    for path in (INFER, f"/v2/models/{PRIVATE}/versions/1/infer", INFER.replace("private", "priv%61te")):
        answered = session.post(f"http://{sealing}{path}", json={"id": "r1", **document(site, 2)}, timeout=20)
        assert answered.status_code == 200, answered.text
        assert answered.json()["id"] == "r1"
        np.testing.assert_allclose(outputs_of(answered.json()), expected(site, 2), atol=1e-6)


def test_open_inference_in_binary(site: LightSite, sealing: str, session: requests.Session, sent: Sent) -> None:
    rows = site.rows[:5] + np.float32(0.123)
    described = {key: value for key, value in tensor(rows).items() if key != "data"}
    described["parameters"] = {"binary_data_size": rows.nbytes}
    head = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    answered = session.post(f"http://{sealing}{INFER}", data=head + rows.tobytes(), headers=headers, timeout=20)
    assert answered.status_code == 200, answered.text
    length = int(answered.headers["inference-header-content-length"])
    (output,) = json.loads(answered.content[:length])["outputs"]
    found = np.frombuffer(answered.content[length:], np.float32).reshape(output["shape"])
    (wanted,) = site.client.inference.predict(PRIVATE, {"image": rows}, sealed=True).values()
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    headers = {"inference-header-content-length": "0"}  # one tensor alone: the proxy asks what the model takes
    raw = session.post(f"http://{sealing}{INFER}", data=rows[:1].tobytes(), headers=headers, timeout=20)
    assert raw.status_code == 200, raw.text
    sent.check_sealed(rows)
    sent.check_sealed(rows[:1])


@needs_triton
def test_tritonclient_over_http_calls_the_proxy_unchanged(site: LightSite, sealing: str, tmp_path: Path) -> None:
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, image=site.rows[:40])
    command = [str(TRITON), str(SCRIPTS / "triton_http_plain.py"), sealing, PRIVATE, str(inputs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])["probabilities"]
    np.testing.assert_allclose(found, expected(site, 40), atol=1e-6)


def test_tensorflow_serving_in_rows_and_columns(site: LightSite, sealing: str, session: requests.Session) -> None:
    rows = site.rows[:2]
    for body, key in (
        ({"instances": rows.tolist()}, "predictions"),
        ({"instances": [{"image": row} for row in rows.tolist()]}, "predictions"),
        ({"inputs": rows.tolist()}, "outputs"),
        ({"inputs": {"image": rows.tolist()}}, "outputs"),
        ({"signature_name": "serving_default", "instances": rows.tolist()}, "predictions"),
    ):
        answered = session.post(f"http://{sealing}{PREDICT}", json=body, timeout=20)
        assert answered.status_code == 200, answered.text
        np.testing.assert_allclose(answered.json()[key], expected(site, 2), atol=1e-6)


def test_no_tensor_leaves_in_plaintext(site: LightSite, sealing: str, session: requests.Session, sent: Sent) -> None:
    rows = site.rows[:1] + np.float32(0.123)
    example = {"examples": [{"image": rows.ravel().tolist()}]}
    calls: list[tuple[str, dict[str, Json], int]] = [
        (INFER, {"inputs": [tensor(rows)]}, 200),
        (f"/v2/models/{PRIVATE}/generate", {"image": rows.ravel().tolist()}, 200),
        (f"/v2/models/{PRIVATE}/infer_stream", {"inputs": [tensor(rows)]}, 200),
        (PREDICT, {"instances": rows.tolist()}, 200),
        (f"/v1/models/{PRIVATE}:classify", example, 200),
        (f"/v1/models/{PRIVATE}:regress", example, 400),  # the model gives ten values; it says so through the seal
    ]
    for path, body, status in calls:
        answered = session.post(f"http://{sealing}{path}", json=body, timeout=20)
        assert answered.status_code == status, answered.text
    sent.check_sealed(rows)


def test_inputs_by_name_and_answers_as_events(site: LightSite, sealing: str, session: requests.Session) -> None:
    model = f"http://{sealing}/v2/models/{PRIVATE}"
    generated = session.post(f"{model}/generate", json={"image": site.rows[0].ravel().tolist()}, timeout=20)
    assert generated.status_code == 200, generated.text
    np.testing.assert_allclose(np.ravel(generated.json()["probabilities"]), expected(site)[0], atol=1e-6)
    streamed = session.post(f"{model}/infer_stream", json=document(site), timeout=20)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    event, end, rest = streamed.text.partition("\n\n")
    assert event.startswith("data: ") and (end, rest) == ("\n\n", "")
    np.testing.assert_allclose(outputs_of(json.loads(event.removeprefix("data: "))), expected(site), atol=1e-6)
    refused = session.post(f"{model}/infer_stream", json={"inputs": [tensor(np.zeros((1, 3)))]}, timeout=20)
    assert (refused.status_code, refused.headers["content-type"]) == (400, "application/json")


def test_what_there_is_to_know_of_a_model(address: str, session: requests.Session, sent: Sent) -> None:
    def told(path: str) -> dict[str, Json]:
        answered = session.get(f"http://{address}{path}", timeout=20)
        assert answered.status_code == 200, answered.text
        return answered.json()  # type: ignore[no-any-return]

    assert [item["name"] for item in told(f"/v2/models/{PRIVATE}")["inputs"]] == ["image"]  # type: ignore[union-attr,index,call-overload]
    assert told(f"/v2/models/{PRIVATE}/ready")["ready"] is True
    assert told("/v2/health/live")["live"] is True
    assert PRIVATE in told("/v2/models")["models"]  # type: ignore[operator]
    (state,) = told(f"/v1/models/{PRIVATE}")["model_version_status"]  # type: ignore[misc,union-attr]
    assert state["state"] == "AVAILABLE"  # type: ignore[index,call-overload]
    assert "serving_default" in json.dumps(told(f"/v1/models/{PRIVATE}/metadata"))
    assert sent.paths and not any("Sealed" in path for path in sent.paths)
    head = session.head(f"http://{address}/v2/models/{PRIVATE}", timeout=20)
    assert head.status_code == 200 and int(head.headers["content-length"]) > 0 and not head.content


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compression_both_ways(site: LightSite, address: str, session: requests.Session, coding: str) -> None:
    body = json.dumps(document(site, 40)).encode()
    packed = gzip.compress(body) if coding == "gzip" else zlib.compress(body)
    headers = {"content-encoding": coding, "accept-encoding": coding}
    answered = session.post(f"http://{address}{INFER}", data=packed, headers=headers, timeout=20)
    assert answered.headers["content-encoding"] == coding
    np.testing.assert_allclose(outputs_of(answered.json()), expected(site, 40), atol=1e-6)
    plain = session.post(f"http://{address}{INFER}", data=body, headers={"accept-encoding": "identity"}, timeout=20)
    assert "content-encoding" not in plain.headers and plain.json() == answered.json()
    cut = session.post(f"http://{address}{INFER}", data=packed[:-9], headers=headers, timeout=20)
    assert cut.status_code == 400
    unknown = session.post(f"http://{address}{INFER}", data=packed, headers={"content-encoding": "br"}, timeout=20)
    assert unknown.status_code == 415


@pytest.mark.parametrize(
    ("verb", "path", "body", "status"),
    [
        ("GET", "/", b"", 404),
        ("GET", "/openapi.json", b"", 404),
        ("POST", f"/v2/models/{PRIVATE}/infer/more", b"{}", 404),
        ("GET", "/v1/nothing", b"", 400),  # as TensorFlow Serving says it
        ("GET", INFER, b"", 405),
        ("PUT", INFER, b"{}", 405),
        ("DELETE", f"/v2/models/{PRIVATE}", b"", 405),
        ("OPTIONS", INFER, b"", 405),
        ("BREW", INFER, b"", 501),
        ("POST", INFER, b"{", 400),
        ("POST", INFER, b"", 400),
        ("POST", INFER, b"[]", 400),
        ("POST", INFER, b"\xff", 400),
        ("POST", PREDICT, b"{", 400),
        ("POST", INFER, b" " * (JSON_BYTES + 1), 413),
        ("POST", "/v2/models/nobody/infer", b'{"inputs": []}', 404),
        ("POST", "/v1/models/nobody:predict", b'{"instances": [1]}', 404),
        ("GET", "/v2/models/nobody", b"", 404),
        ("POST", "/v2/systemsharedmemory/region/a/register", b"{}", 501),
    ],
)
def test_refusals(address: str, session: requests.Session, verb: str, path: str, body: bytes, status: int) -> None:
    answered = session.request(verb, f"http://{address}{path}", data=body, timeout=20)
    assert answered.status_code == status, answered.text
    assert answered.headers["content-type"] == "application/json" and answered.json()["error"]
    assert ("allow" in answered.headers) is (status == 405)
    assert "server" not in answered.headers


def test_a_verb_that_is_wrong_is_told_which_are_right(address: str, session: requests.Session) -> None:
    assert session.get(f"http://{address}{INFER}", timeout=20).headers["allow"] == "POST"
    assert session.post(f"http://{address}/v2/models/{PRIVATE}", timeout=20).headers["allow"] == "GET"


def test_bodies_without_a_length_or_with_too_great_a_one(address: str, session: requests.Session, sent: Sent) -> None:
    pieces = iter([b"{" + b" " * 100_000, b"}"])
    assert session.post(f"http://{address}{INFER}", data=pieces, timeout=20).status_code == 411
    large = session.post(f"http://{address}{INFER}", data=bytes(BODY_BYTES + 1), timeout=60)
    assert large.status_code == 413 and large.headers["connection"] == "close"
    for told in ("content-length: 3\r\ncontent-length: 5", "content-length: +3", "content-length: -1"):
        assert raw(address, f"POST {INFER} HTTP/1.1\r\nhost: 127.0.0.1\r\n{told}\r\n\r\n{{}}   ").startswith(
            b"HTTP/1.1 411 "
        )
    assert raw(address, f"POST {INFER} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 9\r\n\r\n{{}}").startswith(
        b"HTTP/1.1 400 "
    )
    assert not sent.paths


def raw(address: str, request: str) -> bytes:
    """All that is answered to what is no request of any library, until the connection ends."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request.encode())
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize("request_line", ["nonsense", "GET / HTTP/9.9", "GET /" + "a" * 70_000 + " HTTP/1.1"])
def test_what_is_no_request_is_refused_in_json(address: str, request_line: str) -> None:
    answered = raw(address, f"{request_line}\r\n\r\n")
    assert b'{"error":' in answered and b"html" not in answered.lower()


def test_who_waits_for_leave_to_send_a_body_gets_it(site: LightSite, address: str) -> None:
    host, _, port = address.rpartition(":")
    body = json.dumps(document(site)).encode()
    head = f"POST {INFER} HTTP/1.1\r\nhost: {address}\r\nexpect: 100-continue\r\ncontent-length: "
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(f"{head}{len(body)}\r\n\r\n".encode())
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(f"{head}{BODY_BYTES + 1}\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_a_connection_carries_many_requests(site: LightSite, address: str) -> None:
    connection = http.client.HTTPConnection(address, timeout=20)
    body = json.dumps(document(site))
    sockets = set()
    for index in range(12):
        path, status = [(INFER, 200), ("/nothing", 404), ("/v2/models/nobody/infer", 404)][index % 3]
        connection.request("POST", path, body)
        answer = connection.getresponse()
        assert answer.status == status and json.loads(answer.read())
        sockets.add(connection.sock)
    assert len(sockets) == 1 and None not in sockets
    connection.close()


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8501"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-origin"},
        {"host": "evil.example"},
        {"host": "evil.example:8501"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "localhost.evil.example:80"},
        {"host": "10.0.0.1"},
        {"host": ""},
    ],
    ids=str,
)
def test_no_browser_is_served(
    site: LightSite, address: str, session: requests.Session, sent: Sent, headers: dict[str, str]
) -> None:
    for verb, path in (("POST", INFER), ("POST", PREDICT), ("GET", "/v2/models"), ("OPTIONS", INFER), ("GET", "/")):
        answered = session.request(verb, f"http://{address}{path}", json=document(site), headers=headers, timeout=20)
        assert answered.status_code == 403, answered.text
        assert not any(name.lower().startswith("access-control") for name in answered.headers)
    assert not sent.paths


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.2:8501", "[::1]", "[::1]:8501"])
def test_this_machine_may_be_called_by_all_its_names(address: str, session: requests.Session, host: str) -> None:
    assert session.get(f"http://{address}/v2/health/live", headers={"host": host}, timeout=20).status_code == 200


def test_many_at_once(site: LightSite, address: str) -> None:
    statuses, body = list[int](), json.dumps(document(site))

    def call() -> None:
        connection = http.client.HTTPConnection(address, timeout=30)
        for _ in range(3):
            connection.request("POST", INFER, body)
            answer = connection.getresponse()
            answer.read()
            statuses.append(answer.status)
        connection.close()

    threads = [threading.Thread(target=call) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 120


def test_stopping_ends_connections_that_wait_and_none_is_served_later(
    site: LightSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy_http, "CONNECTIONS", 2)
    proxy = Proxy(site.client.inference)
    port = HttpPort(proxy)
    number = port.listen("127.0.0.1:0")
    with pytest.raises(InvalidArgument, match="in use"):
        HttpPort(proxy).listen(f"127.0.0.1:{number}")
    idle = [http.client.HTTPConnection("127.0.0.1", number, timeout=20) for _ in range(2)]
    for connection in idle:
        connection.request("GET", "/v2/health/live")
        assert connection.getresponse().read()
    with socket.create_connection(("127.0.0.1", number), timeout=20) as third:
        assert third.recv(1) == b""  # no room
    begun = time.monotonic()
    port.stop()
    assert time.monotonic() - begun < 5
    for connection in idle:
        assert connection.sock.recv(1) == b""
        connection.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", number), timeout=20)


def test_the_command_serves_both_ports(site: LightSite, session: requests.Session) -> None:
    program = str(Path(sys.executable).with_name("sealane"))
    options = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--require", "tier=edge", "--data", str(site.data)]
    process = subprocess.Popen([program, "proxy", *options], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        _, _, told = process.stderr.readline().strip().partition("listening on ")
        plain, _, rest = told.partition(", HTTP on ")
        with grpc.insecure_channel(plain) as channel:
            body = plaintext_bodies(PRIVATE, site.rows[:1])[OIP + "ModelInfer"]
            assert channel.unary_unary(OIP + "ModelInfer")(body, timeout=20)
        answered = session.post(f"http://{rest}{PREDICT}", json={"instances": site.rows[:1].tolist()}, timeout=20)
        np.testing.assert_allclose(answered.json()["predictions"], expected(site), atol=1e-6)
    finally:
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 0
