"""Large bodies at the gateway's HTTP face: other callers do not wait for them, and they do not stay."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from gateway_harness import Authority, Gateway, LaneWorker, wait_for
from http_client import HttpClient

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import Unavailable
from sealane.inference.v1 import lane_service_pb2 as pb
from sealane.protocols import json_values
from sealane_inference import http_converter, http_face, http_inflow, http_sending
from sealane_inference.http_conversion import Frame
from sealane_inference.http_converter import Converter
from sealane_inference.http_inflow import Inflow
from sealane_inference.routing import Endpoint, Route

StartWorker = Callable[..., LaneWorker]
ROWS = np.arange(40_000, dtype=np.float32).reshape(10_000, 4)
INFER = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [10_000, 4], "data": ROWS.tolist()}]}
ANSWER = 16 << 20
SMALL = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}


def much(call: pb.CallFrame) -> pb.ReplyFrame:
    """An answer of 16 MiB to a small question."""
    told = oip.ModelInferResponse(model_name="d", raw_output_contents=[bytes(ANSWER)])
    told.outputs.add(name="y", datatype="FP32", shape=[ANSWER // 4])
    return pb.ReplyFrame(payload=told.SerializeToString())


def route(*endpoints: Endpoint) -> Route:
    return Route("p", "d", "m", "3", endpoints)


@pytest.fixture
def serving(gateway: Gateway, start_worker: StartWorker) -> Iterator[HttpClient]:
    gateway.routes(route(start_worker("w1").endpoint()))
    client = HttpClient(gateway)
    yield client
    client.close()


@pytest.fixture
def read_here(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the JSON that the gateway itself reads and writes."""
    sizes: list[int] = []
    parse, dump = json_values.parse, json_values.dump

    def parsed(body: bytes) -> dict[str, object]:
        sizes.append(len(body))
        return parse(body)

    def dumped(document: object) -> bytes:
        sizes.append(len(told := dump(document)))
        return told

    monkeypatch.setattr(json_values, "parse", parsed)
    monkeypatch.setattr(json_values, "dump", dumped)
    return sizes


def test_large_json_is_read_and_written_beside_the_gateway(serving: HttpClient, read_here: list[int]) -> None:
    doubled = (ROWS * 2).tolist()
    answered = serving.post("/v2/models/d/infer", {**INFER, "id": "7"})
    (output,) = answered.json["outputs"]
    assert (answered.json["id"], output["shape"]) == ("7", [10_000, 4])
    np.testing.assert_array_equal(output["data"], np.ravel(doubled))
    assert serving.post("/v1/models/d:predict", {"instances": ROWS.tolist()}).json == {"predictions": doubled}
    assert serving.post("/v1/models/d:predict", {"inputs": ROWS.tolist()}).json == {"outputs": doubled}
    generated = serving.post("/v2/models/d/generate", {"x": np.ravel(ROWS).tolist()}).json
    np.testing.assert_array_equal(generated["y"], np.ravel(doubled))
    (event,) = serving.events("/v2/models/d/infer_stream", INFER)
    np.testing.assert_array_equal(event["outputs"][0]["data"], np.ravel(doubled))
    binary = serving.post("/v2/models/d/infer", {**INFER, "parameters": {"binary_data_output": True}})
    assert binary.body.endswith((ROWS * 2).tobytes())
    assert max(read_here) <= http_inflow.INLINE_BYTES
    assert read_here  # small documents are read where they come


def test_what_is_wrong_in_large_json_is_said_as_in_small(serving: HttpClient, read_here: list[int]) -> None:
    wrong = {"inputs": [{**INFER["inputs"][0], "shape": [1, 4]}]}
    answered = serving.post("/v2/models/d/infer", wrong)
    assert answered.status == 400
    assert "Shape does not match true shape" in answered.error
    assert serving.post("/v2/models/d/infer", json.dumps(INFER).encode()[:-1]).error.startswith("JSON Parse error")
    assert "no list" in serving.post("/v1/models/d:classify", b'{"examples": 1' + b" " * 100_000 + b"}").error
    assert serving.post("/v2/repository/index", b" " * 300_000 + b"{}").status == 413
    assert max(read_here) <= http_inflow.INLINE_BYTES


