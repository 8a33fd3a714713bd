"""The route table: which workers serve what, or why none does."""

from __future__ import annotations

from sealane.scheduler.v1 import routing_service_pb2 as pb
from sealane_scheduler.cluster import Deployed
from sealane_scheduler.controller import Controller
from sealane_scheduler.fleet import Fleet


def table(controller: Controller) -> pb.RouteTable:
    """All routes as they are now."""
    return pb.RouteTable(
        revision=controller.changes.revision,
        routes=[route(item, controller.fleet) for item in controller.all()],
    )


def route(item: Deployed, fleet: Fleet) -> pb.Route:
    """The route of one deployment.

    While a copy is being prepared, or its node may come back, there is no endpoint and no constraint:
    callers wait. When nothing can serve it, the constraint says so: callers are refused at once.
    """
    message = pb.Route(deployment=item.row.name, model_version=item.row.model_version)
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
            )
        )
    if not message.endpoints and item.refusal is not None:
        message.unavailable_reason = item.refusal.unavailable_reason
        message.binding_constraint = item.refusal.binding_constraint
    return message
