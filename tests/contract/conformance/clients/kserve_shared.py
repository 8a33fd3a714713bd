"""What kserve's two clients share: their requests and answers."""

from __future__ import annotations

from calling import Answer, Request
from kserve import InferInput, InferRequest, InferResponse
from kserve.protocol.infer_type import RequestedOutput


def asked(request: Request) -> InferRequest:
    """A request as users of this package write it."""
    inputs = []
    for name, (datatype, array) in request.inputs.items():
        tensor = InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array, binary_data=not request.typed)
        inputs.append(tensor)
    parameters: dict[str, object] = dict(request.parameters)
    if request.sequence:
        parameters |= dict(zip(("sequence_id", "sequence_start", "sequence_end"), request.sequence, strict=True))
    if request.priority:
        parameters["priority"] = request.priority
    if request.timeout:
        parameters["timeout"] = request.timeout
    told = {"classification": request.classes} if request.classes else {}
    outputs = [RequestedOutput(name, told) for name in request.outputs]
    return InferRequest(
        request.model,
        inputs,
        request_id=request.id or None,
        parameters=parameters or None,
        model_version=request.version or None,
        request_outputs=outputs or None,
    )


def answer(response: InferResponse) -> Answer:
    """What came back."""
    arrays = {output.name: output.as_numpy() for output in response.outputs}
    return Answer(response.model_name, response.model_version or "", response.id or "", arrays)
