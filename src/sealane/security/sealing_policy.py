"""What the owner of a model demands of its callers, and of workers that may open what is sealed to it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sealane.errors import InvalidArgument

#: Ranks of what a node is cleared for; see DataClass.
CLEARANCES = ("public", "internal", "restricted")
TIERS = ("cloud", "edge")
#: Name of the suite whose keys stay closed to who has a quantum computer.
POST_QUANTUM = "MLKEM768_X25519"


@dataclass(frozen=True, slots=True)
class SealingPolicy:
    """See ``sealane.type.v1.SealingPolicy``; an empty one demands nothing."""

    required: bool = False
    tiers: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    pools: tuple[str, ...] = ()
    min_clearance: str = ""
    post_quantum: bool = False

    def refusal(self, facts: Mapping[str, str]) -> str:
        """Why a worker may not open; empty where it may.

        Args:
            facts: what its signed statement says: tier, region, zone, pool, clearance, suite. What is absent
                satisfies nothing.
        """
        lists = (("tier", self.tiers), ("region", self.regions), ("zone", self.zones), ("pool", self.pools))
        for name, allowed in lists:
            if allowed and facts.get(name, "") not in allowed:
                return f"sealed to {name} {_or(allowed)}, the node is in {facts.get(name) or 'none'}"
        if self.min_clearance and not cleared(facts.get("clearance", ""), self.min_clearance):
            found = facts.get("clearance") or "nothing"
            return f"sealed to clearance {self.min_clearance}, the node is cleared for {found}"
        if self.post_quantum and facts.get("suite", "") != POST_QUANTUM:
            return f"sealed to keys of suite {POST_QUANTUM}, the node has {facts.get('suite') or 'none'}"
        return ""


def cleared(clearance: str, wanted: str) -> bool:
    """Whether a node's clearance is at least the one that is wanted."""
    ranks = {name: rank for rank, name in enumerate(CLEARANCES)}
    return ranks.get(clearance, -1) >= ranks[wanted]


def check(policy: SealingPolicy) -> SealingPolicy:
    """The policy itself.

    Raises:
        InvalidArgument: a tier or a clearance that does not exist: no worker could ever satisfy it.
    """
    if policy.min_clearance and policy.min_clearance not in CLEARANCES:
        raise InvalidArgument(
            f"sealing.min_clearance is {policy.min_clearance!r}; use {_or(CLEARANCES)}", field="sealing.min_clearance"
        )
    if unknown := sorted(set(policy.tiers) - set(TIERS)):
        raise InvalidArgument(f"sealing.tiers has {unknown}; use {_or(TIERS)}", field="sealing.tiers")
    if any("" in words for words in (policy.tiers, policy.regions, policy.zones, policy.pools)):
        raise InvalidArgument("sealing demands an empty word; name the place", field="sealing")
    return policy


def parse(required: bool, demands: Iterable[str]) -> SealingPolicy:
    """A policy from words such as ``tier=edge``, ``region=eu``, ``clearance=internal``, ``suite=MLKEM768_X25519``.

    Raises:
        InvalidArgument: a word that says nothing.
    """
    lists: dict[str, list[str]] = {"tier": [], "region": [], "zone": [], "pool": []}
    clearance, post_quantum = "", False
    for demand in demands:
        name, _, value = demand.partition("=")
        if name in lists and value:
            lists[name].append(value)
        elif name == "clearance" and value and not clearance:
            clearance = value
        elif (name, value) == ("suite", POST_QUANTUM):
            post_quantum = True
        else:
            raise InvalidArgument(
                f"{demand!r} demands nothing; say tier=, region=, zone= or pool= with a value, one clearance=, or "
                f"suite={POST_QUANTUM}",
                field="sealed_to",
            )
    return check(
        SealingPolicy(
            required=required,
            tiers=tuple(lists["tier"]),
            regions=tuple(lists["region"]),
            zones=tuple(lists["zone"]),
            pools=tuple(lists["pool"]),
            min_clearance=clearance,
            post_quantum=post_quantum,
        )
    )


def _or(values: Sequence[str]) -> str:
    return " or ".join(values)
