"""Predictions: what callers see when all is well, and when workers, keys and routes come and go."""

from __future__ import annotations

import time

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealane.client import Client, StaticToken
from sealane.errors import (
    MODEL_CRASHED,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)

X = np.arange(6, dtype=np.float32).reshape(3, 2)


def test_gateway_direct_and_sealed_agree(client: Client) -> None:
    for options in (
        {},
        {"via": "direct"},
        {"sealed": True},
        {"sealed": "session"},
        {"signature": "serving_default"},
        {"signature": "serving_default", "sealed": True},
    ):
        outputs = client.inference.predict("camera", {"x": X}, **options)  # type: ignore[arg-type]
        assert list(outputs) == ["y"], options
        np.testing.assert_array_equal(outputs["y"], X * 2)


def test_one_array_or_lists_take_names_and_datatype_from_the_model(client: Client) -> None:
    np.testing.assert_array_equal(client.inference.predict("camera", X)["y"], X * 2)
    assert client.inference.predict("camera", [[1, 2]])["y"].dtype == np.float32
    assert client.inference.predict("camera", {"x": [[1, 2]]})["y"].tolist() == [[2.0, 4.0]]


def test_arrays_of_another_datatype_are_refused_and_never_cast(client: Client) -> None:
    with pytest.raises(InvalidArgument) as refused:
        client.inference.predict("camera", {"x": X.astype(np.float64)})
    assert refused.value.field == "inputs.x.datatype"


def test_wrong_shape_inside_the_seal_comes_back_as_the_same_error(client: Client) -> None:
    for sealed in (False, True):
        with pytest.raises(InvalidArgument) as refused:
            client.inference.predict("camera", {"x": np.zeros((1, 3), np.float32)}, sealed=sealed)
        assert refused.value.reason == "INPUT_SHAPE_MISMATCH"


def test_unavailable_is_retried_inside_the_timeout(client: Client, site) -> None:
    site.workers[0].failures = [Unavailable("loading", reason="NO_WORKER")] * 2
    np.testing.assert_array_equal(client.inference.predict("camera", {"x": X})["y"], X * 2)
    assert len(site.workers[0].calls) == 3


def test_a_crash_of_the_model_is_tried_once_more_and_no_oftener(client: Client, site) -> None:
    crashed = Unavailable("the model crashed", reason=MODEL_CRASHED, retry_after=0.01)
    site.workers[0].failures = [crashed]
    np.testing.assert_array_equal(client.inference.predict("camera", {"x": X})["y"], X * 2)
    for via in ("gateway", "direct"):
        for worker in site.workers:
            worker.calls.clear()
            worker.failures = [crashed] * 10
        with pytest.raises(Unavailable) as refused:
            client.inference.predict("camera", {"x": X}, via=via)
        assert refused.value.reason == MODEL_CRASHED
        assert sum(len(worker.calls) for worker in site.workers) == 2


def test_a_binding_constraint_is_told_at_once(client: Client, site) -> None:
    refusal = Unavailable("no worker", reason="RESIDENCY", constraint="residency")
    site.workers[0].failures = [refusal] * 5
    with pytest.raises(Unavailable) as refused:
        client.inference.predict("camera", {"x": X})
    assert refused.value.metadata["constraint"] == "residency"
    assert len(site.workers[0].calls) == 1


def test_errors_other_than_unavailable_are_not_retried(client: Client, site) -> None:
    site.workers[0].failures = [ResourceExhausted("busy", retry_after=0.01)] * 2
    with pytest.raises(ResourceExhausted):
        client.inference.predict("camera", {"x": X})
    assert len(site.workers[0].calls) == 1


def test_timeout_bounds_everything(client: Client, site) -> None:
    site.workers[0].failures = [Unavailable("away")] * 1000
    started = time.monotonic()
    with pytest.raises((Unavailable, DeadlineExceeded)):
        client.inference.predict("camera", {"x": X}, timeout=0.4)
    assert time.monotonic() - started < 10


def test_direct_goes_to_another_worker_when_one_is_gone(client: Client, site) -> None:
    client.inference.predict("camera", {"x": X}, via="direct")
    site.listeners["edge-1"].close()
    for _ in range(8):  # the order is random
        np.testing.assert_array_equal(client.inference.predict("camera", {"x": X}, via="direct")["y"], X * 2)


def test_direct_lease_is_kept_and_holds_without_the_scheduler(client: Client, site) -> None:
    client.inference.predict("camera", {"x": X}, via="direct")
    client.inference.predict("camera", {"x": X}, via="direct")
    assert site.routing.resolved == 1
    site.routing.seconds = (-1.0, 100.0)  # due for a refresh from now on
    client.inference._workers._routes.expire("camera")
    client.inference.predict("camera", {"x": X}, via="direct")
    assert site.routing.resolved == 2
    site.listeners["control"].close()
    started = time.monotonic()
    for _ in range(20):
        client.inference.predict("camera", {"x": X}, via="direct")
    assert time.monotonic() - started < 10, "no call waits for the scheduler"


def test_direct_says_not_found_when_the_deployment_is_gone(client: Client, site) -> None:
    client.inference.predict("camera", {"x": X}, via="direct")
    site.routing.failure = NotFound("deployment camera does not exist")
    for worker in site.workers:
        worker.failures = [NotFound("not served here", reason="MODEL_NOT_FOUND")] * 20
    with pytest.raises(NotFound):
        client.inference.predict("camera", {"x": X}, via="direct", timeout=3.0)


