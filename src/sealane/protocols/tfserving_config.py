"""HandleReloadConfigRequest of TensorFlow Serving: what a configuration asks to serve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import InvalidArgument, SealaneError

_PLATFORMS = ("", "tensorflow")


@dataclass(frozen=True, slots=True)
class ConfiguredModel:
    """One model of a configuration: certain versions, or the latest ones."""

    name: str
    base_path: str
    versions: tuple[int, ...] = ()
    latest: int = 1
    labels: Mapping[str, int] = field(default_factory=dict)


def decode_config(request: tfs.ReloadConfigRequest) -> tuple[ConfiguredModel, ...]:
    """The models of a configuration.

    Raises:
        InvalidArgument: another kind of configuration, a model without a name, or what is not served.
    """
    if request.config.WhichOneof("config") != "model_config_list":
        raise InvalidArgument(
            "ServerCore: only model_config_list is supported; list the models",
            reason="CONFIG_KIND",
            field="config",
        )
    return tuple(_model(index, item) for index, item in enumerate(request.config.model_config_list.config))


def encode_reload(failure: SealaneError | None) -> tfs.ReloadConfigResponse:
    """The response; an error is told inside."""
    if failure is None:
        return tfs.ReloadConfigResponse(status=tfs.StatusProto())
    code = tfs.Code.Value(failure.kind)
    return tfs.ReloadConfigResponse(status=tfs.StatusProto(error_code=code, error_message=failure.message))


def _model(index: int, config: tfs.ModelConfig) -> ConfiguredModel:
    where = f"config.model_config_list.config[{index}]"
    if not config.name:
        raise InvalidArgument("a model of the configuration has no name; set it", field=f"{where}.name")
    if config.model_platform not in _PLATFORMS:
        raise InvalidArgument(
            f"model_platform {config.model_platform!r} of {config.name} is not served; leave it out, the variants of "
            "the version say what they are",
            reason="PLATFORM_UNKNOWN",
            field=f"{where}.model_platform",
        )
    policy = config.model_version_policy
    kind = policy.WhichOneof("policy_choice")
    if kind == "all":
        raise InvalidArgument(
            f"version policy 'all' of {config.name} is not served; name the versions, or how many of the latest",
            reason="VERSION_POLICY",
            field=f"{where}.model_version_policy",
        )
    if kind == "specific" and not policy.specific.versions:
        raise InvalidArgument(
            f"version policy 'specific' of {config.name} names no version; name one",
            reason="VERSION_POLICY",
            field=f"{where}.model_version_policy",
        )
    return ConfiguredModel(
        name=config.name,
        base_path=config.base_path,
        versions=tuple(policy.specific.versions) if kind == "specific" else (),
        latest=min(policy.latest.num_versions, 2**31 - 1) or 1,
        labels=dict(config.version_labels),
    )
