"""Finding runtimes without importing a framework, choosing one, and adding one from outside."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sealane.errors import FailedPrecondition, InvalidArgument, Unimplemented
from sealane.registry.v1 import variant_service_pb2 as pb
from sealane_worker.runtimes import (
    Runtime,
    RuntimeInfo,
    RuntimeOptions,
    create_runtime,
    known_runtimes,
    require_runtime,
    runtime_for,
)
from sealane_worker.runtimes.remote import find_endpoint, read_remote
from sealane_worker.runtimes.variant_files import only_file, require_device


def info(name: str, *formats: str, package: str = "numpy") -> RuntimeInfo:
    def create() -> Runtime:
        raise AssertionError("not to be made")

    return RuntimeInfo(name, formats, package, (package,), f"sealane[{name}]", create)


def test_every_format_of_the_registry_has_a_runtime_of_its_own() -> None:
    own = {known.formats[0] for known in known_runtimes().values()}
    loaded = {name for known in known_runtimes().values() for name in known.formats}
    formats = {name.removeprefix("FORMAT_") for name in pb.Format.keys()} - {"UNSPECIFIED"}  # noqa: SIM118
    assert loaded == formats
    assert formats - own == {"TORCH_SCRIPT"}  # the torch runtime's second one


def test_the_known_runtimes_are_found_without_their_frameworks() -> None:
    code = (
        "import sys; from sealane_worker.runtimes import known_runtimes; print(*known_runtimes());"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, modules = (set(line.split()) for line in done.stdout.splitlines())
    assert names >= {"keras", "litert", "onnxruntime", "openvino", "remote", "tensorflow", "torch"}
    assert modules.isdisjoint({"tensorflow", "keras", "torch", "onnxruntime", "openvino", "ai_edge_litert", "onnx"})


def test_what_holds_code_and_what_calls_out_is_marked() -> None:
    known = known_runtimes()
    assert known["torch"].executable == {"TORCH_EXPORT", "TORCH_SCRIPT"}
    assert [name for name, item in known.items() if item.network] == ["remote"]
    assert not any(item.executable for name, item in known.items() if name != "torch")


def test_a_formats_own_runtime_comes_first() -> None:
    offered = {item.name: item for item in (info("a-reader", "OPENVINO", "ONNX"), info("own", "ONNX"))}
    assert runtime_for("ONNX", offered).name == "own"
    assert runtime_for("OPENVINO", offered).name == "a-reader"
    assert runtime_for("ONNX", offered, "a-reader").name == "a-reader"


def test_a_runtime_that_is_not_offered_is_named_with_how_to_get_it() -> None:
    with pytest.raises(Unimplemented) as caught:
        runtime_for("LITERT", {"own": info("own", "ONNX")})
    assert caught.value.reason == "RUNTIME_NOT_INSTALLED"
    assert "LITERT" in caught.value.message
    with pytest.raises(InvalidArgument) as refused:
        runtime_for("LITERT", {"own": info("own", "ONNX")}, "own")
    assert refused.value.reason == "RUNTIME_FORMAT"
    with pytest.raises(InvalidArgument, match="unknown"):
        runtime_for("ONNX", {}, "nobody")


def test_a_runtime_without_its_framework_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = replace(known_runtimes()["onnxruntime"], package="no_such_package")
    monkeypatch.setattr("sealane_worker.runtimes.known_runtimes", lambda: {"onnxruntime": absent})
    with pytest.raises(Unimplemented, match=r"pip install 'sealane\[onnx\]'"):
        require_runtime("onnxruntime")


TOY = """
from sealane.tensors import Signature, TensorSpec
from sealane_worker.runtimes import RuntimeInfo

class Toy:
    def load(self, path, options):
        self.factor = float(path.read_text())
        spec = TensorSpec("x", "FP32", (-1,))
        return (Signature((spec,), (spec,)),)

    def run(self, inputs, signature_name):
        return {"x": inputs["x"] * self.factor}

    def close(self):
        pass

