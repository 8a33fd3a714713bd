"""What a ModelServerConfig asks for."""

from __future__ import annotations

import pytest
from google.protobuf import text_format

from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import InvalidArgument, NotFound
from sealane.protocols.tfserving_config import ConfiguredModel, decode_config, encode_reload


def config(text: str) -> tfs.ReloadConfigRequest:
    return text_format.Parse(f"config {{ {text} }}", tfs.ReloadConfigRequest())


def test_a_file_as_tensorflow_serving_documents_it() -> None:
    request = config(
        """
        model_config_list {
          config { name: 'mnist' base_path: 'digits' model_platform: 'tensorflow'
                   model_version_policy { specific { versions: 42 versions: 43 } }
                   version_labels { key: 'stable' value: 42 } version_labels { key: 'canary' value: 43 } }
          config { name: 'half' model_version_policy { latest { num_versions: 2 } } }
          config { name: 'plain' base_path: 'projects/p/models/plain' }
        }
        """
    )
    assert decode_config(request) == (
        ConfiguredModel("mnist", "digits", (42, 43), 1, {"stable": 42, "canary": 43}),
        ConfiguredModel("half", "", (), 2),
        ConfiguredModel("plain", "projects/p/models/plain"),
    )
    assert decode_config(config("model_config_list {}")) == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("custom_model_config {}", "model_config_list"),
        ("", "model_config_list"),
        ("model_config_list { config { base_path: 'x' } }", "no name"),
        ("model_config_list { config { name: 'm' model_platform: 'torch' } }", "model_platform"),
        ("model_config_list { config { name: 'm' model_version_policy { all {} } } }", "'all'"),
        ("model_config_list { config { name: 'm' model_version_policy { specific {} } } }", "names no version"),
    ],
)
def test_what_is_not_served(text: str, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        decode_config(config(text))


def test_errors_are_told_inside_the_response() -> None:
    assert encode_reload(None).status.error_code == tfs.OK
    status = encode_reload(NotFound("no such model")).status
    assert (status.error_code, status.error_message) == (tfs.NOT_FOUND, "no such model")
