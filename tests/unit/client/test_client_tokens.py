"""Tokens: one per service, fetched once, refreshed in time, used until they end."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from client_site import SECRET

from sealane.client import ClientCredentials, StaticToken
from sealane.client.credentials import Token
from sealane.errors import FailedPrecondition, Unauthenticated, Unavailable

X = np.ones((1, 2), np.float32)


def test_many_threads_fetch_one_token(site) -> None:
    with site.client() as client:
        threads = [threading.Thread(target=client.inference.predict, args=("camera", {"x": X})) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(site.workers[0].calls) == 8
    assert [request.audience for request in site.auth.issued] == ["sealane-inference"]


def test_bound_and_bearer_tokens_are_kept_apart(site) -> None:
    with site.client() as client:
        client.inference.predict("camera", {"x": X})
        client.inference.predict("camera", {"x": X}, sealed=True)
    assert [bool(request.key_thumbprint) for request in site.auth.issued] == [False, True]


def test_a_token_near_its_end_is_refreshed(site) -> None:
    site.auth.lifetime = 40  # past 80 % of its life when it arrives
    with site.client() as client:
        client.token("sealane-inference")
        site.auth.lifetime = 300
        deadline = time.monotonic() + 5
        while Token.of(client.token("sealane-inference")).expires < time.time() + 250:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_while_auth_is_away_a_token_is_used_until_it_ends(site) -> None:
    site.auth.lifetime = 40
    with site.client() as client:
        first = client.token("sealane-inference")
        site.auth.failure = Unavailable("restarting")
        site.listeners["control"].close()
        started = time.monotonic()
        for _ in range(50):
            assert client.token("sealane-inference") == first
        assert time.monotonic() - started < 10, "no call waits for auth"


def test_a_token_that_has_ended_is_not_sent(site) -> None:
    site.auth.lifetime = 1
    with site.client() as client:
        client.token("sealane-inference")
        site.auth.failure = Unauthenticated("the account is gone")
        with pytest.raises(Unauthenticated):
            client.inference.predict("camera", {"x": X})
    assert not site.workers[0].calls


def test_wrong_secret(site) -> None:
    with site.client(ClientCredentials("camera@p", "wrong")) as client, pytest.raises(Unauthenticated):
        client.inference.predict("camera", {"x": X})


def test_static_tokens_ask_nobody(site) -> None:
    with site.client(StaticToken({"sealane-inference": site.auth.token("sealane-inference")})) as client:
        assert client.project == "p"
        client.inference.predict("camera", {"x": X})
        with pytest.raises(FailedPrecondition, match="sealane-registry"):
            client.token("sealane-registry")
        with pytest.raises(Unauthenticated, match="bound"):
            client.inference.predict("camera", {"x": X}, sealed=True)
    assert not site.auth.issued


def test_secrets_do_not_show_in_repr(site) -> None:
    token = site.auth.token("sealane-inference")
    for shown in (ClientCredentials("camera@p", SECRET), StaticToken(token), Token.of(token)):
        assert SECRET not in repr(shown) and token not in repr(shown)


def test_sdk_and_cli_need_only_the_base_dependencies() -> None:
    code = (
        "import sys\n"
        "for name in ('jwt', 'sqlalchemy', 'alembic', 'starlette', 'uvicorn', 'opentelemetry.sdk',"
        " 'ai_edge_litert', 'tensorflow'):\n"
        "    sys.modules[name] = None\n"
        "import pkgutil, importlib, sealane.client, sealane.cli\n"
        "for package in (sealane.client, sealane.cli):\n"
        "    for module in pkgutil.iter_modules(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(module.name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
