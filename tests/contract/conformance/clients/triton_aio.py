"""tritonclient.grpc.aio, unmodified: calls and streams of asyncio."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Coroutine

import grpc
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from calling import Answer, Refused, Request, Site, run
from rows_oip import ROWS
from triton_shared import answer, options, outputs, refusal, specs, tensors
from tritonclient.utils import InferenceServerException


class Client:
    """Calls it on a loop of its own."""

    typed = frozenset()  # it sends contents raw alone

    def __init__(self, site: Site) -> None:
        self.site = site
        self._headers = site.authorization("good")
        self._loop = asyncio.new_event_loop()
        self._client = self._loop.run_until_complete(self._connect())

    async def _connect(self) -> triton_aio.InferenceServerClient:
        limit = 2**31 - 1
        args = [
            ("grpc.ssl_target_name_override", self.site.tls_name),
            ("grpc.max_send_message_length", limit),
            ("grpc.max_receive_message_length", limit),
        ]
        return triton_aio.InferenceServerClient(
            self.site.grpc, ssl=True, root_certificates=self.site.ca, channel_args=args
        )

    def _run(self, work: Coroutine) -> object:
        try:
            return self._loop.run_until_complete(work)
        except InferenceServerException as error:
            raise refusal(error) from None

    def _asked(self, name: str, *given: object, **told: object) -> object:
        return self._run(getattr(self._client, name)(*given, headers=self._headers, client_timeout=30, **told))

    def live(self) -> object:
        return self._asked("is_server_live")

    def ready(self) -> object:
        return self._asked("is_server_ready")

    def model_ready(self, name: str) -> object:
        return self._asked("is_model_ready", name)

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
        return self._run(self._infer(request))

    async def _infer(self, request: Request) -> Answer:
        call = self._client.infer(
            request.model,
            tensors(triton, request),
            outputs=outputs(triton, request),
            headers=self.site.authorization(request.token),
            client_timeout=request.seconds,
            compression_algorithm=request.coding or None,
            **options(request),
        )
        if not request.cancel:
            result = await call
            return answer(result, result.get_response(as_json=True))
        task = asyncio.ensure_future(call)
        await asyncio.sleep(request.cancel)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            raise Refused("CANCELLED", "the client left") from None
        raise AssertionError("it was answered before it was cancelled")

    def stream(self, requests: list[Request], grpc_errors: bool = False) -> list[Answer | Refused]:
        return self._run(self._stream(requests, grpc_errors))

    async def _stream(self, requests: list[Request], grpc_errors: bool) -> list[Answer | Refused]:
        async def asked() -> AsyncIterator[dict[str, object]]:
            for request in requests:
                yield {"model_name": request.model, "inputs": tensors(triton, request), **options(request)}
            if grpc_errors:
                await asyncio.Event().wait()  # closing just as the server ends the stream is an error of grpc.aio

        headers = self._headers | ({"triton_grpc_error": "true"} if grpc_errors else {})
        found: list[Answer | Refused] = []
        try:
            async for result, error in self._client.stream_infer(asked(), headers=headers):
                found.append(refusal(error) if error else answer(result, result.get_response(as_json=True)))
        except InferenceServerException as error:
            found.append(refusal(error))
        except grpc.RpcError as error:  # what this client lets through where a stream ends with a status
            found.append(Refused(error.code().name, error.details()))
        return found


if __name__ == "__main__":
    sys.exit(run(ROWS, Client))
