"""Gates: each condition alone decides, and says what to do."""

from __future__ import annotations

import pytest
from registry_site import ADA, BOB, EVE, Signer, Site

from sealane.errors import FailedPrecondition, InvalidArgument
from sealane_registry.facts import SCHEDULER
from sealane_registry.policy import Gate, RequiredApprovals, RequiredEvaluation
from sealane_registry.rows import UseRow

PRODUCTION = ("production",)


def gate(site: Site, **conditions: object) -> None:
    site.demand(gates=(Gate(PRODUCTION, **conditions),))  # type: ignore[arg-type]


def test_without_a_policy_any_version_may_be_anything(site: Site) -> None:
    assert site.unmet(site.push()) == []


def test_a_gate_is_about_its_aliases_alone(site: Site) -> None:
    gate(site, load_check=True)
    version = site.push()
    assert site.unmet(version) == ["LOAD_CHECK"] and site.unmet(version, "staging") == []
    site.demand(gates=(Gate(("*",), load_check=True),))
    assert site.unmet(version, "staging") == ["LOAD_CHECK"]


def test_every_variant_has_to_be_loaded(site: Site) -> None:
    gate(site, load_check=True)
    version = site.push()
    site.add(version, "litert")
    site.checked(version)
    assert site.unmet(version) == ["LOAD_CHECK"]
    site.checked(version, "litert", "operator Foo is unknown; export it without")
    with pytest.raises(FailedPrecondition, match="operator Foo is unknown") as refused:
        site.move(version)
    assert refused.value.reason == "NOT_PROMOTABLE" and refused.value.metadata["kinds"] == "LOAD_CHECK"
    site.checked(version, "litert")
    assert site.unmet(version) == [] and site.move(version).number == 1


@pytest.mark.parametrize("by", ["ada", "bob and eve"])
def test_approvals_are_counted_by_role_and_not_from_who_pushed(site: Site, by: str) -> None:
    gate(site, approvals=(RequiredApprovals("auditor", 1), RequiredApprovals("", 2)))
    version = site.push()
    site.checked(version)
    assert site.unmet(version) == ["APPROVAL", "APPROVAL"]
    if by == "ada":
        with pytest.raises(FailedPrecondition) as refused:
            site.reviews.approve(site.store, ADA, version.scope, ("auditor",), "")
        assert refused.value.reason == "OWN_VERSION"
        return
    site.reviews.approve(site.store, BOB, version.scope, ("approver",), "fine")
    site.reviews.approve(site.store, BOB, version.scope, ("approver",), "still fine")
    assert site.unmet(version) == ["APPROVAL", "APPROVAL"], "twice by one is once"
    approved = site.reviews.approve(site.store, EVE, version.scope, ("approver", "auditor"), "")
    assert site.unmet(version) == []
    assert approved.state == "APPROVED" and [item.comment for item in approved.approvals] == ["still fine", ""]


def test_nothing_is_approved_before_it_was_loaded(site: Site) -> None:
    version = site.push()
    with pytest.raises(FailedPrecondition, match="load-check digits@1") as unknown:
        site.reviews.approve(site.store, BOB, version.scope, (), "")
    assert unknown.value.reason == "NOT_LOAD_CHECKED"
    site.checked(version, message="it is no ONNX model; export it again")
    with pytest.raises(FailedPrecondition, match="export it again") as failed:
        site.reviews.approve(site.store, BOB, version.scope, (), "")
    assert failed.value.reason == "LOAD_FAILED"


ACCURACY = {"metric": "accuracy", "at_least": 0.9}
EVALUATIONS: dict[str, tuple[dict[str, object], dict[str, object], bool]] = {
    "met": (ACCURACY, {"accuracy": 0.91, "rows": 10}, True),
    "exactly met": (ACCURACY, {"accuracy": 0.9, "rows": 10}, True),
    "too low": (ACCURACY, {"accuracy": 0.89, "rows": 10}, False),
    "not over rows": (ACCURACY, {"accuracy": 0.95}, False),
    "too few rows": ({**ACCURACY, "min_rows": 100}, {"accuracy": 0.95, "rows": 99}, False),
    "enough rows": ({**ACCURACY, "min_rows": 100}, {"accuracy": 0.95, "rows": 100}, True),
    "another dataset": ({**ACCURACY, "dataset": "d"}, {"accuracy": 0.95, "rows": 9, "dataset": "e"}, False),
    "that dataset": ({**ACCURACY, "dataset": "d"}, {"accuracy": 0.95, "rows": 9, "dataset": "d"}, True),
    "another device": ({**ACCURACY, "device_class": "a"}, {"accuracy": 0.95, "rows": 9, "device_class": "b"}, False),
    "by hand": ({**ACCURACY, "by_job": True}, {"accuracy": 0.95, "rows": 9}, False),
    "by a job": ({**ACCURACY, "by_job": True}, {"accuracy": 0.95, "rows": 9, "recorder": SCHEDULER}, True),
    "fast enough": ({"metric": "latency_p99_us", "at_most": 50.0}, {"latency_p99_us": 49.0}, True),
    "too slow": ({"metric": "latency_p99_us", "at_most": 50.0}, {"latency_p99_us": 51.0}, False),
    "own figure": ({"metric": "f1", "at_least": 0.5}, {"metrics": {"f1": 0.6}}, True),
    "own figure too low": ({"metric": "f1", "at_least": 0.5}, {"metrics": {"f1": 0.4}}, False),
}


