"""Whether a version may have an alias. Pure: facts and a policy in, a list of conditions out, each with its remedy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sealane.security.alias_history import Check
from sealane_registry.policy import FIELDS, Gate, Policy, RequiredApprovals, RequiredEvaluation

_BLOCKING = {"REJECTED": "was rejected", "DEPRECATED": "is deprecated"}


@dataclass(frozen=True, slots=True)
class Measured:
    """One measurement: figures by name, and what they were taken on."""

    figures: Mapping[str, float]
    dataset: str = ""
    device_class: str = ""
    rows: int = 0
    by_job: bool = False


@dataclass(frozen=True, slots=True)
class VariantFacts:
    """What is known of a variant.

    Args:
        variant: its id.
        loadable: what came of loading it; None where nobody did.
        load_message: why it could not be loaded.
        measured: measurements, oldest first.
        signers: names of the policy's keys that signed it.
        blocked: why workers do not load it; empty where they do.
    """

    variant: str
    loadable: bool | None = None
    load_message: str = ""
    measured: tuple[Measured, ...] = ()
    signers: tuple[str, ...] = ()
    blocked: str = ""


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """What is known of a version.

    Args:
        version: ``digits@3``, for texts.
        state: its state.
        state_reason: why it is in it.
        publisher: who pushed it.
        approvals: approver and roles that the approval counts for.
        datasets: names and digests of what it was trained on.
        variants: its variants.
    """

    version: str
    state: str = "PUSHED"
    state_reason: str = ""
    publisher: str = ""
    approvals: tuple[tuple[str, tuple[str, ...]], ...] = ()
    datasets: tuple[str, ...] = ()
    variants: tuple[VariantFacts, ...] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked.

    Args:
        alias: alias that the version would get.
        facts: of the version.
        current: of the version that the alias points at; None for none.
        in_use: deployments that go by the alias.
    """

    alias: str
    facts: VersionFacts
    current: VersionFacts | None = None
    in_use: Sequence[str] = ()


def evaluate(policy: Policy, question: Question) -> list[Check]:
    """All conditions, met or not, in the order of the policy."""
    gates = [gate for gate in policy.gates if gate.is_for(question.alias)]
    checks = [_state(question.facts)]
    if question.in_use:
        checks.append(_loadable(question))
    for gate in gates:
        checks.extend(_gate(gate, question))
    return list(dict.fromkeys(checks))


def load_checks(facts: VersionFacts) -> Check:
    """Whether every variant was loaded once in a worker's box."""
    unknown = [item.variant for item in facts.variants if item.loadable is None]
    failed = [item for item in facts.variants if item.loadable is False]
    wanted = "every variant was loaded once in a worker's box"
    if failed:
        told = "; ".join(f"{item.variant} could not be loaded: {item.load_message}" for item in failed)
        return Check("LOAD_CHECK", False, wanted, told, "push a version that can be loaded")
    if unknown or not facts.variants:
        return Check(
            "LOAD_CHECK",
            False,
            wanted,
            f"nobody loaded {', '.join(unknown) or 'a variant'} yet",
            f"run 'sealane models load-check {facts.version}'",
        )
    loaded = tuple(item.variant for item in facts.variants)
    return Check("LOAD_CHECK", True, wanted, f"{len(loaded)} loaded", evidence=loaded)


def _state(facts: VersionFacts) -> Check:
    wanted = "the version is neither rejected nor deprecated"
    if facts.state in _BLOCKING:
        why = f": {facts.state_reason}" if facts.state_reason else ""
        return Check("STATE", False, wanted, f"it {_BLOCKING[facts.state]}{why}", "choose or push another version")
    return Check("STATE", True, wanted, facts.state.lower())


def _loadable(question: Question) -> Check:
    facts = question.facts
    users = ", ".join(question.in_use[:3])
    wanted = f"a variant can be loaded, since {users} goes by the alias"
    good = tuple(item.variant for item in facts.variants if item.loadable and not item.blocked)
    if good:
        return Check("LOADABLE", True, wanted, f"{', '.join(good)} can", evidence=good)
    told = "; ".join(
        f"{item.variant}: {item.blocked or item.load_message or 'nobody loaded it yet'}" for item in facts.variants
    )
    return Check("LOADABLE", False, wanted, told, f"run 'sealane models load-check {facts.version}'")


def _gate(gate: Gate, question: Question) -> Iterator[Check]:
    facts = question.facts
    if gate.load_check:
        yield load_checks(facts)
    for approvals in gate.approvals:
        yield _approvals(approvals, facts)
    for evaluation in gate.evaluations:
        yield _evaluation(evaluation, facts, question.current)
    for signer in gate.signers:
        yield _signer(signer, facts)
    if gate.lineage:
        yield _lineage(facts)


