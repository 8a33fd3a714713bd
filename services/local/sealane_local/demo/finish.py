"""Step 7: what it all costs, and one sealed request from end to end."""

from __future__ import annotations

from sealane_local import traces
from sealane_local.demo.predict import throughput
from sealane_local.demo.world import ACCURATE, CAMERA_B, World


def trace(world: World) -> None:
    """Record one sealed request while the edge worker is there."""
    image = {"image": world.test_x[:1]}
    _, world.trace_id = world.client.inference.predict_traced(CAMERA_B, image, sealed=True)


def measure(world: World) -> dict[str, float]:
    """Throughput by variant, while both serve."""
    rates = {}
    for deployment in (CAMERA_B, ACCURATE):
        variant = world.client.deployments.get(deployment).decision.variant
        rates[variant] = round(throughput(world, deployment), 1)
        world.report.put(f"throughput_per_s.{variant.replace('-', '_')}", rates[variant])
    return rates


def table(world: World, rates: dict[str, float]) -> None:
    """Print the table and the span tree."""
    report = world.report
    report.step(7, "the bill, and one sealed request from end to end")
    rows = []
    for variant in world.client.models.get_version(world.version).variants:
        name = variant.name.rsplit("/", 1)[1]
        if not variant.measurements:
            continue
        item = variant.measurements[-1]
        rate = rates.get(name)
        rows.append(
            [
                name,
                f"{item.accuracy:.4f}",
                str(variant.size_bytes),
                f"{item.latency_p50_us:.1f}",
                f"{item.latency_p99_us:.1f}",
                "-" if rate is None else f"{rate:.0f}",
                f"{item.utilisation:.2f}",
            ]
        )
    head = ["variant", "accuracy", "bytes", "model p50 us", "model p99 us", "answers/s via gateway", "cores busy"]
    report.table(head, rows)
    spans = traces.wait_for_trace(world.data / "traces", world.trace_id, services=3)
    services = sorted({span.service for span in spans})
    report.put("trace", {"trace_id": world.trace_id, "services": services, "spans": len(spans)})
    report.say("")
    for line in traces.draw(spans):
        report.say(line)
    report.expect({"client", "inference", "worker"} <= set(services), f"one trace through {', '.join(services)}")
