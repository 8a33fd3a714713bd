"""SEAL-5: workers restart, keys rotate and sites fail over while sealed calls go on; the SDK's user sees no failure."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import pytest
from light_site import CAMERA_B, EDGE, LightSite, eventually, running

from sealane.client.prediction import INFER_PATH
from sealane.client.proxy import Proxy
from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import SealaneError
from sealane.protocols import openinference
from sealane.protocols.call import InferenceCall, Target

pytestmark = pytest.mark.stack
WAYS: dict[str, dict[str, object]] = {
    "by itself": {"sealed": True},
    "session": {"sealed": "session"},
    "direct": {"sealed": True, "via": "direct"},
    "session, direct": {"sealed": "session", "via": "direct"},
    "hedged": {"sealed": True, "via": "direct", "hedge": 0.05},
    "proxy": {},
}
#: Callers of each way, so that they meet.
CALLERS = 2
#: Longer than a failover takes, and what a user would allow.
PATIENCE = 30.0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightSite]:
    with running(tmp_path_factory.mktemp("survival"), edge_lost_after=1.0) as site:
        site.deploy_cameras(site.push())
        yield site


class Traffic:
    """A caller for each way, call after call, each with rows of its own."""

    def __init__(self, site: LightSite) -> None:
        self._site = site
        self._proxy = Proxy(site.client.inference)
        self._meant = site.client.inference.predict(CAMERA_B, {"image": site.rows})["probabilities"].argmax(axis=1)
        self._stop = threading.Event()
        self.answered: Counter[str] = Counter()
        self.failures: list[str] = []
        self.wrong = 0
        self._threads = [
            threading.Thread(target=self._run, args=(name, way)) for name, way in WAYS.items() for _ in range(CALLERS)
        ]

    @contextmanager
    def going(self) -> Iterator[Traffic]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()

    def each_answers(self, more: int = 5) -> None:
        """Wait until every way has so many answers more."""
        before = dict(self.answered)
        eventually(
            lambda: all(self.answered[name] >= before.get(name, 0) + more for name in WAYS), "every way answers", 40.0
        )

    def _run(self, name: str, way: dict[str, object]) -> None:
        rows = self._site.rows
        while not self._stop.is_set():
            index = self.answered[name] % len(rows)
            try:
                outputs = self._call(way, rows[index : index + 1])
                # Another precision may be surer or less sure of a digit; of most it says the same.
                self.wrong += int(outputs["probabilities"].argmax()) != self._meant[index]
            except SealaneError as error:
                self.failures.append(f"{name}: {error.kind} {error.reason} {error}")
            else:
                self.answered[name] += 1
            time.sleep(0.005)

    def _call(self, way: dict[str, object], rows: np.ndarray) -> Mapping[str, np.ndarray]:
        if way:
            return self._site.client.inference.predict(CAMERA_B, {"image": rows}, timeout=PATIENCE, **way)  # type: ignore[arg-type]
        body = openinference.encode_request(InferenceCall(Target(CAMERA_B), {"image": rows})).SerializeToString()
        answer = self._proxy.answer(INFER_PATH, body, time.monotonic() + PATIENCE)
        return openinference.decode_response(oip.ModelInferResponse.FromString(answer))


def restarts(site: LightSite, traffic: Traffic) -> None:
    """kill -9: the worker comes back with another key, and without its sessions."""
    for _ in range(2):
        site.crash(EDGE)
        traffic.each_answers()


def rotates(site: LightSite, traffic: Traffic) -> None:
    """Auth's signing key changes, and the old one is retired: every statement and every token is a new one."""
    before = {key.kid for key in site.client.keys.list()}
    site.client.keys.rotate()
    traffic.each_answers()
    for kid in before:
        if len({key.kid for key in site.client.keys.list()}) > 1:
            site.client.keys.retire(kid)
    traffic.each_answers()


def fails_over(site: LightSite, traffic: Traffic) -> None:
    """The edge is gone for good; the deployment is placed in the cloud, and comes back with the edge."""
    site.stack.child(EDGE).stop()
    eventually(lambda: {node for node, _ in site.places(CAMERA_B)} == {"cloud-1"}, "it is placed in the cloud", 40.0)
    traffic.each_answers()
    site.stack.child(EDGE).start()
    site.stack.wait_for_lanes()
    traffic.each_answers()


@pytest.mark.parametrize("event", [restarts, rotates, fails_over])
def test_no_sealed_call_fails(site: LightSite, event: Callable[[LightSite, Traffic], None]) -> None:
    traffic = Traffic(site)
    with traffic.going():
        traffic.each_answers()
        event(site, traffic)
    total = sum(traffic.answered.values())
    print(f"figure: {event.__name__}: {len(traffic.failures)} of {total + len(traffic.failures)} sealed calls failed")
    assert not traffic.failures, traffic.failures[:5]
    assert traffic.wrong <= total * 0.05, "answers of others"
    assert all(traffic.answered[name] > 10 for name in WAYS), traffic.answered
