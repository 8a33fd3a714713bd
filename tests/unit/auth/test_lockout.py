"""What is remembered of wrong passphrases and of proofs is small, whatever callers send."""

from __future__ import annotations

import tracemalloc

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealane.clock import ManualClock
from sealane.errors import ResourceExhausted, Unauthenticated
from sealane.security import device, jws
from sealane_auth.passphrases import WRONG_TRIES, Lockout


def test_long_client_ids_are_told_apart_and_not_kept() -> None:
    lockout, size = Lockout(ManualClock()), 1_000_000
    tracemalloc.start()
    try:
        for number in range(50):
            lockout.wrong(f"{number}" + "x" * size)
        assert tracemalloc.get_traced_memory()[0] < size
    finally:
        tracemalloc.stop()
    for _ in range(WRONG_TRIES):
        lockout.wrong("x" * size)
    lockout.check("x" * size + "y")
    with pytest.raises(ResourceExhausted) as locked:
        lockout.check("x" * size)
    assert locked.value.reason == "CLIENT_LOCKED"
    lockout.right("x" * size)
    lockout.check("x" * size)


@pytest.mark.parametrize(("identifier", "good"), [("x" * 128, True), ("x" * 129, False), ("", False)])
def test_a_device_proof_has_a_short_id(identifier: str, good: bool) -> None:
    clock, key, request = ManualClock(), Ed25519PrivateKey.generate(), b"a request"
    proof = device.prove(key, request, clock.now())
    public = key.public_key().public_bytes_raw()
    claims = jws.parse(proof, header_names=frozenset({"alg", "typ", "jwk"})).claims | {"jti": identifier}
    proof = jws.sign(key, {"typ": device.TYPE, "jwk": jws.public_jwk(public)}, claims)
    proofs = device.DeviceProofs(clock)
    if good:
        assert proofs.verify(proof, request) == public
    else:
        with pytest.raises(Unauthenticated):
            proofs.verify(proof, request)
