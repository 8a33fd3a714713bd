"""Step 3: the test set over four ways in, and what the gateway's memory holds of the sealed ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import numpy.typing as npt

from sealane.compat.tfserving.v1 import tfserving_pb2
from sealane.protocols import tfserving
from sealane.protocols.call import InferenceCall, Target
from sealane.rpc import channel
from sealane_local.demo.world import CAMERA_B, Stopwatch, World, timing
from sealane_local.memory_scan import find_in_memory, tells

Array = npt.NDArray[np.generic]
WARM_UP = 20
#: Every so many rows are looked for in the gateway's memory.
SCANNED = 6
_TFS = "/tensorflow.serving.PredictionService/Predict"
_THROUGHPUT_SECONDS, _THROUGHPUT_THREADS = 2.0, 4


def predict(world: World) -> None:
    """Predict every test row, one call each, over every way; sealed first, so that the gateway has seen nothing."""
    report, client = world.report, world.client
    report.step(3, f"predict {len(world.test_y)} images through {CAMERA_B}: sealed, OIP, TensorFlow Serving, direct")
    ways: dict[str, Callable[[Array], Array]] = {
        "sealed": lambda image: client.inference.predict(CAMERA_B, {"image": image}, sealed=True)["probabilities"],
        "oip": lambda image: client.inference.predict(CAMERA_B, {"image": image})["probabilities"],
        "tfs": _tfs_way(world),
        "direct": lambda image: client.inference.predict(CAMERA_B, {"image": image}, via="direct")["probabilities"],
    }
    answers = {}
    for name, way in ways.items():
        answers[name] = _series(world, name, way)
        if name == "sealed":
            _scan(world, answers[name])
    _control(world)
    spread = max(float(np.abs(answers[name] - answers["oip"]).max()) for name in answers)
    report.expect(spread <= 1e-6, f"the four ways give the same answers (largest difference {spread:.1g})")
    accuracy = world.accuracy_of(answers["oip"])
    report.put("accuracy.served", accuracy)
    report.expect(accuracy >= 0.93, f"the served model is right on {accuracy:.1%} of the rows")


def _series(world: World, name: str, way: Callable[[Array], Array]) -> npt.NDArray[np.float32]:
    rows, watch = [], Stopwatch()
    for index in range(WARM_UP):
        way(world.test_x[index : index + 1])
    for index in range(len(world.test_x)):
        watch.start()
        rows.append(way(world.test_x[index : index + 1]))
        watch.lap()
    took = timing(watch.laps)
    world.report.put(f"latency_ms.{name}", {"p50": took.p50, "p99": took.p99})
    world.report.say(f"{name:<7} p50 {took.p50:6.2f} ms   p99 {took.p99:6.2f} ms   {len(rows)} answers")
    return np.concatenate(rows).astype(np.float32)


def _tfs_way(world: World) -> Callable[[Array], Array]:
    """The TensorFlow Serving API on the wire, as any of its clients sends it."""
    trust = (world.data / "pki" / "ca.pem").read_bytes()
    gateway = channel.dial(channel.Target(world.endpoint("inference"), trust))
    wire: grpc.UnaryUnaryMultiCallable[bytes, bytes] = gateway.unary_unary(_TFS)

    def call(image: Array) -> Array:
        request = InferenceCall(Target(CAMERA_B), {"image": image}, ())
        headers = (("authorization", f"Bearer {world.client.token('sealane-inference')}"),)
        body = tfserving.encode_request(request).SerializeToString()
        answer = wire(body, timeout=10, metadata=headers)
        return tfserving.decode_response(tfserving_pb2.PredictResponse.FromString(answer))["probabilities"]

    return call


def _scan(world: World, answers: npt.NDArray[np.float32]) -> None:
    """Look for the sealed images and answers in the gateway's memory; most int8 answers are one number among zeros."""
    pid = world.stack.child("inference").pid
    assert pid is not None
    rows = [row.tobytes() for row in world.test_x[::SCANNED]] + [row.tobytes() for row in answers[::SCANNED]]
    needles = [row for row in rows if tells(row)]
    found = find_in_memory(pid, needles)
    world.report.put("plaintext_looked_for", len(needles))
    world.report.put("plaintext_found", found)
    told = f"none of {len(needles)} sealed images and answers that are unlike any other is in the gateway's memory"
    world.report.expect(found == 0, told)


def _control(world: World) -> None:
    """The same scan must find what was not sealed, or it would prove nothing."""
    pid = world.stack.child("inference").pid
    assert pid is not None
    found = find_in_memory(pid, [row.tobytes() for row in world.test_x[::SCANNED]])
    world.report.put("plaintext_found_unsealed", found)
    world.report.expect(found > 0, f"the same scan finds {found} of the images that were sent unsealed")


def throughput(world: World, deployment: str) -> float:
    """Answers per second of a deployment through the gateway, with a few callers at once."""
    stop = time.monotonic() + _THROUGHPUT_SECONDS

    def caller(index: int) -> int:
        done = 0
        while time.monotonic() < stop:
            world.client.inference.predict(deployment, {"image": world.test_x[index : index + 1]})
            done += 1
        return done

    with ThreadPoolExecutor(_THROUGHPUT_THREADS) as pool:
        return sum(pool.map(caller, range(_THROUGHPUT_THREADS))) / _THROUGHPUT_SECONDS