def test_direct_lease_is_refreshed_beside_the_calls(client: Client, site) -> None:
    site.routing.seconds = (0.01, 100.0)
    deadline = time.monotonic() + 5
    while site.routing.resolved < 3 and time.monotonic() < deadline:
        client.inference.predict("camera", {"x": X}, via="direct")
        time.sleep(0.01)
    assert site.routing.resolved >= 3


def test_direct_names_the_constraint_that_leaves_no_worker(client: Client, site) -> None:
    del site.routing.route.endpoints[:]
    site.routing.route.binding_constraint = "residency"
    site.routing.route.unavailable_reason = "no node in site-a"
    with pytest.raises(Unavailable, match="no node in site-a") as refused:
        client.inference.predict("camera", {"x": X}, via="direct")
    assert refused.value.reason == "RESIDENCY"


def test_direct_takes_the_model_of_one_deployment_by_its_name(client: Client) -> None:
    np.testing.assert_array_equal(client.inference.predict("digits", {"x": X}, via="direct")["y"], X * 2)
    with pytest.raises(NotFound):
        client.inference.predict("nothing", {"x": X}, via="direct")


def test_known_worker_needs_neither_gateway_nor_control_plane(site) -> None:
    key = Ed25519PrivateKey.generate()
    token = site.auth.token("sealane-inference")
    with site.client(StaticToken({"sealane-inference": token}, key)) as offline:
        address = site.listeners["edge-2"].address
        site.listeners["control"].close()
        site.listeners["edge-1"].close()
        model = offline.inference.at(address, "edge-2.node.sealane", "camera")
        np.testing.assert_array_equal(model.predict(X)["y"], X * 2)
        with pytest.raises(Unavailable):  # another name in the certificate than the one expected
            offline.inference.at(address, "edge-3.node.sealane", "camera").predict(X, timeout=0.5)


def test_sealed_calls_carry_no_plaintext_and_no_proof(client: Client, site) -> None:
    client.inference.predict("camera", {"x": np.full((1, 2), 1234.5, np.float32)}, sealed=True)
    (call,) = site.workers[0].calls
    assert call.identity.key_thumbprint and "dpop" not in call.metadata
    assert call.metadata["authorization"].startswith("DPoP ")
    assert np.float32(1234.5).tobytes() not in call.message.SerializeToString()


def test_sealing_context_is_kept_and_replaced_when_the_worker_restarts(client: Client, site) -> None:
    for _ in range(2):
        client.inference.predict("camera", {"x": X}, sealed=True)
    site.workers[0].restart()  # the old ciphertexts are dead
    np.testing.assert_array_equal(client.inference.predict("camera", {"x": X}, sealed=True)["y"], X * 2)
    assert len(site.workers[0].calls) == 4


def test_every_attempt_is_sealed_anew(client: Client, site) -> None:
    site.workers[0].failures = [Unavailable("lane lost", reason="LANE_LOST")]
    client.inference.predict("camera", {"x": X}, sealed=True)
    first, second = (call.message for call in site.workers[0].calls)
    assert first.request_id != second.request_id and first.chunks != second.chunks


def test_unavailable_inside_the_seal_is_retried_too(client: Client, site) -> None:
    site.workers[0].inside = [Unavailable("model process restarts")]
    np.testing.assert_array_equal(client.inference.predict("camera", {"x": X}, sealed=True)["y"], X * 2)


def test_requirement_decides_by_the_signed_statement(client: Client, site) -> None:
    client.inference.predict("camera", {"x": X}, sealed=True, require={"tier": "edge", "region": ["eu", "us"]})
    with pytest.raises(FailedPrecondition) as refused:
        client.inference.predict("camera", {"x": X}, sealed=True, require={"zone": "site-b"})
    assert refused.value.reason == "NO_CANDIDATE"
    assert len(site.workers[0].calls) == 1, "nothing was sent"
    with pytest.raises(InvalidArgument):
        client.inference.predict("camera", {"x": X}, sealed=True, require={"colour": "green"})


def test_a_worker_that_auth_does_not_vouch_for_is_never_sealed_to(client: Client, site) -> None:
    forged = site.workers[0].statement(Ed25519PrivateKey.generate())
    site.workers[0].statement = lambda: forged
    with pytest.raises(Unavailable, match="unknown key; nothing was sent"):
        client.inference.predict("camera", {"x": X}, sealed=True, timeout=1.0)
    assert not site.workers[0].calls


def test_traced_calls_share_the_trace_that_is_returned(client: Client, site) -> None:
    _, trace_id = client.inference.predict_traced("camera", {"x": X}, sealed=True)
    (call,) = site.workers[0].calls
    _, carried, _, flags = call.metadata["traceparent"].split("-")
    assert (carried, flags) == (trace_id, "01")
    client.inference.predict("camera", {"x": X})
    assert "traceparent" not in site.workers[0].calls[1].metadata


def test_options_that_contradict_each_other_are_refused(client: Client) -> None:
    with pytest.raises(InvalidArgument):
        client.inference.predict("camera", {"x": X}, require={"tier": "edge"})
