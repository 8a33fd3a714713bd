"""Quota shares as proto messages, and back."""

from __future__ import annotations

from collections.abc import Sequence

from sealane.errors import InvalidArgument, PermissionDenied
from sealane.rpc.call import Peer
from sealane.rpc.times import duration_of, seconds_of
from sealane.scheduler.v1 import routing_service_pb2 as pb
from sealane_scheduler.quota_shares import NAMES, Answer, Need

_NAME_CHARACTERS = 256
_SHORTEST_SECONDS = 0.1


def enforcer(gateway: str, peer: Peer) -> str:
    """Who asks: a worker is named by its certificate, a gateway by itself.

    Raises:
        InvalidArgument: a gateway without a name.
        PermissionDenied: a worker that says it is a gateway.
    """
    if peer.kind != "node":
        if not 0 < len(gateway) <= _NAME_CHARACTERS:
            raise InvalidArgument("a gateway names itself, in 256 characters at most; set gateway", field="gateway")
        return f"gateways/{gateway}"
    if gateway:
        raise PermissionDenied(
            "a worker enforces as its certificate names it; leave gateway empty", reason="CALLER_NOT_ALLOWED"
        )
    return f"nodes/{peer.node}"


def needs(request: pb.ShareQuotasRequest) -> list[Need]:
    """What is asked for.

    Raises:
        InvalidArgument: a bad name or number, or too many of them.
    """
    if len(request.demands) > NAMES:
        raise InvalidArgument(f"at most {NAMES} names share at once; name fewer", field="demands")
    # Two calls within a millisecond are no two thousand a second.
    seconds = max(seconds_of(request.period, "period"), _SHORTEST_SECONDS)
    found: dict[str, Need] = {}
    for demand in request.demands:
        if not 0 < len(demand.name) <= _NAME_CHARACTERS or demand.name in found:
            raise InvalidArgument(
                f"a name has 1 to {_NAME_CHARACTERS} characters and is named once; check them", field="demands.name"
            )
        if demand.calls < 0 or not 0 <= demand.share <= 1:
            raise InvalidArgument("calls are counted from 0, a share is 0 to 1; check them", field="demands")
        found[demand.name] = Need(demand.name, demand.calls / seconds, demand.share)
    return list(found.values())


def answer(asked: Sequence[Need], told: Answer) -> pb.ShareQuotasResponse:
    """What an enforcer is told."""
    return pb.ShareQuotasResponse(
        shares=[pb.QuotaShare(name=need.name, share=share) for need, share in zip(asked, told.shares, strict=True)],
        enforcers=told.enforcers,
        refresh_after=duration_of(told.refresh_after),
    )
