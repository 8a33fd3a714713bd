"""The rows of the Open Inference Protocol: what each client does, and what must come of it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from calling import Answer, Request, Row, Tensor, equal, real, refused, values

A, B = [1.0, 2.0, 3.0, 4.0], [10.0, 0.5, 2.0, 1.0]
ROWS: dict[str, Row] = {}


def row(function: Callable) -> Callable:
    """Name a row after its function."""
    ROWS[function.__name__] = function
    return function


def pair(**told: object) -> Request:
    """A request to the model with two inputs and two outputs."""
    return Request("pair", {"a": real(A, B), "b": real(B, A)}, **told)


def echo(datatype: str = "FP32", **told: object) -> Request:
    """A request to the model that gives back what it gets."""
    return Request(f"echo-{datatype.lower()}", {"x": (datatype, values(datatype))}, **told)


def slow(client, x: float = 1.0, **told: object) -> Request:
    """A request to a model that takes its time."""
    return Request(f"slow-{client.site.place}", {"x": real([x])}, **told)


def check_pair(answer: Answer) -> None:
    a, b = np.array([A, B], np.float32), np.array([B, A], np.float32)
    equal(sorted(answer.outputs), ["product", "total"])
    equal(answer.outputs["total"], a + b)
    equal(answer.outputs["product"], a * b)


# -- the server and its models -----------------------------------------------------------------------


@row
def live(client) -> None:
    equal(client.live(), True)


@row
def ready(client) -> None:
    equal(client.ready(), True)


@row
def health(client) -> None:
    equal(client.health(), "SERVING")


@row
def server_metadata(client) -> None:
    name, extensions = client.server_metadata()
    equal(name, "sealane")
    wanted = {"classification", "sequence", "statistics", "model_configuration", "binary_tensor_data"}
    if client.site.place == "gateway":
        wanted.add("model_repository")
    equal(wanted - set(extensions), set())
    equal({"system_shared_memory", "cuda_shared_memory", "trace", "logging"} & set(extensions), set())


@row
def model_ready(client) -> None:
    equal(client.model_ready("pair"), True)


@row
def model_not_ready(client) -> None:
    """A model that is not there is not ready, which is no error, as with Triton."""
    equal(client.model_ready("nobody"), False)


@row
def model_metadata(client) -> None:
    name, versions, inputs, outputs = client.model_metadata("pair")
    equal((name, list(versions)), ("pair", ["1"]))
    equal({key: (kind, list(shape)) for key, kind, shape in inputs}, {"a": ("FP32", [-1, 4]), "b": ("FP32", [-1, 4])})
    equal(sorted(key for key, _, _ in outputs), ["product", "total"])


@row
def model_config(client) -> None:
    name, inputs, batch = client.model_config("pair")
    equal((name, sorted(inputs)), ("pair", ["a", "b"]))
    equal(batch > 0, True)


@row
def model_statistics(client) -> None:
    before = client.statistics("pair")
    client.infer(pair())
    deadline = time.monotonic() + 10
    while client.statistics("pair") <= before:
        if time.monotonic() > deadline:
            raise AssertionError("a request is not counted")
        time.sleep(0.05)


@row
def repository_index(client) -> None:
    states = client.index()
    equal(states.get(("pair", "1")), "READY")
    if client.site.place == "gateway":  # a worker may just have it, for a client of the gateway
        equal(("spare", "1") in states, False)


@row
def repository_load(client) -> None:
    """At a worker these say where to go."""
    if client.site.place == "worker":
        refused(lambda: client.load("spare"), "UNIMPLEMENTED", "at the gateway")
        refused(lambda: client.unload("spare"), "UNIMPLEMENTED", "at the gateway")
        return
    client.load("spare")
    deadline = time.monotonic() + 40
    while not client.model_ready("spare"):
        if time.monotonic() > deadline:
            raise AssertionError("it was not loaded in 40 s")
        time.sleep(0.1)
    client.unload("spare")
    while True:
        try:
            if not client.model_ready("spare"):
                break
        except Exception as error:
            if "unknown model" in str(error).lower():
                break
            raise
        if time.monotonic() > deadline:
            raise AssertionError("it was not unloaded")
        time.sleep(0.1)
    refused(lambda: client.load("nobody"), "NOT_FOUND")


@row
def shared_memory_refused(client) -> None:
    refused(client.shared_memory, "UNIMPLEMENTED")


@row
def reflection(client) -> None:
    equal(
        {"inference.GRPCInferenceService", "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"}
        - set(client.reflected()),
        set(),
    )


# -- inference ---------------------------------------------------------------------------------------


@row
def infer(client) -> None:
    """Several inputs and outputs, contents raw."""
    check_pair(client.infer(pair()))


@row
def infer_typed(client) -> None:
    """Contents in typed fields; JSON over HTTP."""
    check_pair(client.infer(pair(typed=True)))


@row
def output_selection(client) -> None:
    equal(list(client.infer(pair(outputs=("product",))).outputs), ["product"])


@row
def classification(client) -> None:
    found = client.infer(pair(outputs=("total",), classes=2)).outputs["total"]
    told = [[item.decode() if isinstance(item, bytes) else item for item in line] for line in found.tolist()]
    equal([[item.split(":")[1] for item in line] for line in told], [["0", "2"], ["0", "2"]])
    equal([float(line[0].split(":")[0]) for line in told], [11.0, 11.0])


@row
def request_id(client) -> None:
    equal(client.infer(pair(id="request-7")).id, "request-7")


@row
def version_number(client) -> None:
    answer = client.infer(pair(version="1"))
    equal((answer.model, answer.version), ("pair", "1"))


@row
def versions_and_labels(client) -> None:
    for version, wanted in (("1", 1), ("2", 2), *client.site.labels.items(), ("", 2)):
        request = replace(pair(version=version), model="shelf")
        equal(client.infer(request).version, str(wanted))


@row
def priority(client) -> None:
    check_pair(client.infer(pair(priority=1)))


@row
def timeout_parameter(client) -> None:
    """Triton's timeout in microseconds: one that is too short ends the call, a long one does not."""
    check_pair(client.infer(pair(timeout=20_000_000)))
    refused(lambda: client.infer(slow(client, timeout=1)), "DEADLINE_EXCEEDED")


