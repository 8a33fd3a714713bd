"""AUTH-3: what the middleware lets through is what a policy of thirty plain lines lets through."""

from __future__ import annotations

import importlib
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import Message

from sealane.clock import ManualClock
from sealane.errors import SealaneError
from sealane.rpc.authentication import Authenticate
from sealane.rpc.authorisation import Authorise, Validate
from sealane.rpc.call import Call, Peer
from sealane.rpc.middleware import Blocking, Chain, Parse
from sealane.rpc.policy import Method, methods_of
from sealane.security import jws, tokens
from sealane.security.keys import KeySet, Published
from sealane.security.permissions import MODEL_ROLES, PLATFORM_ROLES, ROLES, Bound, grants_of
from sealane.security.proof import ProofVerifier
from sealane.security.revocations import Kind, Revocations, Revoked
from sealane.security.tokens import ISSUER, Grant, TokenVerifier

ROOT = Path(__file__).parents[3]
CASES = 100_000
#: Rights of a role that a binding limited to some models does not give.
PROJECT_ONLY = ("nodes:read", "reflect", "datasets:read", "datasets:write")
#: Services whose resources are models or lie below one.
ABOUT_MODELS = (".ModelService", ".VariantService", ".SignatureService")
PROJECTS, MODELS, PREFIXES = ("p", "q"), ("fraud-eu", "fraud-us", "digits"), ("", "fraud-", "fraud-eu", "digits", "x")
PEERS = (
    "",
    "service/registry",
    "service/scheduler",
    "service/inference",
    "node/edge-1",
    "relay/site-a",
    "projects/p/serviceAccounts/a",
)
FLAWS = ("", "", "", "", "", "", "expired", "revoked", "epoch", "audience", "forged", "none")
AUDIENCE = "sealane-test"
KEY, OTHER_KEY = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
CLOCK = ManualClock(time.time())


@dataclass(frozen=True)
class Token:
    """A token, and the plain facts that it was made of."""

    text: str
    flaw: str
    project: str
    bindings: tuple[Bound, ...]


@dataclass
class Case:
    """Who calls what, about which model of which project."""

    token: Token
    peer: str
    method: Method
    project: str
    model: str
    stale: bool
    outcome: str = field(default="")


def reference(case: Case) -> str:
    """The policy in plain words."""
    access, token = case.method.access, case.token
    if access.permission == "PUBLIC":
        return "OK"
    kind = case.peer.split("/")[-1] if case.peer.startswith("service/") else case.peer.split("/")[0]
    kind = "account" if kind == "projects" else kind
    if kind and kind in access.callers:
        return "OK"
    if not access.permission:
        return "PERMISSION_DENIED" if kind else "UNAUTHENTICATED"
    if token.flaw:
        return "UNAUTHENTICATED"
    holds = []
    for bound in token.bindings:
        gives = access.permission in ROLES[bound.role]
        gives = gives or (bound.platform and access.permission in PLATFORM_ROLES[bound.role])
        if gives and not (bound.model_prefix and access.permission in PROJECT_ONLY):
            holds.append(bound.model_prefix)
    if not holds:
        return "PERMISSION_DENIED"
    if access.high_risk and case.stale:
        return "UNAVAILABLE"
    if access.resource and case.project != token.project:
        return "NOT_FOUND"
    if "" in holds or access.narrowed:
        return "OK"
    if access.model or case.method.path.split("/")[1].endswith(ABOUT_MODELS):
        return "OK" if any(case.model.startswith(prefix) for prefix in holds) else "NOT_FOUND"
    return "PERMISSION_DENIED"


def all_methods() -> list[Method]:
    names = [f"{path.parent.parent.name}.{path.parent.name}.{path.stem}" for path in ROOT.glob("protos/sealane/*/v1/*")]
    found = []
    for name in sorted(names):
        if name.endswith("_service"):
            for service in importlib.import_module(f"sealane.{name}_pb2").DESCRIPTOR.services_by_name.values():
                found += methods_of(service)
    return found


