"""SEAL-2: a canary in sealed inputs and outputs is nowhere but with the client and in the worker's own processes."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import numpy as np
import pytest
from light_site import EDGE, LIGHT, LightSite, running
from orphans import descendants

from sealane.client.proxy import Proxy
from sealane.errors import SealaneError
from sealane.protocols import openinference, tfserving
from sealane.protocols.call import InferenceCall, Target
from sealane_local.memory_scan import find_in_memory, telling

pytestmark = pytest.mark.stack
SERVICES = ("auth", "registry", "scheduler", "inference")
#: In names that a model refuses, so that they come to stand in the texts of errors.
WORD = "canary-" + "9b1d4f6e2c"
COUNT = 27
MODEL = "plain"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightSite]:
    """Every call is traced to files, and everything is logged."""
    level = os.environ.get("SEALANE_LOG_LEVEL")
    os.environ["SEALANE_LOG_LEVEL"] = "DEBUG"
    try:
        with running(tmp_path_factory.mktemp("canary"), sample_ratio=1.0) as site:
            # In floating point, so that answers are bytes that nothing else is.
            version = site.client.models.push(LIGHT / "litert-float.tflite", MODEL, variant="litert-float")
            site.client.deployments.create(MODEL, version.name, tier="edge")
            site.client.deployments.wait(MODEL, 30)
            yield site
    finally:
        if level is None:
            del os.environ["SEALANE_LOG_LEVEL"]
        else:
            os.environ["SEALANE_LOG_LEVEL"] = level


def in_files(folder: Path, needles: Sequence[bytes]) -> list[str]:
    """Files below `folder` that hold one of `needles`, whole or its most telling part."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            found += [str(path.relative_to(folder)) for needle in needles if needle in content]
    return found


def in_services(site: LightSite, needles: Sequence[bytes]) -> dict[str, int]:
    """Service -> how many of `needles` are in its memory."""
    found = {}
    for name in SERVICES:
        pid = site.stack.child(name).pid
        assert pid is not None
        found[name] = find_in_memory(pid, needles)
    return found


def sealed_calls(site: LightSite, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Every sealed way in, each with its own rows; the answers."""
    inference, answers = site.client.inference, []
    parts = np.array_split(np.arange(len(rows)), 9)
    ways: list[dict[str, object]] = [
        {"sealed": True},
        {"sealed": "session"},
        {"sealed": True, "signature": "serving_default"},
        {"sealed": "session", "via": "direct"},
        {"sealed": True, "via": "direct"},
        {"sealed": True, "via": "direct", "hedge": 0.001},
    ]
    for way, part in zip(ways, parts, strict=False):
        for index in part:
            answers.append(inference.predict_traced(MODEL, {"image": rows[index]}, **way)[0]["probabilities"])  # type: ignore[arg-type]
    for output in inference.sealed_stream(MODEL, [{"image": rows[index]} for index in parts[6]]):
        answers.append(output["probabilities"])
    proxy = Proxy(inference)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{proxy.listen('127.0.0.1:0')}") as channel:
            for part, protocol, method in (
                (parts[7], openinference, "/inference.GRPCInferenceService/ModelInfer"),
                (parts[8], tfserving, "/tensorflow.serving.PredictionService/Predict"),
            ):
                for index in part:
                    body = protocol.encode_request(InferenceCall(Target(MODEL), {"image": rows[index]}))
                    channel.unary_unary(method)(body.SerializeToString(), timeout=20)
    finally:
        proxy.stop()
    return answers


def refused_calls(site: LightSite) -> None:
    """Requests whose refusals speak of what they hold."""
    inference = site.client.inference
    for sealed in (True, "session"):
        for inputs, outputs in (
            ({WORD: np.zeros((1, 8, 8, 1), np.float32)}, ()),
            ({"image": np.zeros((1, 8, 8, 1), np.float32)}, (WORD,)),
        ):
            with pytest.raises(SealaneError) as told:
                inference.predict(MODEL, inputs, sealed=sealed, outputs=outputs)  # type: ignore[arg-type]
            assert WORD in told.value.message, "the control: the caller is told"


def test_a_canary_is_found_nowhere_outside(site: LightSite) -> None:
    rng = np.random.default_rng()
    rows = [rng.random((1, 8, 8, 1), np.float32) for _ in range(COUNT)]
    answers = sealed_calls(site, rows)
    refused_calls(site)
    needles = [row.tobytes() for row in rows] + [answer.tobytes() for answer in answers]
    pieces = [telling(needle) for needle in needles] + [WORD.encode()]
    memory = in_services(site, [*needles, WORD.encode()])
    files = in_files(site.data, pieces)
    print(
        f"figure: {len(needles)} sealed inputs and outputs and a word in refusals: found in the memory of "
        f"{', '.join(f'{name} {count}' for name, count in memory.items())}; in {len(files)} files on disk"
    )
    assert memory == dict.fromkeys(SERVICES, 0)
    assert files == []
    # What was looked at is really there: logs of all, spans of the worker, and databases.
    spans = (site.data / "traces").rglob("*") if (site.data / "traces").exists() else site.data.rglob("*trace*")
    assert any("seal.open" in path.read_text() for path in spans if path.is_file())
    assert (site.data / "logs" / f"{EDGE}.log").stat().st_size > 0


def test_the_same_search_finds_what_was_not_sealed(site: LightSite, tmp_path: Path) -> None:
    """The control: unsealed rows are in the gateway's memory, and what is in a file is found there."""
    rows = [np.random.default_rng().random((1, 8, 8, 1), np.float32) for _ in range(COUNT)]
    for row in rows:
        site.client.inference.predict(MODEL, {"image": row})
    assert in_services(site, [row.tobytes() for row in rows])["inference"] > 0
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a.db").write_bytes(b"before" + rows[3].tobytes() + b"after")
    assert in_files(tmp_path, [telling(row.tobytes()) for row in rows]) == ["below/a.db"]


def test_no_process_that_opens_leaves_a_core(site: LightSite) -> None:
    front = site.stack.child(EDGE).pid
    assert front is not None
    processes = [front, *descendants(front)]
    assert len(processes) > 1, "the model has a process of its own"
    for pid in processes:
        assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)


def test_spans_have_attributes_of_the_list_alone(site: LightSite) -> None:
    import json

    from sealane import telemetry

    allowed = set(telemetry.ATTRIBUTES)
    seen: set[str] = set()
    for path in site.data.rglob("*.jsonl"):
        for line in path.read_text().splitlines():
            seen |= set(json.loads(line).get("attributes", {}))
    assert seen and seen <= allowed, seen - allowed
