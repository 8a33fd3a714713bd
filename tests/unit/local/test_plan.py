"""What a plan says of a worker reaches its process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sealane_local.plan import CLOUD, Options, Ports, worker_environment


def test_further_variables_of_a_worker_reach_it_and_no_other(tmp_path: Path) -> None:
    extra = {"SEALANE_WORKER_SANDBOX": "full", "PYTHONPATH": "there", "SEALANE_WORKER_PRICE_PER_HOUR": "7"}
    told, plain = replace(CLOUD, environment=extra), replace(CLOUD, node="cloud-2")
    options = Options(tmp_path, workers=(told, plain))
    ports = Ports(options)
    found = worker_environment(options, ports, told)
    assert extra.items() <= found.items(), "also over what the plan says otherwise"
    assert "SEALANE_WORKER_SANDBOX" not in worker_environment(options, ports, plain)
