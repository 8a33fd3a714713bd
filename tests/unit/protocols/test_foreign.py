"""Reflection shows the foreign names and leaves protobuf's default pool alone."""

from __future__ import annotations

from google.protobuf import descriptor_pool

from sealane.protocols.foreign import FOREIGN_SERVICES, foreign_files, foreign_path


def test_paths() -> None:
    ours = "/sealane.compat.openinference.v2.GRPCInferenceService/ModelInfer"
    assert foreign_path(ours) == "/inference.GRPCInferenceService/ModelInfer"
    assert foreign_path("/sealane.auth.v1.TokenService/IssueToken") == "/sealane.auth.v1.TokenService/IssueToken"


def test_foreign_files_load_into_a_private_pool() -> None:
    pool = descriptor_pool.DescriptorPool()
    default = descriptor_pool.Default()
    for name in ("google/protobuf/any.proto", "google/protobuf/wrappers.proto"):
        pool.AddSerializedFile(default.FindFileByName(name).serialized_pb)
    for proto in foreign_files():
        pool.AddSerializedFile(proto.SerializeToString())
    for service in FOREIGN_SERVICES.values():
        assert pool.FindServiceByName(service).methods
    predict = pool.FindServiceByName("tensorflow.serving.PredictionService").methods_by_name["Predict"]
    assert predict.input_type.full_name == "tensorflow.serving.PredictRequest"
    inputs = predict.input_type.fields_by_name["inputs"].message_type
    assert inputs is not None
    value = inputs.fields_by_name["value"].message_type
    assert value is not None and value.full_name == "tensorflow.TensorProto"
