"""The demo as a newcomer runs it, without training: exit code, report, nothing left behind."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from orphans import none_left

pytestmark = [pytest.mark.stack, pytest.mark.timeout(150)]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    data = tmp_path_factory.mktemp("demo") / "data"
    with none_left():
        command = [sys.executable, "-m", "sealane_local.demo", "--light", "--data", str(data)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=140, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert done.stderr == ""
    found: dict[str, object] = json.loads((data / "report.json").read_text())
    return found


def test_ended_early_it_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-u", "-m", "sealane_local.demo", "--light", "--data", str(tmp_path / "data")]
    with none_left():
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        with process.stdout as lines:
            assert lines.readline().startswith("starting")
            time.sleep(0.7)  # some of its processes run, others do not yet
            process.terminate()
            lines.read()
        assert process.wait(20) == 143
    assert not (tmp_path / "data" / "report.json").exists()


def test_everything_held(report: dict[str, object]) -> None:
    assert report["ok"] is True
    assert report["failures"] == []


def test_accuracy_and_size(report: dict[str, object]) -> None:
    # The light model has no SavedModel; its LiteRT float variant stands for it.
    assert report["accuracy"]["litert_float"] >= 0.95
    assert report["accuracy"]["litert_float"] - report["accuracy"]["litert_int8"] <= 0.02
    assert abs(report["accuracy"]["served"] - report["accuracy"]["litert_int8"]) <= 0.01
    assert 0 < report["bytes"]["litert_int8"] <= 0.4 * report["bytes"]["litert_float"]


def test_placements_are_explained(report: dict[str, object]) -> None:
    placed = {item["deployment"]: item for item in report["placements"]}
    where = {name: (item["node"], item["tier"], item["variant"]) for name, item in placed.items()}
    assert where == {
        "camera-a": ("edge-1", "edge", "litert-int8"),
        "camera-b": ("edge-1", "edge", "litert-int8"),
        "accurate": ("cloud-1", "cloud", "litert-float"),
    }
    assert all(item["reasons"] for item in placed.values())
    assert {item["filter"] for item in placed["camera-a"]["rejected"]} == {"residency"}
    assert {item["node"] for item in placed["camera-a"]["rejected"]} == {"cloud-1"}


def test_latencies(report: dict[str, object]) -> None:
    assert set(report["latency_ms"]) == {"oip", "tfs", "direct", "sealed"}
    for way, figures in report["latency_ms"].items():
        assert 0 < figures["p50"] <= figures["p99"] < 1000, way


def test_refusals(report: dict[str, object]) -> None:
    wanted = ("no_token", "wrong_scope", "tampered", "stolen_token", "wrong_shape", "restricted")
    assert {name: report["refused"][name] for name in wanted} == {
        "no_token": "UNAUTHENTICATED",
        "wrong_scope": "PERMISSION_DENIED",
        "tampered": "INVALID_ARGUMENT",
        "stolen_token": "UNAUTHENTICATED",
        "wrong_shape": "INVALID_ARGUMENT",
        "restricted": "UNAVAILABLE",
    }


def test_failover_and_secrecy(report: dict[str, object]) -> None:
    assert 0 < report["failover_ms"] <= 3000
    assert report["failed_during_failover"] == 0
    assert report["plaintext_looked_for"] >= 40
    assert report["plaintext_found"] == 0
    assert report["plaintext_found_unsealed"] > 0, "the scan can find what is there"


def test_trace(report: dict[str, object]) -> None:
    assert len(report["trace"]["trace_id"]) == 32
    assert report["trace"]["services"] == ["client", "inference", "worker"]
    assert report["trace"]["spans"] >= 9
