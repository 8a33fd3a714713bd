"""Our proto of the Open Inference Protocol has the official field numbers, types and labels.

tritonclient needs protobuf below 7 and registers package `inference`, so it lives in an environment
of its own (requirements/triton.lock) and gives us its descriptors as bytes.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from sealane.compat.openinference.v2 import openinference_pb2
from sealane.protocols.foreign import foreign_files

PYTHON = Path(__file__).resolve().parents[2] / ".venv-triton" / "bin" / "python"
DUMP = """
import sys
from google.protobuf import descriptor_pb2
from tritonclient.grpc import model_config_pb2, service_pb2
files = descriptor_pb2.FileDescriptorSet()
for module in (model_config_pb2, service_pb2):
    files.file.add().ParseFromString(module.DESCRIPTOR.serialized_pb)
sys.stdout.buffer.write(files.SerializeToString())
"""
#: Messages of which only some fields are declared; model_config.proto says why.
PARTIAL = {
    "ModelConfig", "ModelInput", "ModelOutput", "ModelInstanceGroup", "ModelDynamicBatching", "ModelSequenceBatching",
    "ModelSequenceBatching.Control", "ModelSequenceBatching.State", "ModelEnsembling", "ModelEnsembling.Step",
}  # fmt: skip
#: Fields of KServe's dialect, which Triton's proto does not have.
KSERVE = {
    "RepositoryModelLoadResponse": {"model_name", "isLoaded"},
    "RepositoryModelUnloadResponse": {"model_name", "isUnloaded"},
}

pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason="tritonclient's environment .venv-triton is not built from requirements/triton.lock"
)


@pytest.fixture(scope="module")
def official() -> descriptor_pb2.FileDescriptorProto:
    run = subprocess.run([PYTHON, "-c", DUMP], capture_output=True, check=True, timeout=60)
    return together(descriptor_pb2.FileDescriptorSet.FromString(run.stdout).file)


def together(files: Iterable[descriptor_pb2.FileDescriptorProto]) -> descriptor_pb2.FileDescriptorProto:
    """One file that declares what these do."""
    whole = descriptor_pb2.FileDescriptorProto(package="inference")
    for file in files:
        assert file.package == "inference"
        whole.message_type.extend(file.message_type)
        whole.enum_type.extend(file.enum_type)
        whole.service.extend(file.service)
    return whole


@pytest.fixture(scope="module")
def ours() -> descriptor_pb2.FileDescriptorProto:
    return together(proto for proto in foreign_files() if proto.package == "inference")


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
        wanted, declared = facts(theirs[name]), facts(message)
        extra = KSERVE.get(name, set())
        assert set(declared) - set(wanted) == extra, name
        if name in PARTIAL:
            wanted = {field: value for field, value in wanted.items() if field in declared}
        assert {field: value for field, value in declared.items() if field not in extra} == wanted, name


def test_enum_values(official: descriptor_pb2.FileDescriptorProto, ours: descriptor_pb2.FileDescriptorProto) -> None:
    theirs = {enum.name: {value.name: value.number for value in enum.value} for enum in official.enum_type}
    assert ours.enum_type
    for enum in ours.enum_type:
        assert {value.name: value.number for value in enum.value} == theirs[enum.name]
    for name, message in by_name(list(ours.message_type)).items():
        twins = {enum.name: enum for enum in by_name(list(official.message_type))[name].enum_type}
        for enum in message.enum_type:
            wanted = {value.name: value.number for value in twins[enum.name].value}
            assert {value.name: value.number for value in enum.value} == wanted


def test_methods(official: descriptor_pb2.FileDescriptorProto, ours: descriptor_pb2.FileDescriptorProto) -> None:
    assert official.package == ours.package == "inference"
    assert ours.service[0].name == official.service[0].name
    theirs = {method.name: method for method in official.service[0].method}
    for method in ours.service[0].method:
        twin = theirs[method.name]
        assert (method.input_type, method.output_type) == (twin.input_type, twin.output_type)
        streams = (method.client_streaming, method.server_streaming)
        assert streams == (twin.client_streaming, twin.server_streaming)


def test_disputed_fields_are_not_declared() -> None:
    metadata = openinference_pb2.ModelMetadataResponse.DESCRIPTOR
    assert 6 not in metadata.fields_by_number
    assert 4 not in metadata.nested_types_by_name["TensorMetadata"].fields_by_number
