"""Every framework from its own file to an answer of the running suite (WORK-1), and how a model stands there."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pytest
from framework_models import FRAMEWORKS, SOURCES, TORCH_PYTHON, Models, save_perceptron
from framework_site import (
    authorised,
    by_tensorflow_serving,
    deployed,
    infer,
    model_processes,
    platform_of,
    serving,
)
from light_site import CLOUD, LIGHT, LightSite, eventually
from orphans import ended

from sealane.errors import SealaneError, Unavailable
from sealane.tensors import Signature, TensorSpec
from sealane_worker.model import confine

pytestmark = [
    pytest.mark.stack,
    pytest.mark.tensorflow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),  # the frameworks' own, while they train and convert
]
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightSite]:
    """A worker with every runtime of this machine that refuses a sandbox below what its kernel gives."""
    environment = {"SEALANE_WORKER_SANDBOX": confine.available()}
    if TORCH_PYTHON.exists():
        environment |= {
            "PYTHONPATH": SOURCES,
            "SEALANE_WORKER_PYTHONS": f"torch={TORCH_PYTHON}",
            "SEALANE_WORKER_EXECUTABLE": "true",  # a program of torch.export holds code
        }
    with serving(tmp_path_factory.mktemp("suite"), environment) as site:
        yield site


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_framework_answers_over_both_protocols_as_in_process(
    framework: str, suite: LightSite, models: Models
) -> None:
    built = models.build(framework)
    inputs = {built.input: models.rows}
    version = suite.client.models.push(built.path, f"of-{framework}", runtime=built.runtime)
    with deployed(suite, version.name, framework) as name:
        answers = {
            "OIP, gateway": suite.client.inference.predict(name, inputs),
            "OIP, direct": suite.client.inference.predict(name, inputs, via="direct"),
            "TFS, gateway": by_tensorflow_serving(suite, "inference", name, inputs),
            "TFS, direct": by_tensorflow_serving(suite, CLOUD, name, inputs),
        }
        assert platform_of(suite, name) == built.platform
    for way, answer in answers.items():
        assert set(answer) == set(built.wanted), way
        for output, wanted in built.wanted.items():
            np.testing.assert_allclose(answer[output], wanted, atol=built.tolerance, err_msg=way)
    first = next(iter(built.wanted.values()))
    assert np.mean(first.argmax(1) == models.labels) > 0.8, "it has learned its digits"


def test_int8_is_near_the_float_model_it_was_made_of(models: Models) -> None:
    pytest.importorskip("tensorflow", reason="needs the [tensorflow] extra")
    in_float, int8 = (models.build(name).wanted["output_0"] for name in ("litert", "litert-int8"))
    assert np.abs(in_float - int8).max() < 0.15
    assert not np.array_equal(in_float, int8)


def test_a_photo_becomes_words_in_the_sandbox(suite: LightSite, models: Models, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="needs the [images] extra")
    weights, probabilities = models.perceptron
    save_perceptron(tmp_path / "digits.onnx", weights, (8, 8, 1))
    (tmp_path / "labels.txt").write_text("\n".join(DIGIT_NAMES))
    (tmp_path / "sealane.json").write_text(
        """{"before": [
             {"decode_image": {"input": "photo", "output": "pixels", "channels": 1, "height": 8, "width": 8}},
             {"normalize": {"tensor": "pixels", "scale": 0.00392156862745098, "uint8_input": true}}],
            "after": [{"top_k": {"input": "probabilities", "k": 3}},
                      {"labels": {"input": "classes", "file": "labels.txt"}}]}"""
    )
    gives = (TensorSpec("probabilities", "FP32", (-1, 3)), TensorSpec("classes", "INT64", (-1, 3)))
    told = Signature((TensorSpec("photo", "BYTES", (-1,)),), (*gives, TensorSpec("labels", "BYTES", (-1, 3))))
    version = suite.client.models.push(tmp_path, "photos", signatures=[told])
    # Every pixel as a block of 8 by 8, as JPEG cuts an image: what is lost is less than what tells digits apart.
    pixels = (models.rows.reshape(-1, 8, 8) * 255).astype(np.uint8).repeat(8, 1).repeat(8, 2)
    files = [cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes() for image in pixels]
    photos = np.array(files, np.object_)
    with deployed(suite, version.name, "photos") as name:
        answers = [
            suite.client.inference.predict(name, {"photo": photos}),
            by_tensorflow_serving(suite, "inference", name, {"photo": photos}),
        ]
        with pytest.raises(SealaneError, match="JPEG or PNG"):
            suite.client.inference.predict(name, {"photo": np.array([b"GIF89a"], np.object_)})
    for answer in answers:
        np.testing.assert_allclose(answer["probabilities"][:, 0], probabilities.max(1), atol=0.05)
        assert np.mean(answer["classes"][:, 0] == probabilities.argmax(1)) > 0.97
        words = [[word.decode() for word in row] for row in answer["labels"].tolist()]
        assert words == [[DIGIT_NAMES[place] for place in row] for row in answer["classes"].tolist()]


def test_a_worker_tells_which_sandbox_its_models_have(suite: LightSite) -> None:
    (node,) = suite.client.nodes.list()
    assert node.labels["sandbox"] == confine.available()


def test_a_placement_tells_what_was_warmed_and_pinned(suite: LightSite, tmp_path: Path) -> None:
    (tmp_path / "digits.tflite").write_bytes((LIGHT / "litert-float.tflite").read_bytes())
    (tmp_path / "sealane.json").write_text('{"dynamic_batching": {"preferred_batch_size": [4]}}')
    recorded = [{"image": suite.rows[at : at + 3]} for at in (0, 3)]
    version = suite.client.models.push(tmp_path, "warmed", examples=recorded)
    with deployed(suite, version.name, "warmed", pinned=True) as name:
        found = suite.client.deployments.get(name)
    (placement,) = found.placements
    assert placement.warmed_requests == 2
    assert {1, 3, 4} <= set(placement.warmed_batch_sizes), "by zeros, by the record, by the manifest"
    assert placement.resident
    assert placement.memory_bytes > 10 << 20
    assert found.demand.pinned


def test_a_runtime_that_no_worker_has_is_what_holds_a_deployment_back(models: Models, tmp_path: Path) -> None:
    built = models.build("onnx")
    with serving(tmp_path / "lean", {}, runtimes=("litert",)) as site:
        version = site.client.models.push(built.path, "digits")
        site.client.deployments.create("digits", version.name)
        with pytest.raises(Unavailable, match="no runtime for ONNX, the node has litert") as caught:
            site.client.deployments.wait("digits", 2)
        assert caught.value.metadata["constraint"] == "runtime"
        # What would help: the same model in a format that the worker has.
        site.client.models.push(LIGHT / "litert-float.tflite", "light")
        with deployed(site, "light@1", "light") as name:
            assert site.client.inference.predict(name, site.image)["probabilities"].shape == (1, 10)


@dataclass
class Traffic:
    """Callers that never stop until told, and what they got."""

    site: LightSite
    codes: Counter[str] = field(default_factory=Counter)
    of_the_sdk: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    """Of the SDK, by the way in."""
    stop: threading.Event = field(default_factory=threading.Event)

    def raw(self, name: str) -> None:
        """A caller of the worker that repeats nothing."""
        metadata = authorised(self.site, "inference")
        while not self.stop.is_set():
            try:
                infer(self.site, name, self.site.image, metadata)
                self.codes["OK"] += 1
            except grpc.RpcError as error:
                self.codes[error.code().name] += 1

    def sdk(self, name: str, via: str) -> None:
        while not self.stop.is_set():
            try:
                self.site.client.inference.predict(name, self.site.image, via=via)
                self.of_the_sdk["OK"] += 1
                self.answered[via] += 1
            except SealaneError as error:
                self.of_the_sdk[f"{error.kind} {error.reason}: {error.message}"] += 1


def test_a_killed_model_process_fails_its_calls_with_unavailable_and_none_of_the_sdk(suite: LightSite) -> None:
    version = suite.client.models.push(LIGHT / "litert-float.tflite", "killed")
    with deployed(suite, version.name, "killed") as name:
        traffic = Traffic(suite)
        work = [(traffic.raw, (name,))] * 4 + [(traffic.sdk, (name, via)) for via in ("gateway", "direct")]
        threads = [threading.Thread(target=act, args=given) for act, given in work]
        for thread in threads:
            thread.start()
        try:
            # Two: a third crash within five minutes puts the model into quarantine.
            for _ in range(2):
                eventually(lambda seen=traffic.codes["OK"]: traffic.codes["OK"] > seen + 50, "calls are answered")
                # A call that is hit by both kills is not tried again: it may be what the model dies of.
                for via in ("gateway", "direct"):
                    eventually(lambda via=via, seen=traffic.answered[via]: traffic.answered[via] > seen + 1, via)
                (process,) = model_processes(suite)
                os.kill(process, signal.SIGKILL)
                eventually(lambda pid=process: ended(pid), "the process has ended")
                eventually(lambda pid=process: bool(model_processes(suite) - {pid}), "another is started")
            eventually(lambda seen=traffic.codes["OK"]: traffic.codes["OK"] > seen + 50, "calls are answered again")
        finally:
            traffic.stop.set()
            for thread in threads:
                thread.join()
    assert set(traffic.codes) == {"OK", "UNAVAILABLE"}, traffic.codes
    assert set(traffic.of_the_sdk) == {"OK"}, traffic.of_the_sdk
