"""Every Wycheproof vector for JSON web signatures and keys against the verification of external tokens.

Our own access tokens are EdDSA, for which the suite has no vector; they pass the same pre-parser
(:func:`sealane.security.jws.split`), which the HS256 vectors are run through here with an HMAC of the test's own.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from sealane.errors import InvalidArgument, Unauthenticated
from sealane.security import jws
from sealane.security.external_jwt import parse_key_set, verify_signature

VECTORS = Path(__file__).parents[2] / "vectors"
#: Marked valid, refused on purpose. Everything else that is marked valid must verify.
REFUSED_VALID = {
    346: "the file says alg PS256 for the key, the token says PS384: one algorithm per key",
    350: "the same key and token, with key_ops",
    372: "an illegal character in the header: not canonical base64url",
    373: "an illegal character in the payload: not canonical base64url",
}
#: Marked invalid, byte-equal to the valid case 357: nothing that could be refused.
SAME_AS_357 = (367, 370)
#: Algorithms that no issuer of ours uses: refused whatever the vector says.
UNSUPPORTED = {"HS256", "HS384", "HS512", "RS384", "RS512", "PS384", "PS512", "ES521"}


@dataclass(frozen=True)
class Case:
    number: int
    token: str
    valid: bool
    group: str
    keys: tuple[dict[str, object], ...]

    @property
    def algorithms(self) -> set[str]:
        return {str(key.get("alg", "")) for key in self.keys}

    def accepted(self) -> bool:
        """What we do with it."""
        try:
            verify_signature(self.token, parse_key_set(json.dumps({"keys": self.keys}).encode()))
        except (InvalidArgument, Unauthenticated):
            return False
        return True


def cases(name: str) -> list[Case]:
    found = []
    document = json.loads((VECTORS / f"wycheproof_json_web_{name}.json").read_text())
    for group in document["testGroups"]:
        key = group.get("public") or group["private"]
        keys = tuple(key["keys"]) if "keys" in key else (key,)
        for test in group["tests"]:
            found.append(Case(test["tcId"], test["jws"], test["result"] == "valid", group["comment"], keys))
    assert len(found) == document["numberOfTests"]
    return found


SIGNATURES, KEYS = cases("signature"), cases("key")


@pytest.mark.parametrize(("vectors", "invalid"), [(SIGNATURES, 355), (KEYS, 21)], ids=["signature", "key"])
def test_nothing_invalid_is_accepted(vectors: list[Case], invalid: int) -> None:
    wrong = [case for case in vectors if not case.valid]
    assert len(wrong) == invalid
    assert [case.number for case in wrong if case.accepted()] == []


@pytest.mark.parametrize("vectors", [SIGNATURES, KEYS], ids=["signature", "key"])
def test_what_is_valid_verifies_unless_its_algorithm_is_not_ours(vectors: list[Case]) -> None:
    refused = [case for case in vectors if case.valid and not case.accepted()]
    unexplained = [
        case.number
        for case in refused
        if not case.algorithms & UNSUPPORTED and not (vectors is SIGNATURES and case.number in REFUSED_VALID)
    ]
    assert unexplained == []
    accepted = Counter("+".join(case.algorithms) for case in vectors if case.valid and case.accepted())
    assert accepted == ({"ES256": 2, "RS256": 8, "PS256": 6} if vectors is SIGNATURES else {"RS256": 1})


def test_the_valid_vectors_that_are_refused_are_known_by_group() -> None:
    refused = Counter(case.group for case in SIGNATURES if case.valid and not case.accepted())
    assert refused == {
        "hs256": 1,  # no shared secrets with issuers
        "rs384": 4,
        "rs512": 4,
        "ps384": 4,
        "ps512": 4,
        "rfc7520": 4,  # 346, ES512 (347), HS256 (348, 352)
        "rfc7520WithKeyOps": 2,  # 350, ES512 (351)
        "base64": 7,  # HS256; run through the pre-parser below
    }


def test_the_pre_parser_with_an_hmac_refuses_every_spelling_but_the_canonical_one() -> None:
    wrong, missed = [], []
    for case in SIGNATURES:
        if case.algorithms != {"HS256"}:
            continue
        accepted = _accepted_with_hmac(case)
        if accepted and not case.valid:
            wrong.append(case.number)
        if case.valid and not accepted:
            missed.append(case.number)
    assert wrong == list(SAME_AS_357)
    assert missed == [number for number in REFUSED_VALID if number in (372, 373)]


def test_the_two_that_are_accepted_are_a_valid_one_again() -> None:
    token = {case.number: case.token for case in SIGNATURES}
    assert {token[number] for number in SAME_AS_357} == {token[357]}


def _accepted_with_hmac(case: Case) -> bool:
    (key,) = case.keys
    try:
        parts = jws.split(case.token, header_names=frozenset({"alg", "kid"}))
    except Unauthenticated:
        return False
    secret = jws.decode(str(key["k"]))
    expected = hmac.digest(secret, parts.signing_input, hashlib.sha256)
    return (
        parts.header["alg"] == "HS256"
        and parts.header.get("kid") == key["kid"]
        and hmac.compare_digest(expected, parts.signature)
    )
