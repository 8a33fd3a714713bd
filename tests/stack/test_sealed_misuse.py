"""Sealed calls where somebody has restarted, holds what he should not, or opens too much."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from light_site import CAMERA_B, EDGE, LightSite, eventually, running
from stripped import push_stripped

from sealane.client import sealing_context
from sealane.client.inference import WorkerModel
from sealane.errors import SealaneError
from sealane.protocols import sealed
from sealane.rpc.status import from_rpc_error
from sealane.security.sealing_policy import SealingPolicy
from sealane_worker import sealed as worker_sealed

pytestmark = pytest.mark.stack
STRIPPED = "stripped"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightSite]:
    with running(tmp_path_factory.mktemp("misuse")) as site:
        site.deploy_cameras(site.push())
        yield site


def test_one_client_may_have_many_streams_and_leave_them(site: LightSite) -> None:
    go = threading.Event()

    def inputs() -> Iterator[dict[str, np.ndarray]]:
        yield {"image": site.rows[:1]}
        assert go.wait(60)
        yield {"image": site.rows[:1]}

    streams = [site.client.inference.sealed_stream(CAMERA_B, inputs(), timeout=60) for _ in range(20)]
    for stream in streams:
        next(stream)
    for _ in range(50):
        left = site.client.inference.sealed_stream(CAMERA_B, [site.image] * 3, timeout=20)
        next(left)
        left.close()
    go.set()
    assert [len(list(stream)) for stream in streams] == [1] * 20


def test_a_captured_token_does_not_hold_all_streams_of_a_worker(site: LightSite) -> None:
    token = site.client._session.tokens.get("sealane-inference", bound=True).text
    metadata = (("authorization", f"Bearer {token}"),)
    with site.channel(EDGE) as channel:
        held = [
            channel.stream_stream(sealed.OPEN_STREAM)(_nothing(), metadata=metadata, timeout=60)
            for _ in range(worker_sealed.STREAMS_OF_CALLER)
        ]
        time.sleep(1.0)
        with pytest.raises(grpc.RpcError) as told:
            next(channel.stream_stream(sealed.OPEN_STREAM)(_nothing(), metadata=metadata, timeout=5))
        assert from_rpc_error(told.value).reason == "OVERLOAD"
        other = site.client.accounts.create("somebody", roles=["invoker"])
        with site.client_of(other.client_id, other.client_secret) as client:
            assert len(list(client.inference.sealed_stream(CAMERA_B, [site.image] * 2, via="direct"))) == 2
        begun = time.monotonic()
        for stream in held:  # nothing came that shows whose they are
            with pytest.raises(grpc.RpcError):
                next(stream)
        assert time.monotonic() - begun < worker_sealed.OPENING_SECONDS + 5


def _nothing() -> Iterator[bytes]:
    threading.Event().wait(30)
    yield from ()


def test_a_restart_does_not_open_what_the_owner_forbids(site: LightSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler is malicious: it leaves the forbidden model assigned. The client is told of no policy."""
    remembered = site.data / "workers" / EDGE / "assignments.json"
    kept = threading.Event()
    texts: list[str] = []

    def watch() -> None:
        while not kept.wait(0.002):
            text = remembered.read_text()
            if f"deployments/{STRIPPED}" in text:
                texts.append(text)
                return

    thread = threading.Thread(target=watch)
    thread.start()
    version = push_stripped(site, STRIPPED, {"regions": ["us"]})
    site.client.deployments.create(STRIPPED, version, residency=["site-a"], tier="edge")
    log = site.data / "logs" / f"{EDGE}.log"
    eventually(lambda: "SEALING_POLICY" in log.read_text(), "the worker refuses it", 30)
    kept.set()
    thread.join()
    assert texts and json.loads(texts[0])

    def worker(model: str) -> WorkerModel:
        return site.client.inference.at(site.stack.worker_address(EDGE), f"{EDGE}.node.sealane", model)

    for sealed_ in (False, True):  # so that the client has its tokens
        worker(CAMERA_B).predict(site.image, sealed=sealed_)
    for name in ("scheduler", "auth", EDGE):  # without auth nobody tells the worker where it stands
        site.stack.child(name).stop()
        site.stack.child(name).join(10)
    remembered.write_text(texts[0])
    refused_before = log.read_text().count("SEALING_POLICY")
    site.stack.child(EDGE).start()
    monkeypatch.setattr(sealing_context, "policy_of", lambda policy: SealingPolicy())
    eventually(lambda: worker(CAMERA_B).predict(site.image)["probabilities"].shape == (1, 10), "it serves the other")
    site.stack.child("auth").start()
    reasons = set()
    end = time.monotonic() + 8
    try:
        while time.monotonic() < end:
            with pytest.raises(SealaneError) as told:
                worker(STRIPPED).predict(site.image, sealed=True, timeout=0.5)
            reasons.add(told.value.reason)
            time.sleep(0.02)
        assert log.read_text().count("SEALING_POLICY") > refused_before, reasons
        assert reasons & {"SEALING_POLICY", "DEPLOYMENT_NOT_SERVED"}, reasons
        assert len(worker(CAMERA_B).predict(site.image, sealed=True)) == 1, "what is not forbidden goes on"
    finally:
        site.stack.child("scheduler").start()
        site.stack.wait_for_lanes()
