"""Steps 5 and 6: the edge worker dies, and the cable to its site is cut."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from sealane.client import Client, StaticToken
from sealane.errors import SealaneError
from sealane_local.demo.refuse import expect
from sealane_local.demo.world import CAMERA_A, CAMERA_B, EDGE, World

_WATCH_SECONDS = 4.0
_MUST_SERVE_SECONDS = 20.0


@dataclass(slots=True)
class Caller:
    """Predicts all the time and remembers when an answer came."""

    world: World
    answers: list[tuple[float, float]] = field(default_factory=list)
    """(started, ended) of each answer, monotonic seconds."""
    failures: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Call until stopped; every call has ten seconds, retries are the suite's business."""
        image = {"image": self.world.test_x[:1]}
        while not self.stop.is_set():
            started = time.monotonic()
            try:
                self.world.client.inference.predict(CAMERA_B, image, timeout=10.0)
            except SealaneError as error:
                self.failures.append(f"{error.kind}: {error.message}")
            else:
                self.answers.append((started, time.monotonic()))


def kill(world: World) -> None:
    """Kill the edge worker under load."""
    report = world.report
    report.step(5, f"kill -9 {EDGE} while {CAMERA_B} is in use")
    caller = Caller(world)
    thread = threading.Thread(target=caller.run)
    thread.start()
    time.sleep(1.0)
    world.stack.child(EDGE).kill()
    killed = time.monotonic()
    time.sleep(_WATCH_SECONDS)
    caller.stop.set()
    thread.join()
    # The first call that was made after the kill: when was it answered, and by whom can it have been.
    first = next((ended for started, ended in caller.answers if started > killed), None)
    failover = round((first - killed) * 1000, 1) if first is not None else None
    report.put("failover_ms", failover)
    report.put("failed_during_failover", len(caller.failures))
    report.expect(not caller.failures, f"no prediction of {CAMERA_B} failed ({len(caller.answers)} answered)")
    report.expect(
        failover is not None and failover <= 3000, f"the first answer from elsewhere came after {failover} ms"
    )
    placed = world.client.deployments.wait(CAMERA_B, 10)
    serving = [item.node for item in placed.placements if item.state == 2]
    report.expect(serving == ["nodes/cloud-1"], f"{CAMERA_B} is answered by {serving}")
    error = expect(
        world,
        "restricted",
        "UNAVAILABLE",
        lambda: world.client.inference.predict(CAMERA_A, {"image": world.test_x[:1]}, timeout=2.0),
    )
    constraint = error.metadata.get("constraint", "") if error is not None else ""
    report.put("restricted_constraint", constraint)
    report.expect(constraint == "residency", f"the refusal of {CAMERA_A} names its constraint: {constraint!r}")
    nodes = {item.node for item in world.client.deployments.get(CAMERA_A).placements}
    report.expect(nodes <= {f"nodes/{EDGE}"}, f"{CAMERA_A} never left its site")


def cut(world: World) -> None:
    """Cut the site off, start the worker again there, and call it from inside the site."""
    report, stack = world.report, world.stack
    report.step(6, "cut the cable to the site and start the edge worker there again")
    token = world.client.token("sealane-inference")
    stack.child(f"link-{EDGE}").kill()
    started = time.monotonic()
    stack.child(EDGE).start()
    site = Client(
        world.endpoints,
        trust_bundle=(world.data / "pki" / "ca.pem").read_bytes(),
        credentials=StaticToken(token),
    )
    camera = site.inference.at(stack.worker_address(EDGE), f"{EDGE}.node.sealane", CAMERA_A)
    rows = world.test_x[:50]
    while True:
        try:
            answers = camera.predict({"image": rows}, timeout=2.0)["probabilities"]
            break
        except SealaneError as error:
            if time.monotonic() - started > _MUST_SERVE_SECONDS:
                report.expect(False, f"{CAMERA_A} does not answer at its site: {error.message}")
                return
            time.sleep(0.1)
    resumed = round((time.monotonic() - started) * 1000)
    report.put("offline_start_ms", resumed)
    right = int((answers.argmax(axis=1) == world.test_y[:50]).sum())
    report.expect(right >= 45, f"{CAMERA_A} answers at its site again after {resumed} ms: {right} of 50 are right")
    state = {node.name: node.state for node in world.client.nodes.list()}[f"nodes/{EDGE}"]
    report.expect(state != 1, "the scheduler still cannot see it")
    site.close()
    stack.child(f"link-{EDGE}").start()
    placed = world.client.deployments.wait(CAMERA_A, 30)
    report.expect(placed.state == 3, f"the cable is mended: {CAMERA_A} serves through the gateway again")
    world.client.inference.predict(CAMERA_A, {"image": world.test_x[:1]}, timeout=10.0)