@row
def deadline(client) -> None:
    """The client's own."""
    client.infer(slow(client))  # what was left before is done: a busy model would refuse at once
    refused(lambda: client.infer(slow(client, seconds=0.05)), "DEADLINE_EXCEEDED")
    check_pair(client.infer(pair()))


@row
def cancellation(client) -> None:
    """A call that its client leaves is over, and the next is answered."""
    refused(lambda: client.infer(slow(client, cancel=0.05)), "CANCELLED")
    check_pair(client.infer(pair()))


@row
def sequence(client) -> None:
    number = 1 + secrets.randbelow(1 << 40)
    sums = [
        client.infer(Request("counter", {"x": real([float(x)])}, sequence=(number, x == 1, x == 4)))
        for x in (1, 2, 3, 4)
    ]
    equal([answer.outputs["sum"].item() for answer in sums], [1.0, 3.0, 6.0, 10.0])
    late = Request("counter", {"x": real([1.0])}, sequence=(number, False, False))
    refused(lambda: client.infer(late), "INVALID_ARGUMENT", "start")


@row
def ensemble(client) -> None:
    answer = client.infer(Request("chain", {"left": real(A), "right": real(B)}))
    equal(answer.outputs["again"], np.array([A], np.float32) + np.array([B], np.float32))


@row
def large(client) -> None:
    """Eight images of 600,000 bytes in one call."""
    images = np.random.default_rng(7).integers(0, 256, (8, 200, 1000, 3), np.uint8)
    answer = client.infer(Request("pixels", {"image": ("UINT8", images)}))
    np.testing.assert_allclose(answer.outputs["mean"], images.mean((1, 2, 3)), rtol=1e-3)


@row
def compression_gzip(client) -> None:
    _compressed(client, "gzip")


@row
def compression_deflate(client) -> None:
    _compressed(client, "deflate")


def _compressed(client, coding: str) -> None:
    """Large enough for the answer to be compressed too."""
    x = np.tile(np.arange(50, dtype=np.float32), (20, 1))
    equal(client.infer(Request("echo-fp32", {"x": ("FP32", x)}, coding=coding)).outputs["y"], x)


