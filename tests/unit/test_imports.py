"""What may be imported where: TensorFlow by no service at start, extras by no client."""

from __future__ import annotations

import subprocess
import sys

import pytest

SERVICES = ["sealane_auth", "sealane_registry", "sealane_scheduler", "sealane_inference", "sealane_worker"]


def loaded(module: str) -> set[str]:
    """Top-level packages that importing `module` brings in, in a fresh interpreter."""
    code = f"import {module}, sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_starts_without_tensorflow(service: str) -> None:
    packages = loaded(f"{service}.app")
    assert "grpc" in packages
    assert packages.isdisjoint({"tensorflow", "tensorflow_serving", "keras", "ai_edge_litert", "sklearn"})


def test_the_sdk_needs_the_base_dependencies_alone() -> None:
    # grpc itself imports its health and reflection packages where they are installed.
    extras = {"jwt", "sqlalchemy", "alembic", "starlette", "uvicorn", "sklearn"}
    assert loaded("sealane.client").isdisjoint(extras | {"tensorflow", "ai_edge_litert"})
    assert loaded("sealane.cli.main").isdisjoint(extras | {"rich", "numpy", "grpc"})
