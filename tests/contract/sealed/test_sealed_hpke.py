"""HPKE as the sealed protocol uses it: a reader by hand passes the public vectors, and ours agrees with the reader.

The library has no means to set what is random in an encapsulation, and its wrapped keys have no additional data, so
public vectors reach it from the other side: with the private key of a vector it opens what the reader sealed under the
vector's shared secret.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import cryptography_vectors
import native_library
import pytest
import sealed_hpke as hpke
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st
from sealed_reader import KEMS
from sealed_vectors import pair_of

from sealane.clock import ManualClock
from sealane.errors import InvalidArgument
from sealane.native import library
from sealane.security import suites
from sealane.security.native_opening import NativeMemory

SUITES = pytest.mark.parametrize("suite", [1, 2], ids=["hybrid", "x25519"])
INFO, SECRET = b"info", bytes(range(64))
Json = dict[str, Any]


class Library:
    """The native library in the place of :mod:`sealane.security.suites`."""

    @staticmethod
    def wrap(suite: int, public_key: bytes, secret: bytes, info: bytes) -> bytes:
        wrapped = library.wrap(suite, public_key, secret, info)
        if wrapped is None:
            raise suites.unusable()
        return wrapped

    @staticmethod
    def unwrap(suite: int, pair: suites.KeyPair, wrapped: bytes, info: bytes) -> bytes:
        assert suite == pair.suite
        return NativeMemory(pair, ManualClock()).unwrap(wrapped, info)


@pytest.fixture(
    scope="module", autouse=True, params=["python", pytest.param("native", marks=native_library.NEEDS_LIBRARY)]
)
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Everything is wrapped and unwrapped in Python, and by the native library."""
    with pytest.MonkeyPatch.context() as patched:
        if request.param == "native":
            patched.setattr(suites, "wrap", Library.wrap)
            patched.setattr(suites, "unwrap", Library.unwrap)
        yield


@cache
def hpke_vectors() -> list[Json]:
    """Those of RFC 9180 and of draft-ietf-hpke-pq, mode base, with a KEM of ours."""
    found: list[Json] = []
    for name in ("test-vectors", "hpke-pq-test-vectors"):
        with cryptography_vectors.open_vector_file(f"HPKE/{name}.json", "r") as file:
            found += json.load(file)
    return [each for each in found if each["mode"] == 0 and each["kem_id"] in KEMS.values()]


def named(each: Json) -> str:
    return f"{each['kem_id']:#06x}-{each['kdf_id']}-{each['aead_id']}"


#: All that is after the KEM, too: HKDF-SHA256 and an AEAD that encrypts.
WHOLE = [each for each in hpke_vectors() if each["kdf_id"] == hpke.HKDF_SHA256 and each["aead_id"] in hpke.KEY_BYTES]


def records(name: str) -> list[dict[str, bytes]]:
    """Records of lines `NAME = hex`, each behind a line with its number."""
    found: list[dict[str, bytes]] = []
    with cryptography_vectors.open_vector_file(name, "r") as file:
        for key, _, value in (line.strip().partition(" = ") for line in file):
            if key.lower() == "count":
                found.append({})
            elif value:
                found[-1][key] = bytes.fromhex(value)
    return found


def sealed_with(kem: int, shared_secret: bytes, enc: bytes) -> bytes:
    """What a sender wraps that has this shared secret."""
    return enc + hpke.key_schedule(kem, hpke.AES_256_GCM, shared_secret, INFO).seal(SECRET)


# -- the reader passes the public vectors --------------------------------------------------------------------------


def test_no_vector_is_missing() -> None:
    assert sorted(map(named, WHOLE)) == ["0x0020-1-1", "0x0020-1-2", "0x0020-1-3", "0x647a-1-3"]
    assert len(hpke_vectors()) == 11
    assert sum(len(each["encryptions"]) for each in WHOLE) == 3 * 257 + 10


