"""Refusals over HTTP: the statuses that clients of both protocols know."""

from __future__ import annotations

import json

import pytest

from sealane.errors import BY_KIND, AlreadyExists, NotFound, ResourceExhausted, SealaneError, Unauthenticated
from sealane.rest.status import refusal, status_of


@pytest.mark.parametrize("kind", BY_KIND.values())
def test_every_kind_has_a_status(kind: type[SealaneError]) -> None:
    for tfserving in (False, True):
        assert 400 <= status_of(kind("why"), tfserving=tfserving) < 600


def test_a_quota_is_the_callers_and_load_is_ours() -> None:
    quota = refusal(ResourceExhausted("q", reason="QUOTA_EXCEEDED", retry_after=0.2), "7", tfserving=False)
    load = refusal(ResourceExhausted("l", reason="OVERLOAD", retry_after=3.5), "7", tfserving=True)
    assert (quota.status, dict(quota.headers)["retry-after"]) == (429, "1")
    assert (load.status, dict(load.headers)["retry-after"]) == (503, "4")
    assert json.loads(quota.body[0]) == {"error": "q"}
    assert dict(quota.headers)["x-request-id"] == "7"


def test_who_has_to_prove_himself_is_told_how() -> None:
    bearer = refusal(Unauthenticated("no token"), "", tfserving=False)
    proof = refusal(Unauthenticated("no proof", reason="PROOF_REFUSED"), "", tfserving=False)
    assert dict(bearer.headers) == {"www-authenticate": "Bearer"}
    assert dict(proof.headers) == {"www-authenticate": 'DPoP algs="EdDSA"'}


def test_tensorflow_serving_has_a_status_for_conflicts() -> None:
    assert status_of(AlreadyExists("a"), tfserving=True) == 409
    assert status_of(AlreadyExists("a"), tfserving=False) == 400


def test_a_name_is_not_told_at_any_length() -> None:
    told = refusal(NotFound(f"'{'n' * 1_000_000}' is unknown; list the models"), "", tfserving=False)
    assert len(told.body[0]) < 3000
    assert json.loads(told.body[0])["error"].endswith("list the models")
