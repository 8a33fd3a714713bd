"""``python -m bench.peers``: the worker against its peers, in one run, on this machine.

Makes the peers' environments under ``.venvs-peers`` where they are missing, builds client and models, measures.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from bench.peers import environments, report, rounds
from bench.peers.foreign import peers
from bench.peers.load import Client
from bench.peers.models import MODELS, build
from bench.peers.servers import ROOT, Server

SMALL = ("mean-1k", "mean-150k")
FULL = rounds.Plan(tuple(MODELS), (1, 8, 32), 3, 1.0)
QUICK = rounds.Plan(("mlp", "image", "mobilenetv2-int8", *SMALL), (1, 8), 1, 0.5)


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round, at most three minutes")
    parser.add_argument("--only", nargs="+", metavar="SERVER", help="servers by name; their order stays")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), help="models by name")
    parser.add_argument("--rounds", type=int, help="rounds over all servers")
    parser.add_argument("--seconds", type=float, help="time of one cell; HTTP has whole seconds")
    parser.add_argument("--json", type=Path, help="folder to write every cell into, as JSON named for the day")
    parser.add_argument("--docs", type=Path, help="folder to write peers.md and its plots into")
    parser.add_argument("--promise", action="append", help="exit 1 unless it holds: WORK-2, WORK-4")
    return parser.parse_args()


def main() -> int:
    """Measure, print, write; 1 where a promise that was asked for does not hold."""
    asked = arguments()
    plan = _plan(asked)
    every: list[Server] = [*peers(), *_sealane()]
    names = [each.name for each in every]
    unknown = sorted(set(asked.only or ()) - {*names, rounds.IN_PROCESS})
    if unknown:
        raise SystemExit(f"there is no server {', '.join(unknown)}; use {', '.join([rounds.IN_PROCESS, *names])}")
    servers = [each for each in every if not asked.only or each.name in asked.only]
    folder = ROOT / ".venvs-peers"
    needed = {each.environment for each in servers if each.environment}
    failed = environments.install(folder, needed)
    absent = {each.name: failed[each.environment] for each in servers if each.environment in failed}
    for each in servers:
        if each.environment and each.name not in absent:
            each.configuration += f"; {environments.version(folder, each.environment)}"
    client = Client(folder / "bin")
    for missing in client.prepare():
        print(missing)
    build(folder / "models")
    work = Path(tempfile.mkdtemp(prefix="peers-"))
    try:
        bench = rounds.Bench(rounds.site(folder, work), client, plan, lambda text: print(text, flush=True))
        bench.run(servers, absent, alone=not asked.only or rounds.IN_PROCESS in asked.only)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return _finish(asked, report.Findings(list(bench.rows.values()), bench.cells, plan, bench.others))


def _plan(asked: argparse.Namespace) -> rounds.Plan:
    plan = QUICK if asked.quick else FULL
    models = tuple(asked.models or plan.models)
    return rounds.Plan(models, plan.concurrencies, asked.rounds or plan.rounds, asked.seconds or plan.seconds)


def _sealane() -> list[Server]:
    from bench.peers.sealane import BareSealane, Sealane

    return [Sealane(), Sealane(front="python"), BareSealane(), Sealane(gateway=True)]


def _finish(asked: argparse.Namespace, found: report.Findings) -> int:
    print(report.document(found))
    if asked.json:
        print(f"every cell: {report.save(found, asked.json)}")
    if asked.docs:
        report.write(found, asked.docs)
    kept = {each.id: each for each in report.promises(found)}
    status = 0
    for name in asked.promise or ():
        promise = kept.get(name)
        print(f"figure: {promise.figure if promise else name + ' was not measured'}; {report.triton(found)}")
        status |= 0 if promise is not None and promise.holds else 1
    return status


if __name__ == "__main__":
    sys.exit(main())
