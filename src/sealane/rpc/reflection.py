"""Server reflection from a private descriptor pool, so that the foreign names never enter the default one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from grpc_reflection.v1alpha import reflection_pb2 as pb

from sealane.protocols.foreign import foreign_files
from sealane.rpc.call import Call


class Reflection:
    """Answers to what reflection asks.

    Args:
        files: files of our own services.
        services: names to list.
    """

    def __init__(self, files: Iterable[FileDescriptor], services: Iterable[str]) -> None:
        self._services = sorted(services)
        self._pool = descriptor_pool.DescriptorPool()
        self._added: set[str] = set()
        for proto in foreign_files():
            for name in proto.dependency:
                if name.startswith("google/"):
                    self._add(descriptor_pool.Default().FindFileByName(name))
        for proto in foreign_files():
            self._pool.AddSerializedFile(proto.SerializeToString())
        for file in files:
            self._add(file)

    def answer(self, request: pb.ServerReflectionRequest) -> pb.ServerReflectionResponse:
        """One answer."""
        kind = request.WhichOneof("message_request")
        try:
            if kind == "list_services":
                services = [pb.ServiceResponse(name=name) for name in self._services]
                listed = pb.ListServiceResponse(service=services)
                return pb.ServerReflectionResponse(original_request=request, list_services_response=listed)
            if kind == "file_by_filename":
                file = self._pool.FindFileByName(request.file_by_filename)
            elif kind == "file_containing_symbol":
                file = self._file_of(request.file_containing_symbol)
            else:
                return _refused(request, grpc.StatusCode.UNIMPLEMENTED, f"{kind} is not answered here")
        except KeyError:
            return _refused(request, grpc.StatusCode.NOT_FOUND, "not found; list the services")
        found = pb.FileDescriptorResponse(file_descriptor_proto=_with_dependencies(file))
        return pb.ServerReflectionResponse(original_request=request, file_descriptor_response=found)

    def _file_of(self, symbol: str) -> FileDescriptor:
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            # The pool knows services and not their methods.
            return self._pool.FindFileContainingSymbol(symbol.rpartition(".")[0])

    def _add(self, file: FileDescriptor) -> None:
        """Add a file after those that it needs, each once."""
        if file.name in self._added:
            return
        self._added.add(file.name)
        for dependency in file.dependencies:
            self._add(dependency)
        proto = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(proto)
        self._pool.AddSerializedFile(proto.SerializeToString())


class ReflectionServicer:
    """grpc.reflection.v1alpha.ServerReflection, on the event loop."""

    def __init__(self, reflection: Reflection) -> None:
        self._reflection = reflection

    async def ServerReflectionInfo(
        self, requests: AsyncIterator[pb.ServerReflectionRequest], call: Call
    ) -> AsyncIterator[pb.ServerReflectionResponse]:
        """Answer each question of the stream."""
        async for request in requests:
            yield self._reflection.answer(request)


class SyncReflectionServicer:
    """The same on a thread."""

    def __init__(self, reflection: Reflection) -> None:
        self._reflection = reflection

    def ServerReflectionInfo(
        self, requests: Iterator[pb.ServerReflectionRequest], call: Call
    ) -> Iterator[pb.ServerReflectionResponse]:
        """Answer each question of the stream."""
        return map(self._reflection.answer, requests)


def _with_dependencies(file: FileDescriptor) -> list[bytes]:
    files = {file.name: file}
    pending = [file]
    while pending:
        for dependency in pending.pop().dependencies:
            if dependency.name not in files:
                files[dependency.name] = dependency
                pending.append(dependency)
    return [item.serialized_pb for item in files.values()]


def _refused(request: pb.ServerReflectionRequest, code: grpc.StatusCode, text: str) -> pb.ServerReflectionResponse:
    error = pb.ErrorResponse(error_code=code.value[0], error_message=text)
    return pb.ServerReflectionResponse(original_request=request, error_response=error)
