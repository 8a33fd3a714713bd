"""kserve's InferenceRESTClient, unmodified, with protocol v1: TensorFlow Serving's form by rows."""

from __future__ import annotations

import asyncio
import logging
import sys

import httpx
from calling import Refused, Site, run
from http_requests import Client as RestClient
from kserve import InferenceRESTClient, RESTConfig
from rows_tfs import ROWS, Prediction


class Client(RestClient):
    """Calls it on a loop of its own."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._loop = asyncio.new_event_loop()
        self._client = InferenceRESTClient(RESTConfig(protocol="v1", verify=site.ca))

    def forms(self, datatype: str) -> tuple[str, ...]:
        return ("rows",)

    def _call(self, verb: str, model: str, what: str, body: object = None, asked: Prediction | None = None) -> dict:
        return self._loop.run_until_complete(self._infer(model, body, asked or Prediction(model, {})))

    async def _infer(self, model: str, body: object, asked: Prediction) -> dict:
        headers = self.site.authorization(asked.token)
        if asked.seconds < 1:
            headers["grpc-timeout"] = f"{int(asked.seconds * 1000)}m"
        task = asyncio.ensure_future(self._client.infer(f"https://{self.site.http}", body, model, headers=headers))
        if asked.cancel:
            await asyncio.sleep(asked.cancel)
            task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            raise Refused("CANCELLED", "the client left") from None
        except httpx.HTTPStatusError as error:
            raise Refused(str(error.response.status_code), error.response.json()["error"]) from None


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    sys.exit(run(ROWS, Client))
