"""Sealing policies as messages, and back."""

from __future__ import annotations

from sealane.security.sealing_policy import SealingPolicy, check
from sealane.type.v1 import manifest_pb2 as pb


def policy_of(message: pb.SealingPolicy) -> SealingPolicy:
    """A policy.

    Raises:
        InvalidArgument: one that no worker could ever satisfy.
    """
    return check(
        SealingPolicy(
            required=message.required,
            tiers=tuple(message.tiers),
            regions=tuple(message.regions),
            zones=tuple(message.zones),
            pools=tuple(message.pools),
            min_clearance=message.min_clearance,
            post_quantum=message.post_quantum,
        )
    )


def message_of(policy: SealingPolicy) -> pb.SealingPolicy:
    """A message."""
    return pb.SealingPolicy(
        required=policy.required,
        tiers=policy.tiers,
        regions=policy.regions,
        zones=policy.zones,
        pools=policy.pools,
        min_clearance=policy.min_clearance,
        post_quantum=policy.post_quantum,
    )