def test_an_answer_too_large_for_json_is_to_be_asked_for_in_binary(gateway: Gateway, start_worker: StartWorker) -> None:
    gateway.routes(route(start_worker("w1", much).endpoint()))
    client = HttpClient(gateway)
    refused = client.post("/v2/models/d/infer", SMALL)
    assert (refused.status, "in binary" in refused.error) == (400, True)
    answered = client.post("/v2/models/d/infer", {**SMALL, "parameters": {"binary_data_output": True}})
    assert answered.status == 200
    assert len(answered.body) > ANSWER
    client.close()


def raw(gateway: Gateway) -> ssl.SSLSocket:
    """A connection of somebody who takes little at a time."""
    context = ssl.create_default_context(cafile=str(gateway.ca_file))
    context.check_hostname = False
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.settimeout(20)
    plain.connect(("127.0.0.1", gateway.ports["http"]))
    return context.wrap_socket(plain)


def ask_for_much(gateway: Gateway) -> ssl.SSLSocket:
    """Ask, and read the beginning of the answer alone."""
    body = json.dumps({**SMALL, "parameters": {"binary_data_output": True}}).encode()
    connection = raw(gateway)
    connection.sendall(
        f"POST /v2/models/d/infer HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {gateway.authority.token()}\r\n"
        f"content-length: {len(body)}\r\n\r\n".encode()
        + body
    )
    assert connection.recv(12).startswith(b"HTTP/1.1")
    return connection


def test_answers_that_nobody_reads_are_counted_and_ended(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    inflow = Inflow(ANSWER + (8 << 20))
    monkeypatch.setattr(http_face, "Inflow", lambda: inflow)
    monkeypatch.setattr(http_sending, "ANSWER_SECONDS", 3.0)
    gateway = Gateway(tmp_path, authority)
    worker = LaneWorker(gateway, "w1", much)
    client = HttpClient(gateway)
    try:
        gateway.routes(route(worker.endpoint()))
        with ask_for_much(gateway) as held:
            assert inflow.left <= 8 << 20
            other = client.post("/v2/models/d/infer", {**SMALL, "parameters": {"binary_data_output": True}})
            assert (other.status, "retry-after" in other.headers) == (503, True)
            wait_for(lambda: inflow.left == ANSWER + (8 << 20), 20)
            with pytest.raises((OSError, EOFError)):
                read_whole(held)
    finally:
        client.close()
        worker.die()
        gateway.stop()


def read_whole(connection: ssl.SSLSocket) -> None:
    left = ANSWER
    while left > 0:
        piece = connection.recv(1 << 20)
        if not piece:
            raise EOFError
        left -= len(piece)


def test_a_process_that_dies_is_replaced() -> None:
    async def run() -> None:
        converter = Converter()
        job = Frame({"ask": "infer", "target": ["d", "", ""], "headers": {}}, (json.dumps(INFER).encode(),))
        try:
            assert (await converter.run(job)).parts
            (process,) = converter._idle
            process.process.kill()
            await process.process.wait()
            with pytest.raises(Unavailable):
                await converter.run(job)
            assert (await converter.run(job)).parts
        finally:
            await converter.close()

    asyncio.run(run())


def test_processes_end_when_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_converter, "IDLE_SECONDS", 0.1)

    async def run() -> None:
        converter = Converter()
        job = Frame({"ask": "infer", "target": ["d", "", ""], "headers": {}}, (json.dumps(INFER).encode(),))
        await converter.run(job)
        (process,) = converter._idle
        async with asyncio.timeout(20):
            assert await process.process.wait() == 0
        assert (await converter.run(job)).parts
        await converter.close()

    asyncio.run(run())


def test_callers_that_leave_take_no_process_with_them() -> None:
    async def run() -> None:
        converter = Converter()
        job = Frame({"ask": "infer", "target": ["d", "", ""], "headers": {}}, (json.dumps(INFER).encode(),))
        leaving = [asyncio.ensure_future(converter.run(job)) for _ in range(10)]
        await asyncio.sleep(0.05)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        assert (await converter.run(job)).parts
        await converter.close()

    asyncio.run(run())


def test_a_process_ends_with_the_gateway_whatever_becomes_of_it() -> None:
    started = subprocess.Popen(
        [sys.executable, "-P", "-m", "sealane_inference.http_conversion"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ,
    )
    assert started.stdin is not None and started.stdout is not None
    started.stdin.close()
    assert started.wait(20) == 0
    started.stdout.close()
