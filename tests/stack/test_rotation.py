"""Keys and certificates change under load without a failed call; in an emergency they are dead everywhere at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import grpc
import pytest
from light_site import CAMERA_B, CLOUD, EDGE, Background, LightSite, eventually, running

from sealane.auth.v1 import signing_key_service_pb2 as keys_pb
from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import SealaneError, Unauthenticated
from sealane.rpc.status import from_rpc_error

pytestmark = pytest.mark.stack

#: Times of auth, shortened so that everything changes several times while the test runs.
SHORT = {"TOKEN_SECONDS": "6", "KEY_CACHE_SECONDS": "2", "LEAF_SECONDS": "15"}
RATE = 200
CALLERS = 8
INFER = "/inference.GRPCInferenceService/ModelInfer"
GATEWAY = "inference"
#: What emergency measures may take until they are known everywhere.
EVERYWHERE_SECONDS = 60.0


@pytest.fixture(scope="module")
def rotating(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightSite]:
    """A suite whose keys and certificates live for seconds."""
    with running(tmp_path_factory.mktemp("rotating"), settings={"auth": SHORT}) as site:
        site.deploy_cameras(site.push())
        yield site


class Load(Background):
    """Calls at a steady rate through the gateway and directly, by bare stubs: nothing is ever tried again."""

    def __init__(self, site: LightSite) -> None:
        super().__init__(*(partial(self._run, index) for index in range(CALLERS)))
        self._site = site
        self._body = infer_body(site)
        self._ways = [channel.unary_unary(INFER) for channel in (site.channel(GATEWAY), site.channel(EDGE))]
        self._lock = threading.Lock()
        self.answered, self.failures = 0, list[str]()

    def _run(self, index: int) -> None:
        way, begun, sent = self._ways[index % 2], time.monotonic(), 0
        while not self.stopped.is_set():
            wait = begun + sent * CALLERS / RATE - time.monotonic()
            if wait > 0:
                self.stopped.wait(wait)
            sent += 1
            try:
                token = self._site.client.token("sealane-inference")
                way(self._body, timeout=10.0, metadata=(("authorization", f"Bearer {token}"),))
            except (grpc.RpcError, SealaneError) as error:
                failure = error if isinstance(error, SealaneError) else from_rpc_error(error)
                with self._lock:
                    self.failures.append(f"{'gateway' if index % 2 == 0 else 'direct'}: {failure.reason} {failure}")
            else:
                with self._lock:
                    self.answered += 1


def infer_body(site: LightSite) -> bytes:
    """One row for camera B, in the Open Inference Protocol."""
    row = site.rows[:1]
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="FP32", shape=row.shape)
    request = oip.ModelInferRequest(model_name=CAMERA_B, inputs=[tensor], raw_input_contents=[row.tobytes()])
    return request.SerializeToString()


def leaf_times(site: LightSite) -> dict[str, int]:
    """When each certificate on disk was written."""
    folders = [site.data / name / "identity" for name in ("auth", "registry", "scheduler", "inference")]
    folders += [site.data / "workers" / node / "identity" for node in (CLOUD, EDGE)]
    return {folder.parent.name: (folder / "chain.pem").stat().st_mtime_ns for folder in folders}


def signing(site: LightSite) -> str:
    state = keys_pb.SigningKey.STATE_SIGNING
    return next(key.kid for key in site.client.keys.list() if key.state == state)


def test_keys_and_certificates_change_under_load_without_a_failed_call(rotating: LightSite) -> None:
    """AUTH-5: signing key, every leaf and the intermediate, under 200 calls a second."""
    client = rotating.client
    leaves, first = leaf_times(rotating), signing(rotating)
    with Load(rotating) as load:
        second = client.keys.rotate().kid
        eventually(lambda: signing(rotating) == second, "the next key signs", 30)
        client.keys.rotate_intermediate()
        third = client.keys.rotate().kid
        eventually(lambda: signing(rotating) == third, "one more key signs", 30)
        eventually(
            lambda: all(time_ > leaves[name] for name, time_ in leaf_times(rotating).items()),
            "every certificate was renewed",
            60,
        )
        renewed = leaf_times(rotating)
        eventually(
            lambda: all(time_ > renewed[name] for name, time_ in leaf_times(rotating).items()),
            "and once more, by the new intermediate",
            60,
        )
    states = {key.kid: key.state for key in client.keys.list()}
    assert len({first, second, third} & states.keys()) == 3
    print(f"figure: {len(load.failures)} of {load.answered + len(load.failures)} calls failed")
    assert load.failures == []
    assert load.answered > 1000


def refused_everywhere(site: LightSite, calls: dict[str, Callable[[], object]], reason: str) -> float:
    """Wait until every call is refused for `reason`; seconds until the last one was."""
    begun, seen = time.monotonic(), dict[str, str]()
    while len(seen) < len(calls) and time.monotonic() - begun < EVERYWHERE_SECONDS:
        for name in calls.keys() - seen.keys():
            try:
                calls[name]()
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
                assert failure.kind == "UNAUTHENTICATED", f"{name}: {failure.kind} {failure}"
                seen[name] = failure.reason
        time.sleep(0.02)
    assert set(seen) == set(calls), f"still good at {calls.keys() - seen.keys()}"
    assert set(seen.values()) <= {reason, "TOKEN_KEY"}
    return time.monotonic() - begun


def calls_with(site: LightSite, tokens: dict[str, str]) -> dict[str, Callable[[], object]]:
    """A call of every service, with tokens got before."""
    body = infer_body(site)

    def call(name: str, method: str, content: bytes, audience: str) -> Callable[[], object]:
        way = site.channel(name).unary_unary(method)
        metadata = (("authorization", f"Bearer {tokens[audience]}"),)
        return lambda: way(content, timeout=10.0, metadata=metadata)

    listing = b"\x0a\x10projects/default"
    return {
        "auth": call("auth", "/sealane.auth.v1.IdentityService/ListServiceAccounts", listing, "sealane-auth"),
        "registry": call("registry", "/sealane.registry.v1.ModelService/ListModels", listing, "sealane-registry"),
        "scheduler": call(
            "scheduler", "/sealane.scheduler.v1.DeploymentService/ListDeployments", listing, "sealane-scheduler"
        ),
        "gateway": call(GATEWAY, INFER, body, "sealane-inference"),
        "worker": call(EDGE, INFER, body, "sealane-inference"),
    }


AUDIENCES = ("sealane-auth", "sealane-registry", "sealane-scheduler", "sealane-inference")


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightSite]:
    """A suite with the usual times: nothing ends by itself while these tests run."""
    with running(tmp_path_factory.mktemp("standing")) as site:
        site.deploy_cameras(site.push())
        yield site


def test_a_retired_key_is_dead_in_every_service(standing: LightSite) -> None:
    """AUTH-6: an emergency; new tokens work at once."""
    client = standing.client
    calls = calls_with(standing, {name: client.token(name) for name in AUDIENCES})
    for call in calls.values():
        call()
    client.keys.retire(signing(standing))
    took = refused_everywhere(standing, calls, "TOKEN_REVOKED")
    print(f"figure: a retired signing key was dead in 4 services and a worker after {took:.2f} s")
    # The SDK's tokens died with the others: its user sees nothing of it.
    client.deployments.get(CAMERA_B)
    for via in ("direct", "gateway"):
        assert client.inference.predict(CAMERA_B, standing.image, via=via)["probabilities"].shape == (1, 10)  # type: ignore[arg-type]
    fresh = calls_with(standing, {name: client.token(name) for name in AUDIENCES})
    for call in fresh.values():
        call()
    eventually(lambda: bool(client.inference.predict(CAMERA_B, standing.image, sealed=True)), "sealed calls too", 30)


def test_a_revoked_subject_is_dead_in_every_service(standing: LightSite) -> None:
    """AUTH-6: a stolen credential."""
    client = standing.client
    account = client.accounts.create("thief", ("infer", "models:read", "admin"))
    with standing.client_of(account.client_id, account.client_secret) as thief:
        calls = calls_with(standing, {name: thief.token(name) for name in AUDIENCES})
        for call in calls.values():
            call()
        client.accounts.delete("thief")
        took = refused_everywhere(standing, calls, "TOKEN_REVOKED")
        print(f"figure: a deleted account was dead in 4 services and a worker after {took:.2f} s")
        with pytest.raises(Unauthenticated):
            thief.models.list().__next__()


def test_a_distrusted_intermediate_is_replaced_everywhere_and_calls_go_on(standing: LightSite) -> None:
    """AUTH-6: everybody comes back by device key."""
    client, before = standing.client, leaf_times(standing)
    begun = time.monotonic()
    client.keys.rotate_intermediate(distrust=True)
    eventually(
        lambda: all(time_ > before[name] for name, time_ in leaf_times(standing).items()),
        "everybody has a certificate of the new intermediate",
        EVERYWHERE_SECONDS,
    )
    eventually(lambda: {n.state for n in client.nodes.list()} == {1}, "the workers are connected again", 60)
    took = time.monotonic() - begun
    print(f"figure: a distrusted intermediate was replaced in 4 services and 2 workers after {took:.2f} s")
    for via in ("direct", "gateway"):
        answer = client.inference.predict(CAMERA_B, standing.image, via=via)  # type: ignore[arg-type]
        assert answer["probabilities"].shape == (1, 10)


@pytest.fixture
def leaving(tmp_path: Path) -> Iterator[LightSite]:
    """A suite of its own: nothing else has changed in it."""
    with running(tmp_path / "leaving") as site:
        site.deploy_cameras(site.push())
        yield site


def test_an_evicted_node_is_put_out_and_its_work_goes_elsewhere(leaving: LightSite) -> None:
    """AUTH-6: a stolen device."""
    standing = leaving
    client = standing.client
    assert {node for node, _ in standing.places(CAMERA_B)} == {EDGE}
    begun = time.monotonic()
    client.peers.evict(EDGE, cause="stolen")

    def out() -> bool:
        return next(node.state for node in client.nodes.list() if node.name == f"nodes/{EDGE}") != 1

    eventually(out, "its stream has ended", EVERYWHERE_SECONDS)
    print(f"figure: an evicted node was cut off after {time.monotonic() - begun:.2f} s")
    eventually(
        lambda: {node for node, _ in standing.places(CAMERA_B)} == {CLOUD}, "its work goes to another worker", 60
    )
    client.deployments.wait(CAMERA_B, 60)
    assert client.inference.predict(CAMERA_B, standing.image)["probabilities"].shape == (1, 10)
    standing.stack.child(EDGE).crash()  # starting again does not help it
    time.sleep(2.0)
    assert out()
