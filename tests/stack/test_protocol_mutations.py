"""Damaged requests of both protocols, at gateway and worker, over gRPC and HTTP: never a bug, never our insides.

2,000 for each type of request, 100,000 with LONG=1. The seeds are requests that work, so that the damage lies deep.
"""

from __future__ import annotations

import json
import os
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import requests
from google.protobuf.message import Message
from light_site import CAMERA_A, EDGE, MODEL, LightSite, running

sys.path.insert(0, str(Path(__file__).parents[1] / "fakes"))
from mutations import filled, mutated

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.compat.tfserving.v1 import example_pb2
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.protocols import openinference, tfserving
from sealane.protocols.call import InferenceCall, Target

LONG = bool(os.environ.get("LONG"))
pytestmark = [pytest.mark.stack, pytest.mark.timeout(7200 if LONG else 600)]
MUTATIONS = 100_000 if LONG else 2_000
TOGETHER = 50
BUGS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
INSIDES = re.compile(
    r"Traceback|/src/|site-packages|\.py\b|<class|0x[0-9a-f]{8}|DecodeError|_pb2|KeyError|ValueError|sealane_", re.I
)
OIP = "/inference.GRPCInferenceService/"
PREDICTION = "/tensorflow.serving.PredictionService/"
MODELS = "/tensorflow.serving.ModelService/"
IMAGE = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 8, 8, 1)
CALL = InferenceCall(Target(CAMERA_A), {"image": IMAGE}, request_id="7")


def example() -> tfs.Input:
    one = example_pb2.Example()
    one.features.feature["image"].float_list.value.extend(IMAGE.ravel().tolist())
    return tfs.Input(example_list=tfs.ExampleList(examples=[one]))


SPEC = tfs.ModelSpec(name=CAMERA_A)
CLASSIFY = "tensorflow/serving/classify"
#: A request that works, of every type.
SEEDS: dict[str, Message] = {
    OIP + "ModelInfer": openinference.encode_request(CALL),
    OIP + "ModelReady": oip.ModelReadyRequest(name=CAMERA_A),
    OIP + "ModelMetadata": oip.ModelMetadataRequest(name=CAMERA_A, version="1"),
    OIP + "ModelConfig": oip.ModelConfigRequest(name=CAMERA_A),
    OIP + "ModelStatistics": oip.ModelStatisticsRequest(name=CAMERA_A),
    OIP + "RepositoryIndex": oip.RepositoryIndexRequest(ready=True),
    OIP + "RepositoryModelLoad": oip.RepositoryModelLoadRequest(model_name="no-such-model"),
    OIP + "RepositoryModelUnload": oip.RepositoryModelUnloadRequest(model_name="no-such-model"),
    PREDICTION + "Predict": tfserving.encode_request(CALL),
    PREDICTION + "Classify": tfs.ClassificationRequest(model_spec=SPEC, input=example()),
    PREDICTION + "Regress": tfs.RegressionRequest(model_spec=SPEC, input=example()),
    PREDICTION + "MultiInference": tfs.MultiInferenceRequest(
        tasks=[tfs.InferenceTask(model_spec=SPEC, method_name=CLASSIFY)], input=example()
    ),
    PREDICTION + "GetModelMetadata": tfs.GetModelMetadataRequest(model_spec=SPEC, metadata_field=["signature_def"]),
    MODELS + "GetModelStatus": tfs.GetModelStatusRequest(model_spec=SPEC),
    MODELS + "HandleReloadConfigRequest": tfs.ReloadConfigRequest(
        config=tfs.ModelServerConfig(
            model_config_list=tfs.ModelConfigList(config=[tfs.ModelConfig(name="m", base_path="no-such-model")])
        )
    ),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightSite]:
    with running(tmp_path_factory.mktemp("mutated-protocols")) as site:
        site.deploy_cameras(site.push())
        yield site


def bodies(path: str, dice: random.Random) -> Iterator[list[bytes]]:
    """Batches of damaged requests: fields of every kind, and small damage to the bytes of both."""
    seed = SEEDS[path]
    seeds = [seed.SerializeToString()] * 10 + [
        filled(type(seed)(), dice).SerializeToString() for _ in range(10)
    ]  # fmt: skip
    for start in range(0, MUTATIONS, TOGETHER):
        yield [mutated(dice.choice(seeds), dice) for _ in range(min(TOGETHER, MUTATIONS - start))]


