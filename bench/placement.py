"""SCHED-1, the core alone: time of one decision with its explanation among 10,000 and 100,000 workers.

Each decision is made of a snapshot that was taken after a change of the fleet: what was chosen is taken off the chosen
worker, and a worker's measured round trip has changed. All 18 filters are asked and all 13 terms scored. What counts is
processor time of the one thread that decides, in the best of three rounds, since what else runs on a machine can only
add to it; time by the clock is printed beside it. Storing a decision and the way over gRPC are not part of it.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from placement_fleet import VARIANTS, demands, fleet

from sealane import allocation
from sealane_scheduler.batch import TableRoom, Wanted, give_back, one_by_one
from sealane_scheduler.columns import KEPT_BYTES, NodeTable
from sealane_scheduler.filters import Demand, VariantView, cpu_of, memory_of
from sealane_scheduler.placement import Question, decide

DECISIONS, ROUNDS, OF_A_KIND = 2000, 3, 64
BOUNDS = {10_000: 1.0, 100_000: 5.0}


def run(table: NodeTable, wanted: Sequence[Demand], variants: tuple[VariantView, ...]) -> tuple[list[float], ...]:
    """Milliseconds of each decision by the processor and by the clock, and of each change of the table."""
    processor, clock, changes, placed = [], [], [], 0
    for seed, demand in enumerate(wanted):
        began, began_thread = time.perf_counter(), time.thread_time()
        decision = decide(Question(demand, variants, seed), table.snapshot())
        processor.append((time.thread_time() - began_thread) * 1000)
        clock.append((time.perf_counter() - began) * 1000)
        began_thread = time.thread_time()
        beating = table.get(f"worker-{seed * 7 % len(table):06}")
        assert beating is not None
        table.put(replace(beating, rtt_ms=beating.rtt_ms * 1.01))
        node = table.get(decision.node)
        if node is not None:
            variant = next(item for item in variants if item.variant == decision.variant)
            memory, cpu = node.free_memory - memory_of(demand, variant), node.free_cpu_milli - cpu_of(demand)
            table.put(replace(node, free_memory=memory, free_cpu_milli=cpu))
            placed += 1
        changes.append((time.thread_time() - began_thread) * 1000)
    print(f"  {placed} of {len(wanted)} placed")
    return processor, clock, changes


def run_equals(table: NodeTable, wanted: Sequence[Demand]) -> float:
    """Processor microseconds of one of 64 placements of equal demands."""
    began, placed = time.thread_time(), 0
    for seed, demand in enumerate(wanted):
        members = [Wanted(Question(demand, VARIANTS[:1], seed))] * OF_A_KIND
        room = TableRoom(table)
        found = one_by_one(members, room)
        placed += sum(len(item.places) for item in found)
        give_back(found, room)
    return (time.thread_time() - began) / max(placed, 1) * 1e6


def p(values: Sequence[float], percent: int) -> float:
    """A percentile."""
    return statistics.quantiles(values, n=100)[percent - 1]


def main() -> int:
    """Print a figure for each size; 1 where one is over its bound."""
    over, figures = False, []
    allocation.keep_freed(KEPT_BYTES, KEPT_BYTES // 2)  # as the scheduler does at its start
    for count, bound in BOUNDS.items():
        table = fleet(count)
        gc.collect()
        gc.freeze()  # nothing of the fleet is garbage
        for variants in (VARIANTS[:1], VARIANTS):
            rounds = [run(table, demands(DECISIONS, seed), variants) for seed in range(ROUNDS)]
            processor, clock, changes = min(rounds, key=lambda times: p(times[0], 99))
            print(
                f"{count} workers, {len(variants)} variants: p50 {p(processor, 50):.2f} p99 {p(processor, 99):.2f} ms, "
                f"by the clock p50 {p(clock, 50):.2f} p99 {p(clock, 99):.2f} ms, a change p99 {p(changes, 99):.2f} ms; "
                f"p99 of all rounds {', '.join(f'{p(times[0], 99):.2f}' for times in rounds)}"
            )
            if len(variants) == 1:
                over = over or p(processor, 99) > bound
                figures.append(f"{p(processor, 99):.2f} ms at {count:,}")
        each = min(run_equals(table, demands(50, seed)) for seed in range(ROUNDS))
        print(f"{count} workers, {OF_A_KIND} of a kind: {each:.0f} us each")
    print(f"figure: p99 {' and '.join(figures)}")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
