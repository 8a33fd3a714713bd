"""A worker answers both foreign protocols and sealed calls, for the caller's own project alone."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.rpc import status_pb2
from worker_parts import DEPLOYMENT, DIGEST, Front

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import FailedPrecondition, InvalidArgument, NotFound, Unauthenticated, Unavailable
from sealane.inference.v1 import sealed_inference_service_pb2 as pb
from sealane.protocols import openinference, tfserving
from sealane.protocols.call import InferenceCall, Target
from sealane.rpc.status import from_status
from sealane.security import envelope, jws, suites
from sealane.tensors import Array

OIP = "/inference.GRPCInferenceService/"
TFS = "/tensorflow.serving.PredictionService/"
STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
SEALED = "/sealane.inference.v1.SealedInferenceService/SealedInfer"


def _call(rows: Array, model: str = "camera", **target: str) -> InferenceCall:
    return InferenceCall(Target(model, **target), {"image": rows})


def _oip(front: Front, call: InferenceCall, **metadata: str) -> dict[str, Array]:
    answer = front.call(OIP + "ModelInfer", openinference.encode_request(call), **metadata)
    return openinference.decode_response(oip.ModelInferResponse.FromString(answer))


def _tfs(front: Front, call: InferenceCall, **metadata: str) -> dict[str, Array]:
    answer = front.call(TFS + "Predict", tfserving.encode_request(call), **metadata)
    return tfserving.decode_response(tfs.PredictResponse.FromString(answer))


@pytest.mark.parametrize("name", ["camera", "digits"])
def test_both_protocols_agree_under_either_name(front: Front, digits: tuple[Array, Array], name: str) -> None:
    x, y = digits
    one = _oip(front, _call(x, name))["probabilities"]
    two = _tfs(front, _call(x, name, version="3"))["probabilities"]
    np.testing.assert_array_equal(one, two)
    assert (one.argmax(axis=1) == y).mean() >= 0.95


def test_unknown_things_have_the_status_that_clients_know(front: Front, digits: tuple[Array, Array]) -> None:
    rows = digits[0][:1]
    with pytest.raises(NotFound, match="Request for unknown model"):
        _oip(front, _call(rows, "nobody"))
    with pytest.raises(NotFound, match=r"Latest\(nobody\)"):
        _tfs(front, _call(rows, "nobody"))
    with pytest.raises(NotFound, match=r"Specific\(camera, 9\)"):
        _tfs(front, _call(rows, version="9"))
    with pytest.raises(FailedPrecondition, match='key "other" not found'):
        _tfs(front, _call(rows, signature="other"))
    with pytest.raises(InvalidArgument) as shape:
        _oip(front, _call(rows[:, :7]))
    assert shape.value.reason == "INPUT_SHAPE_MISMATCH"
    with pytest.raises(InvalidArgument, match="input size does not match signature"):
        _tfs(front, InferenceCall(Target("camera"), {"picture": rows}))


def test_another_projects_model_is_as_good_as_absent(front: Front, digits: tuple[Array, Array]) -> None:
    with pytest.raises(NotFound):
        _oip(front, _call(digits[0][:1]), project="q")
    with pytest.raises(NotFound):  # what a caller writes into the metadata of its own accord counts for nothing
        _oip(front, _call(digits[0][:1], "x"), project="q", **{"x-sealane-deployment": DEPLOYMENT})


def test_a_model_with_two_deployments_must_be_named_by_deployment(front: Front, digits: tuple[Array, Array]) -> None:
    first = front.engine.model(DEPLOYMENT).assignment
    front.engine.load(replace(first, deployment="projects/p/deployments/second"))
    with pytest.raises(FailedPrecondition, match="camera, second"):
        _oip(front, _call(digits[0][:1], "digits"))
    assert _oip(front, _call(digits[0][:1], "second"))["probabilities"].shape == (1, 10)


def test_a_deployment_that_is_being_loaded_is_worth_waiting_for(front: Front, digits: tuple[Array, Array]) -> None:
    front.engine.expect(
        {"projects/p/deployments/soon": "projects/p/models/soon", DEPLOYMENT: "projects/p/models/digits"}
    )
    with pytest.raises(Unavailable, match="try again"):
        _oip(front, _call(digits[0][:1], "soon"))
    with pytest.raises(NotFound):
        _oip(front, _call(digits[0][:1], "soon"), project="q")
    assert _oip(front, _call(digits[0][:1], "digits"))["probabilities"].shape == (1, 10)


def test_metadata_and_status(front: Front) -> None:
    metadata = oip.ModelMetadataResponse.FromString(
        front.call(OIP + "ModelMetadata", oip.ModelMetadataRequest(name="camera"))
    )
    assert (metadata.name, list(metadata.versions)) == ("camera", ["3"])
    assert [(item.name, item.datatype, list(item.shape)) for item in metadata.inputs] == [
        ("image", "FP32", [-1, 8, 8, 1])
    ]
    request = tfs.GetModelStatusRequest(model_spec=tfs.ModelSpec(name="digits"))
    (status,) = tfserving.decode_status(tfs.GetModelStatusResponse.FromString(front.call(STATUS, request)))
    assert (status.version, status.state) == (3, "AVAILABLE")
    ready = front.call(OIP + "ModelReady", oip.ModelReadyRequest(name="camera"))
    assert oip.ModelReadyResponse.FromString(ready).ready
    absent = front.call(OIP + "ModelReady", oip.ModelReadyRequest(name="nobody"))
    assert not oip.ModelReadyResponse.FromString(absent).ready


def _sealed(front: Front, rows: Array, sender: Ed25519PrivateKey, digest: str = DIGEST) -> envelope.Sealed:
    bound = envelope.Bound(
        suite=front.pair.suite,
        project="p",
        deployment=DEPLOYMENT,
        method="/inference.GRPCInferenceService/ModelInfer",
        request_id=os.urandom(16),
        token_id="token-1",
        issued_at_ms=int(time.time() * 1000),
    )
    plaintext = openinference.encode_request(_call(rows)).SerializeToString()
    return envelope.seal(plaintext, bound, [envelope.Target(front.pair.key_id, front.pair.public_key, digest)], sender)


def test_sealed_calls_answer_sealed_once_and_only_to_the_tokens_key(front: Front, digits: tuple[Array, Array]) -> None:
    sender, rows = Ed25519PrivateKey.generate(), digits[0][:4]
    bound_to = jws.thumbprint(sender.public_key().public_bytes_raw())
    sealed = _sealed(front, rows, sender)
    answer = pb.SealedInferResponse.FromString(front.call(SEALED, sealed.request, thumbprint=bound_to))
    plaintext = sealed.open(answer)
    assert plaintext[:1] == b"\x00"
    outputs = openinference.decode_response(oip.ModelInferResponse.FromString(plaintext[1:]))
    np.testing.assert_array_equal(outputs["probabilities"], _oip(front, _call(rows))["probabilities"])
    with pytest.raises(InvalidArgument, match="cannot open sealed payload"):
        front.call(SEALED, sealed.request, thumbprint=bound_to)  # a replay
    with pytest.raises(Unauthenticated):
        front.call(SEALED, _sealed(front, rows, sender).request, thumbprint="somebody-else")
    with pytest.raises(InvalidArgument, match="cannot open sealed payload"):
        front.call(SEALED, _sealed(front, rows, sender, "sha256:other").request, thumbprint=bound_to)


def test_what_goes_wrong_inside_a_sealed_call_is_told_sealed(front: Front, digits: tuple[Array, Array]) -> None:
    sender = Ed25519PrivateKey.generate()
    bound_to = jws.thumbprint(sender.public_key().public_bytes_raw())
    sealed = _sealed(front, digits[0][:1, :5], sender)
    plaintext = sealed.open(pb.SealedInferResponse.FromString(front.call(SEALED, sealed.request, thumbprint=bound_to)))
    assert plaintext[:1] == b"\x01"
    error = from_status(status_pb2.Status.FromString(plaintext[1:]))
    assert isinstance(error, InvalidArgument)
    assert error.reason == "INPUT_SHAPE_MISMATCH"


def test_a_key_of_another_process_is_stale(front: Front, digits: tuple[Array, Array]) -> None:
    sender = Ed25519PrivateKey.generate()
    other = replace(front, pair=suites.generate(suites.X25519))
    sealed = _sealed(other, digits[0][:1], sender)
    with pytest.raises(Exception, match="seal again") as stale:
        front.call(SEALED, sealed.request, thumbprint=jws.thumbprint(sender.public_key().public_bytes_raw()))
    assert getattr(stale.value, "reason", "") == "STALE_SEALING_KEY"


def test_a_worker_that_nobody_vouches_for_is_no_candidate(front: Front) -> None:
    request = pb.GetSealingContextRequest(model="camera")
    with pytest.raises(FailedPrecondition) as refused:
        front.call("/sealane.inference.v1.SealedInferenceService/GetSealingContext", request)
    assert refused.value.reason == "NO_SEALING_STATEMENT"
