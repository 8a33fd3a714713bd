"""Quotas on a running stack, driven through the gateway and straight at a worker at the same time.

Rates are counted over seconds: the upper bounds are those of the contract, the lower ones leave room for a slow
machine.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2
from light_site import CAMERA_B, EDGE, LightSite, eventually, running

from sealane.errors import InvalidArgument, PermissionDenied
from sealane.protocols import openinference
from sealane.protocols.call import InferenceCall, Target
from sealane.rpc.status import from_rpc_error
from sealane.scheduler.v1 import routing_service_pb2 as pb
from sealane.scheduler.v1 import routing_service_pb2_grpc
from sealane.security import enroll, tls
from sealane_local import plan

pytestmark = [pytest.mark.stack, pytest.mark.timeout(240)]
INFER = "/inference.GRPCInferenceService/ModelInfer"
GATEWAY, WORKER = "inference", EDGE
RATE = 40
SECONDS = 8
BURST_SECONDS = 2
BOTH = {GATEWAY: 2 * RATE, WORKER: 2 * RATE}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightSite]:
    """A suite of its own: a project's quota would outlive a test in the tokens of the others."""
    with running(tmp_path_factory.mktemp("quota")) as site:
        site.deploy_cameras(site.push())
        eventually(lambda: EDGE in {node for node, _ in site.places(CAMERA_B)}, "camera B is at the edge")
        time.sleep(3.0)  # a scheduler that has just started gives out little: it waits for who holds something already
        yield site


@dataclass
class Outcome:
    """What became of the calls."""

    passed: Counter[str] = field(default_factory=Counter)
    late: Counter[str] = field(default_factory=Counter)
    """Those that passed in the second half."""
    refused: list[grpc.RpcError] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def total(self) -> int:
        return sum(self.passed.values())

    def quotas(self) -> Counter[str]:
        """Whose quota the refused calls were beyond."""
        return Counter(from_rpc_error(each).metadata.get("quota", "?") for each in self.refused)


class Account:
    """An account and its channels."""

    def __init__(self, site: LightSite, name: str, rows: int = 1, **quota: int) -> None:
        made = site.client.accounts.create(name, roles=["invoker"])
        if quota:
            site.client.accounts.set_quota(name, **quota)  # type: ignore[arg-type]
        self.name = made.name
        self._client = site.client_of(made.client_id, made.client_secret)
        self._token = self._client.token("sealane-inference")
        inputs = {"image": site.rows[:rows]}
        self.body = openinference.encode_request(InferenceCall(Target(CAMERA_B), inputs)).SerializeToString()
        self._channels = {place: site.channel(place) for place in (GATEWAY, WORKER)}

    def begin(self, place: str) -> grpc.Future:
        """Send one call."""
        metadata = (("authorization", f"Bearer {self._token}"),)
        method = self._channels[place].unary_unary(INFER)
        sent: grpc.Future = method.future(self.body, timeout=20, metadata=metadata)  # type: ignore[attr-defined]
        return sent

    def drive(self, rates: dict[str, int], seconds: float = SECONDS) -> Outcome:
        """Send at steady rates, whatever comes back; returns when all is answered."""
        outcome, begun = Outcome(), time.monotonic()
        with ThreadPoolExecutor(len(rates)) as pool:
            list(pool.map(lambda place: self._drive(place, rates[place], begun + seconds, outcome), rates))
        outcome.seconds = time.monotonic() - begun
        return outcome

    def _drive(self, place: str, rate: int, until: float, outcome: Outcome) -> None:
        begun, sent = time.monotonic(), []
        while (now := time.monotonic()) < until:
            if len(sent) < (now - begun) * rate:
                sent.append((now, self.begin(place)))
            else:
                time.sleep(0.5 / rate)
        for when, call in sent:
            failure = call.exception()
            if failure is None:
                outcome.passed[place] += 1
                outcome.late[place] += when > (begun + until) / 2
            else:
                assert isinstance(failure, grpc.RpcError)
                outcome.refused.append(failure)

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()
        self._client.close()


def within(outcome: Outcome, limit: float) -> None:
    """Not a tenth more than the quota, its burst included; not a fifth less."""
    print(f"passed {outcome.total} {dict(outcome.passed)} in {outcome.seconds:.1f} s at {limit:g}/s")
    assert outcome.total <= 1.1 * limit * (outcome.seconds + BURST_SECONDS)
    assert outcome.total >= 0.8 * limit * SECONDS


def test_a_rate_holds_wherever_the_calls_come_and_follows_them(own: LightSite) -> None:
    account = Account(own, "fast", requests_per_second=RATE)
    both = account.drive(BOTH)
    within(both, RATE)
    assert min(both.passed[GATEWAY], both.passed[WORKER]) >= 0.05 * both.total
    check_refusals(both, account.name)

    # Now all of it comes straight: the worker's share grows to nearly the whole.
    direct = account.drive({WORKER: 4 * RATE})
    within_seconds = SECONDS / 2
    print(f"after the change: {direct.total}, {direct.late[WORKER]} of them in the last {within_seconds:g} s")
    assert direct.total <= 1.1 * RATE * (direct.seconds + BURST_SECONDS)
    assert direct.late[WORKER] >= 0.7 * RATE * within_seconds
    back = account.drive({GATEWAY: 4 * RATE})
    assert back.total <= 1.1 * RATE * (back.seconds + BURST_SECONDS)
    assert back.late[GATEWAY] >= 0.7 * RATE * within_seconds
    account.close()


