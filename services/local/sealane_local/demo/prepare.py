"""Step 1: train, push, optimise. With --light: push what the same code made earlier."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from sealane.registry.v1 import variant_service_pb2 as variant_pb
from sealane_local.demo.world import MODEL, World

EXAMPLE = Path("examples/digits")
TEST_ROWS = 360

Training = subprocess.Popen[bytes]


def start_training(out: Path) -> Training:
    """Train in a process of its own, as a user would, while the suite starts."""
    out.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen([sys.executable, str(EXAMPLE / "train.py"), "--out", str(out)], stdout=subprocess.DEVNULL)


def push(world: World, training: Training | None) -> None:
    """Push the model and make its variants."""
    report = world.report
    if training is None:
        report.step(1, "push a digits model made earlier by the same code (LIGHT=1)")
        _push_light(world)
    else:
        report.step(1, "train a convolutional network on scikit-learn's digits, push it, make it int8")
        if training.wait(timeout=240) != 0:
            raise RuntimeError("training failed; run examples/digits/train.py by hand to see why")
        metrics = json.loads((world.files / "metrics.json").read_text())
        report.say(f"trained {metrics['parameters']:.0f} parameters in {metrics['seconds']:.0f} s")
        _push_trained(world, metrics)
    world.load_test_set()
    version = world.client.models.get_version(world.version)
    for variant in version.variants:
        name, measured = variant.name.rsplit("/", 1)[1], variant.measurements
        if measured:
            report.put(f"accuracy.{name.replace('-', '_')}", measured[-1].accuracy)
        report.put(f"bytes.{name.replace('-', '_')}", variant.size_bytes)
        accuracy = f"accuracy {measured[-1].accuracy:.4f}" if measured else "not measured"
        report.say(f"variant {name}: {variant.size_bytes} bytes, {accuracy}, {variant.digest[:19]}...")


def _push_trained(world: World, metrics: dict[str, float]) -> None:
    client, report = world.client, world.report
    version = client.models.push(
        world.files / "saved_model",
        MODEL,
        variant="savedmodel",
        alias="latest",
        metrics={"accuracy": metrics["accuracy"]},
    )
    world.version = version.name
    report.say(f"pushed {version.name}")
    job = client.jobs.optimise(
        f"{version.name}/variants/savedmodel", world.files / "calibration.npz", world.files / "test.npz"
    )
    report.say(f"job {job.name.rsplit('/', 1)[1]}: SavedModel to LiteRT int8, at most 0.02 of accuracy may be lost")
    done = client.jobs.wait(job.name, timeout=180)
    measured = {item.variant_id: item.measurement for item in done.results}
    report.expect(measured["savedmodel"].accuracy >= 0.95, "the float model is right on at least 95 % of the test rows")
    drop = measured["savedmodel"].accuracy - measured["litert-int8"].accuracy
    report.expect(drop <= 0.02, f"int8 loses at most 0.02 of accuracy (lost {drop:.4f})")
    sizes = {item.variant_id: sum(file.size_bytes for file in item.variant.files) for item in done.results}
    share = sizes["litert-int8"] / sizes["litert-float"]
    report.expect(share <= 0.4, f"the int8 file is at most 40 % of the float one ({share:.0%})")


def _push_light(world: World) -> None:
    client, light = world.client, EXAMPLE / "light"
    version = client.models.push(light / "litert-float.tflite", MODEL, variant="litert-float", alias="latest")
    client.models.add_variant(version.name, light / "litert-int8.tflite", variant="litert-int8")
    world.version = version.name
    metrics = json.loads((light / "metrics.json").read_text())
    before = metrics["variants"]["savedmodel"]["accuracy"]
    world.report.put("accuracy.savedmodel", before)
    world.report.say(f"the SavedModel it was made from measured {before:.4f} then; it is not part of this run")
    for name in ("litert-float", "litert-int8"):
        made = metrics["variants"][name]
        measurement = variant_pb.Measurement(
            device_class="measured-earlier",
            accuracy=made["accuracy"],
            rows=TEST_ROWS,
            batch_size=1,
            latency_p50_us=made["p50_us"],
            latency_p99_us=made["p99_us"],
            utilisation=made["utilisation"],
        )
        client.models.record_measurement(f"{version.name}/variants/{name}", measurement)
