"""Step 2: three deployments of one model, and why each runs where it does."""

from __future__ import annotations

from sealane.scheduler.v1 import deployment_service_pb2 as pb
from sealane_local.demo.world import ACCURATE, CAMERA_A, CAMERA_B, CLOUD, EDGE, SITE, World


def deploy(world: World) -> None:
    """Deploy for camera A, camera B and a report that wants accuracy."""
    client, report = world.client, world.report
    report.step(2, "deploy it three times and ask why")
    client.deployments.create(
        CAMERA_A, world.version, data_class="restricted", residency=[SITE], latency_ms=1000, request_bytes=256
    )
    client.deployments.create(
        CAMERA_B, world.version, data_class="internal", tier="edge", latency_ms=1000, request_bytes=256
    )
    client.deployments.create(ACCURATE, world.version, objective="accuracy")
    placed = {name: _explained(world, name) for name in (CAMERA_A, CAMERA_B, ACCURATE)}
    tiers = {node.name: node.attributes.tier for node in client.nodes.list()}
    report.put("placements", [_as_json(item, tiers) for item in placed.values()])
    for name in (CAMERA_A, CAMERA_B):
        where = (placed[name].decision.node, placed[name].decision.variant)
        report.expect(where == (f"nodes/{EDGE}", "litert-int8"), f"{name} runs on the edge worker as int8")
    chosen = placed[ACCURATE].decision
    report.expect(
        chosen.node == f"nodes/{CLOUD}" and "int8" not in chosen.variant,
        f"{ACCURATE} runs on the cloud worker as the float variant ({chosen.variant})",
    )


def _explained(world: World, name: str) -> pb.Deployment:
    deployment = world.client.deployments.wait(name, 60)
    decision, say = deployment.decision, world.report.say
    say(f"{name} -> {decision.node} as {decision.variant} (epoch {decision.epoch})")
    for reason in decision.reasons:
        say(f"    because {reason}")
    for rejection in decision.rejections:
        say(f"    not {rejection.variant} on {rejection.node}: {rejection.filter}: {rejection.detail}")
    return deployment


def _as_json(deployment: pb.Deployment, tiers: dict[str, str]) -> dict[str, object]:
    decision = deployment.decision
    return {
        "deployment": deployment.name.rsplit("/", 1)[1],
        "node": decision.node.removeprefix("nodes/"),
        "tier": tiers[decision.node],
        "variant": decision.variant,
        "reasons": list(decision.reasons),
        "rejected": [
            {
                "node": item.node.removeprefix("nodes/"),
                "variant": item.variant,
                "filter": item.filter,
                "detail": item.detail,
            }
            for item in decision.rejections
        ],
    }
