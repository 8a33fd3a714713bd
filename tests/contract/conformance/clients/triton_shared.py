"""What the clients of tritonclient share: their tensors and the words of their answers."""

from __future__ import annotations

from types import ModuleType

import ml_dtypes
import numpy as np
from calling import Answer, Refused, Request, Tensor
from tritonclient.utils import InferenceServerException


def tensors(module: ModuleType, request: Request) -> list[object]:
    """Inputs as users of this package write them."""
    made = []
    for name, (datatype, array) in request.inputs.items():
        tensor = module.InferInput(name, list(array.shape), datatype)
        told = array.astype(ml_dtypes.bfloat16) if datatype == "BF16" else array
        if module.__name__.endswith("http"):
            tensor.set_data_from_numpy(told, binary_data=not request.typed)
        else:
            tensor.set_data_from_numpy(told)
        made.append(tensor)
    return made


def outputs(module: ModuleType, request: Request) -> list[object] | None:
    """The outputs that are asked for."""
    more = {"binary_data": not request.typed} if module.__name__.endswith("http") else {}
    return [module.InferRequestedOutput(name, class_count=request.classes, **more) for name in request.outputs] or None


def options(request: Request) -> dict[str, object]:
    """The rest, as keywords of `infer`."""
    told: dict[str, object] = {"model_version": request.version, "request_id": request.id}
    if request.sequence:
        number, start, end = request.sequence
        told |= {"sequence_id": number, "sequence_start": start, "sequence_end": end}
    if request.priority:
        told["priority"] = request.priority
    if request.timeout:
        told["timeout"] = request.timeout
    if request.parameters:
        told["parameters"] = dict(request.parameters)
    return told


def answer(result: object, response: dict[str, object]) -> Answer:
    """From a result, and its response as JSON."""
    arrays = {}
    for output in response["outputs"]:  # type: ignore[attr-defined]
        array = result.as_numpy(output["name"])  # type: ignore[attr-defined]
        arrays[output["name"]] = array.astype(np.float32) if output["datatype"] == "BF16" else array
    told = (response.get("model_name"), response.get("model_version"), response.get("id", ""))
    return Answer(*map(str, told), arrays)


def refusal(error: InferenceServerException) -> Refused:
    """The status and the text that the client tells."""
    return Refused(str(error.status()).removeprefix("StatusCode."), str(error.message()))


def specs(tensors: list[dict[str, object]]) -> list[tuple[str, str, list[int]]]:
    """Name, datatype and shape of the tensors of a metadata response."""
    return [(item["name"], item["datatype"], [int(size) for size in item["shape"]]) for item in tensors]  # type: ignore[misc, attr-defined]


def tensor_of(array: np.ndarray) -> Tensor:
    return "FP32", array
