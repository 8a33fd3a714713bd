"""``sealane models check`` tells what callers send and get, in a form that ``sealane models push`` takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from sealane.cli import main
from sealane.client import model_files
from sealane.registry.v1 import model_service_pb2 as pb
from sealane.tensors import Signature, TensorSpec

OUTER = Signature(
    (TensorSpec("pixels", "FP32", (-1, 3)),),
    (TensorSpec("y", "FP32", (-1, 2)), TensorSpec("classes", "INT64", (-1, 2))),
    "serving_default",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with a step before and one after it, of which callers see other names and shapes."""
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder = tmp_path / "the model"
    folder.mkdir()
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    steps = {
        "before": [{"rename": {"tensor": "pixels", "to": "x"}}],
        "after": [{"top_k": {"input": "y", "k": 2}}],
    }
    (folder / "sealane.json").write_text(json.dumps(steps))
    return folder


def test_a_variant_with_steps_is_checked_without_signatures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["models", "check", str(folder)]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("loadable: onnxruntime")
    assert rest == [
        "serving_default",
        "  send  pixels FP32 [-1, 3]",
        "  get   y FP32 [-1, 2]",
        "  get   classes INT64 [-1, 2]",
    ]


def test_what_check_prints_is_a_file_of_signatures_for_push(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # As `sealane models check ... > signatures.json` does: the shell makes the file before the command runs.
    (folder / "signatures.json").touch()
    assert main.run(["models", "check", str(folder), "--output", "json"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "told.json").write_text(printed)
    (folder / "signatures.json").unlink()
    pushed: list[tuple[Signature, ...]] = []

    class Registry:
        def __enter__(self) -> Registry:
            self.models = self
            return self

        def __exit__(self, *args: object) -> None:
            return None

        def push(
            self, path: Path, name: str, *, variant: str, signatures: tuple[Signature, ...], **_: object
        ) -> object:
            pushed.append(model_files.inspect(path, variant=variant, signatures=signatures).signatures)
            return pb.Version(name="projects/p/models/m/versions/1")

    monkeypatch.setattr("sealane.client.connect", lambda *args, **kwargs: Registry())
    command = ["models", "push", str(folder), "m", "--data", "d"]
    assert main.run(command) != 0
    shown = capsys.readouterr().err
    assert f"sealane models check '{folder}' --output json" in shown and "--signatures FILE" in shown
    assert main.run([*command, "--signatures", str(tmp_path / "told.json")]) == 0
    (folder / "signatures.json").write_text(printed)
    assert main.run(command) == 0, "the file beside the model says it"
    assert pushed == [(OUTER,), (OUTER,)]


def test_a_model_that_cannot_be_loaded_fails_the_check(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "sealane.json").write_text('{"after": [{"top_k": {"input": "absent", "k": 2}}]}')
    assert main.run(["models", "check", str(folder)]) != 0
    captured = capsys.readouterr()
    assert "absent" in captured.err and "MANIFEST_STEPS" in captured.err and not captured.out
