"""Servicers of TensorFlow Serving on a worker. Translation only."""

from __future__ import annotations

from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import Unimplemented
from sealane.protocols import tfserving
from sealane.protocols import tfserving_examples as examples
from sealane.protocols.call import InferenceAnswer, Target
from sealane.rpc.call import Call
from sealane.tensors import Signature
from sealane_worker.deployment import Model
from sealane_worker.serving import Found, Serving, describe, signature_of


class PredictionServicer:
    """``tensorflow.serving.PredictionService``."""

    def __init__(self, serving: Found) -> None:
        self._serving = serving

    def Predict(self, request: tfs.PredictRequest, call: Call) -> tfs.PredictResponse:
        """One inference."""
        inference = tfserving.decode_request(request)
        model = self._find(call, inference.target)
        outputs = tfserving.check(inference, signature_of(model, inference.target.signature))
        return tfserving.encode_response(self._serving.run(model, call, inference, outputs))

    def Classify(self, request: tfs.ClassificationRequest, call: Call) -> tfs.ClassificationResponse:
        """Classes of each example."""
        return examples.encode_classification(*self._run(examples.task_of(request), request.input, call))

    def Regress(self, request: tfs.RegressionRequest, call: Call) -> tfs.RegressionResponse:
        """A value of each example."""
        return examples.encode_regression(*self._run(examples.task_of(request), request.input, call))

    def MultiInference(self, request: tfs.MultiInferenceRequest, call: Call) -> tfs.MultiInferenceResponse:
        """Several signatures over the same examples."""
        tasks = examples.tasks_of(request)
        return examples.encode_results([(task, *self._run(task, request.input, call)) for task in tasks])

    def GetModelMetadata(self, request: tfs.GetModelMetadataRequest, call: Call) -> tfs.GetModelMetadataResponse:
        """Signatures of the version served."""
        wanted = tfserving.check_metadata_request(request)
        model = self._find(call, wanted)
        return tfserving.encode_metadata(describe(model, wanted.model), str(model.assignment.version))

    def _run(self, task: examples.Task, source: tfs.Input, call: Call) -> tuple[InferenceAnswer, Signature]:
        model = self._find(call, task.target)
        signature = signature_of(model, task.target.signature)
        inference = examples.decode_examples(task, source, signature)
        outputs = tfserving.check(inference, signature)
        return self._serving.run(model, call, inference, outputs), signature

    def _find(self, call: Call, wanted: Target) -> Model:
        model = self._serving.find(call, wanted)
        if model is None:
            raise tfserving.unknown_model(wanted)
        return model


class ModelServicer:
    """``tensorflow.serving.ModelService``."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def GetModelStatus(self, request: tfs.GetModelStatusRequest, call: Call) -> tfs.GetModelStatusResponse:
        """State of the one version that a deployment serves."""
        wanted = tfserving.target(request)
        model = self._serving.resolve(call, wanted.model)
        if model is None:
            raise tfserving.unknown_model(wanted)
        state = "AVAILABLE" if self._serving.alive(model) else "END"
        return tfserving.encode_status(wanted, [tfserving.VersionStatus(model.assignment.version, state)])

    def HandleReloadConfigRequest(self, request: tfs.ReloadConfigRequest, call: Call) -> tfs.ReloadConfigResponse:
        """Not here: the scheduler says what a worker serves."""
        raise Unimplemented("a worker serves what the scheduler assigns to it; call this method at the gateway")
