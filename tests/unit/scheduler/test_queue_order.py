"""The queue: priority, then the project that has least, then age."""

from __future__ import annotations

from sealane_scheduler.queue_order import Waiting, in_order

TOTAL = (100.0, 100.0)


def waiting(name: str, project: str = "p", priority: int = 0, since: float = 0.0, memory: float = 1.0) -> Waiting:
    return Waiting(name, project, priority, since, (memory, 1.0))


def order(*items: Waiting, used: dict[str, tuple[float, float]] | None = None) -> list[str]:
    return [item.name for item in in_order(items, used or {}, TOTAL)]


def test_the_higher_priority_comes_first_whoever_has_more() -> None:
    assert order(waiting("a", "rich", priority=1), waiting("b", "poor"), used={"rich": (90.0, 0.0)}) == ["a", "b"]


def test_the_older_comes_first_within_a_project() -> None:
    assert order(waiting("new", since=2.0), waiting("old", since=1.0)) == ["old", "new"]


def test_projects_take_turns_by_what_they_have_most_of() -> None:
    """One has much memory, the other many processors: the larger of both shares counts."""
    used = {"memory": (30.0, 1.0), "cpu": (1.0, 20.0)}
    assert order(waiting("m", "memory"), waiting("c", "cpu"), used=used) == ["c", "m"]
    many = [waiting(f"m{i}", "memory", since=float(i)) for i in range(3)]
    few = [waiting(f"c{i}", "cpu", since=float(i), memory=20.0) for i in range(3)]
    assert order(*many, *few, used=used) == ["c0", "c1", "m0", "m1", "m2", "c2"]


def test_equals_come_by_age() -> None:
    assert order(waiting("b", "q", since=2.0), waiting("a", "p", since=1.0)) == ["a", "b"]
