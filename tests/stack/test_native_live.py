"""The native front in a running suite: real tokens of auth, a real revocation."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import requests
from light_site import CLOUD, LightSite, running

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.protocols import openinference
from sealane.protocols.call import InferenceCall, Target
from sealane.rpc.status import from_rpc_error
from sealane.security import jws

pytest.importorskip("sealane_native", reason="the native front is not built: make native needs cargo")
pytestmark = [pytest.mark.stack, pytest.mark.timeout(120)]

INFER = "/inference.GRPCInferenceService/ModelInfer"
DEPLOYMENT = "native"
#: SECURITY 3.8: who is revoked is refused everywhere within seconds.
REVOKED_SECONDS = 10.0


@pytest.fixture(scope="module")
def metrics_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, metrics_port: int) -> Iterator[LightSite]:
    listen = {"SEALANE_WORKER_METRICS_LISTEN": f"127.0.0.1:{metrics_port}"}
    with running(tmp_path_factory.mktemp("native"), environments={CLOUD: listen}) as site:
        site.client.deployments.create(DEPLOYMENT, site.push(), tier="cloud")
        site.client.deployments.wait(DEPLOYMENT)
        yield site


def ask(site: LightSite, channel: grpc.Channel, token: str) -> oip.ModelInferResponse:
    """One call as any client of the protocol makes it."""
    request = openinference.encode_request(InferenceCall(Target(DEPLOYMENT), site.image))
    answer = channel.unary_unary(INFER)(
        request.SerializeToString(), timeout=10, metadata=(("authorization", f"Bearer {token}"),)
    )
    return oip.ModelInferResponse.FromString(answer)


def native_answers(site: LightSite, port: int) -> int:
    """What the worker's metrics say."""
    trust = Path(site.data / "pki" / "ca.pem")
    session = requests.Session()
    session.mount("https://", _Named(f"{CLOUD}.node.sealane"))
    page = session.get(f"https://127.0.0.1:{port}/metrics", verify=str(trust), timeout=10).text
    found = re.search(rf'sealane_native_answers_total\{{[^}}]*model="{DEPLOYMENT}"[^}}]*\}} (\d+)', page)
    assert found, page
    return int(found[1])


class _Named(requests.adapters.HTTPAdapter):
    """Checks the certificate for a name that the address is not."""

    def __init__(self, name: str) -> None:
        self._name = name
        super().__init__()

    def init_poolmanager(self, *args: object, **options: object) -> None:
        super().init_poolmanager(*args, assert_hostname=self._name, server_hostname=self._name, **options)  # type: ignore[arg-type]


def test_daily_calls_go_past_python_until_their_token_is_revoked(site: LightSite, metrics_port: int) -> None:
    account = site.client.accounts.create("leaver", ("infer",))
    with site.client_of(account.client_id, account.client_secret) as leaver, site.channel(CLOUD) as channel:
        token = leaver.token("sealane-inference")
        want = ask(site, channel, token)
        before = native_answers(site, metrics_port)
        for _ in range(50):
            assert ask(site, channel, token).raw_output_contents == want.raw_output_contents
        assert native_answers(site, metrics_port) >= before + 48

        site.client.access_tokens.revoke_id(json.loads(jws.decode(token.split(".")[1]))["jti"])
        revoked, refused = time.monotonic(), 0.0
        while not refused:
            assert time.monotonic() - revoked < REVOKED_SECONDS
            try:
                ask(site, channel, token)
            except grpc.RpcError as failure:
                assert failure.code() is grpc.StatusCode.UNAUTHENTICATED
                assert from_rpc_error(failure).reason == "TOKEN_REVOKED"
                refused = time.monotonic() - revoked
        print(f"figure: a revoked token was dead in the native front after {refused:.2f} s")
        with pytest.raises(grpc.RpcError):
            ask(site, channel, token)