def authorization(site: LightSite) -> tuple[tuple[str, str]]:
    return (("authorization", f"Bearer {site.client.token('sealane-inference')}"),)


@pytest.mark.parametrize("place", ["inference", EDGE])
@pytest.mark.parametrize("path", SEEDS, ids=lambda path: path.rpartition(".")[2])
def test_damaged_requests_get_an_honest_code(site: LightSite, place: str, path: str) -> None:
    dice, seen = random.Random(path), set()
    with site.channel(place) as channel:
        method = channel.unary_unary(path)
        for batch in bodies(path, dice):
            waiting = [method.future(body, timeout=20, metadata=authorization(site)) for body in batch]
            for body, answer in zip(batch, waiting, strict=True):
                code = answer.code()
                seen.add(code)
                assert code not in BUGS, (code, answer.details(), body)
                shown = f"{answer.details()} {answer.trailing_metadata()}"
                assert not INSIDES.search(shown), (shown, body)
                if path.endswith("HandleReloadConfigRequest") and code is grpc.StatusCode.OK:
                    told = tfs.ReloadConfigResponse.FromString(answer.result()).status
                    assert told.error_code not in (tfs.INTERNAL, tfs.UNKNOWN), (told, body)
                    assert not INSIDES.search(told.error_message), told
    assert len(seen) > 1, f"every damage came to {seen}"


@pytest.mark.parametrize("place", ["inference", EDGE])
def test_damaged_requests_of_a_stream_are_answered_within_it(site: LightSite, place: str) -> None:
    dice, answered, errors = random.Random("stream"), 0, 0
    with site.channel(place) as channel:
        stream = channel.stream_stream(OIP + "ModelStreamInfer")
        for batch in bodies(OIP + "ModelInfer", dice):
            answers = list(stream(iter(batch), timeout=30, metadata=authorization(site)))
            assert len(answers) == len(batch)
            for answer in answers:
                told = oip.ModelStreamInferResponse.FromString(answer)
                assert bool(told.error_message) != bool(told.infer_response.outputs), told
                assert not INSIDES.search(told.error_message), told
                errors += bool(told.error_message)
                answered += 1
    assert answered == MUTATIONS
    assert 0 < errors < answered


JSON_SEEDS: dict[str, object] = {
    f"/v2/models/{CAMERA_A}/infer": {
        "id": "7",
        "inputs": [{"name": "image", "shape": [1, 8, 8, 1], "datatype": "FP32", "data": IMAGE.ravel().tolist()}],
        "outputs": [{"name": "probabilities", "parameters": {"binary_data": False}}],
    },
    f"/v1/models/{CAMERA_A}:predict": {"instances": IMAGE.tolist()},
    f"/v1/models/{CAMERA_A}:classify": {"examples": [{"image": IMAGE.ravel().tolist()}]},
    f"/v1/models/{MODEL}-none:regress": {"examples": [{"image": [1.0]}], "context": {"a": {"b64": "eA=="}}},
    "/v2/repository/index": {"ready": True},
}


@pytest.mark.parametrize("path", JSON_SEEDS)
def test_damaged_json_gets_an_honest_status(site: LightSite, path: str) -> None:
    dice, seen = random.Random(path), set()
    seed = json.dumps(JSON_SEEDS[path]).encode()
    url = f"https://{site.endpoints['inference_http']}{path}"
    with requests.Session() as http:
        http.trust_env, http.verify = False, str(site.data / "pki" / "ca.pem")
        for _ in range(MUTATIONS):
            body = mutated(seed, dice) if dice.random() < 0.7 else still_json(seed, dice)
            header = {"authorization": authorization(site)[0][1]}
            answer = http.post(url, data=body, headers=header, timeout=20)
            seen.add(answer.status_code)
            assert answer.status_code not in (500, 502), (answer.status_code, answer.content, body)
            assert not INSIDES.search(answer.text), (answer.text, body)
    assert len(seen) > 1, f"every damage came to {seen}"


def still_json(seed: bytes, dice: random.Random) -> bytes:
    """A change that mostly leaves it JSON, so that what reads the values is met too."""
    old = dice.choice((b"0.0", b"[", b'"', b"1", b"image", b"}"))
    new = dice.choice((b"null", b"1e999", b"[[", b"{}", b'"x"', b"-0", b"true", b"99999999999999999999"))
    return seed.replace(old, new, 1)
