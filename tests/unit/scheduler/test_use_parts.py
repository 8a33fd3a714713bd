"""What is in use is told in parts that a server takes, and nothing of it is lost between them."""

from __future__ import annotations

from collections import Counter

from sealane.registry.v1 import model_service_pb2 as pb
from sealane_scheduler.registry_port import _ARTIFACTS, _PART_BYTES, _parts

LIMIT = 4 << 20


def test_parts_are_small_and_hold_everything_once() -> None:
    uses = [
        pb.Use(
            holder=f"projects/p/jobs/j-{number}",
            versions=[f"projects/p/models/m/versions/{number + 1}"],
            aliases=["projects/p/models/m/aliases/production"],
            artifacts=[f"projects/p/artifacts/{index:064x}" for index in range(count)],
        )
        for number, count in enumerate((0, 1, _ARTIFACTS, _ARTIFACTS + 1, 3 * _ARTIFACTS, 10_000))
    ]
    parts = list(_parts(uses))
    assert len(parts) > 2
    assert all(sum(use.ByteSize() for use in part) < min(LIMIT, 2 * _PART_BYTES) for part in parts)
    told = [use for part in parts for use in part]
    for field in ("versions", "aliases", "artifacts"):
        before = Counter((use.holder, name) for use in uses for name in getattr(use, field))
        assert Counter((use.holder, name) for use in told for name in getattr(use, field)) == before


def test_nothing_in_use_is_no_part() -> None:
    assert list(_parts([])) == []
