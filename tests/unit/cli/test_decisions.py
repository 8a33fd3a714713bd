"""``sealane explain`` and ``sealane plan``: what a person reads of a decision, and what is asked for."""

from __future__ import annotations

import pytest

from sealane.cli import main
from sealane.client.demand import demand
from sealane.scheduler.v1 import deployment_service_pb2 as pb
from sealane.scheduler.v1 import placement_service_pb2 as placement_pb

FAR = pb.Rejection(node="nodes/edge-7", variant="int8", filter="memory", detail="needs 85 MiB, the node lacks 212 MiB")
DECISION = pb.Decision(
    node="nodes/edge-1",
    variant="int8",
    reasons=["lowest cost 0.376 of 2 candidates that passed every filter"],
    candidates=[
        pb.Candidate(
            node="nodes/edge-1",
            variant="int8",
            score=0.376,
            terms={"price": 0.2, "latency": 0.176, "tier": 0.0},
            latency_ms=17.6,
            price=0.2,
        )
    ],
    filters=[pb.FilterCount(filter="memory", rejected=812, alone=3, nearest=FAR)],
    neighbours=[pb.Neighbour(text="cloud-3 would be 11 ms faster for 2.4x the price")],
    rejections=[FAR],
    snapshot=pb.NodeSnapshot(version=7, digest="ab" * 16, nodes=900, looked_at=900),
)
NOWHERE = pb.Decision(
    binding_constraint="memory",
    reasons=["memory: needs 85 MiB, the node lacks 212 MiB (edge-7)"],
    changes=[pb.Change(text="int8 would run on edge-7 with 212 MiB more memory free there")],
)


class Asked:
    """A client that answers with these decisions, and remembers what was asked."""

    def __init__(self) -> None:
        self.deployments = self
        self.demand: pb.Demand | None = None
        self.what = ""

    def __enter__(self) -> Asked:
        return self

    def __exit__(self, *args: object) -> None:
        return None

    def explain(self, name: str) -> list[pb.Decision]:
        return [NOWHERE, DECISION]

    def plan(self, version: str, **demands: object) -> pb.Decision:
        self.what, self.demand = version, demand(demands)  # type: ignore[arg-type]
        return DECISION

    def plan_task(self, runtime: str, **demands: object) -> pb.Decision:
        self.what, self.demand = f"task {runtime}", demand(demands)  # type: ignore[arg-type]
        return DECISION

    def optimize(self, max_moves: int, *, apply: bool) -> placement_pb.OptimizeResponse:
        move = placement_pb.OptimizeResponse.Move(
            deployment="projects/p/deployments/camera",
            source="nodes/cloud-1",
            target="nodes/edge-1",
            variant="int8",
            saves=3.0,
            applied=apply,
        )
        return placement_pb.OptimizeResponse(moves=[move], cost=40.0, planned_cost=37.0, gap=0.005, copies=12)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    client = Asked()
    monkeypatch.setattr("sealane.client.connect", lambda *args, **kwargs: client)
    return client


def test_everything_is_told_and_terms_of_nothing_are_left_out(asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["explain", "camera", "--data", "d"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[1:] == [
        "  + lowest cost 0.376 of 2 candidates that passed every filter",
        "  = edge-1 int8: 0.376 (latency 0.176, price 0.2); 17.6 ms, 0.2 per 1,000 calls",
        "  ~ cloud-3 would be 11 ms faster for 2.4x the price",
        "  x memory rejects 812, 3 of them by nothing else; nearest edge-7 int8: needs 85 MiB, the node lacks 212 MiB",
        "  - edge-7 int8: memory: needs 85 MiB, the node lacks 212 MiB",
        "    900 of 900 nodes looked at, snapshot 7 abababababab",
        "1970-01-01T00:00:00Z  epoch 0: nowhere, held back by memory",
        "  + memory: needs 85 MiB, the node lacks 212 MiB (edge-7)",
        "  > int8 would run on edge-7 with 212 MiB more memory free there",
    ]


def test_a_plan_asks_for_all_that_can_be_demanded(asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    options = (
        "--data d --objective green --weight energy=100 --weight price=0 --spread zone --priority 7 --rate 12.5 "
        "--origin site-a --precision int8 --memory-mib 1.5 --cpu-milli 250 --accelerator cuda --request-bytes 10 "
        "--response-bytes 20 --max-price 0.5 --latency-ms 20"
    )
    assert main.run(["plan", "digits@3", *options.split()]) == 0
    assert asked.what == "digits@3"
    assert asked.demand == pb.Demand(
        objective=pb.OBJECTIVE_GREEN,
        weights={"energy": 100.0, "price": 0.0},
        spread_by=pb.SPREAD_BY_ZONE,
        priority=7,
        rate=12.5,
        origin="site-a",
        precisions=[2],
        memory_bytes=3 << 19,
        cpu_milli=250,
        accelerator="cuda",
        request_bytes=10,
        response_bytes=20,
        max_price_per_hour=0.5,
        latency_ms=20,
    )
    assert "edge-1 with int8" in capsys.readouterr().out


def test_a_plan_is_for_a_version_or_for_a_task(asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["plan", "--task", "tensorflow", "--data", "d"]) == 0
    assert asked.what == "task tensorflow"
    assert main.run(["plan", "--data", "d"]) == 2
    assert main.run(["plan", "digits@3", "--task", "tensorflow", "--data", "d"]) == 2
    assert "give a VERSION" in capsys.readouterr().err
    assert main.run(["plan", "digits@3", "--weight", "energy", "--data", "d"]) != 0


def test_moves_are_told_and_that_nothing_was_moved(asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["optimize", "--moves", "3", "--data", "d"]) == 0
    text = capsys.readouterr().out
    assert "12 copies cost 40 an hour, 3 less after 1 moves; at most 0.5% above the least possible" in text
    assert "camera from cloud-1 to edge-1 as int8 saves 3\n" in text and "--apply" in text
    assert main.run(["optimize", "--apply", "--data", "d"]) == 0
    assert "saves 3 (begun)" in capsys.readouterr().out
