"""tritonclient.http, unmodified."""

from __future__ import annotations

import sys

import tritonclient.http as triton
from calling import TYPED, Answer, Request, Site, run
from rows_oip import ROWS
from triton_shared import answer, options, outputs, refusal, specs, tensors
from tritonclient.utils import InferenceServerException


class Client:
    """Calls it as its users do."""

    typed = TYPED

    def __init__(self, site: Site) -> None:
        self.site = site
        self._headers = site.authorization("good")
        self._client = self._connect(30.0)

    def _connect(self, seconds: float) -> triton.InferenceServerClient:
        return triton.InferenceServerClient(
            self.site.http, ssl=True, ssl_options={"ca_certs": self.site.ca}, network_timeout=seconds
        )

    def _asked(self, name: str, *given: object, **told: object) -> object:
        try:
            return getattr(self._client, name)(*given, headers=self._headers, **told)
        except InferenceServerException as error:
            raise refusal(error) from None

    def live(self) -> object:
        return self._asked("is_server_live")

    def ready(self) -> object:
        return self._asked("is_server_ready")

    def model_ready(self, name: str) -> object:
        return self._asked("is_model_ready", name)

    def server_metadata(self) -> tuple[str, list[str]]:
        found = self._asked("get_server_metadata")
        return found["name"], found["extensions"]

    def model_metadata(self, name: str) -> tuple:
        found = self._asked("get_model_metadata", name)
        return found["name"], found["versions"], specs(found["inputs"]), specs(found["outputs"])

    def model_config(self, name: str) -> tuple[str, list[str], int]:
        found = self._asked("get_model_config", name)
        return found["name"], [item["name"] for item in found["input"]], int(found.get("max_batch_size", 0))

    def statistics(self, name: str) -> int:
        (found,) = self._asked("get_inference_statistics", name)["model_stats"]
        return int(found.get("inference_count", 0))

    def index(self) -> dict[tuple[str, str], str]:
        return {
            (item["name"], item.get("version", "")): item["state"] for item in self._asked("get_model_repository_index")
        }

    def load(self, name: str) -> None:
        self._asked("load_model", name)

    def unload(self, name: str) -> None:
        self._asked("unload_model", name)

    def shared_memory(self) -> None:
        self._asked("get_system_shared_memory_status")

    def infer(self, request: Request) -> Answer:
        headers = self.site.authorization(request.token)
        if request.seconds < 1:
            headers["grpc-timeout"] = f"{int(request.seconds * 1000)}m"
        told = options(request) | {
            "outputs": outputs(triton, request),
            "headers": headers,
            "request_compression_algorithm": request.coding or None,
            "response_compression_algorithm": request.coding or None,
        }
        if request.typed and told["outputs"] is None:
            names = ("total", "product") if request.model == "pair" else ("y",)
            told["outputs"] = [triton.InferRequestedOutput(name, binary_data=False) for name in names]
        try:
            result = self._client.infer(request.model, tensors(triton, request), **told)
        except InferenceServerException as error:
            raise refusal(error) from None
        return answer(result, result.get_response())


if __name__ == "__main__":
    sys.exit(run(ROWS, Client))