def _approvals(wanted: RequiredApprovals, facts: VersionFacts) -> Check:
    who = tuple(
        approver
        for approver, roles in facts.approvals
        if approver != facts.publisher and (not wanted.role or wanted.role in roles)
    )
    role = f" by somebody who is {wanted.role}" if wanted.role else ""
    text = f"{wanted.count} approval{'s' if wanted.count > 1 else ''}{role}, not by who pushed it"
    if len(who) >= wanted.count:
        return Check("APPROVAL", True, text, f"{len(who)} given", evidence=who)
    return Check(
        "APPROVAL", False, text, f"{len(who)} given", f"have it approved: 'sealane models approve {facts.version}'", who
    )


def _evaluation(wanted: RequiredEvaluation, facts: VersionFacts, current: VersionFacts | None) -> Check:
    text = _sentence(wanted)
    best: dict[str, float] = {}
    for item in facts.variants:
        found = _figure(wanted, item)
        if found is not None:
            best[item.variant] = found
    meeting = [name for name, value in best.items() if _meets(wanted, value, _before(wanted, current))]
    shown = tuple(f"{name} {wanted.metric}={value:g}" for name, value in sorted(best.items()))
    enough = len(meeting) == len(facts.variants) > 0 if wanted.every_variant else bool(meeting)
    if enough:
        return Check("EVALUATION", True, text, "; ".join(shown), evidence=shown)
    finding = "; ".join(shown) or "it was not measured so"
    before = _before(wanted, current)
    if before is not None and wanted.max_regression:
        finding += f"; {current.version if current else ''} has {before:g}"
    return Check(
        "EVALUATION", False, text, finding, "measure it again with an evaluate job, or push a better version", shown
    )


def _figure(wanted: RequiredEvaluation, item: VariantFacts) -> float | None:
    """The newest measurement that counts."""
    for measured in reversed(item.measured):
        fits = (
            wanted.metric in measured.figures
            and (not wanted.dataset or wanted.dataset == measured.dataset)
            and (not wanted.device_class or wanted.device_class == measured.device_class)
            and measured.rows >= wanted.min_rows
            and (measured.by_job or not wanted.by_job)
        )
        if fits:
            return measured.figures[wanted.metric]
    return None


def _before(wanted: RequiredEvaluation, current: VersionFacts | None) -> float | None:
    """The best figure of the version that the alias points at."""
    found = [_figure(wanted, item) for item in current.variants] if current is not None else []
    return max((value for value in found if value is not None), default=None)


def _meets(wanted: RequiredEvaluation, value: float, before: float | None) -> bool:
    # One row more or less is not decided by the last bit of a float.
    slack = 1e-9 * max(1.0, abs(value))
    return (
        (wanted.at_least is None or value >= wanted.at_least - slack)
        and (wanted.at_most is None or value <= wanted.at_most + slack)
        and (not wanted.max_regression or before is None or before - value <= wanted.max_regression + slack)
    )


def _sentence(wanted: RequiredEvaluation) -> str:
    bounds = [f">= {wanted.at_least:g}"] if wanted.at_least is not None else []
    bounds += [f"<= {wanted.at_most:g}"] if wanted.at_most is not None else []
    bounds += [f"at most {wanted.max_regression:g} below the version before"] if wanted.max_regression else []
    where = "".join(
        f" {word} {value}"
        for word, value in (
            ("on", wanted.dataset),
            ("on a", wanted.device_class),
            ("with rows >=", wanted.min_rows),
        )
        if value
    )
    whose = " of every variant" if wanted.every_variant else ""
    return f"{wanted.metric}{whose} {' and '.join(bounds)}{where}{', measured by a job' if wanted.by_job else ''}"


def _signer(signer: str, facts: VersionFacts) -> Check:
    text = f"every variant is signed with {signer}"
    missing = [item.variant for item in facts.variants if signer not in item.signers]
    if missing or not facts.variants:
        return Check(
            "SIGNATURE",
            False,
            text,
            f"not signed: {', '.join(missing)}",
            f"sign it: 'sealane models sign {facts.version} --key KEY.pem'",
        )
    return Check("SIGNATURE", True, text, "signed", evidence=tuple(item.variant for item in facts.variants))


def _lineage(facts: VersionFacts) -> Check:
    text = "the version names the datasets that it was trained on"
    if facts.datasets:
        return Check("LINEAGE", True, text, ", ".join(facts.datasets), evidence=facts.datasets)
    return Check("LINEAGE", False, text, "it names none", "push it with datasets (--dataset NAME)")


def figures_of(fields: Mapping[str, float], metrics: Mapping[str, float]) -> dict[str, float]:
    """Figures of a measurement by name; a field that is 0 was not measured."""
    return {**metrics, **{name: fields[name] for name in FIELDS if fields.get(name)}}
