"""One prediction before it is sent: what a caller gave, and its form on the wire."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict

import numpy.typing as npt

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.protocols import openinference
from sealane.protocols.call import InferenceCall
from sealane.tensors import Array

INFER_PATH = "/inference.GRPCInferenceService/ModelInfer"
PREDICT_PATH = "/tensorflow.serving.PredictionService/Predict"

Requirement = Mapping[str, str | Sequence[str]]
"""What a worker's statement says (tier, zone, region, pool, clearance, node, suite) -> value, or values allowed."""

Inputs = Mapping[str, npt.ArrayLike] | npt.ArrayLike
"""Arrays by input name; or one array, for a model with one input."""


class PredictOptions(TypedDict, total=False):
    """How to predict; everything has a default."""

    via: Literal["gateway", "direct"]
    """Through the gateway (default), or straight to a worker by a routing lease."""
    sealed: bool | Literal["session"]
    """Seal the payload: only the chosen workers can read it. ``"session"`` agrees on keys once for many calls."""
    hedge: float | bool
    """For ``via="direct"``: ask a second worker too where the first is slow; default: never. Seconds, or True for the
    time within which 95 of 100 answers have come. At most 2 of 100 calls are asked twice, and a few at rest."""
    affinity: str
    """Key of what belongs together, such as a session: its calls go to one worker, which may have at hand what they
    share, while that is at most 1.25 times as busy as the mean. 256 characters of it count."""
    timeout: float
    """Seconds for everything, retries included; default 10."""
    signature: str
    """Signature to run. Default: the model's default one."""
    outputs: Sequence[str]
    """Outputs wanted; default: all."""
    version: str
    """Version that must be serving, as digits; default: whatever the deployment serves."""
    require: Requirement
    """For sealed calls: what a worker's signed statement must say, such as ``{"tier": "edge"}``. A clearance is the
    lowest that will do; what the model's owner demands holds as well."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One prediction under way."""

    call: InferenceCall
    deadline: float
    sealed: bool | Literal["session"]
    require: Requirement = field(default_factory=dict)
    hedge: float | bool = 0.0
    affinity: str = ""


@dataclass(frozen=True, slots=True)
class Form:
    """A call as a request of one of the protocols.

    Attributes:
        method: path.
        body: serialized request.
        decode: outputs of a serialized answer; raises DecodeError.
    """

    method: str
    body: bytes = field(repr=False)
    decode: Callable[[bytes], dict[str, Array]]


def form_of(call: InferenceCall) -> Form:
    """The form of a call. The Open Inference Protocol has no word for signatures; TensorFlow Serving has."""
    if not call.target.signature:
        return Form(INFER_PATH, openinference.encode_request(call).SerializeToString(), _decode)
    from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
    from sealane.protocols import tfserving

    def decode(answer: bytes) -> dict[str, Array]:
        return tfserving.decode_response(tfs.PredictResponse.FromString(answer))

    return Form(PREDICT_PATH, tfserving.encode_request(call).SerializeToString(), decode)


def _decode(answer: bytes) -> dict[str, Array]:
    return openinference.decode_response(oip.ModelInferResponse.FromString(answer))
