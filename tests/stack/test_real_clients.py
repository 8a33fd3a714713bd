"""The official clients, unmodified, over TLS with a token, against the running suite (DEMO-5)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from light_site import CAMERA_B, EDGE, LightSite

pytestmark = pytest.mark.stack
SCRIPTS = Path(__file__).parents[1] / "contract" / "real_clients"
TRITON = Path(__file__).parents[2] / ".venv-triton" / "bin" / "python"
needs_triton = pytest.mark.skipif(
    not TRITON.exists(), reason="tritonclient's environment .venv-triton is not built from requirements/triton.lock"
)
PLACES = pytest.mark.parametrize("place", ["gateway", "worker"])
REFUSED = {"no_token": "UNAUTHENTICATED", "wrong_shape": "INVALID_ARGUMENT", "unknown_model": "NOT_FOUND"}


def run(python: Path | str, script: str, site: LightSite, place: str, folder: Path) -> dict[str, object]:
    """What a client script reports of its calls for camera B."""
    inputs = folder / "inputs.npz"
    np.savez(inputs, image=site.rows[:5])
    address = site.endpoints["inference"] if place == "gateway" else site.stack.worker_address(EDGE)
    tls_name = "inference.service.sealane" if place == "gateway" else f"{EDGE}.node.sealane"
    token = site.client.token("sealane-inference")
    trust = site.data / "pki" / "ca.pem"
    command = [str(python), str(SCRIPTS / script), address, str(trust), token, CAMERA_B, str(inputs), tls_name]
    done = subprocess.run([*command, "--refusals"], capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def outputs_of_the_sdk(site: LightSite) -> dict[str, object]:
    answer = site.client.inference.predict(CAMERA_B, {"image": site.rows[:5]})
    return {name: array.tolist() for name, array in answer.items()}


@needs_triton
@PLACES
def test_tritonclient(site: LightSite, tmp_path: Path, place: str) -> None:
    assert run(TRITON, "triton_client.py", site, place, tmp_path) == {
        "live": True,
        "ready": True,
        "server": "sealane",
        "inputs": ["image"],
        "version": "1",
        "id": "r1",
        "outputs": outputs_of_the_sdk(site),
        "refused": REFUSED,
    }


@pytest.mark.tensorflow
@PLACES
def test_tensorflow_serving_api(site: LightSite, tmp_path: Path, place: str) -> None:
    assert run(sys.executable, "tfs_client.py", site, place, tmp_path) == {
        "states": {"1": "AVAILABLE"},
        "signatures": ["serving_default"],
        "version": 1,
        "outputs": outputs_of_the_sdk(site),
        "refused": REFUSED,
    }
