"""``sealane deployments get`` says of a copy's memory what its node has said, and nothing before."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Self

import pytest

from sealane.cli import main
from sealane.client.deployments import Placeable
from sealane.scheduler.v1 import deployment_service_pb2 as pb
from sealane.scheduler.v1 import placement_service_pb2 as placement_pb


class FakeClient:
    """A client whose deployments are its own."""

    def __enter__(self) -> Self:
        self.deployments = self
        return self

    def __exit__(self, *args: object) -> None:
        return None


def shown(placement: pb.Placement, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    class Client(FakeClient):
        def get(self, name: str) -> pb.Deployment:
            return pb.Deployment(name=f"projects/p/deployments/{name}", placements=[placement])

    monkeypatch.setattr("sealane.client.connect", lambda *args, **kwargs: Client())
    assert main.run(["deployments", "get", "camera", "--data", "d"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("state", ["STATE_PREPARING", "STATE_FAILED", "STATE_SUSPECT"])
def test_nothing_is_said_of_memory_unless_it_serves(
    state: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(pb.Placement(node="nodes/edge-1", state=pb.Placement.State.Value(state)), monkeypatch, capsys)
    assert "edge-1" in text
    assert "memory" not in text and "warmed" not in text and "next call" not in text


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ({"resident": True, "memory_bytes": 44 << 20, "warmed_batch_sizes": [1, 8]}, "44 MiB, warmed by rows of 1, 8"),
        (
            {"resident": True, "memory_bytes": 44 << 20, "warmed_requests": 2, "warmed_batch_sizes": [1]},
            "44 MiB, warmed by 2 recorded requests and rows of 1",
        ),
        ({"resident": False}, "loaded by the next call, warmed by nothing"),
    ],
)
def test_a_copy_that_serves_says_its_memory_and_what_warmed_it(
    told: dict[str, object], line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(pb.Placement(node="nodes/edge-1", state=pb.Placement.STATE_SERVING, **told), monkeypatch, capsys)
    assert re.search(rf"^in memory +{re.escape(line)}$", text, re.MULTILINE)


def placed(
    content: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> tuple[int, str, list[Placeable]]:
    asked: list[Placeable] = []

    class Client(FakeClient):
        def place(self, items: list[Placeable], *, gang: bool) -> list[placement_pb.PlaceResponse.Placed]:
            asked.extend(items)
            copy = placement_pb.PlaceResponse.Copy(node="nodes/edge-1", variant="int8", epoch=1)
            return [
                placement_pb.PlaceResponse.Placed(
                    deployment="projects/p/deployments/a", copies=[copy], reason=f"gang {gang}"
                )
            ]

    monkeypatch.setattr("sealane.client.connect", lambda *args, **kwargs: Client())
    file = tmp_path / "place.json"
    file.write_text(content)
    code = main.run(["deployments", "place", str(file), "--gang", "--data", "d"])
    out = capsys.readouterr()
    return code, out.out + out.err, asked


def test_what_a_file_names_is_placed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    content = '[{"deployment": "a", "version": "digits@1", "demand": {"tier": "edge", "replicas": 2}}]'
    code, text, asked = placed(content, monkeypatch, capsys, tmp_path)
    assert code == 0 and re.search(r"^a +edge-1 \(int8\) +gang True$", text, re.MULTILINE)
    assert asked == [Placeable("a", "digits@1", {"tier": "edge", "replicas": 2})]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "the file is no list of deployments"),
        ('[{"deployment": "a"}]', "KeyError('version')"),
        ('[{"deployment": "a", "version": "digits@1", "demand": {"colour": 1}}]', "demand 'colour' is unknown"),
    ],
)
def test_a_file_that_means_nothing_is_refused_before_anything_is_asked(
    content: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, text, asked = placed(content, monkeypatch, capsys, tmp_path)
    assert code != 0 and says in text and not asked
