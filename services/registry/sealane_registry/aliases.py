"""The rules about aliases: compare-and-set, gates, and a history to which every move is added."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

from sealane import names
from sealane.clock import Clock
from sealane.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound
from sealane.records.tables import Actor
from sealane.security.alias_history import GENESIS, Check, Move, evidence_text
from sealane_registry import gates, policy
from sealane_registry.gates import Question, VersionFacts
from sealane_registry.rows import AliasRow, MoveRow, Scope
from sealane_registry.store import Store

#: What is known of a version; it reads serialized content, which rules do not.
FactsOf = Callable[[Store, Scope], VersionFacts]


@dataclass(frozen=True, slots=True)
class Report:
    """Whether a version may have an alias."""

    scope: Scope
    checks: tuple[Check, ...]

    @property
    def promotable(self) -> bool:
        """Whether all conditions are met."""
        return all(check.passed for check in self.checks)


class AliasRules:
    """What may be done to aliases. Every method runs inside one transaction."""

    def __init__(self, clock: Clock, facts_of: FactsOf) -> None:
        self._clock = clock
        self._facts_of = facts_of

    def get(self, store: Store, scope: Scope) -> AliasRow:
        """An alias.

        Raises:
            NotFound: there is none.
        """
        row = store.alias(scope)
        if row is None or row.number == 0 or store.model(scope.project, scope.model) is None:
            raise NotFound(f"model {scope.model} has no version or alias {scope.name!r}; list its versions")
        return row

    def explain(self, store: Store, scope: Scope) -> Report:
        """Whether version ``scope.number`` may have the alias ``scope.name``."""
        names.check_id(scope.name, "alias", label=True)
        if store.version(replace(scope, name="")) is None:
            raise NotFound(f"model {scope.model} has no version {scope.number}; list its versions")
        present = store.alias(scope)
        current = None
        if present is not None and present.number not in (0, scope.number):
            current = self._facts_of(store, Scope(scope.project, scope.model, present.number))
        question = Question(
            scope.name,
            self._facts_of(store, replace(scope, name="")),
            current,
            store.holders(scope.project, "alias", f"{scope.model}/{scope.name}"),
        )
        demands = policy.from_json(store.policy(scope.project).content)
        return Report(scope, tuple(gates.evaluate(demands, question)))

    def move(self, store: Store, actor: Actor, scope: Scope, etag: str) -> AliasRow:
        """Point an alias at ``scope.number`` by compare-and-set on `etag`.

        Raises:
            NotFound: no such version.
            FailedPrecondition: the version does not pass the alias's gates (NOT_PROMOTABLE).
            Aborted: the alias was moved, or made, by somebody else.
        """
        report = self.explain(store, scope)
        # Who lost a race hears of that first: what he knew of the alias is old.
        self._check_etag(store, scope, etag)
        if not report.promotable:
            failed = [check for check in report.checks if not check.passed]
            told = "; ".join(f"{check.requirement}: {check.finding}; {check.remedy}" for check in failed[:3])
            raise FailedPrecondition(
                f"version {scope.number} of {scope.model} may not be {scope.name} yet: {told}",
                reason="NOT_PROMOTABLE",
                kinds=",".join(sorted({check.kind for check in failed})),
            )
        return self._put(store, actor, scope, etag, evidence_text(report.checks))

    def delete(self, store: Store, actor: Actor, scope: Scope, etag: str) -> None:
        """Take an alias away by compare-and-set on `etag`; its history stays.

        Raises:
            NotFound: there is none.
            FailedPrecondition: a deployment goes by it (ALIAS_IN_USE).
            Aborted: the alias was moved by somebody else.
        """
        self.get(store, scope)
        if not etag:
            raise InvalidArgument("etag is empty; read the alias and send its etag", field="etag")
        holders = store.holders(scope.project, "alias", f"{scope.model}/{scope.name}")
        if holders:
            raise FailedPrecondition(
                f"{', '.join(holders[:3])} goes by alias {scope.name}; change or delete that first",
                reason="ALIAS_IN_USE",
            )
        self._put(store, actor, replace(scope, number=0), etag, "")

    def as_of(self, store: Store, scope: Scope, time: float | None) -> MoveRow:
        """What an alias pointed at, at a time; now for None.

        Raises:
            NotFound: it did not exist then.
        """
        now = self._clock.now() if time is None else time
        # An alias may have moved ahead of a clock that was set back: now is never before its last move.
        row = store.move_as_of(scope, round(now * 1e6) if time is not None else 2**62)
        if row is None or store.model(scope.project, scope.model) is None:
            raise NotFound(f"alias {scope.name} of {scope.model} pointed at nothing at that time; list its moves")
        return row

    def _check_etag(self, store: Store, scope: Scope, etag: str) -> None:
        present = store.alias(scope)
        if etag != ("" if present is None or present.number == 0 else present.etag):
            raise _lost()

    def _put(self, store: Store, actor: Actor, scope: Scope, etag: str, evidence: str) -> AliasRow:
        before = store.alias(scope)
        now = self._clock.now()
        # Time never goes back in a history, whatever the clock does.
        now_us = max(round(now * 1e6), round(before.update_time * 1e6) if before else 0)
        name = f"projects/{scope.project}/models/{scope.model}/aliases/{scope.name}"
        move = Move(
            name,
            before.moves + 1 if before else 1,
            scope.number,
            before.number if before else 0,
            now_us,
            actor.subject,
            evidence,
            bytes.fromhex(before.head) if before and before.head else GENESIS,
        )
        row = AliasRow(
            scope.project,
            scope.model,
            scope.name,
            scope.number,
            now_us / 1e6,
            secrets.token_hex(8),
            move.sequence,
            move.hash.hex(),
        )
        if not store.put_alias(row, etag, _row(scope, move)):
            raise _lost()
        action = "MoveAlias" if scope.number else "DeleteAlias"
        details = {"version": str(scope.number), "previous": str(move.previous), "sequence": str(move.sequence)}
        store.record(actor, action, name, now, **details, hash=row.head)
        return row


def _row(scope: Scope, move: Move) -> MoveRow:
    return MoveRow(
        scope.project,
        scope.model,
        scope.name,
        move.sequence,
        move.number,
        move.previous,
        move.time_us,
        move.mover,
        move.evidence,
        move.previous_hash.hex(),
        move.hash.hex(),
    )


def _lost() -> Aborted:
    return Aborted("the alias has changed since it was read; read it again", reason="ETAG_MISMATCH")
