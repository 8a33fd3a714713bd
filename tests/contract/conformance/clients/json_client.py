"""Adapters of both protocols over one way to make a call with JSON; the ways are in grpc_js.py and buf_curl.py."""

from __future__ import annotations

from collections.abc import Callable

import json_messages as messages
from calling import TYPED, Answer, Refused, Request, Site
from json_messages import MODELS, OIP, PREDICTION, get
from rows_tfs import Predicted, Prediction, Served


class OpenInference:
    """The Open Inference Protocol."""

    typed = TYPED | {"BYTES"}

    def __init__(self, site: Site, caller: Callable[[Site], object]) -> None:
        self.site = site
        self._caller = caller(site)
        self._headers = site.authorization("good")

    def _call(self, method: str, request: dict, service: str = OIP, **told: object) -> dict:
        return self._caller.call(service, method, request, **({"headers": self._headers} | told))

    def live(self) -> object:
        return self._call("ServerLive", {})["live"]

    def ready(self) -> object:
        return self._call("ServerReady", {})["ready"]

    def health(self) -> object:
        return self._call("Check", {}, "grpc.health.v1.Health", headers={})["status"]

    def reflected(self) -> list[str]:
        return self._caller.services(self._headers)

    def server_metadata(self) -> tuple[str, list[str]]:
        found = self._call("ServerMetadata", {})
        return found["name"], found["extensions"]

    def model_ready(self, name: str) -> bool:
        return self._call("ModelReady", {"name": name}).get("ready", False)

    def model_metadata(self, name: str) -> tuple:
        found = self._call("ModelMetadata", {"name": name})
        inputs, outputs = (
            [(item["name"], item["datatype"], [int(size) for size in item["shape"]]) for item in found[side]]
            for side in ("inputs", "outputs")
        )
        return found["name"], found["versions"], inputs, outputs

    def model_config(self, name: str) -> tuple[str, list[str], int]:
        found = self._call("ModelConfig", {"name": name})["config"]
        return found["name"], [item["name"] for item in found["input"]], int(get(found, "max_batch_size", 0))

    def statistics(self, name: str) -> int:
        (found,) = get(self._call("ModelStatistics", {"name": name}), "model_stats")
        return int(get(found, "inference_count", 0))

    def index(self) -> dict[tuple[str, str], str]:
        found = self._call("RepositoryIndex", {})["models"]
        return {(item["name"], item.get("version", "")): item["state"] for item in found}

    def load(self, name: str) -> None:
        self._call("RepositoryModelLoad", {"model_name": name})

    def unload(self, name: str) -> None:
        self._call("RepositoryModelUnload", {"model_name": name})

    def shared_memory(self) -> None:
        self._call("SystemSharedMemoryStatus", {})

    def infer(self, request: Request) -> Answer:
        found = self._call(
            "ModelInfer",
            messages.infer_request(request),
            headers=self.site.authorization(request.token),
            seconds=request.seconds,
            coding=request.coding,
            cancel=request.cancel,
        )
        return messages.infer_answer(found)

    def stream(self, requests: list[Request], grpc_errors: bool = False) -> list[Answer | Refused]:
        headers = self._headers | ({"triton_grpc_error": "true"} if grpc_errors else {})
        told = [messages.infer_request(request) for request in requests]
        answers, failure = self._caller.stream(OIP, "ModelStreamInfer", told, headers)
        return [*(messages.stream_answer(answer) for answer in answers), *([failure] if failure else [])]


class TensorFlowServing:
    """TensorFlow Serving."""

    rest = False

    def __init__(self, site: Site, caller: Callable[[Site], object]) -> None:
        self.site = site
        self._caller = caller(site)
        self._headers = site.authorization("good")

    def forms(self, datatype: str) -> tuple[str, ...]:
        """Strings have no tensor_content."""
        return ("values",) if datatype == "BYTES" else ("content", "values")

    def _call(self, method: str, request: dict, service: str = PREDICTION, **told: object) -> dict:
        return self._caller.call(service, method, request, **({"headers": self._headers} | told))

    def predict(self, asked: Prediction) -> Predicted:
        request = messages.predict_request(asked)
        if asked.version:
            request["model_spec"]["version"] = self._caller.wrapped(asked.version)
        found = self._call(
            "Predict",
            request,
            headers=self.site.authorization(asked.token),
            seconds=asked.seconds,
            coding=asked.coding,
            cancel=asked.cancel,
        )
        return messages.predicted(found)

    def classify(self, model: str, signature: str, rows: list[list[float]]) -> list:
        request = {"model_spec": messages.model_spec(model, signature), "input": messages.examples(rows)}
        return messages.classes(self._call("Classify", request)["result"])

    def regress(self, model: str, signature: str, rows: list[list[float]]) -> list[float]:
        request = {"model_spec": messages.model_spec(model, signature), "input": messages.examples(rows)}
        return [item["value"] for item in self._call("Regress", request)["result"]["regressions"]]

    def multi(self, model: str, tasks: list[tuple[str, str]], rows: list[list[float]]) -> list:
        told = [
            {"model_spec": messages.model_spec(model, signature), "method_name": f"tensorflow/serving/{method}"}
            for signature, method in tasks
        ]
        found = self._call("MultiInference", {"tasks": told, "input": messages.examples(rows)})["results"]
        numbers = get(found[1], "regression_result")["regressions"]
        return [messages.classes(get(found[0], "classification_result")), [item["value"] for item in numbers]]

    def metadata(self, model: str, field: str = "signature_def") -> dict[str, tuple[list[str], list[str]]]:
        request = {"model_spec": messages.model_spec(model), "metadata_field": [field]}
        content = self._call("GetModelMetadata", request)["metadata"]["signature_def"]
        found = self._caller.signatures(content)
        return {name: (sorted(it["inputs"]), sorted(it["outputs"])) for name, it in found.items()}

    def status(self, model: str, version: int = 0) -> dict[int, str]:
        spec = messages.model_spec(model)
        if version:
            spec["version"] = self._caller.wrapped(version)
        try:
            found = get(self._call("GetModelStatus", {"model_spec": spec}, MODELS), "model_version_status")
        except Refused as refusal:
            if "Servable not found" in refusal.text:
                return {}
            raise
        return {int(item["version"]): item["state"] for item in found}

    def reload(self, models: list[Served]) -> tuple[int, str]:
        found = self._call("HandleReloadConfigRequest", messages.reload_request(models), MODELS).get("status", {})
        code = get(found, "error_code", 0)
        return {"OK": 0, "NOT_FOUND": 5}.get(code, code), get(found, "error_message", "")
