"""What is asked of a worker: deployments to serve, and inferences of them. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sealane.ensembles import Chain
from sealane.protocols.call import SequencePlace, Target
from sealane.tensors import Array, Signature
from sealane_worker.box import BoxState
from sealane_worker.child import LoadedModel
from sealane_worker.spec import ModelSpec, OnCancel
from sealane_worker.statistics import RunStatistics


@dataclass(frozen=True, slots=True)
class Assignment:
    """What the scheduler wants served here.

    Attributes:
        deployment: resource name of the deployment.
        model: resource name of the model.
        version: number of the model's version.
        variant: name of the variant (``savedmodel``, ``litert-int8``, ...).
        digest: the variant's manifest digest, ``sha256:`` and hex.
        epoch: placement epoch; a call that carries another was routed by an outdated table.
        spec: runtime, local path, threads, how it is served.
        pinned: whether it stays in memory however long nobody calls it.
        served_name: name under which clients of the compatible protocols know it, beside its own.
        labels: of its version under that name.
    """

    deployment: str
    model: str
    version: int
    variant: str
    digest: str
    epoch: int
    spec: ModelSpec
    pinned: bool = False
    served_name: str = ""
    labels: tuple[str, ...] = ()

    @property
    def model_id(self) -> str:
        """Last part of the model's name."""
        return self.model.rpartition("/")[2]

    def is_meant(self, wanted: Target) -> bool:
        """Whether a caller's words can mean this deployment: its id, its model's, or the name it is served under."""
        if (
            wanted.model not in (self.deployment.rpartition("/")[2], self.model_id, self.served_name)
            or not wanted.model
        ):
            return False
        return wanted.version in ("", str(self.version)) and (not wanted.label or wanted.label in self.labels)


@dataclass(frozen=True, slots=True)
class Served:
    """A deployment that this worker has loaded."""

    assignment: Assignment
    signatures: Mapping[str, Signature]
    state: BoxState
    footprint_bytes: int
    statistics: RunStatistics
    loaded: LoadedModel
    resident: bool = True


@dataclass(frozen=True, slots=True)
class Model:
    """What answering a request needs to know of a loaded deployment.

    Attributes:
        assignment: what it is.
        signatures: signature name -> what callers send and get.
        members: for a chain, the ids of its models.
        chain: the chain that it is; None for a single model.
    """

    assignment: Assignment
    signatures: Mapping[str, Signature]
    members: tuple[str, ...] = ()
    chain: Chain | None = None

    @property
    def model_ids(self) -> tuple[str, ...]:
        """Ids of all models that it runs."""
        return self.members or (self.assignment.model_id,)


@dataclass(frozen=True, slots=True)
class Inference:
    """One inference asked of a deployment.

    Attributes:
        deployment: resource name.
        inputs: tensors by name.
        deadline: ``time.monotonic()`` value.
        signature: signature name; empty for the default one.
        outputs: names wanted; empty for all.
        epoch: the placement epoch that the caller's route carries; none where there is no route.
        priority: 1 is the highest; 0 takes the model's default.
        flow: number of the project that asks.
        checked: set where inputs and outputs were checked against the signature already, as the
            adapters of the foreign protocols do in their own words.
        on_cancel: has a function called when nobody waits for the answer any more; see
            :meth:`sealane.rpc.call.Call.on_cancel`.
        caller: who asks; sequences and answers are never another caller's.
        sequence: sequence that it belongs to.
        bound: deployment -> what it must be serving when it runs, by :meth:`sealane_worker.engine.Engine.variants`;
            none where whatever it serves will do.
    """

    deployment: str
    inputs: Mapping[str, Array]
    deadline: float
    signature: str = ""
    outputs: tuple[str, ...] = ()
    epoch: int | None = None
    priority: int = 0
    flow: int = 0
    checked: bool = False
    on_cancel: OnCancel | None = None
    caller: str = ""
    sequence: SequencePlace | None = None
    bound: Mapping[str, str] | None = None
