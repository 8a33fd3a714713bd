"""Seeded fleets of workers and demands for them, for benches of the placement."""

from __future__ import annotations

import random
from dataclasses import replace

from sealane.security.sealing_policy import SealingPolicy
from sealane_scheduler.columns import NodeTable
from sealane_scheduler.filters import MIB, Demand, NodeView, VariantView

ZONES = [f"zone-{place:02}" for place in range(40)]
GIB = 1 << 30
CLASSES = ((2, 4), (4, 8), (8, 32), (16, 64), (64, 256))  # cores, GiB
VARIANTS = (
    VariantView("float", "ONNX", "FLOAT32", 100 * MIB, "sha256:f", 0.981, 12.0, 9.0),
    VariantView("half", "ONNX", "FLOAT16", 50 * MIB, "sha256:h", 0.980, 9.0, 7.0, converted=True),
    VariantView(
        "int8",
        "LITERT",
        "INT8",
        26 * MIB,
        "sha256:8",
        0.972,
        5.0,
        4.0,
        True,
        sealing=SealingPolicy(tiers=("edge", "cloud")),
    ),
)


def worker(place: int, random_: random.Random) -> NodeView:
    """One of a mixed fleet: four of ten at the edge, some full, some gone."""
    edge = random_.random() < 0.4
    cores, gib = random_.choice(CLASSES[:3] if edge else CLASSES[1:])
    zone = random_.choice(ZONES)
    runtimes = {"litert": frozenset({"LITERT"})}
    if random_.random() < 0.7:
        runtimes["onnxruntime"] = frozenset({"ONNX"})
    return NodeView(
        node=f"worker-{place:06}",
        tier="edge" if edge else "cloud",
        zone=zone,
        clearance=random_.choice(["public", "internal", "internal", "restricted"]),
        alive=random_.random() < 0.98,
        runtimes=runtimes,
        sandbox=random_.choice(["partial", "full", "full"]),
        sandbox_wanted="partial" if edge else "full",
        free_memory=int(gib * GIB * random_.random()),
        free_cpu_milli=int(cores * 1000 * random_.random()),
        memory=gib * GIB,
        cpu_milli=cores * 1000,
        rtt_ms=random_.uniform(0.5, 60.0),
        price_per_hour=round(cores * random_.uniform(0.01, 0.08), 4),
        accelerator=random_.choice(["", "", "", "cuda", "npu"]),
        facts={"tier": "edge" if edge else "cloud", "zone": zone},
        draining=random_.random() < 0.01,
        in_bytes_per_second=10 ** random_.uniform(6, 9),
        out_bytes_per_second=10 ** random_.uniform(6, 9),
        egress_per_gib=0.0 if edge else 0.09,
        watts=cores * random_.uniform(2.0, 12.0),
        resident=frozenset({"sha256:8"}) if random_.random() < 0.001 else frozenset(),
        avoid=frozenset({"float"}) if random_.random() < 0.001 else frozenset(),
    )


def fleet(count: int, seed: int = 1) -> NodeTable:
    """A table of so many workers."""
    random_ = random.Random(seed)
    return NodeTable(worker(place, random_) for place in range(count))


def demands(count: int, seed: int = 2) -> list[Demand]:
    """Mixed demands: every filter and every term has something to say in some of them."""
    random_ = random.Random(seed)
    base = Demand(min_accuracy=0.9, latency_ms=80.0, max_price_per_hour=3.0, request_bytes=20_000, response_bytes=4000)
    made = []
    for place in range(count):
        taken = random_.randrange(1000)
        made.append(
            replace(
                base,
                data_class=random_.choice(["public", "internal", "restricted"]),
                residency=tuple(random_.sample(ZONES, random_.choice([0, 1, 8]))),
                tier=random_.choice(["", "cloud", "edge"]),
                objective=random_.choice(["balanced", "latency", "cost", "green", "accuracy"]),
                cpu_milli=random_.choice([100, 500, 2000]),
                memory_bytes=random_.choice([64, 256, 2048]) * MIB,
                accelerator=random_.choice(["", "", "", "cuda"]),
                latency_ms=random_.choice([0.0, 20.0, 80.0, 0.1 if place % 50 == 0 else 80.0]),
                formats=("ONNX", "LITERT"),
                precisions=("FLOAT32", "FLOAT16", "INT8"),
                origin=random_.choice(["", random_.choice(ZONES)]),
                spread=random_.choice(["node", "zone"]),
                apart=((f"worker-{taken:06}", random_.choice(ZONES)),),
                rate=random_.choice([0.1, 1.0, 50.0]),
            )
        )
    return made
