"""Roles, and what their bindings grant: never more than the widest of them, never more after narrowing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealane.errors import InvalidArgument
from sealane.security.permissions import (
    MODEL_PERMISSIONS,
    MODEL_ROLES,
    PERMISSIONS,
    PLATFORM_PERMISSIONS,
    PLATFORM_ROLES,
    ROLES,
    Bound,
    Grants,
    check,
    grants_of,
    narrowed,
)

MODELS = ["", "a", "ab", "abc", "b", "fraud", "fraud-eu"]


@st.composite
def bounds(draw: st.DrawFn) -> Bound:
    role = draw(st.sampled_from(sorted(ROLES)))
    prefix = draw(st.sampled_from(MODELS)) if role in MODEL_ROLES else ""
    return Bound(role, prefix, platform=draw(st.booleans()) if role in PLATFORM_ROLES else False)


def reference(bindings: list[Bound], permission: str, model: str) -> bool:
    """Whether any one binding allows it: the rule in its plainest words."""
    for bound in bindings:
        allowed = permission in ROLES[bound.role]
        if bound.platform and permission in PLATFORM_ROLES[bound.role]:
            allowed = True
        if allowed and bound.model_prefix:
            allowed = permission in MODEL_PERMISSIONS and model.startswith(bound.model_prefix)
        if allowed:
            return True
    return False


@given(st.lists(bounds(), max_size=5), st.sampled_from(sorted(PERMISSIONS)), st.sampled_from(MODELS))
def test_grants_are_the_union_of_bindings(bindings: list[Bound], permission: str, model: str) -> None:
    for bound in bindings:
        check(bound)
    assert grants_of(bindings).may(permission, model) == reference(bindings, permission, model)


@given(
    st.lists(bounds(), max_size=4),
    st.sets(st.sampled_from(sorted(PERMISSIONS))),
    st.lists(st.sampled_from(MODELS[1:]), max_size=3),
    st.sampled_from(MODELS),
)
def test_narrowing_never_widens(bindings: list[Bound], scopes: set[str], prefixes: list[str], model: str) -> None:
    whole = grants_of(bindings)
    part = narrowed(whole, scopes & whole.scopes, prefixes)
    assert part.within(whole)
    for permission in PERMISSIONS:
        wanted = permission in scopes and whole.may(permission, model)
        if prefixes:
            wanted = wanted and permission in MODEL_PERMISSIONS and model.startswith(tuple(prefixes))
        assert part.may(permission, model) == wanted


@given(st.lists(bounds(), max_size=3), st.lists(bounds(), max_size=3), st.sampled_from(MODELS))
def test_within_means_that_nothing_more_is_allowed(one: list[Bound], other: list[Bound], model: str) -> None:
    small, large = grants_of(one), grants_of(other)
    if small.within(large):
        assert all(large.may(permission, model) for permission in PERMISSIONS if small.may(permission, model))


def test_the_platform_belongs_to_no_role_of_a_project() -> None:
    for role in ROLES:
        assert not grants_of([Bound(role)]).scopes & PLATFORM_PERMISSIONS
    assert grants_of([Bound("admin", platform=True)]).scopes == PERMISSIONS


@pytest.mark.parametrize(
    ("bound", "field"),
    [
        (Bound("root"), "role"),
        (Bound("admin", "m"), "model_prefix"),
        (Bound("auditor", "m"), "model_prefix"),
        (Bound("viewer", platform=True), "platform"),
    ],
)
def test_a_binding_that_means_nothing_is_refused(bound: Bound, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check(bound)
    assert caught.value.field == field


def test_direct_scopes_are_for_the_whole_project() -> None:
    assert grants_of([Bound("invoker", "m")], ["infer"]) == Grants(frozenset({"infer"}), {})
