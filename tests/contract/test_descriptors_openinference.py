"""Our proto of the Open Inference Protocol has the official field numbers, types and labels.

tritonclient needs protobuf below 7 and registers package `inference`, so it lives in an environment
of its own (requirements/triton.lock) and gives us its descriptors as bytes.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from sealane.compat.openinference.v2 import openinference_pb2
from sealane.protocols.foreign import foreign_files

PYTHON = Path(__file__).resolve().parents[2] / ".venv-triton" / "bin" / "python"
DUMP = """
import sys
from tritonclient.grpc import service_pb2
sys.stdout.buffer.write(service_pb2.DESCRIPTOR.serialized_pb)
"""

pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason="tritonclient's environment .venv-triton is not built from requirements/triton.lock"
)


@pytest.fixture(scope="module")
def official() -> descriptor_pb2.FileDescriptorProto:
    run = subprocess.run([PYTHON, "-c", DUMP], capture_output=True, check=True, timeout=60)
    return descriptor_pb2.FileDescriptorProto.FromString(run.stdout)


@pytest.fixture(scope="module")
def ours() -> descriptor_pb2.FileDescriptorProto:
    return next(proto for proto in foreign_files() if proto.package == "inference")


def facts(message: descriptor_pb2.DescriptorProto) -> dict[str, tuple[object, ...]]:
    return {
        field.name: (
            field.number,
            field.type,
            field.label,
            field.type_name,
            message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else "",
        )
        for field in message.field
    }


def by_name(
    messages: list[descriptor_pb2.DescriptorProto], prefix: str = ""
) -> dict[str, descriptor_pb2.DescriptorProto]:
    found = {}
    for message in messages:
        found[prefix + message.name] = message
        found.update(by_name(list(message.nested_type), f"{prefix}{message.name}."))
    return found


def test_fields(official: descriptor_pb2.FileDescriptorProto, ours: descriptor_pb2.FileDescriptorProto) -> None:
    theirs = by_name(list(official.message_type))
    mine = by_name(list(ours.message_type))
    assert len(mine) >= 20
    for name, message in mine.items():
        assert facts(message) == facts(theirs[name]), name


def test_methods(official: descriptor_pb2.FileDescriptorProto, ours: descriptor_pb2.FileDescriptorProto) -> None:
    assert official.package == ours.package == "inference"
    assert ours.service[0].name == official.service[0].name
    theirs = {method.name: method for method in official.service[0].method}
    for method in ours.service[0].method:
        twin = theirs[method.name]
        assert (method.input_type, method.output_type) == (twin.input_type, twin.output_type)
        assert not twin.client_streaming and not twin.server_streaming


def test_disputed_fields_are_not_declared() -> None:
    metadata = openinference_pb2.ModelMetadataResponse.DESCRIPTOR
    assert 6 not in metadata.fields_by_number
    assert 4 not in metadata.nested_types_by_name["TensorMetadata"].fields_by_number
