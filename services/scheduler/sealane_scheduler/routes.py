"""The route table: which workers serve what, or why none does."""

from __future__ import annotations

from sealane.scheduler.v1 import routing_service_pb2 as pb
from sealane.security.sealing_messages import message_of
from sealane_scheduler.cluster import Deployed
from sealane_scheduler.controller import Controller
from sealane_scheduler.ensembles import Chained, Ensembles
from sealane_scheduler.fleet import Fleet
from sealane_scheduler.present import labels_of


def table(controller: Controller, chains: Ensembles) -> pb.RouteTable:
    """All routes as they are now."""
    routes = [route(item, controller.fleet) for item in controller.all()]
    routes += [chain_route(chained, chains, controller.fleet) for chained in chains.all()]
    return pb.RouteTable(revision=controller.changes.revision, routes=routes)


class Tables:
    """The tables for one who watches: all routes first, then what has changed of them, where that is known.

    Args:
        controller: the cluster.
        chains: the chains.
        takes_changes: whether tables of changes may be sent.
    """

    def __init__(self, controller: Controller, chains: Ensembles, takes_changes: bool) -> None:
        self._controller = controller
        self._chains = chains
        self._takes_changes = takes_changes
        self._number = self._revision = -1
        self._sent: dict[str, bytes] = {}

    def next(self) -> pb.RouteTable | None:
        """What there is to be told; None where nothing has changed."""
        controller, revision = self._controller, self._revision
        names = controller.rerouted_since(self._number) if self._takes_changes else None
        self._number, self._revision = controller.routes.number, controller.changes.revision
        changed, gone = self._changed_chains() if self._takes_changes else ([], [])
        if names is None:
            return table(controller, self._chains) if revision != self._revision else None
        message = pb.RouteTable(revision=controller.changes.revision, routes=changed, removed=gone, changes_only=True)
        for name in names:
            item = controller.get(name)
            if item is not None:
                message.routes.append(route(item, controller.fleet))
            elif name not in self._sent:
                message.removed.append(name)
        return message if message.routes or message.removed else None

    def _changed_chains(self) -> tuple[list[pb.Route], list[str]]:
        """Chains are few, and change with their members: they are made anew and compared."""
        found = [chain_route(chained, self._chains, self._controller.fleet) for chained in self._chains.all()]
        now = {item.deployment: item.SerializeToString() for item in found}
        changed = [item for item in found if now[item.deployment] != self._sent.get(item.deployment)]
        gone = [name for name in self._sent if name not in now and self._controller.get(name) is None]
        self._sent = now
        return changed, gone


def chain_route(chained: Chained, chains: Ensembles, fleet: Fleet) -> pb.Route:
    """The route of a chain; it has endpoints where a worker serves all models of it."""
    message = pb.Route(deployment=chained.row.name, ensemble=chained.message)
    for name in chains.nodes(chained):
        node = fleet.get(name)
        if node is not None:
            message.endpoints.append(
                pb.Endpoint(
                    node=node.node,
                    address=node.facts.endpoint,
                    tls_name=node.facts.tls_name,
                    epoch=chained.row.epoch,
                    variant_digest=chains.digest(chained, name),
                    sealing_statement=node.statement,
                    tier=node.tier,
                    zone=node.facts.attributes.get("zone", ""),
                    sealing=[message_of(item.sealing) for item in chains.variants(chained, name).values()],
                )
            )
    message.sealing_required = chains.sealing_required(chained)
    missing = chains.unserved(chained)
    if missing is not None and missing.refusal is not None:
        message.unavailable_reason = f"{missing.row.deployment}: {missing.refusal.unavailable_reason}"
        message.binding_constraint = missing.refusal.binding_constraint
    return message


def route(item: Deployed, fleet: Fleet) -> pb.Route:
    """The route of one deployment.

    While a copy is being prepared, or its node may come back, there is no endpoint and no constraint:
    callers wait. When nothing can serve it, the constraint says so: callers are refused at once.
    """
    message = pb.Route(
        deployment=item.row.name,
        model_version=item.row.model_version,
        served_name=item.row.served_name,
        labels=labels_of(item.row),
    )
    for copy in item.serving(fleet):
        node, variant = fleet.get(copy.row.node), item.variant(copy.row.variant)
        if node is None or variant is None:
            continue
        message.endpoints.append(
            pb.Endpoint(
                node=node.node,
                address=node.facts.endpoint,
                tls_name=node.facts.tls_name,
                variant=variant.variant,
                variant_digest=variant.digest,
                epoch=copy.row.epoch,
                sealing_statement=node.statement,
                tier=node.tier,
                zone=node.facts.attributes.get("zone", ""),
                sealing=[message_of(variant.sealing)],
            )
        )
    message.sealing_required = item.sealing_required
    if not message.endpoints and item.refusal is not None:
        message.unavailable_reason = item.refusal.unavailable_reason
        message.binding_constraint = item.refusal.binding_constraint
    return message