def _datatype(datatype: str, client) -> None:
    """Raw, and typed where the client has that form of it."""
    equal(client.infer(echo(datatype)).outputs["y"], values(datatype))
    if datatype in client.typed:
        equal(client.infer(echo(datatype, typed=True)).outputs["y"], values(datatype))


for _name in ("BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"):
    ROWS[f"datatype_{_name}"] = partial(_datatype, _name)
for _name in ("FP16", "BF16", "FP32", "FP64", "BYTES"):
    ROWS[f"datatype_{_name}"] = partial(_datatype, _name)


# -- streams -----------------------------------------------------------------------------------------


def _streamed(client, requests: list[Request], **told: object) -> list:
    return client.stream(requests, **told)


@row
def infer_streamed(client) -> None:
    (answer,) = _streamed(client, [pair(id="1")])
    check_pair(answer)


@row
def stream_in_order(client) -> None:
    """A slow request first, then quick ones: the answers come in the order of the requests."""
    requests = [slow(client, 7.0, id="0")]
    requests += [Request("echo-fp32", {"x": real([float(x)])}, id=str(x)) for x in range(1, 20)]
    answers = _streamed(client, requests)
    equal([answer.id for answer in answers], [str(x) for x in range(20)])
    equal([answer.outputs["y"].item() for answer in answers], [7.0, *map(float, range(1, 20))])


def _with_an_error() -> list[Request]:
    return [echo(id="0"), Request("nobody", {"x": real([1.0])}, id="1"), echo(id="2")]


@row
def stream_error_in_band(client) -> None:
    """A refused request leaves the stream open."""
    first, second, third = _streamed(client, _with_an_error())
    equal((first.id, third.id), ("0", "2"))
    equal("unknown model" in str(second).lower(), True)


@row
def stream_error_as_status(client) -> None:
    """With the header `triton_grpc_error` it ends the stream with a status."""
    found = _streamed(client, _with_an_error()[:2], grpc_errors=True)
    equal(isinstance(found[-1], Exception), True)
    refused(lambda: _raise(found[-1]), "NOT_FOUND", "unknown model")


def _raise(error: Exception) -> None:
    raise error


# -- what must be refused ----------------------------------------------------------------------------


@row
def unknown_model(client) -> None:
    refused(lambda: client.infer(replace(pair(), model="nobody")), "NOT_FOUND", "Request for unknown model", "nobody")


@row
def unknown_version(client) -> None:
    refused(lambda: client.infer(pair(version="7")), "NOT_FOUND", "unknown model", "version 7")


@row
def unknown_output(client) -> None:
    refused(
        lambda: client.infer(pair(outputs=("nothing",))), "INVALID_ARGUMENT", "unexpected inference output", "nothing"
    )


@row
def wrong_shape(client) -> None:
    _refused_input(client, real([1.0, 2.0]), "a")


@row
def wrong_datatype(client) -> None:
    _refused_input(client, ("INT64", np.array([[1, 2, 3, 4]])), "FP32")


@row
def missing_input(client) -> None:
    refused(lambda: client.infer(Request("pair", {"a": real(A)})), "INVALID_ARGUMENT", "b")


@row
def batch_of_nothing(client) -> None:
    _refused_input(client, ("FP32", np.zeros((0, 4), np.float32)), "a", also_b=True)


def _refused_input(client, tensor: Tensor, text: str, also_b: bool = False) -> None:
    request = Request("pair", {"a": tensor, "b": tensor if also_b else real(B)})
    refused(lambda: client.infer(request), "INVALID_ARGUMENT", text)
    check_pair(client.infer(pair()))


@row
def zero_size(client) -> None:
    """A tensor without elements is refused with its shape."""
    request = Request("echo-fp32", {"x": ("FP32", np.zeros((1, 0), np.float32))})
    refused(lambda: client.infer(request), "INVALID_ARGUMENT", "[1, 0]")
    check_pair(client.infer(pair()))


@row
def reserved_parameter(client) -> None:
    request = pair(parameters={"triton_trick": 1})
    refused(lambda: client.infer(request), "INVALID_ARGUMENT", "triton_")


@row
def no_token(client) -> None:
    refused(lambda: client.infer(pair(token="none")), "UNAUTHENTICATED")


@row
def bad_token(client) -> None:
    refused(lambda: client.infer(pair(token="bad")), "UNAUTHENTICATED")
    check_pair(client.infer(pair()))
