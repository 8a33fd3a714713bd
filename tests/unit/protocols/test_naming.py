"""A model name of a foreign protocol means a deployment, or nothing, or asks the caller to choose."""

from __future__ import annotations

import pytest

from sealane.errors import FailedPrecondition
from sealane.protocols.naming import resolve

DEPLOYMENTS = {"camera-a": "digits", "camera-b": "digits", "float": "other", "digits2": "digits2"}


def test_a_deployment_id_wins() -> None:
    assert resolve("camera-a", DEPLOYMENTS) == "camera-a"
    assert resolve("other", {"other": "digits", "x": "other"}) == "other"


def test_a_model_with_one_deployment_means_it() -> None:
    assert resolve("other", DEPLOYMENTS) == "float"


def test_a_model_with_several_deployments_names_the_choices() -> None:
    with pytest.raises(FailedPrecondition, match="camera-a, camera-b"):
        resolve("digits", DEPLOYMENTS)


def test_anything_else_is_nothing() -> None:
    assert resolve("nothing", DEPLOYMENTS) is None
    assert resolve("x", {}) is None
