"""The scheduler's own process with a fleet of simulated workers, for :mod:`bench.place`.

``python -m bench.place_scheduler``, configured as ``python -m sealane_scheduler``; the workers are always there.
"""

from __future__ import annotations

import math
import os
import random
import sys
from collections.abc import Mapping

from bench.placement_fleet import worker

from sealane.clock import Clock
from sealane.rpc.entry import run_async
from sealane_scheduler import app
from sealane_scheduler.config import PREFIX, Config
from sealane_scheduler.fleet import Facts, Fleet, Patience, RuntimeFacts

WORKERS = "SEALANE_BENCH_WORKERS"


class SimulatedFleet(Fleet):
    """Workers that never fall silent."""

    def __init__(self, clock: Clock, patience: Patience, sandbox: Mapping[str, str] | None = None) -> None:
        super().__init__(clock, patience, sandbox)
        rng = random.Random(1)
        for place in range(int(os.environ[WORKERS])):
            view = worker(place, rng)
            attributes = {"tier": view.tier, "zone": view.zone, "clearance": view.clearance, "region": "", "pool": ""}
            runtimes = {name: RuntimeFacts("1", tuple(formats)) for name, formats in view.runtimes.items()}
            facts = Facts(
                attributes,
                runtimes,
                cpu_milli=view.cpu_milli,
                memory_bytes=view.memory,
                accelerator=view.accelerator,
                price_per_hour=view.price_per_hour,
                egress_per_gib=view.egress_per_gib,
                watts=view.watts,
            )
            self.connect(view.node, facts, "")
            state = self.get(view.node)
            assert state is not None
            state.link.pinged(view.rtt_ms)
            state.seen = math.inf


if __name__ == "__main__":
    app.Fleet = SimulatedFleet  # type: ignore[misc]  # the one thing that is not real
    sys.exit(run_async(Config, PREFIX, app.run))
