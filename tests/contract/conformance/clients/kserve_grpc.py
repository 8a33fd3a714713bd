"""kserve's InferenceGRPCClient, unmodified, and the stubs that it comes with where it has no call of its own."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Coroutine

import grpc
from calling import TYPED, Answer, Refused, Request, Site, run
from kserve import InferenceGRPCClient
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve_shared import answer, asked
from rows_oip import ROWS


class Client:
    """Calls it on a loop of its own."""

    typed = TYPED

    def __init__(self, site: Site) -> None:
        self.site = site
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._connect())

    async def _connect(self) -> None:
        args = [
            ("grpc.ssl_target_name_override", self.site.tls_name),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
        ]
        self._client = InferenceGRPCClient(
            self.site.grpc, use_ssl=True, root_certificates=self.site.ca, channel_args=args
        )
        self._stub = self._client._client_stub
        self._headers = tuple(self.site.authorization("good").items())

    def _run(self, work: Coroutine) -> object:
        try:
            return self._loop.run_until_complete(work)
        except grpc.RpcError as error:
            raise Refused(error.code().name, error.details()) from None

    def _asked(self, method: str, request: object) -> object:
        async def call() -> object:
            return await getattr(self._stub, method)(request, metadata=self._headers, timeout=30)

        return self._run(call())

    def live(self) -> object:
        return self._run(self._client.is_server_live(headers=self._headers))

    def ready(self) -> object:
        return self._run(self._client.is_server_ready(headers=self._headers))

    def model_ready(self, name: str) -> object:
        return self._run(self._client.is_model_ready(name, headers=self._headers))

    def server_metadata(self) -> tuple[str, list[str]]:
        found = self._asked("ServerMetadata", pb.ServerMetadataRequest())
        return found.name, list(found.extensions)

    def model_metadata(self, name: str) -> tuple:
        found = self._asked("ModelMetadata", pb.ModelMetadataRequest(name=name))
        inputs, outputs = (
            [(item.name, item.datatype, list(item.shape)) for item in side] for side in (found.inputs, found.outputs)
        )
        return found.name, list(found.versions), inputs, outputs

    def load(self, name: str) -> None:
        """KServe's dialect: the model stands in field 1, and the answer names it."""
        found = self._asked("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name=name))
        if (found.model_name, found.isLoaded) != (name, True):
            raise AssertionError(f"answered {found!r}")

    def unload(self, name: str) -> None:
        found = self._asked("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name=name))
        if (found.model_name, found.isUnloaded) != (name, True):
            raise AssertionError(f"answered {found!r}")

    def infer(self, request: Request) -> Answer:
        return self._run(self._infer(request))

    async def _infer(self, request: Request) -> Answer:
        headers = tuple(self.site.authorization(request.token).items())
        call = self._client.infer(asked(request), timeout=request.seconds, headers=headers)
        if not request.cancel:
            return answer(await call)
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
