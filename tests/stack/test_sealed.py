"""Sealed calls on a running suite: every way in, and a model whose owner refuses plaintext on all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
import requests
from light_site import CAMERA_B, EDGE, LIGHT, LightSite
from sealed_site import FENCED, OIP, PRIVATE, expected, plaintext_bodies, sealed_site

from sealane.cli import main
from sealane.client import Step
from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import FailedPrecondition, InvalidArgument, NotFound
from sealane.rpc.status import from_rpc_error

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightSite]:
    with sealed_site(tmp_path_factory.mktemp("sealed")) as site:
        yield site


WAYS: dict[str, dict[str, object]] = {
    "gateway": {},
    "direct": {"via": "direct"},
    "session": {"sealed": "session"},
    "session, direct": {"sealed": "session", "via": "direct"},
    "by signature": {"signature": "serving_default"},
    "by version": {"version": "1"},
    "hedged": {"via": "direct", "hedge": 0.001},
    "edge only": {"require": {"tier": "edge", "clearance": "internal"}},
}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("model", [CAMERA_B, PRIVATE])
def test_every_way_of_the_sdk(site: LightSite, model: str, options: dict[str, object]) -> None:
    for rows in (1, 5):
        outputs = site.client.inference.predict(model, {"image": site.rows[:rows]}, **{"sealed": True, **options})  # type: ignore[arg-type]
        np.testing.assert_allclose(outputs["probabilities"], expected(site, rows), atol=1e-6)


@pytest.mark.parametrize("via", ["gateway", "direct"])
def test_a_stream(site: LightSite, via: str) -> None:
    inputs = [{"image": site.rows[index : index + 1]} for index in range(40)]
    outputs = list(site.client.inference.sealed_stream(PRIVATE, inputs, via=via))  # type: ignore[arg-type]
    assert len(outputs) == 40
    found = np.concatenate([output["probabilities"] for output in outputs])
    np.testing.assert_allclose(found, expected(site, 40), atol=1e-6)


@pytest.mark.parametrize("via", ["gateway", "direct"])
def test_what_the_model_refuses_comes_back_out_of_the_seal(site: LightSite, via: str) -> None:
    for sealed in (True, "session"):
        with pytest.raises(InvalidArgument) as told:
            site.client.inference.predict(PRIVATE, {"image": np.zeros((1, 3), np.float32)}, sealed=sealed, via=via)  # type: ignore[arg-type]
        assert told.value.reason == "INPUT_SHAPE_MISMATCH"
    with pytest.raises(InvalidArgument):
        list(site.client.inference.sealed_stream(PRIVATE, [{"image": np.zeros((1, 3), np.float32)}], via=via))  # type: ignore[arg-type]
    with pytest.raises(NotFound):
        site.client.inference.predict("nobody", {"image": site.rows[:1]}, sealed=True, via=via)  # type: ignore[arg-type]


@pytest.mark.parametrize("place", ["inference", EDGE])
@pytest.mark.parametrize("method", plaintext_bodies("m", np.zeros((1, 1), np.float32)))
def test_plaintext_is_refused_by_every_method(site: LightSite, place: str, method: str) -> None:
    metadata = (("authorization", f"Bearer {site.client.token('sealane-inference')}"),)
    with site.channel(place) as channel, pytest.raises(grpc.RpcError) as told:
        channel.unary_unary(method)(plaintext_bodies(PRIVATE, site.rows[:1])[method], timeout=20, metadata=metadata)
    error = from_rpc_error(told.value)
    assert (error.kind, error.reason) == ("FAILED_PRECONDITION", "SEALED_REQUIRED"), error.message
    assert "sealane proxy" in error.message


@pytest.mark.parametrize("place", ["inference", EDGE])
def test_plaintext_is_refused_in_streams(site: LightSite, place: str) -> None:
    body = plaintext_bodies(PRIVATE, site.rows[:1])[OIP + "ModelInfer"]
    metadata = (("authorization", f"Bearer {site.client.token('sealane-inference')}"),)
    with site.channel(place) as channel:
        stream = channel.stream_stream(OIP + "ModelStreamInfer")
        (answer,) = stream(iter([body]), timeout=20, metadata=metadata)
        assert "wants requests sealed" in oip.ModelStreamInferResponse.FromString(answer).error_message
        with pytest.raises(grpc.RpcError) as told:
            list(stream(iter([body]), timeout=20, metadata=(*metadata, ("triton_grpc_error", "true"))))
    assert from_rpc_error(told.value).reason == "SEALED_REQUIRED"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "v2/models/private/infer",
            {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 8, 8], "data": [0.0] * 64}]},
        ),
        ("v1/models/private:predict", {"instances": [[[0.0] * 8] * 8]}),
        ("v1/models/private:classify", {"examples": [{"image": [0.0] * 64}]}),
        ("v1/models/private:regress", {"examples": [{"image": [0.0] * 64}]}),
    ],
)
def test_plaintext_is_refused_over_http(site: LightSite, path: str, body: object) -> None:
    with requests.Session() as session:
        session.trust_env = False
        answered = session.post(
            f"https://{site.endpoints['inference_http']}/{path}",
            json=body,
            headers={"authorization": f"Bearer {site.client.token('sealane-inference')}"},
            verify=str(site.data / "pki" / "ca.pem"),
            timeout=20,
        )
    assert answered.status_code == 400
    assert "wants requests sealed" in answered.text


def test_what_holds_no_tensors_may_be_asked_in_plaintext(site: LightSite) -> None:
    assert site.client.inference.signature(PRIVATE).inputs[0].name == "image"


def test_the_sdk_is_told_what_to_do(site: LightSite) -> None:
    for via in ("gateway", "direct"):
        with pytest.raises(FailedPrecondition, match="sealed=True"):
            site.client.inference.predict(PRIVATE, site.image, via=via)  # type: ignore[arg-type]


def test_a_chain_with_such_a_model_takes_sealed_requests_alone(site: LightSite) -> None:
    steps = [
        Step(PRIVATE, {"image": "left"}, {"probabilities": "p"}),
        Step(CAMERA_B, {"image": "right"}, {"probabilities": "q"}),
    ]
    site.client.deployments.create_chain("pair", steps)
    site.client.deployments.wait("pair", 20)
    try:
        rows = {"left": site.rows[:2], "right": site.rows[:2]}
        outputs = site.client.inference.predict("pair", rows, sealed=True)
        np.testing.assert_allclose(outputs["p"], expected(site, 2), atol=1e-6)
        np.testing.assert_allclose(outputs["q"], expected(site, 2), atol=1e-6)
        with pytest.raises(FailedPrecondition) as told:
            site.client.inference.predict("pair", rows)
        assert told.value.reason == "SEALED_REQUIRED"
    finally:
        site.client.deployments.delete("pair")


def test_the_policy_decides_where_the_model_is_placed_and_explains_it(site: LightSite) -> None:
    assert {node for node, _ in site.places(PRIVATE)} == {EDGE}
    found = site.client.deployments.get(FENCED)
    assert not found.placements
    told = [rejection.detail for rejection in found.decision.rejections if rejection.filter == "sealing"]
    assert any("sealed to region mars, the node is in eu" in detail for detail in told), found.decision


def test_another_form_of_a_variant_demands_the_same(site: LightSite) -> None:
    added = site.client.models.add_variant(f"{PRIVATE}@1", LIGHT / "litert-float.tflite", variant="litert-float")
    assert added.sealing.required and list(added.sealing.tiers) == ["edge"]
    assert "sealane.json" in [file.path for file in added.files]


def test_the_command_pushes_a_policy_and_predicts_sealed(
    site: LightSite, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEALANE_HOME", str(site.data))
    file = str(LIGHT / "litert-int8.tflite")
    pushed = ["models", "push", file, "by-hand", "--require-sealed", "--sealed-to", "tier=edge", "--output", "json"]
    assert main.run(pushed) == 0
    version = json.loads(capsys.readouterr().out)
    assert version["variants"][0]["sealing"] == {"required": True, "tiers": ["edge"]}
    inputs = str(LIGHT / "test.npz")
    assert main.run(["predict", PRIVATE, "--inputs", inputs, "--sealed", "--require", "region=eu"]) == 0
    assert main.run(["predict", PRIVATE, "--inputs", inputs, "--sealed", "--require", "region=us"]) == 1
    assert "region us required, it says eu" in capsys.readouterr().err
    assert main.run(["models", "push", file, "by-hand", "--sealed-to", "colour=green"]) == 2


def test_the_directory_says_who_could_open(
    site: LightSite, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {item.node: item for item in site.client.keys.sealing()}
    assert set(found) == {EDGE, "cloud-1"}
    assert found[EDGE].attributes["clearance"] == "restricted"
    monkeypatch.setenv("SEALANE_HOME", str(site.data))
    assert main.run(["keys", "sealing"]) == 0
    shown = capsys.readouterr().out
    assert found[EDGE].key_id in shown and "MLKEM768_X25519" in shown
