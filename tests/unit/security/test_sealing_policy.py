"""Sealing policies: who may open what is sealed to a model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sealane.errors import InvalidArgument
from sealane.security import suites
from sealane.security.sealing_messages import message_of, policy_of
from sealane.security.sealing_policy import POST_QUANTUM, SealingPolicy, check, parse

FACTS = {
    "tier": "edge",
    "region": "eu-1",
    "zone": "site-a",
    "pool": "cams",
    "clearance": "internal",
    "suite": POST_QUANTUM,
}
EVERYTHING = SealingPolicy(
    True, ("edge", "cloud"), ("eu-1", "eu-2"), ("site-a",), ("cams",), "internal", post_quantum=True
)


def test_an_empty_policy_demands_nothing() -> None:
    assert SealingPolicy().refusal({}) == ""


def test_a_worker_that_has_all_of_it_may_open() -> None:
    assert EVERYTHING.refusal(FACTS) == ""
    assert EVERYTHING.refusal({**FACTS, "clearance": "restricted"}) == "", "cleared for more"


@pytest.mark.parametrize(
    ("fact", "value", "told"),
    [
        ("tier", "moon", "sealed to tier edge or cloud, the node is in moon"),
        ("region", "us-1", "sealed to region eu-1 or eu-2, the node is in us-1"),
        ("region", "", "sealed to region eu-1 or eu-2, the node is in none"),
        ("zone", "site-b", "sealed to zone site-a, the node is in site-b"),
        ("pool", "other", "sealed to pool cams, the node is in other"),
        ("clearance", "public", "sealed to clearance internal, the node is cleared for public"),
        ("clearance", "", "sealed to clearance internal, the node is cleared for nothing"),
        ("suite", "X25519", "sealed to keys of suite MLKEM768_X25519, the node has X25519"),
    ],
)
def test_one_fact_that_falls_short_is_enough(fact: str, value: str, told: str) -> None:
    assert EVERYTHING.refusal({**FACTS, fact: value}) == told
    without = {name: known for name, known in FACTS.items() if name != fact}
    assert EVERYTHING.refusal(without), "what a statement does not say satisfies nothing"


def test_the_name_of_the_suite_is_that_of_the_suites() -> None:
    assert suites.NAMES[suites.HYBRID] == POST_QUANTUM


def test_a_policy_survives_its_message() -> None:
    assert policy_of(message_of(EVERYTHING)) == EVERYTHING


def test_words_of_the_command_line() -> None:
    words = [
        "tier=edge",
        "region=eu-1",
        "region=eu-2",
        "zone=z",
        "pool=p",
        "clearance=restricted",
        f"suite={POST_QUANTUM}",
    ]
    assert parse(True, words) == SealingPolicy(
        True, ("edge",), ("eu-1", "eu-2"), ("z",), ("p",), "restricted", post_quantum=True
    )


@pytest.mark.parametrize(
    "word", ["tier", "tier=", "colour=green", "suite=X25519", "tier=moon", "clearance=secret", "=x"]
)
def test_words_that_no_worker_could_satisfy_are_refused(word: str) -> None:
    with pytest.raises(InvalidArgument):
        parse(True, [word])


@pytest.mark.parametrize("change", [{"tiers": ("moon",)}, {"min_clearance": "secret"}])
def test_a_policy_that_nobody_can_satisfy_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        check(replace(SealingPolicy(), **change))  # type: ignore[arg-type]