@pytest.mark.parametrize("each", hpke_vectors(), ids=named)
def test_the_reader_decapsulates_the_vectors_of_the_rfc(each: Json) -> None:
    kem, private, enc = each["kem_id"], bytes.fromhex(each["skRm"]), bytes.fromhex(each["enc"])
    assert hpke.public_of(kem, private).hex() == each["pkRm"]
    assert hpke.decap(kem, private, enc).hex() == each["shared_secret"]
    if "skEm" in each:  # X-Wing's encapsulation cannot be repeated: ML-KEM takes no randomness from outside
        found = hpke.encap(kem, bytes.fromhex(each["pkRm"]), bytes.fromhex(each["skEm"]))
        assert found == (bytes.fromhex(each["shared_secret"]), enc)


@pytest.mark.parametrize("each", WHOLE, ids=named)
def test_the_reader_passes_every_encryption_of_the_rfc(each: Json) -> None:
    shared_secret, info = bytes.fromhex(each["shared_secret"]), bytes.fromhex(each["info"])
    context = hpke.key_schedule(each["kem_id"], each["aead_id"], shared_secret, info)
    expected = {"key_schedule_context": context.schedule, "secret": context.secret}
    expected |= {"key": context.key, "base_nonce": context.base_nonce, "exporter_secret": context.exporter_secret}
    for name, value in expected.items():
        assert each.get(name, value.hex()) == value.hex(), name
    for seq, told in enumerate(each["encryptions"]):
        plaintext, ciphertext, aad = (bytes.fromhex(told[name]) for name in ("pt", "ct", "aad"))
        assert context.nonce(seq).hex() == told["nonce"]
        assert context.seal(plaintext, aad, seq) == ciphertext
        assert context.open(ciphertext, aad, seq) == plaintext


# -- ours and the reader agree -------------------------------------------------------------------------------------


@pytest.mark.parametrize("each", hpke_vectors(), ids=named)
def test_ours_decapsulates_the_vectors_of_the_rfc(each: Json) -> None:
    suite = {kem: suite for suite, kem in KEMS.items()}[each["kem_id"]]
    wrapped = sealed_with(each["kem_id"], bytes.fromhex(each["shared_secret"]), bytes.fromhex(each["enc"]))
    pair = pair_of(suite, bytes.fromhex(each["skRm"]))
    assert pair.public_key.hex() == each["pkRm"]
    assert suites.unwrap(suite, pair, wrapped, INFO) == SECRET


def test_x25519_of_rfc_7748() -> None:
    found = 0
    for each in records("asymmetric/X25519/rfc7748.txt"):
        private, enc = each["INPUT_SCALAR"], each["INPUT_U"]
        shared_secret = hpke.dhkem(each["OUTPUT_U"], enc, hpke.public_of(hpke.X25519, private))
        assert hpke.decap(hpke.X25519, private, enc) == shared_secret
        wrapped = sealed_with(hpke.X25519, shared_secret, enc)
        assert suites.unwrap(2, pair_of(2, private), wrapped, INFO) == SECRET
        found += 1
    assert found == 3


def test_ml_kem_768_known_answers_inside_x_wing() -> None:
    """The thousand, each also with the ciphertext that is refused implicitly: to another secret, told by nobody."""
    exchange, ephemeral = (X25519PrivateKey.from_private_bytes(bytes([each]) * 32) for each in (1, 2))
    curve, enc = exchange.public_key().public_bytes_raw(), ephemeral.public_key().public_bytes_raw()
    agreed, found = ephemeral.exchange(X25519PublicKey.from_public_bytes(curve)), 0
    for each in records("asymmetric/MLKEM/kat_MLKEM_768.rsp"):
        private = each["d"] + each["z"] + exchange.private_bytes_raw()
        public = each["pk"] + curve
        assert hpke.public_of(hpke.XWING, private) == public
        lattice, curve_key = hpke.expanded(private)
        pair = suites.pair_of(curve_key, lattice)
        assert pair.public_key == public
        for ciphertext, secret in ((each["ct"], each["ss"]), (each["ct_n"], each["ss_n"])):
            shared_secret = hpke.combined(secret, agreed, enc, curve)
            assert hpke.decap(hpke.XWING, private, ciphertext + enc) == shared_secret
            wrapped = sealed_with(hpke.XWING, shared_secret, ciphertext + enc)
            assert suites.unwrap(1, pair, wrapped, INFO) == SECRET
            found += 1
    assert found == 2000


