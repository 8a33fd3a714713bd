"""The HTTP face of a running suite, as somebody with an HTTP library and `admin.json` uses it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
import requests
from light_site import CAMERA_B, LightSite

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def session(site: LightSite) -> Iterator[requests.Session]:
    """With a token of the first admin, got over HTTPS too; the address and the root certificate are in the folder."""
    admin = json.loads((site.data / "admin.json").read_text())
    with requests.Session() as session:
        session.trust_env = False  # an environment that names other roots would win
        session.verify = str(site.data / "pki" / "ca.pem")
        form = {"grant_type": "client_credentials", "audience": "sealane-inference"}
        login = (admin["client_id"], admin["client_secret"])
        answered = session.post(admin["token_url"], data=form, auth=login, timeout=20)
        session.headers["authorization"] = f"Bearer {answered.json()['access_token']}"
        yield session


def test_both_forms_say_what_the_client_library_says(site: LightSite, session: requests.Session) -> None:
    base = f"https://{site.endpoints['inference_http']}"
    expected = site.client.inference.predict(CAMERA_B, site.image)
    (name,) = expected
    row = site.rows[:1]
    body = {"inputs": [{"name": "image", "datatype": "FP32", "shape": [*row.shape], "data": row.tolist()}]}
    answered = session.post(f"{base}/v2/models/{CAMERA_B}/infer", json=body, timeout=20).json()
    found = {output["name"]: np.reshape(output["data"], output["shape"]) for output in answered["outputs"]}
    np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)
    predicted = session.post(f"{base}/v1/models/{CAMERA_B}:predict", json={"inputs": row.tolist()}, timeout=20).json()
    np.testing.assert_allclose(np.ravel(predicted["outputs"]), np.ravel(expected[name]), rtol=1e-6)


def test_what_there_is_to_know_of_a_model(site: LightSite, session: requests.Session) -> None:
    model = f"https://{site.endpoints['inference_http']}/v2/models/{CAMERA_B}"
    assert session.get(f"{model}/ready", timeout=20).json()["ready"] is True
    (taken,) = session.get(model, timeout=20).json()["inputs"]
    assert (taken["name"], taken["datatype"]) == ("image", "FP32")
    config = session.get(f"{model}/config", timeout=20).json()
    assert [item["name"] for item in config["input"]] == ["image"]
    site.client.inference.predict(CAMERA_B, site.image, via="gateway")
    (statistics,) = session.get(f"{model}/stats", timeout=20).json()["model_stats"]
    assert statistics["inference_stats"]["success"]["count"] >= 1


def test_large_tensors_in_binary(site: LightSite, session: requests.Session) -> None:
    rows = np.ascontiguousarray(np.resize(site.rows, (20_000, *site.rows.shape[1:])))
    tensor = {
        "name": "image",
        "datatype": "FP32",
        "shape": [*rows.shape],
        "parameters": {"binary_data_size": rows.nbytes},
    }
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {"inference-header-content-length": str(len(head)), "accept-encoding": "identity"}
    url = f"https://{site.endpoints['inference_http']}/v2/models/{CAMERA_B}/infer"
    answered = session.post(url, data=head + rows.tobytes(), headers=headers, timeout=60)
    assert answered.status_code == 200, answered.text
    length = int(answered.headers["inference-header-content-length"])
    (output,) = json.loads(answered.content[:length])["outputs"]
    found = np.frombuffer(answered.content[length:], np.float32).reshape(output["shape"])
    (expected,) = site.client.inference.predict(CAMERA_B, {"image": rows[:16]}).values()
    np.testing.assert_allclose(found[:16], expected, rtol=1e-5)


def test_the_counts_of_all_this_are_told_to_scrapers(site: LightSite, session: requests.Session) -> None:
    page = session.get(f"https://{site.endpoints['inference_metrics']}/metrics", timeout=20).text
    line = next(line for line in page.splitlines() if line.startswith("nv_inference_request_success{"))
    assert f'model="{CAMERA_B}"' in page
    assert int(line.rpartition(" ")[2]) >= 1
