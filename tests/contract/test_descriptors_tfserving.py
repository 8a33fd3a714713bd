"""Our protos of TensorFlow Serving's contract have the official field numbers, types and labels."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from sealane.compat.tfserving.v1 import example_pb2, tensorflow_pb2, tfserving_pb2
from sealane.protocols.foreign import FOREIGN_SERVICES

pytestmark = pytest.mark.tensorflow

OURS = "sealane.compat.tfserving.v1."
#: Official fields that our partial messages leave out on purpose.
LEFT_OUT = {
    "ModelConfig": {"logging_config"},
    "FileSystemStoragePathSourceConfig": {
        "servables",
        "file_system_poll_wait_seconds",
        "fail_if_zero_versions_at_startup",
        "servable_versions_always_present",
    },
    "TensorInfo": {"composite_tensor"},
    "MetaGraphDef": {"graph_def", "saver_def", "collection_def", "asset_file_def", "object_graph_def"},
    "MetaGraphDef.MetaInfoDef": {
        "meta_graph_version",
        "stripped_op_list",
        "any_info",
        "tensorflow_git_version",
        "stripped_default_attrs",
        "function_aliases",
    },
}


def official_messages() -> dict[str, Descriptor]:
    from tensorflow.core.example import example_pb2 as tf_example_pb2
    from tensorflow.core.example import feature_pb2
    from tensorflow.core.framework import (
        resource_handle_pb2,
        tensor_pb2,
        tensor_shape_pb2,
    )
    from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
    from tensorflow_serving.apis import (
        classification_pb2,
        get_model_metadata_pb2,
        get_model_status_pb2,
        inference_pb2,
        input_pb2,
        model_management_pb2,
        model_pb2,
        predict_pb2,
        regression_pb2,
        status_pb2,
    )
    from tensorflow_serving.config import file_system_storage_path_source_pb2, model_server_config_pb2

    found: dict[str, Descriptor] = {}
    pending = []
    for module in (
        resource_handle_pb2,
        tensor_pb2,
        tensor_shape_pb2,
        meta_graph_pb2,
        saved_model_pb2,
        get_model_metadata_pb2,
        get_model_status_pb2,
        model_pb2,
        predict_pb2,
        status_pb2,
        tf_example_pb2,
        feature_pb2,
        classification_pb2,
        inference_pb2,
        input_pb2,
        model_management_pb2,
        regression_pb2,
        file_system_storage_path_source_pb2,
        model_server_config_pb2,
    ):
        pending.extend(module.DESCRIPTOR.message_types_by_name.values())
    while pending:
        message = pending.pop()
        pending.extend(message.nested_types)
        found[message.full_name.removeprefix("tensorflow.serving.").removeprefix("tensorflow.")] = message
    return found


def our_messages() -> list[Descriptor]:
    pending = [
        *tensorflow_pb2.DESCRIPTOR.message_types_by_name.values(),
        *tfserving_pb2.DESCRIPTOR.message_types_by_name.values(),
        *example_pb2.DESCRIPTOR.message_types_by_name.values(),
    ]
    found = []
    while pending:
        message = pending.pop()
        pending.extend(message.nested_types)
        found.append(message)
    return found


def short(name: str) -> str:
    for prefix in (OURS, "tensorflow.serving.", "tensorflow.error.", "tensorflow."):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def facts(field: FieldDescriptor) -> tuple[object, ...]:
    kind = field.message_type or field.enum_type
    return (
        field.number,
        field.type,
        field.is_repeated,
        field.has_presence,
        short(kind.full_name) if kind else "",
        field.containing_oneof.name if field.containing_oneof else "",
    )


def test_fields() -> None:
    official = official_messages()
    for ours in our_messages():
        name = short(ours.full_name)
        theirs = official[name]
        wanted = {field.name: facts(field) for field in theirs.fields}
        for left_out in LEFT_OUT.get(name, set()):
            del wanted[left_out]
        assert {field.name: facts(field) for field in ours.fields} == wanted, name


def values(enum: EnumDescriptor) -> dict[str, int]:
    return {value.name: value.number for value in enum.values}


def test_enum_values() -> None:
    from tensorflow.core.framework import types_pb2
    from tensorflow.core.protobuf import error_codes_pb2
    from tensorflow_serving.apis import get_model_status_pb2, predict_pb2

    served = {name: number for name, number in values(types_pb2.DataType.DESCRIPTOR).items() if number < 100}
    assert values(tensorflow_pb2.DataType.DESCRIPTOR) == served
    codes = {name: number for name, number in values(error_codes_pb2.Code.DESCRIPTOR).items() if number < 20}
    assert values(tfserving_pb2.Code.DESCRIPTOR) == codes
    for ours, theirs in (
        (tfserving_pb2.ModelVersionStatus.State, get_model_status_pb2.ModelVersionStatus.State),
        (tfserving_pb2.PredictStreamedOptions.RequestState, predict_pb2.PredictStreamedOptions.RequestState),
        (
            tfserving_pb2.PredictRequest.RequestOptions.DeterministicMode,
            predict_pb2.PredictRequest.RequestOptions.DeterministicMode,
        ),
    ):
        assert values(ours.DESCRIPTOR) == values(theirs.DESCRIPTOR)


def test_methods() -> None:
    from tensorflow_serving.apis import model_service_pb2, prediction_service_pb2

    official = {
        service.full_name: service
        for module in (model_service_pb2, prediction_service_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
    }
    for ours in tfserving_pb2.DESCRIPTOR.services_by_name.values():
        theirs = official[FOREIGN_SERVICES[ours.full_name]]
        for method in ours.methods:
            twin = theirs.methods_by_name[method.name]
            assert short(method.input_type.full_name) == short(twin.input_type.full_name)
            assert short(method.output_type.full_name) == short(twin.output_type.full_name)
            assert not twin.client_streaming and not twin.server_streaming
