"""``sealane models push`` hands over what the model itself does not tell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sealane.cli import main
from sealane.registry.v1 import model_service_pb2 as pb
from sealane.tensors import Signature, TensorSpec


class Registry:
    """Stands for a client; keeps what was pushed."""

    def __init__(self) -> None:
        self.options: list[dict[str, object]] = []
        self.models = self

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *args: object) -> None:
        return None

    def push(self, path: Path, name: str, **options: object) -> pb.Version:
        self.options.append(options)
        return pb.Version(name=f"projects/p/models/{name}/versions/1")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    registry = Registry()
    monkeypatch.setattr("sealane.client.connect", lambda *args, **kwargs: registry)
    return registry


def test_signatures_come_from_a_file(registry: Registry, tmp_path: Path) -> None:
    told = {
        "inputs": [{"name": "photo", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": "labels", "datatype": "BYTES", "shape": [-1, 3]}],
    }
    (tmp_path / "told.json").write_text(json.dumps({"signatures": [{"name": "serving_default", **told}]}))
    command = ["models", "push", str(tmp_path), "photos", "--data", "x"]
    assert main.run([*command, "--signatures", str(tmp_path / "told.json")]) == 0
    takes, gives = TensorSpec("photo", "BYTES", (-1,)), TensorSpec("labels", "BYTES", (-1, 3))
    assert registry.options[0]["signatures"] == (Signature((takes,), (gives,), "serving_default"),)
    assert main.run(command) == 0
    assert registry.options[1]["signatures"] == (), "read from the model"


def test_a_file_without_signatures_is_refused_before_anything_is_sent(
    registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "told.json").write_text('{"inputs": []}')
    command = ["models", "push", str(tmp_path), "photos", "--data", "x"]
    assert main.run([*command, "--signatures", str(tmp_path / "told.json")]) != 0
    assert "told.json holds no signatures" in capsys.readouterr().err
    assert not registry.options
