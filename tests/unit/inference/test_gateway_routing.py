"""Which route a name means, and which worker gets the next call."""

from __future__ import annotations

import pytest

from sealane.errors import FailedPrecondition
from sealane.protocols.call import Target
from sealane_inference.routing import Endpoint, Route, RouteTable, refusal, resolve

A = Route("p", "camera-a", "digits", "3", (Endpoint("edge", 1),))
B = Route("p", "camera-b", "digits", "3", (Endpoint("edge", 2), Endpoint("cloud", 3)))
C = Route("p", "float", "big", "1")
FOREIGN = Route("q", "camera-a", "digits", "9")
TABLE = RouteTable.of(1, [A, B, C, FOREIGN])


def test_names_are_looked_up_in_the_callers_project_only() -> None:
    assert resolve(TABLE, "p", Target("camera-a")) is A
    assert resolve(TABLE, "q", Target("camera-a")) is FOREIGN
    assert resolve(TABLE, "q", Target("camera-b")) is None
    assert resolve(TABLE, "r", Target("camera-a")) is None


def test_a_model_id_means_its_only_deployment() -> None:
    assert resolve(TABLE, "p", Target("big")) is C
    with pytest.raises(FailedPrecondition, match="camera-a, camera-b"):
        resolve(TABLE, "p", Target("digits"))


def test_a_version_must_be_the_one_that_is_served() -> None:
    assert resolve(TABLE, "p", Target("camera-a", version="3")) is A
    assert resolve(TABLE, "p", Target("camera-a", version="4")) is None
    assert resolve(TABLE, "p", Target("camera-a", label="live")) is None


def test_a_route_is_refused_only_when_no_placement_is_possible() -> None:
    assert refusal(A) is None
    assert refusal(C) is None
    refused = refusal(Route("p", "d", "m", "1", (), "needs site lab", "residency"))
    assert refused is not None
    assert (refused.reason, refused.metadata) == ("RESIDENCY", {"constraint": "residency"})
    assert "needs site lab" in refused.message


def test_what_a_caller_may_not_use_is_not_there_for_him() -> None:
    table = RouteTable.of(
        1,
        [
            Route("p", "a", "secret", "1"),
            Route("p", "b", "secret", "2"),
            Route("p", "n-v1", "open", "1", served_name="n"),
            Route("p", "n-v2", "secret", "2", served_name="n"),
        ],
    )

    def may(route: Route) -> bool:
        return route.model == "open"

    with pytest.raises(FailedPrecondition, match="3 deployments"):
        resolve(table, "p", Target("secret", version="1"))
    assert resolve(table, "p", Target("secret"), may) is None  # and no error that names what is there
    assert resolve(table, "p", Target("a"), may) is None
    found = resolve(table, "p", Target("n"), may)
    assert found is not None and found.version == "1"