def make_tokens(rng: random.Random, revocations: Revocations) -> list[Token]:
    made, revoked = [], []
    for number in range(400):
        flaw, project, bindings = rng.choice(FLAWS), rng.choice(PROJECTS), []
        for _ in range(rng.randint(0, 3)):
            role = rng.choice(sorted(ROLES))
            prefix = rng.choice(PREFIXES) if role in MODEL_ROLES else ""
            bindings.append(Bound(role, prefix, platform=role in PLATFORM_ROLES and rng.random() < 0.5))
        grants = grants_of(bindings)
        subject = f"projects/{project}/serviceAccounts/a{number}"
        audience = "sealane-other" if flaw == "audience" else AUDIENCE
        grant = Grant(subject, "c", project, audience, grants.scopes, models=grants.models, epoch=1)
        key, now = OTHER_KEY if flaw == "forged" else KEY, CLOCK.now() - (400 if flaw == "expired" else 0)
        text = "" if flaw == "none" else tokens.issue(grant, key=key, issuer=ISSUER, now=now)
        if flaw == "revoked":
            identifier = str(jws.parse(text, header_names=frozenset({"alg", "kid", "typ"})).claims["jti"])
            revoked.append(Revoked(Kind.TOKEN, identifier, project))
        if flaw == "epoch":
            revoked.append(Revoked(Kind.SUBJECT, subject, number=2.0))
        made.append(Token(text, flaw, project, tuple(bindings)))
    revocations.take(1, revoked)
    return made


def request_of(method: Method, project: str, model: str) -> Message:
    """A request about a model of a project."""
    message, access = method.request(), method.access
    below = f"projects/{project}/models/{model}/versions/1/variants/v"
    if access.resource:
        about = method.path.split("/")[1].endswith(ABOUT_MODELS)
        short = access.narrowed or access.model or not about
        setattr(message, access.resource, f"projects/{project}" if short else below)
    if access.model:
        *outer, last = access.model
        inner: Message = message
        for part in outer:
            inner = getattr(inner, part)
        setattr(inner, last, model if last == "model_id" else below)
    return message


def enter(chain: Chain, call: Call) -> None:
    """As the adapters do: work that must not block is done, and the call enters again."""
    try:
        chain.enter(call)
    except Blocking as pause:  # the keys are old by now, on a slow machine
        pause.work()
        chain.enter(call)


def test_a_hundred_thousand_random_calls_agree_with_the_reference() -> None:
    rng = random.Random(20261121)
    public = KEY.public_key().public_bytes_raw()
    keys = KeySet(lambda: Published({jws.thumbprint(public): jws.encode(public)}))
    keys.refresh()
    fresh, stale = Revocations(CLOCK), Revocations(CLOCK)
    made = make_tokens(rng, fresh)
    chains = {}
    for name, known in (("fresh", fresh), ("stale", stale)):
        verifier = TokenVerifier(keys, issuer=ISSUER, audience=AUDIENCE, clock=CLOCK, revocations=fresh)
        chains[name] = Chain(
            [Authenticate(verifier, ProofVerifier(CLOCK), fresh), Authorise(known), Parse(), Validate()]
        )
    served = [method for method in all_methods() if not method.client_streaming]
    peers = {name: Peer(spiffe_id=f"spiffe://sealane/{name}" if name else "", tls_version="TLSv1.3") for name in PEERS}
    seen: dict[str, int] = {}
    for _ in range(CASES):
        case = Case(
            rng.choice(made),
            rng.choice(PEERS) if rng.random() < 0.2 else "",
            rng.choice(served),
            rng.choice(PROJECTS),
            rng.choice(MODELS),
            rng.random() < 0.2,
        )
        body = request_of(case.method, case.project, case.model).SerializeToString()
        metadata = {"authorization": f"Bearer {case.token.text}"} if case.token.text else {}
        call = Call(case.method, metadata, peers[case.peer], time.monotonic() + 60, body)
        try:
            enter(chains["stale" if case.stale else "fresh"], call)
            case.outcome = "OK"
        except SealaneError as refusal:
            case.outcome = refusal.kind
        assert case.outcome == reference(case), case
        seen[case.outcome] = seen.get(case.outcome, 0) + 1
    print(f"figure: {CASES} of {CASES} agree with the reference: {seen}")
    assert set(seen) == {"OK", "UNAUTHENTICATED", "PERMISSION_DENIED", "NOT_FOUND", "UNAVAILABLE"}
    assert min(seen.values()) > CASES / 200, "each outcome was tried often"


def test_the_page_of_permissions_is_what_the_contracts_say() -> None:
    tool = [sys.executable, str(ROOT / "tools" / "permission_matrix.py"), "--check"]
    checked = subprocess.run(tool, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
