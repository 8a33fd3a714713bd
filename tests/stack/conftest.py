"""Fixtures: real services in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from control_plane import ControlPlane
from light_site import LightSite, running

TRAIN = Path(__file__).parents[2] / "examples/digits/train.py"


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    plane = ControlPlane(tmp_path_factory.mktemp("control-plane"))
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightSite]:
    """The whole suite with both cameras serving; tests leave it as they found it."""
    with running(tmp_path_factory.mktemp("site")) as site:
        site.deploy_cameras(site.push())
        yield site


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's folder after training."""
    out = tmp_path_factory.mktemp("digits")
    subprocess.run([sys.executable, str(TRAIN), "--out", str(out)], check=True, capture_output=True, timeout=180)
    return out