@pytest.mark.parametrize("case", EVALUATIONS)
def test_an_evaluation(site: Site, case: str) -> None:
    wanted, measured, met = EVALUATIONS[case]
    gate(site, evaluations=(RequiredEvaluation(**wanted),))  # type: ignore[arg-type]
    version = site.push()
    assert site.unmet(version) == ["EVALUATION"]
    site.measured(version, **measured)  # type: ignore[arg-type]
    assert site.unmet(version) == ([] if met else ["EVALUATION"])


def test_the_newest_measurement_counts(site: Site) -> None:
    gate(site, evaluations=(RequiredEvaluation(**ACCURACY),))  # type: ignore[arg-type]
    version = site.push()
    site.measured(version, accuracy=0.95, rows=9)
    site.measured(version, accuracy=0.5, rows=9)
    assert site.unmet(version) == ["EVALUATION"]


def test_every_variant_or_one(site: Site) -> None:
    version = site.push()
    site.add(version, "litert")
    site.measured(version, accuracy=0.95, rows=9)
    site.measured(version, "litert", accuracy=0.8, rows=9)
    gate(site, evaluations=(RequiredEvaluation(**ACCURACY),))  # type: ignore[arg-type]
    assert site.unmet(version) == []
    gate(site, evaluations=(RequiredEvaluation(**ACCURACY, every_variant=True),))  # type: ignore[arg-type]
    assert site.unmet(version) == ["EVALUATION"]


def test_a_regression_is_measured_against_what_is_there(site: Site) -> None:
    first, second = site.push(), site.push()
    site.measured(first, accuracy=0.95, rows=9)
    site.move(first)
    gate(site, evaluations=(RequiredEvaluation("accuracy", max_regression=0.01),))
    site.measured(second, accuracy=0.93, rows=9)
    assert site.unmet(second) == ["EVALUATION"]
    site.measured(second, accuracy=0.945, rows=9)
    assert site.unmet(second) == []


def test_signers_and_lineage(site: Site) -> None:
    signer = Signer("release")
    version = site.push()
    site.demand(signer_keys=(signer.known,), gates=(Gate(PRODUCTION, signers=("release",), lineage=True),))
    assert site.unmet(version) == ["SIGNATURE", "LINEAGE"]
    signed = [site.file()]
    other = site.push(lineage={"dataset_digests": ["sha256:1"]}, files=signed, bundles=[signer.sign(signed)])
    assert site.unmet(other) == []


def test_what_is_in_use_takes_only_what_can_be_loaded(site: Site) -> None:
    first, second = site.push(), site.push()
    site.move(first)
    site.limits.report_uses(site.store, [UseRow("p", "alias", "digits/production", "projects/p/deployments/d")])
    with pytest.raises(FailedPrecondition, match="projects/p/deployments/d") as refused:
        site.move(second)
    assert refused.value.metadata["kinds"] == "LOADABLE"
    assert site.unmet(second, "staging") == []
    site.add(second, "litert")
    site.checked(second, "litert")
    assert site.move(second).number == 2, "one variant that can be loaded is enough"


@pytest.mark.parametrize("state", ["reject", "deprecate"])
def test_what_was_put_away_gets_no_alias(site: Site, state: str) -> None:
    version = site.push()
    getattr(site.reviews, state)(site.store, BOB, version.scope, "it is biased")
    with pytest.raises(FailedPrecondition, match="it is biased"):
        site.move(version)


def test_what_an_alias_points_at_is_not_rejected(site: Site) -> None:
    version = site.push()
    site.move(version)
    with pytest.raises(FailedPrecondition) as refused:
        site.reviews.reject(site.store, BOB, version.scope, "")
    assert refused.value.reason == "VERSION_IN_USE"
    assert site.reviews.deprecate(site.store, BOB, version.scope, "old").state == "DEPRECATED"


MEANINGLESS: dict[str, dict[str, object]] = {
    "a gate for nothing": {"gates": (Gate(()),)},
    "an unknown role": {"gates": (Gate(PRODUCTION, approvals=(RequiredApprovals("king", 1),)),)},
    "no approval": {"gates": (Gate(PRODUCTION, approvals=(RequiredApprovals("", 0),)),)},
    "an unknown signer": {"gates": (Gate(PRODUCTION, signers=("nobody",)),)},
    "an evaluation without a bound": {"gates": (Gate(PRODUCTION, evaluations=(RequiredEvaluation("accuracy"),)),)},
    "signed by nobody": {"signing": "SIGNED"},
    "signed by somebody unknown": {"signing": "SIGNED_BY", "required_signers": ("x",)},
}


@pytest.mark.parametrize("case", MEANINGLESS)
def test_a_policy_that_nothing_could_meet_is_refused(site: Site, case: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        site.demand(**MEANINGLESS[case])
    assert refused.value.field.startswith("policy.")
