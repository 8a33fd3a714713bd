"""Streams, sequences, names with several versions, statistics and index at the gateway."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest
from gateway_harness import OIP, PREDICTION, Gateway, LaneWorker, double

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.inference.v1 import lane_service_pb2 as lane_pb
from sealane.protocols import openinference
from sealane.protocols.call import InferenceCall, Target
from sealane_inference.routing import Endpoint, Route

StartWorker = Callable[..., LaneWorker]
STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
X = np.arange(4, dtype=np.float32).reshape(1, 4)


def route(*endpoints: Endpoint, deployment: str = "d", version: str = "3", **more: object) -> Route:
    return Route("p", deployment, "m", version, endpoints, **more)  # type: ignore[arg-type]


def body(value: float = 1.0, request_id: str = "", model: str = "d", sequence: int = 0) -> bytes:
    request = openinference.encode_request(InferenceCall(Target(model), {"x": X * value}, request_id=request_id))
    if sequence:
        request.parameters["sequence_id"].int64_param = sequence
    serialized: bytes = request.SerializeToString()
    return serialized


def stream(
    gateway: Gateway, bodies: Iterator[bytes], **metadata: str
) -> Iterator[oip.ModelStreamInferResponse]:  # fmt: skip
    sent = [("authorization", f"Bearer {gateway.authority.token()}"), *metadata.items()]
    call = gateway.channel.stream_stream(OIP + "ModelStreamInfer")
    for answer in call(bodies, timeout=20, metadata=sent):
        yield oip.ModelStreamInferResponse.FromString(answer)


def test_a_stream_is_answered_in_order_by_all_workers(gateway: Gateway, start_worker: StartWorker) -> None:
    def sometimes_late(call: lane_pb.CallFrame) -> lane_pb.ReplyFrame | None:
        if call.call_id % 3 == 0:
            time.sleep(0.01)
        return double(call)

    workers = [start_worker(name, sometimes_late) for name in ("w1", "w2")]
    gateway.routes(route(*(worker.endpoint() for worker in workers)))
    bodies = [body(index, str(index)) for index in range(60)]
    bodies[5] = body(1, "5", "nobody")
    answers = list(stream(gateway, iter(bodies)))
    assert [answer.infer_response.id for answer in answers] == [str(index) for index in range(60)]
    assert [index for index, answer in enumerate(answers) if answer.error_message] == [5]
    assert "unknown model: 'nobody'" in answers[5].error_message
    for index in (0, 6, 59):
        outputs = openinference.decode_response(answers[index].infer_response)
        np.testing.assert_array_equal(outputs["y"], X * index * 2)
        assert answers[index].infer_response.parameters["triton_final_response"].bool_param
    assert all(worker.calls for worker in workers)
    assert {call.method for worker in workers for call in worker.calls} == {OIP + "ModelInfer"}


def test_a_stream_ends_with_the_status_where_that_is_asked_for(gateway: Gateway, start_worker: StartWorker) -> None:
    gateway.routes(route(start_worker("w1").endpoint()))
    answers = stream(gateway, iter([body(request_id="1"), body(model="nobody")]), triton_grpc_error="true")
    assert next(answers).infer_response.id == "1"
    with pytest.raises(grpc.RpcError) as ended:
        next(answers)
    assert ended.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]


def test_a_stream_without_a_token_is_refused(gateway: Gateway) -> None:
    call = gateway.channel.stream_stream(OIP + "ModelStreamInfer")
    with pytest.raises(grpc.RpcError) as refused:
        list(call(iter([body()]), timeout=5))
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]


def test_a_caller_that_leaves_takes_its_requests_along(gateway: Gateway, start_worker: StartWorker) -> None:
    silent = start_worker("w1", lambda call: None)
    gateway.routes(route(silent.endpoint()))
    more = threading.Event()

    def endless() -> Iterator[bytes]:
        yield body()
        more.wait(10)

    sent = [("authorization", f"Bearer {gateway.authority.token()}")]
    call = gateway.channel.stream_stream(OIP + "ModelStreamInfer")(endless(), timeout=20, metadata=sent)
    assert silent.received.wait(5)
    lane = gateway.present.lane("w1")
    assert lane is not None and lane.in_flight == 1
    call.cancel()
    more.set()
    until = time.monotonic() + 5
    while lane.in_flight and time.monotonic() < until:
        time.sleep(0.01)
    assert lane.in_flight == 0


def test_a_sequence_keeps_to_its_worker(gateway: Gateway, start_worker: StartWorker) -> None:
    workers = {name: start_worker(name) for name in ("w1", "w2", "w3")}
    gateway.routes(route(*(worker.endpoint() for worker in workers.values())))
    for number in range(1, 13):
        for _ in range(5):
            gateway.call(OIP + "ModelInfer", body(sequence=number))
    kept = [
        {oip.ModelInferRequest.FromString(call.payload).parameters["sequence_id"].int64_param for call in worker.calls}
        for worker in workers.values()
    ]
    assert sum(map(len, kept)) == 12, "a sequence was on two workers"
    assert all(kept), "one worker had none of twelve"


def test_a_sequence_is_not_run_elsewhere_when_its_worker_is_lost(gateway: Gateway, start_worker: StartWorker) -> None:
    workers = {name: start_worker(name) for name in ("w1", "w2")}
    gateway.routes(route(*(worker.endpoint() for worker in workers.values())))
    gateway.call(OIP + "ModelInfer", body(sequence=5))
    keeper, other = sorted(workers.values(), key=lambda worker: -len(worker.calls))
    keeper.die()
    with pytest.raises(grpc.RpcError) as refused:
        gateway.call(OIP + "ModelInfer", body(sequence=5), timeout=1.0)
    assert refused.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)  # type: ignore[attr-defined]
    assert not other.calls
    time.sleep(0.2)  # that call is over at the gateway too, and takes no part in what follows
    gateway.routes(route(other.endpoint()))  # the scheduler has given it up
    gateway.call(OIP + "ModelInfer", body(sequence=5))
    assert len(other.calls) == 1


def named(start_worker: StartWorker) -> list[Route]:
    """The name `camera` with versions 1 and 2 on a worker each, and 3 that is being prepared."""
    versions = {"1": ("stable",), "2": ("canary", "next")}
    routes = [
        route(start_worker(f"w{number}").endpoint(), deployment=f"camera-v{number}", version=number,
              served_name="camera", labels=labels)
        for number, labels in versions.items()
    ]  # fmt: skip
    return [*routes, route(deployment="camera-v3", version="3", served_name="camera")]


@pytest.mark.parametrize(
    ("version", "label", "node"), [(0, "", "w2"), (1, "", "w1"), (2, "", "w2"), (0, "stable", "w1"), (0, "next", "w2")]
)
def test_a_name_with_several_versions(
    gateway: Gateway, start_worker: StartWorker, version: int, label: str, node: str
) -> None:
    workers: dict[str, LaneWorker] = {}

    def start(name: str) -> LaneWorker:
        workers[name] = start_worker(name)
        return workers[name]

    gateway.routes(*named(start))
    request = tfs.GetModelMetadataRequest(model_spec=tfs.ModelSpec(name="camera"), metadata_field=["signature_def"])
    if label:
        request.model_spec.version_label = label
    if version:
        request.model_spec.version.value = version
    gateway.call(PREDICTION + "GetModelMetadata", request.SerializeToString())
    assert [name for name, worker in workers.items() if worker.calls] == [node]
    with pytest.raises(grpc.RpcError) as refused:
        gone = tfs.GetModelMetadataRequest(model_spec=tfs.ModelSpec(name="camera", version_label="gone"))
        gateway.call(PREDICTION + "GetModelMetadata", gone.SerializeToString())
    assert "gone" in str(refused.value.details())  # type: ignore[attr-defined]


def test_the_status_lists_every_version(gateway: Gateway, start_worker: StartWorker) -> None:
    gateway.routes(*named(start_worker))
    request = tfs.GetModelStatusRequest(model_spec=tfs.ModelSpec(name="camera"))
    status = tfs.GetModelStatusResponse.FromString(gateway.call(STATUS, request.SerializeToString()))
    told = {item.version: tfs.ModelVersionStatus.State.Name(item.state) for item in status.model_version_status}
    assert told == {1: "AVAILABLE", 2: "AVAILABLE", 3: "LOADING"}
    request.model_spec.version_label = "stable"
    status = tfs.GetModelStatusResponse.FromString(gateway.call(STATUS, request.SerializeToString()))
    assert [item.version for item in status.model_version_status] == [1]


def counted(rows: int) -> Callable[[lane_pb.CallFrame], lane_pb.ReplyFrame]:
    def answer(call: lane_pb.CallFrame) -> lane_pb.ReplyFrame:
        asked = oip.ModelStatisticsRequest.FromString(call.payload)
        part = oip.ModelStatistics(name=asked.name, version="3", inference_count=rows, execution_count=1)
        return lane_pb.ReplyFrame(payload=oip.ModelStatisticsResponse(model_stats=[part]).SerializeToString())

    return answer


def test_statistics_are_those_of_all_workers(gateway: Gateway, start_worker: StartWorker) -> None:
    first, second = start_worker("w1", counted(3)), start_worker("w2", counted(4))
    gateway.routes(route(first.endpoint(), second.endpoint()), route(first.endpoint(), deployment="e"))
    for request, wanted in (
        (oip.ModelStatisticsRequest(name="d"), {"d": 7}),
        (oip.ModelStatisticsRequest(), {"d": 7, "e": 3}),
    ):
        answer = gateway.call(OIP + "ModelStatistics", request.SerializeToString())
        stats = oip.ModelStatisticsResponse.FromString(answer).model_stats
        assert {item.name: item.inference_count for item in stats} == wanted


def test_statistics_go_by_the_names_that_the_index_tells(gateway: Gateway, start_worker: StartWorker) -> None:
    versions = {f"w{number}": start_worker(f"w{number}", counted(number)) for number in (1, 2)}

    def of_version(number: int, *endpoints: Endpoint) -> Route:
        return route(*endpoints, deployment=f"camera-v{number}", version=str(number), served_name="camera")

    gateway.routes(
        *(of_version(number, versions[f"w{number}"].endpoint()) for number in (1, 2)), of_version(3), route()
    )

    def told(request: oip.ModelStatisticsRequest) -> list[tuple[str, int]]:
        answer = gateway.call(OIP + "ModelStatistics", request.SerializeToString())
        stats = oip.ModelStatisticsResponse.FromString(answer).model_stats
        return [(item.name, item.inference_count) for item in stats]

    both = [("camera", 1), ("camera", 2)]
    assert told(oip.ModelStatisticsRequest()) == both
    assert told(oip.ModelStatisticsRequest(name="camera")) == both
    assert told(oip.ModelStatisticsRequest(name="camera", version="2")) == [("camera", 2)]
    for request, code in (
        (oip.ModelStatisticsRequest(name="d"), grpc.StatusCode.UNAVAILABLE),
        (oip.ModelStatisticsRequest(name="camera", version="9"), grpc.StatusCode.NOT_FOUND),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            told(request)
        assert refused.value.code() is code  # type: ignore[attr-defined]


def test_the_index_is_that_of_the_routes(gateway: Gateway, start_worker: StartWorker) -> None:
    gateway.routes(
        *named(start_worker),
        Route("p", "none", "m", "1", (), "no worker has a camera", "runtime"),
        Route("another", "secret", "m", "1"),
    )
    index = oip.RepositoryIndexResponse.FromString(gateway.call(OIP + "RepositoryIndex", b""))
    told = {(item.name, item.version): item.state for item in index.models}
    assert told == {
        ("camera", "1"): "READY",
        ("camera", "2"): "READY",
        ("camera", "3"): "LOADING",
        ("none", "1"): "UNAVAILABLE",
    }
    ready = oip.RepositoryIndexRequest(ready=True).SerializeToString()
    index = oip.RepositoryIndexResponse.FromString(gateway.call(OIP + "RepositoryIndex", ready))
    assert {item.name for item in index.models} == {"camera"}


def test_loading_needs_the_right_to_deploy(gateway: Gateway) -> None:
    gateway.routes()
    request = oip.RepositoryModelLoadRequest(model_name="d").SerializeToString()
    with pytest.raises(grpc.RpcError) as refused:
        gateway.call(OIP + "RepositoryModelLoad", request)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED  # type: ignore[attr-defined]
