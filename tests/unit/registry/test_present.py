"""What the registry refuses before it keeps anything."""

from __future__ import annotations

import math

import pytest

from sealane.errors import InvalidArgument
from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane.registry.v1 import variant_service_pb2 as pb
from sealane_registry import present


@pytest.mark.parametrize(("format_", "precision", "field"), [(0, 1, "format"), (99, 1, "format"), (2, 99, "precision")])
def test_unknown_enum_values_are_refused(format_: int, precision: int, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        present.new_variant("v", pb.Variant(format=format_, precision=precision))
    assert caught.value.field == f"variant.{field}"


def test_a_precision_may_be_left_open() -> None:
    assert present.new_variant("v", pb.Variant(format=pb.FORMAT_LITERT)).variant == "v"


BAD = [("accuracy", value) for value in (-0.1, 1.1, math.nan, math.inf)]
BAD += [("rows", -1), ("batch_size", -1)]
BAD += [(n, v) for n in ("latency_p50_us", "latency_p99_us", "utilisation") for v in (-1.0, math.nan, math.inf)]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_measurement_that_nothing_can_measure_is_refused(name: str, value: float) -> None:
    with pytest.raises(InvalidArgument) as caught:
        present.measurement_content(pb.Measurement(**{name: value}), "ada")
    assert caught.value.field == f"measurement.{name}"


def test_a_sound_measurement_is_kept_whole() -> None:
    sound = pb.Measurement(accuracy=1.0, rows=360, batch_size=1, latency_p50_us=3.5, utilisation=1.9)
    kept = pb.Measurement.FromString(present.measurement_content(sound, "ada"))
    assert kept.recorder == "ada"
    kept.ClearField("recorder")
    assert kept == sound


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_metrics_are_finite(value: float) -> None:
    with pytest.raises(InvalidArgument) as caught:
        present.new_version("p", model_pb.Version(signatures=[{}], lineage=model_pb.Lineage(metrics={"loss": value})))
    assert caught.value.field == "version.lineage.metrics"
