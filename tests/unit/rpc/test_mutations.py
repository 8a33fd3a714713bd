"""Mutated requests of every type through the real middleware: never a bug of ours, never a word about our insides.

300 mutations a type; LONG=1 makes it 100,000.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import random
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.descriptor import ServiceDescriptor

sys.path.insert(0, str(Path(__file__).parents[2] / "fakes"))
from mutations import filled, mutated

import sealane.auth.v1
import sealane.inference.v1
import sealane.registry.v1
import sealane.scheduler.v1
from sealane import telemetry
from sealane.clock import SystemClock
from sealane.compat.openinference.v2 import openinference_pb2
from sealane.compat.tfserving.v1 import tfserving_pb2
from sealane.errors import SealaneError
from sealane.protocols.foreign import FOREIGN_SERVICES
from sealane.rpc.call import Call, Peer
from sealane.rpc.dispatch import Dispatcher, Served
from sealane.rpc.middleware import Chain
from sealane.rpc.order import Guard, standard
from sealane.rpc.policy import methods_of
from sealane.rpc.status import to_status
from sealane.security import jws, tokens
from sealane.security.keys import KeySet, Published
from sealane.security.tokens import ISSUER, Grant, TokenVerifier

pytestmark = pytest.mark.timeout(3600 if os.environ.get("LONG") else 120)
MUTATIONS = 100_000 if os.environ.get("LONG") else 300
KEY = Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key().public_bytes_raw()
ALLOWED = {
    "OK",
    "INVALID_ARGUMENT",
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
    "NOT_FOUND",
    "FAILED_PRECONDITION",
    "OUT_OF_RANGE",
    "RESOURCE_EXHAUSTED",
}
INSIDES = re.compile(r"Traceback|/src/|site-packages|\.py\b|<class|0x[0-9a-f]{8}|DecodeError|_pb2")


def services() -> Iterator[ServiceDescriptor]:
    for package in (sealane.auth.v1, sealane.registry.v1, sealane.scheduler.v1, sealane.inference.v1):
        for module in pkgutil.iter_modules(package.__path__):
            if module.name.endswith("_pb2"):
                yield from importlib.import_module(
                    f"{package.__name__}.{module.name}"
                ).DESCRIPTOR.services_by_name.values()
    yield openinference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    yield from tfserving_pb2.DESCRIPTOR.services_by_name.values()


class Echo:
    """Answers every method with nothing: what is tested stands before the servicer."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda request, call: b""


SERVED = list(services())
METHODS = [method for service in SERVED for method in methods_of(service, FOREIGN_SERVICES.get(service.full_name, ""))]


@pytest.fixture(scope="module")
def dispatcher() -> Dispatcher:
    keys = KeySet(lambda: Published({jws.thumbprint(PUBLIC): jws.encode(PUBLIC)}))
    verifier = TokenVerifier(keys, issuer=ISSUER, audience="all", clock=SystemClock())
    chain = Chain(standard(telemetry_=telemetry.disabled(), guard=Guard(verifier)))
    return Dispatcher(
        [Served(Echo(), service, FOREIGN_SERVICES.get(service.full_name, "")) for service in SERVED], chain
    )


def token() -> str:
    scopes = {method.access.permission for method in METHODS if method.access.permission}
    return tokens.issue(Grant("a", "a@p", "p", "all", sorted(scopes)), key=KEY, issuer=ISSUER, now=time.time())


@pytest.mark.parametrize("method", [m for m in METHODS if m.access.permission], ids=lambda m: m.path[1:])
def test_mutated_requests_get_an_honest_code(dispatcher: Dispatcher, method) -> None:  # type: ignore[no-untyped-def]
    dice = random.Random(method.path)
    route, bearer = dispatcher.route(method.path), token()
    seeds = [b"", *(filled(method.request(), dice).SerializeToString() for _ in range(10))]
    peer = Peer(tls_version="TLSv1.3")
    seen: set[str] = set()
    for number in range(MUTATIONS):
        if number % 5000 == 4999:
            bearer = token()
        call = Call(
            method=method,
            metadata={"authorization": f"Bearer {bearer}"},
            peer=peer,
            deadline=time.monotonic() + 30,
            body=mutated(dice.choice(seeds), dice),
        )
        try:
            dispatcher.unary(route, call)
            code = "OK"
        except SealaneError as failure:
            code = failure.kind
            shown = str(to_status(failure, call.request_id)) + failure.message
            assert not INSIDES.search(shown), shown
        assert code in ALLOWED, (code, call.body)
        seen.add(code)
    assert seen - {"UNAUTHENTICATED", "PERMISSION_DENIED"}, "no request came through to be parsed"