@SUITES
@settings(max_examples=50, deadline=None)
@given(private=st.binary(min_size=32, max_size=32), secret=st.binary(max_size=200), info=st.binary(max_size=400))
def test_ours_and_the_reader_open_each_other(suite: int, private: bytes, secret: bytes, info: bytes) -> None:
    pair, kem = pair_of(suite, private), KEMS[suite]
    assert pair.public_key == hpke.public_of(kem, private)
    assert hpke.open_(kem, private, info, suites.wrap(suite, pair.public_key, secret, info)) == secret
    assert suites.unwrap(suite, pair, hpke.seal(kem, pair.public_key, info, secret), info) == secret


@SUITES
def test_what_the_library_generates_is_used_by_the_reader(suite: int) -> None:
    pair = suites.generate(suite)
    wrapped = hpke.seal(KEMS[suite], pair.public_key, INFO, SECRET)
    assert suites.unwrap(suite, pair, wrapped, INFO) == SECRET
    with pytest.raises(InvalidTag):
        suites.unwrap(suite, pair, wrapped, b"other")
    with pytest.raises(InvalidTag):
        suites.unwrap(suite, pair, hpke.seal(KEMS[suite], pair.public_key, INFO, SECRET, b"aad"), INFO)


# -- points of low order -------------------------------------------------------------------------------------------


def test_all_encodings_are_there() -> None:
    assert len(set(hpke.LOW_ORDER)) == 14


@SUITES
@pytest.mark.parametrize("point", hpke.LOW_ORDER, ids=bytes.hex)
def test_nothing_is_wrapped_to_a_point_of_low_order(suite: int, point: bytes) -> None:
    public = suites.generate(suite).public_key
    with pytest.raises(InvalidArgument, match="cannot be sealed to"):
        suites.wrap(suite, public[:-32] + point, SECRET, INFO)


@SUITES
@pytest.mark.parametrize("point", hpke.LOW_ORDER, ids=bytes.hex)
def test_nothing_is_unwrapped_that_came_with_a_point_of_low_order(suite: int, point: bytes) -> None:
    """With such a point both sides agree on zeros, whatever the worker's key; a worker that went on would open it."""
    pair, own = suites.generate(suite), X25519PrivateKey.generate()
    agreed, enc = hpke.agree(own, pair.public_key[-32:]), own.public_key().public_bytes_raw()
    honest = hpke.seal_as_agreed(KEMS[suite], pair.public_key, agreed, enc, INFO, SECRET)
    assert suites.unwrap(suite, pair, honest, INFO) == SECRET
    known = hpke.seal_as_agreed(KEMS[suite], pair.public_key, bytes(32), point, INFO, SECRET)
    with pytest.raises(InvalidTag):
        suites.unwrap(suite, pair, known, INFO)


@SUITES
def test_nothing_is_wrapped_to_zeros_or_a_key_of_another_length(suite: int) -> None:
    public = suites.generate(suite).public_key
    with pytest.raises(InvalidArgument, match="cannot be sealed to"):
        suites.wrap(suite, bytes(len(public)), SECRET, INFO)
    for wrong in (b"", public[:-1], public + b"\0", suites.generate(3 - suite).public_key):
        with pytest.raises(InvalidArgument):
            suites.wrap(suite, wrong, SECRET, INFO)


def test_nothing_is_wrapped_to_a_lattice_key_that_is_out_of_range() -> None:
    """FIPS 203, section 7.2: coefficients are below the modulus."""
    public = suites.generate(suites.HYBRID).public_key
    with pytest.raises(InvalidArgument, match="cannot be sealed to"):
        suites.wrap(suites.HYBRID, b"\xff" * 3 + public[3:], SECRET, INFO)


@SUITES
def test_nothing_is_unwrapped_that_was_cut(suite: int) -> None:
    pair = suites.generate(suite)
    wrapped = suites.wrap(suite, pair.public_key, SECRET, INFO)
    assert len(wrapped) == hpke.ENC_BYTES[KEMS[suite]] + len(SECRET) + 16
    for length in (0, 1, 31, 32, hpke.ENC_BYTES[KEMS[suite]], len(wrapped) - 1):
        with pytest.raises(InvalidTag):
            suites.unwrap(suite, pair, wrapped[:length], INFO)
