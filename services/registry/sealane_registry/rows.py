"""What the registry keeps, row by row. `content` is opaque to stores: the part that never changes, serialized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Scope:
    """Keys of a place in the tree; deeper parts are empty where they do not apply."""

    project: str
    model: str = ""
    number: int = 0
    name: str = ""


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model."""

    project: str
    model: str
    description: str
    create_time: float
    update_time: float
    etag: str
    labels: Mapping[str, str] = field(default_factory=dict)
    version_count: int = 0

    @property
    def name(self) -> str:
        """Its resource name."""
        return f"projects/{self.project}/models/{self.model}"


@dataclass(frozen=True, slots=True)
class ApprovalRow:
    """One approval of a version; `roles` are those that it counts for."""

    approver: str
    roles: tuple[str, ...]
    comment: str
    time: float


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A version, with its approvals, oldest first."""

    project: str
    model: str
    number: int
    content: bytes
    create_time: float
    etag: str
    state: str = "PUSHED"
    state_reason: str = ""
    publisher: str = ""
    approvals: tuple[ApprovalRow, ...] = ()

    @property
    def name(self) -> str:
        """Its resource name."""
        return f"projects/{self.project}/models/{self.model}/versions/{self.number}"

    @property
    def scope(self) -> Scope:
        """Its place."""
        return Scope(self.project, self.model, self.number)


@dataclass(frozen=True, slots=True)
class SignatureRow:
    """A signature of a variant."""

    key_id: str
    bundle: bytes
    create_time: float


@dataclass(frozen=True, slots=True)
class VariantRow:
    """A variant, with what was measured, its signatures, oldest first, and what came of loading it, if somebody did."""

    project: str
    model: str
    number: int
    variant: str
    digest: str
    content: bytes
    create_time: float
    measurements: tuple[bytes, ...] = ()
    signatures: tuple[SignatureRow, ...] = ()
    load_check: bytes | None = None

    @property
    def name(self) -> str:
        """Its resource name."""
        return f"projects/{self.project}/models/{self.model}/versions/{self.number}/variants/{self.variant}"


@dataclass(frozen=True, slots=True)
class AliasRow:
    """An alias.

    Args:
        project: of the model.
        model: of which it is an alias.
        alias: its id.
        number: version; 0 where it was taken away.
        update_time: of the last move.
        etag: changes with every move.
        moves: so far.
        head: hash of the last move, hex.
    """

    project: str
    model: str
    alias: str
    number: int
    update_time: float
    etag: str
    moves: int = 0
    head: str = ""

    @property
    def name(self) -> str:
        """Its resource name."""
        return f"projects/{self.project}/models/{self.model}/aliases/{self.alias}"


@dataclass(frozen=True, slots=True)
class MoveRow:
    """One move of an alias; hashes in hex, `evidence` as :mod:`sealane.security.alias_history` writes it."""

    project: str
    model: str
    alias: str
    sequence: int
    number: int
    previous: int
    time_us: int
    mover: str
    evidence: str
    previous_hash: str
    hash: str


@dataclass(frozen=True, slots=True)
class DatasetRow:
    """A dataset."""

    project: str
    dataset: str
    content: bytes
    digest: str
    format: str
    rows: int
    size: int
    creator: str
    create_time: float

    @property
    def name(self) -> str:
        """Its resource name."""
        return f"projects/{self.project}/datasets/{self.dataset}"


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """A project's policy, serialized; one that was never set has no etag."""

    content: bytes = b""
    etag: str = ""
    update_time: float = 0.0


@dataclass(frozen=True, slots=True)
class QuotaRow:
    """What a project may store; 0 for what the registry gives everybody."""

    max_bytes: int = 0
    max_models: int = 0
    max_versions: int = 0


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What a project has."""

    bytes: int = 0
    models: int = 0


@dataclass(frozen=True, slots=True)
class UseRow:
    """What a deployment or job refers to: `kind` is ``version``, ``alias`` or ``artifact``."""

    project: str
    kind: str
    resource: str
    holder: str


@dataclass(frozen=True, slots=True)
class UploadRow:
    """An upload under way, or done: a done one stays until it is swept, so that its end can be repeated."""

    project: str
    upload: str
    sha256: str
    size: int
    create_time: float


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """One change, in the order of the commits."""

    revision: int
    time: float
    action: str
    resource: str
    details: str