def check_refusals(outcome: Outcome, quota: str) -> None:
    """A client is told the code, the reason, whose quota it was, and when to come back."""
    assert outcome.refused
    for failure in outcome.refused:
        assert isinstance(failure, grpc.Call)
        trailers = dict(failure.trailing_metadata() or ())
        status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])  # type: ignore[arg-type]
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        assert any(detail.Unpack(info) for detail in status.details)
        assert any(detail.Unpack(retry) for detail in status.details)
        assert failure.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (info.reason, info.metadata["quota"]) == ("QUOTA_EXCEEDED", quota)
        assert duration_pb2.Duration() != retry.retry_delay
        assert retry.retry_delay.ToMilliseconds() <= 30_000
        assert int(trailers["grpc-retry-pushback-ms"]) == retry.retry_delay.ToMilliseconds()


def test_bytes_are_counted_as_calls_are(own: LightSite) -> None:
    account = Account(own, "bulky", rows=64)
    size, rate = len(account.body), 20
    account.close()
    account = Account(own, "bulky-limited", rows=64, bytes_per_second=rate * size)
    outcome = account.drive({GATEWAY: 2 * rate, WORKER: 2 * rate})
    within(outcome, rate)
    assert "bytes a second" in str(from_rpc_error(outcome.refused[0]).message)
    account.close()


def test_calls_at_once_are_refused_and_come_back_when_others_end(own: LightSite) -> None:
    account = Account(own, "wide", requests_per_second=0, concurrent_requests=2)

    def burst(place: str) -> list[grpc.RpcError]:
        calls = [account.begin(place) for _ in range(60)]
        return [failure for call in calls if (failure := call.exception()) is not None]  # type: ignore[misc]

    for place in (GATEWAY, WORKER):
        refused: list[grpc.RpcError] = []
        eventually(lambda: refused.extend(burst(place)) or bool(refused), f"{place} refuses some of many at once")  # noqa: B023
        for failure in refused:
            error = from_rpc_error(failure)
            assert (error.kind, error.reason) == ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")
            assert "2 calls at once" in error.message
        for _ in range(20):
            assert account.begin(place).exception() is None
    account.close()


def test_an_account_is_not_touched_by_another_ones_quota_but_by_the_projects(own: LightSite) -> None:
    own.client.accounts.set_quota(requests_per_second=60)
    try:
        loud = Account(own, "loud", requests_per_second=10)
        quiet = Account(own, "quiet")
        with ThreadPoolExecutor(2) as pool:  # the project's quota is new in two places: it takes a moment to settle
            pool.submit(loud.drive, {GATEWAY: 40, WORKER: 40}, 3.0)
            pool.submit(quiet.drive, {GATEWAY: 8, WORKER: 8}, 3.0)
        with ThreadPoolExecutor(2) as pool:
            flood = pool.submit(loud.drive, {GATEWAY: 40, WORKER: 40})
            calm = quiet.drive({GATEWAY: 8, WORKER: 8})
        assert calm.refused == []
        within(flood.result(), 10)
        assert flood.result().quotas().keys() == {loud.name}

        over = quiet.drive({GATEWAY: 90, WORKER: 90})
        within(over, 60)
        assert over.quotas().keys() == {"projects/default"}
        loud.close()
        quiet.close()
    finally:
        own.client.accounts.set_quota()


def test_shares_hold_while_the_scheduler_is_away(own: LightSite) -> None:
    account = Account(own, "steady", requests_per_second=RATE)
    within(account.drive(BOTH), RATE)
    own.stack.child("scheduler").kill()
    try:
        within(account.drive(BOTH), RATE)
        # One that nobody has seen before: each of the two gives out its even part.
        stranger = Account(own, "stranger", requests_per_second=RATE)
        within(stranger.drive(BOTH), RATE)
        stranger.close()
    finally:
        own.stack.child("scheduler").start()
        own.stack.wait_for_lanes()
    eventually(lambda: account.begin(GATEWAY).exception() is None, "the gateway serves again")
    # The scheduler knows nothing of before: all keep what they have until it has heard of all.
    restarted = account.drive(BOTH)
    assert restarted.total <= 1.1 * RATE * (restarted.seconds + BURST_SECONDS)
    within(account.drive(BOTH), RATE)
    account.close()


def test_only_enforcers_share_and_only_as_themselves(own: LightSite) -> None:
    ports = json.loads((own.data / "scheduler" / "ports.json").read_text())

    def share(directory: Path, gateway: str) -> float:
        identity = tls.load(directory / "identity")
        assert identity is not None
        with enroll.MeshChannel(identity, "scheduler", f"127.0.0.1:{ports['mesh']}")() as channel:
            request = pb.ShareQuotasRequest(gateway=gateway, demands=[pb.QuotaDemand(name="projects/any", calls=1)])
            answer = routing_service_pb2_grpc.RoutingServiceStub(channel).ShareQuotas(request, timeout=10)
        return answer.shares[0].share

    worker = plan.worker_dir(own.stack.options, EDGE)
    first = share(worker, "")
    assert 0 < share(own.data / "inference", "inference") <= 1.1 - first
    with pytest.raises(PermissionDenied):
        share(worker, "inference")
    with pytest.raises(PermissionDenied):
        share(own.data / "registry", "inference")
    with pytest.raises(InvalidArgument):
        share(own.data / "inference", "")
    with own.channel("scheduler") as channel, pytest.raises(grpc.RpcError) as stranger:
        path = "/sealane.scheduler.v1.RoutingService/ShareQuotas"
        channel.unary_unary(path)(
            b"", timeout=10, metadata=(("authorization", f"Bearer {own.client.token('sealane-scheduler')}"),)
        )
    assert from_rpc_error(stranger.value).kind == "UNIMPLEMENTED"  # it is on the mesh port alone
