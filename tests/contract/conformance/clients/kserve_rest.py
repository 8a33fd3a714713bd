"""kserve's InferenceRESTClient, unmodified: protocol v2, and v1 for TensorFlow Serving's form."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Coroutine

import httpx
from calling import TYPED, Answer, Refused, Request, Site, run
from kserve import InferenceRESTClient, InferRequest, RESTConfig
from kserve_shared import answer, asked
from rows_oip import ROWS


class Client:
    """Calls it on a loop of its own."""

    typed = TYPED

    def __init__(self, site: Site) -> None:
        self.site = site
        self._base = f"https://{site.http}"
        self._headers = site.authorization("good")
        self._loop = asyncio.new_event_loop()
        self._client = InferenceRESTClient(RESTConfig(protocol="v2", verify=site.ca))

    def _run(self, work: Coroutine) -> object:
        try:
            return self._loop.run_until_complete(work)
        except httpx.HTTPStatusError as error:
            raise Refused(str(error.response.status_code), str(error)) from None

    def live(self) -> object:
        return self._run(self._client.is_server_live(self._base, headers=self._headers))

    def ready(self) -> object:
        return self._run(self._client.is_server_ready(self._base, headers=self._headers))

    def model_ready(self, name: str) -> object:
        return self._run(self._client.is_model_ready(self._base, name, headers=self._headers))

    def infer(self, request: Request) -> Answer:
        headers = self.site.authorization(request.token)
        if request.seconds < 1:
            headers["grpc-timeout"] = f"{int(request.seconds * 1000)}m"
        if request.coding:
            headers["accept-encoding"] = request.coding
        told = asked(request)
        if not request.typed:
            told.parameters = {**(told.parameters or {}), "binary_data_output": True}
        return answer(self._run(self._infer(told, request, headers)))

    async def _infer(self, told: InferRequest, request: Request, headers: dict[str, str]) -> object:
        call = self._client.infer(self._base, told, request.model, headers=headers)
        if not request.cancel:
            return await call
        task = asyncio.ensure_future(call)
        await asyncio.sleep(request.cancel)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            raise Refused("CANCELLED", "the client left") from None
        raise AssertionError("it was answered before it was cancelled")


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    sys.exit(run(ROWS, Client))