RUNTIME = RuntimeInfo("toy", ("TOY",), "toy_runtime", ("toy",), "toy", Toy)
"""


def test_a_runtime_is_one_module_and_an_entry_point(tmp_path: Path) -> None:
    (tmp_path / "toy_runtime.py").write_text(TOY)
    (tmp_path / "toy-1.2.dist-info").mkdir()
    (tmp_path / "toy-1.2.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.2\n")
    (tmp_path / "toy-1.2.dist-info/entry_points.txt").write_text("[sealane.runtimes]\ntoy = toy_runtime:RUNTIME\n")
    (tmp_path / "model").write_text("3")
    code = (
        "import sys; sys.path.append(sys.argv[1])\n"
        "from pathlib import Path; import numpy as np\n"
        "from sealane_worker.runtimes import *; from sealane_worker import runtimes as r\n"
        "info = r.runtime_for('TOY', r.installed_runtimes())\n"
        "toy = r.create_runtime(info.name)\n"
        "(signature,) = toy.load(Path(sys.argv[1], 'model'), r.RuntimeOptions())\n"
        "print(info.version, toy.run({'x': np.ones(2, np.float32)}, signature.name)['x'].tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "1.2 [3.0, 3.0]", done.stderr


def test_an_entry_point_that_is_broken_hides_no_other(tmp_path: Path) -> None:
    (tmp_path / "bad-1.dist-info").mkdir()
    (tmp_path / "bad-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1\n")
    (tmp_path / "bad-1.dist-info/entry_points.txt").write_text("[sealane.runtimes]\nbad = nowhere:RUNTIME\n")
    code = (
        "import sys; sys.path.append(sys.argv[1])\n"
        "from sealane_worker.runtimes import known_runtimes; print(*known_runtimes())"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert "litert" in done.stdout.split()
    assert "bad" not in done.stdout.split()


def test_a_device_that_is_not_present_is_named_with_those_that_are() -> None:
    require_device("cuda", ("cpu", "cuda"), "a framework")
    with pytest.raises(FailedPrecondition, match=r"'cuda' is not present here, a framework finds \['cpu'\]") as caught:
        require_device("cuda", ("cpu",), "a framework")
    assert caught.value.reason == "DEVICE_NOT_PRESENT"


def test_a_model_lies_in_a_file_or_alone_in_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "m.tflite"
    file.write_bytes(b"")
    (tmp_path / "sealane.json").write_text("{}")
    (tmp_path / "package").mkdir()
    (tmp_path / "package/other.tflite").write_bytes(b"")
    assert only_file(file, "a LiteRT", ".tflite") == only_file(tmp_path, "a LiteRT", ".tflite") == file
    with pytest.raises(FailedPrecondition, match="this one has 0"):
        only_file(tmp_path, "an ONNX", ".onnx")


SETTINGS = {"endpoint.triton": "10.1.2.3:8001", "endpoint.slow": "host:1,timeout=2.5"}


def test_an_endpoint_is_where_the_operator_says(tmp_path: Path) -> None:
    assert find_endpoint("triton", SETTINGS).address == "10.1.2.3:8001"
    assert find_endpoint("triton", SETTINGS).ca is None
    assert find_endpoint("slow", SETTINGS).timeout == 2.5
    (tmp_path / "ca.pem").write_bytes(b"roots")
    found = find_endpoint("tls", {"endpoint.tls": f"host:443,ca={tmp_path / 'ca.pem'}"})
    assert (found.address, found.ca) == ("host:443", b"roots")


@pytest.mark.parametrize("name", ["other", "10.1.2.3:8001", ""])
def test_an_endpoint_that_the_operator_does_not_name_is_not_called(name: str) -> None:
    with pytest.raises(FailedPrecondition, match="SEALANE_WORKER_ENDPOINTS") as caught:
        find_endpoint(name, SETTINGS)
    assert caught.value.reason == "ENDPOINT_UNKNOWN"
    assert "10.1.2.3" not in caught.value.message.removeprefix(f"endpoint '{name}'")


@pytest.mark.parametrize("told", ["host", ":80", "host:0", "host:http", "host:80,ca=/no/such.pem", "host:80,other=1"])
def test_an_endpoint_that_is_none_is_refused(told: str) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        find_endpoint("e", {"endpoint.e": told})
    assert caught.value.reason == "ENDPOINT_INVALID"


def test_a_pushed_model_cannot_choose_an_address(tmp_path: Path) -> None:
    (tmp_path / "remote.json").write_text('{"endpoint": "169.254.169.254:80", "protocol": "oip", "model": "m"}')
    assert read_remote(tmp_path).endpoint == "169.254.169.254:80"
    with pytest.raises(FailedPrecondition) as caught:
        create_runtime("remote").load(tmp_path, RuntimeOptions(settings=SETTINGS))
    assert caught.value.reason == "ENDPOINT_UNKNOWN"


@pytest.mark.parametrize("content", ["", "{}", '{"endpoint": "e", "protocol": "oip", "model": "m", "address": "h:1"}'])
def test_a_remote_file_of_another_form_is_unreadable(content: str, tmp_path: Path) -> None:
    (tmp_path / "remote.json").write_text(content)
    with pytest.raises(FailedPrecondition) as caught:
        read_remote(tmp_path)
    assert caught.value.reason == "MODEL_UNREADABLE"
