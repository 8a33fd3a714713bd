"""From decisions to copies: what was decided together is committed together, and told only after that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field, replace

from sealane.failpoint import failpoint
from sealane.scheduler.v1 import deployment_service_pb2 as pb
from sealane.scheduler.v1 import placement_service_pb2 as placement_pb
from sealane_scheduler import present
from sealane_scheduler.batch import Placed
from sealane_scheduler.cluster import Copy, Deployed
from sealane_scheduler.replay import record
from sealane_scheduler.stock import Stock
from sealane_scheduler.store import DecisionRow, PlacementRow, Store


@dataclass(slots=True)
class Binding:
    """What was decided about one deployment, on its way into the records.

    Args:
        item: the deployment.
        placed: the decisions.
        now: when they were made, in seconds since 1970.
        serialize: makes bytes of decisions.
        note_refusal: whether the refusal is kept.
    """

    item: Deployed
    placed: Placed
    now: float
    serialize: InitVar[present.Serializer]
    note_refusal: bool = False
    contents: list[bytes] = field(default_factory=list)
    """The decisions, serialized, without their epochs and without what they were made from."""
    refused: bytes = b""
    epochs: list[int] = field(default_factory=list)
    """Filled in by :func:`keep`."""

    def __post_init__(self, serialize: present.Serializer) -> None:
        self.contents = [serialize(place.decision, self.now) for place in self.placed.places]
        if self.note_refusal and self.placed.refusal is not None:
            self.refused = serialize(self.placed.refusal[0], self.now)

    @property
    def rows(self) -> list[PlacementRow]:
        """Its copies before they have epochs."""
        row = self.item.row
        found = (place.decision for place in self.placed.places)
        return [PlacementRow(row.project, row.deployment, 0, decision.node, decision.variant) for decision in found]

    def decisions(self) -> list[DecisionRow]:
        """The decisions as they are kept."""
        kept = [
            _with(content, epoch, record(place.basis))
            for content, epoch, place in zip(self.contents, self.epochs, self.placed.places, strict=True)
        ]
        if self.refused and self.placed.refusal is not None:
            kept.append(_with(self.refused, 0, record(self.placed.refusal[1])))
        row = self.item.row
        return [DecisionRow(row.project, row.deployment, self.now, content) for content in kept]


def keep(store: Store, bindings: Sequence[Binding], *, first: bool = False) -> None:
    """Record what was decided; `first` where their deployments are new."""
    rows = [row for binding in bindings for row in binding.rows]
    epochs = iter(store.bind(rows))
    for binding in bindings:
        binding.epochs = [next(epochs) for _ in binding.placed.places]
    if rows:
        failpoint("scheduler.bind.recorded")
    store.add_decisions([row for binding in bindings for row in binding.decisions()], first=first)


def adopt(binding: Binding, stock: Stock) -> None:
    """Make copies of what was recorded."""
    item = binding.item
    for place, row, epoch in zip(binding.placed.places, binding.rows, binding.epochs, strict=True):
        copy = Copy(replace(row, epoch=epoch), since=binding.now)
        item.copies.append(copy)
        stock.occupy(item, copy, place.taken)
    if binding.contents:
        item.placed, item.refusal = _with(binding.contents[-1], binding.epochs[-1]), None
    elif binding.refused and binding.placed.refusal is not None:
        item.refused, item.refusal = binding.refused, binding.placed.refusal[0]


def told(binding: Binding) -> placement_pb.PlaceResponse.Placed:
    """What was decided about a deployment that is being created."""
    row, found = binding.item.row, binding.placed
    last = found.places[-1].decision if found.places else None
    refusal = found.refusal[0] if found.refusal is not None else None
    return placement_pb.PlaceResponse.Placed(
        deployment=row.name,
        etag=row.etag,
        copies=[
            placement_pb.PlaceResponse.Copy(
                node=f"nodes/{place.decision.node}", variant=place.decision.variant, epoch=epoch
            )
            for place, epoch in zip(found.places, binding.epochs, strict=True)
        ],
        reason=last.reasons[0] if last is not None else refusal.unavailable_reason if refusal is not None else "",
        binding_constraint=refusal.binding_constraint if refusal is not None else "",
    )


def _with(content: bytes, epoch: int, made_from: bytes = b"") -> bytes:
    """A serialized decision with more fields: messages one behind the other are read as one."""
    return content + pb.Decision(epoch=epoch, record=made_from).SerializeToString()
