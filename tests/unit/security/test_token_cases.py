"""The catalogue of tokens (SECURITY 2.6) at the authentication step alone; at running services: tests/stack."""

from __future__ import annotations

import time

import pytest
from bench.token_cases import ACCEPTED, CASES, Forge, Metadata
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealane.clock import SystemClock
from sealane.errors import Unauthenticated
from sealane.registry.v1 import model_service_pb2 as pb
from sealane.rpc.authentication import Authenticate
from sealane.rpc.call import Call, Peer
from sealane.rpc.policy import methods_of
from sealane.security import jws, tokens
from sealane.security.keys import KeySet, Published
from sealane.security.proof import ProofVerifier, prove

METHOD = next(each for each in methods_of(pb.DESCRIPTOR.services_by_name["ModelService"]) if each.name == "ListModels")
FORGE = Forge(Ed25519PrivateKey.generate(), "sealane-registry", ("models:read",))


def knock(metadata: Metadata) -> Call:
    """Authenticate a call as the transport makes it."""
    keys = KeySet(lambda: Published({jws.thumbprint(FORGE.public): jws.encode(FORGE.public)}))
    keys.refresh()
    verifier = tokens.TokenVerifier(keys, issuer=tokens.ISSUER, audience=FORGE.audience, clock=SystemClock())
    names = [name for name, _ in metadata]
    call = Call(
        method=METHOD,
        metadata={name: value if isinstance(value, str) else "" for name, value in metadata},
        peer=Peer(),
        deadline=time.monotonic() + 10,
        duplicates=frozenset(name for name in names if names.count(name) > 1),
    )
    Authenticate(verifier, ProofVerifier(SystemClock())).before(call)
    return call


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_good_token_names_its_caller(name: str) -> None:
    assert knock(ACCEPTED[name](FORGE)).caller.project == "default"


@pytest.mark.parametrize("name", CASES)
def test_a_bad_token_is_refused_with_its_reason(name: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        knock(CASES[name].make(FORGE))
    assert caught.value.reason == CASES[name].reason
    assert "Error" not in caught.value.message, "no class of a library is named"


def test_a_header_nested_100_000_deep_ends_no_parser() -> None:
    nested = b'{"alg":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    for header, claims in ((nested, b"{}"), (b'{"alg":"EdDSA","typ":"at+jwt"}', nested)):
        with pytest.raises(Unauthenticated) as caught:
            jws.parse(FORGE.signed(header, claims), header_names=frozenset({"alg", "typ"}), limit=1_000_000)
        assert caught.value.reason == "TOKEN_MALFORMED"


def test_two_proofs_are_none() -> None:
    key = Ed25519PrivateKey.generate()
    token = FORGE.good(key_thumbprint=jws.thumbprint(key.public_key().public_bytes_raw()))
    first, second = (("dpop", prove(key, method_path=METHOD.path, token=token, now=time.time())) for _ in range(2))
    bearer = ("authorization", f"Bearer {token}")
    assert knock((bearer, first)).caller.key_thumbprint
    with pytest.raises(Unauthenticated) as caught:
        knock((bearer, first, second))
    assert caught.value.reason == "PROOF_REFUSED"


def test_the_id_of_a_proof_is_short() -> None:
    key, token = Ed25519PrivateKey.generate(), FORGE.good()
    raw = key.public_key().public_bytes_raw()
    good = prove(key, method_path=METHOD.path, token=token, now=time.time())
    claims = jws.parse(good, header_names=frozenset({"alg", "typ", "jwk"})).claims
    verifier = ProofVerifier(SystemClock())
    for identifier, fits in (("i" * 128, True), ("i" * 129, False), ("", False), (7, False)):
        header = {"typ": "dpop+jwt", "jwk": jws.public_jwk(raw)}
        proof = jws.sign(key, header, {**claims, "jti": identifier})
        try:
            verifier.verify(proof, method_path=METHOD.path, token=token, thumbprint=jws.thumbprint(raw))
        except Unauthenticated as refused:
            assert not fits and refused.reason == "PROOF_REFUSED", identifier
        else:
            assert fits, identifier
