"""tritonclient.grpc, unmodified: calls that block, and streams."""

from __future__ import annotations

import queue
import sys
import time

import tritonclient.grpc as triton
from calling import Answer, Refused, Request, Site, run
from rows_oip import ROWS
from triton_shared import answer, options, outputs, refusal, specs, tensors
from tritonclient.utils import InferenceServerException


class Client:
    """Calls it as its users do."""

    typed = frozenset()  # it sends contents raw alone

    def __init__(self, site: Site) -> None:
        self.site = site
        limit = 2**31 - 1
        args = [
            ("grpc.ssl_target_name_override", site.tls_name),
            ("grpc.max_send_message_length", limit),
            ("grpc.max_receive_message_length", limit),
        ]
        self._client = triton.InferenceServerClient(site.grpc, ssl=True, root_certificates=site.ca, channel_args=args)
        self._headers = site.authorization("good")

    def _asked(self, name: str, *given: object, **told: object) -> dict:
        try:
            return getattr(self._client, name)(*given, headers=self._headers, client_timeout=30, **told)
        except InferenceServerException as error:
            raise refusal(error) from None

    def live(self) -> bool:
        return self._client.is_server_live(headers=self._headers)

    def ready(self) -> bool:
        return self._client.is_server_ready(headers=self._headers)

    def model_ready(self, name: str) -> bool:
        return self._client.is_model_ready(name, headers=self._headers)

    def server_metadata(self) -> tuple[str, list[str]]:
        found = self._asked("get_server_metadata", as_json=True)
        return found["name"], found["extensions"]

    def model_metadata(self, name: str) -> tuple:
        found = self._asked("get_model_metadata", name, as_json=True)
        return found["name"], found["versions"], specs(found["inputs"]), specs(found["outputs"])

    def model_config(self, name: str) -> tuple[str, list[str], int]:
        found = self._asked("get_model_config", name, as_json=True)["config"]
        return found["name"], [item["name"] for item in found["input"]], int(found.get("max_batch_size", 0))

    def statistics(self, name: str) -> int:
        (found,) = self._asked("get_inference_statistics", name, as_json=True)["model_stats"]
        return int(found.get("inference_count", 0))

    def index(self) -> dict[tuple[str, str], str]:
        found = self._asked("get_model_repository_index", as_json=True)["models"]
        return {(item["name"], item.get("version", "")): item["state"] for item in found}

    def load(self, name: str) -> None:
        self._asked("load_model", name)

    def unload(self, name: str) -> None:
        self._asked("unload_model", name)

    def shared_memory(self) -> None:
        self._asked("get_system_shared_memory_status")

    def infer(self, request: Request) -> Answer:
        told = options(request) | {
            "outputs": outputs(triton, request),
            "headers": self.site.authorization(request.token),
            "client_timeout": request.seconds,
            "compression_algorithm": request.coding or None,
        }
        if request.cancel:
            return self._cancelled(request, told)
        try:
            result = self._client.infer(request.model, tensors(triton, request), **told)
        except InferenceServerException as error:
            raise refusal(error) from None
        return answer(result, result.get_response(as_json=True))

    def _cancelled(self, request: Request, told: dict[str, object]) -> Answer:
        got: queue.Queue = queue.Queue()
        context = self._client.async_infer(
            request.model, tensors(triton, request), lambda result, error: got.put((result, error)), **told
        )
        time.sleep(request.cancel)
        context.cancel()
        result, error = got.get(timeout=30)
        if error is not None:
            raise refusal(error)
        return answer(result, result.get_response(as_json=True))

    def stream(self, requests: list[Request], grpc_errors: bool = False) -> list[Answer | Refused]:
        got: queue.Queue = queue.Queue()
        headers = self._headers | ({"triton_grpc_error": "true"} if grpc_errors else {})
        self._client.start_stream(lambda result, error: got.put((result, error)), headers=headers)
        found: list[Answer | Refused] = []
        try:
            for request in requests:
                self._client.async_stream_infer(request.model, tensors(triton, request), **options(request))
            while len(found) < len(requests):
                result, error = got.get(timeout=30)
                found.append(refusal(error) if error else answer(result, result.get_response(as_json=True)))
                if error and grpc_errors:
                    break
        finally:
            self._client.stop_stream(cancel_requests=grpc_errors)
        return found


if __name__ == "__main__":
    sys.exit(run(ROWS, Client))
