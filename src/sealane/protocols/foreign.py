"""Under which names the compatible protocols are served, and how reflection shows them.

Our protos of these contracts carry a package of our own (see their file comments); the wire knows
only the foreign names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from google.protobuf import descriptor_pb2

from sealane.compat.openinference.v2 import model_config_pb2, openinference_pb2
from sealane.compat.tfserving.v1 import example_pb2, tensorflow_pb2, tfserving_pb2

#: Full name of our service -> name under which it is served.
FOREIGN_SERVICES = {
    "sealane.compat.openinference.v2.GRPCInferenceService": "inference.GRPCInferenceService",
    "sealane.compat.tfserving.v1.PredictionService": "tensorflow.serving.PredictionService",
    "sealane.compat.tfserving.v1.ModelService": "tensorflow.serving.ModelService",
}

#: Modules whose services are served under foreign names.
_SERVING = (openinference_pb2, tfserving_pb2)
_PACKAGES = (
    (model_config_pb2, "inference"),
    (openinference_pb2, "inference"),
    (tensorflow_pb2, "tensorflow"),
    (example_pb2, "tensorflow"),
    (tfserving_pb2, "tensorflow.serving"),
)
_ACCESS = "sealane/type/v1/access.proto"


def foreign_path(path: str) -> str:
    """The path under which a method is served: foreign for a compatible protocol, else unchanged."""
    service, _, method = path.strip("/").rpartition("/")
    return f"/{FOREIGN_SERVICES.get(service, service)}/{method}"


def foreign_methods() -> frozenset[str]:
    """Paths of all methods of the compatible protocols that we know."""
    return frozenset(
        foreign_path(f"/{service.full_name}/{method.name}")
        for module in _SERVING
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    )


def foreign_files() -> list[descriptor_pb2.FileDescriptorProto]:
    """The contracts under their foreign names, for reflection from a private descriptor pool.

    They must never enter protobuf's default pool: the client libraries register the same names there.
    """
    files = []
    names: dict[str, str] = {}
    for module, package in _PACKAGES:
        proto = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(proto)
        for name in _type_names(proto.message_type, proto.enum_type):
            names[f".{proto.package}.{name}"] = f".{package}.{name}"
        proto.package = package
        dependencies = [name for name in proto.dependency if name != _ACCESS]
        proto.ClearField("dependency")
        proto.dependency.extend(dependencies)
        files.append(proto)
    for proto in files:
        _rename(proto, names)
    return files


def _type_names(
    messages: Iterable[descriptor_pb2.DescriptorProto],
    enums: Iterable[descriptor_pb2.EnumDescriptorProto],
    prefix: str = "",
) -> Iterator[str]:
    """Names of all types, nested ones included, relative to their package."""
    for enum in enums:
        yield prefix + enum.name
    for message in messages:
        yield prefix + message.name
        yield from _type_names(message.nested_type, message.enum_type, f"{prefix}{message.name}.")


def _rename(proto: descriptor_pb2.FileDescriptorProto, names: dict[str, str]) -> None:
    """Point every reference of a file to the foreign names."""
    for service in proto.service:
        for method in service.method:
            method.input_type = names.get(method.input_type, method.input_type)
            method.output_type = names.get(method.output_type, method.output_type)
            # The access rule is an extension of ours that a foreign client cannot resolve.
            method.ClearField("options")
    pending = list(proto.message_type)
    while pending:
        message = pending.pop()
        pending.extend(message.nested_type)
        for field in message.field:
            if field.type_name:
                field.type_name = names.get(field.type_name, field.type_name)
