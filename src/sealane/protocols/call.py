"""What an inference request says once no protocol is left in it.

The adapters of this package turn a foreign message into an :class:`InferenceCall` and an
:class:`InferenceAnswer` back into a foreign message, so that everything between them knows one form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sealane.tensors import Array, Signature

#: Signature that is meant where a caller names none.
DEFAULT_SIGNATURE = "serving_default"


@dataclass(frozen=True, slots=True)
class Target:
    """Which model is meant: at most one of `version` (digits) and `label` is set."""

    model: str
    version: str = ""
    label: str = ""
    signature: str = ""


@dataclass(frozen=True, slots=True)
class SequencePlace:
    """The sequence that a request belongs to, and whether it begins or ends it."""

    id: str
    start: bool = False
    end: bool = False


@dataclass(frozen=True, slots=True)
class InferenceCall:
    """One run of a model.

    `outputs` empty means all of them; `classify` gives, per output, the number of classes wanted
    instead of the tensor (an extension of the Open Inference Protocol). `priority` 1 is the highest, 0 leaves it
    to the model. `timeout_us` is the longest time that the caller waits, 0 sets none beside the call's own deadline.
    """

    target: Target
    inputs: Mapping[str, Array]
    outputs: tuple[str, ...] = ()
    request_id: str = ""
    classify: Mapping[str, int] = field(default_factory=dict)
    priority: int = 0
    timeout_us: int = 0
    sequence: SequencePlace | None = None


@dataclass(frozen=True, slots=True)
class InferenceAnswer:
    """The outputs of one run, with the version and signature that really ran."""

    call: InferenceCall
    version: str
    signature: str
    outputs: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What a metadata request asks for: versions as digits, platform, signatures."""

    name: str
    versions: tuple[str, ...]
    platform: str
    signatures: tuple[Signature, ...]

    def signature(self, name: str = "") -> Signature | None:
        """The signature of that name; the default, or else the only one, where `name` is empty."""
        wanted = name or DEFAULT_SIGNATURE
        for signature in self.signatures:
            if signature.name == wanted:
                return signature
        return self.signatures[0] if not name and len(self.signatures) == 1 else None
