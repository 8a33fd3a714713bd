"""The rules about a version's state: approve, reject, deprecate, and what came of loading its variants."""

from __future__ import annotations

from dataclasses import replace

from sealane.clock import Clock
from sealane.errors import FailedPrecondition, InvalidArgument, NotFound
from sealane.records.tables import Actor
from sealane_registry import gates
from sealane_registry.aliases import FactsOf
from sealane_registry.rows import ApprovalRow, Scope, VersionRow
from sealane_registry.store import Store

MAX_COMMENT = 2000


class ReviewRules:
    """What may be said of a version. Every method runs inside one transaction."""

    def __init__(self, clock: Clock, facts_of: FactsOf) -> None:
        self._clock = clock
        self._facts_of = facts_of

    def approve(self, store: Store, actor: Actor, scope: Scope, roles: tuple[str, ...], comment: str) -> VersionRow:
        """Add the actor's approval, which counts for these roles.

        Raises:
            NotFound: no such version.
            FailedPrecondition: rejected (VERSION_REJECTED), pushed by the actor (OWN_VERSION), or with a variant that
                was not loaded (NOT_LOAD_CHECKED) or could not be (LOAD_FAILED).
        """
        row = self._version(store, scope, comment, "comment")
        if row.state == "REJECTED":
            raise FailedPrecondition(
                f"version {row.number} was rejected: {row.state_reason}; push another one", reason="VERSION_REJECTED"
            )
        if actor.subject == row.publisher:
            raise FailedPrecondition(
                "who pushed a version does not approve it; ask somebody else", reason="OWN_VERSION"
            )
        facts = self._facts_of(store, scope)
        loaded = gates.load_checks(facts)
        if not loaded.passed:
            failed = any(item.loadable is False for item in facts.variants)
            raise FailedPrecondition(
                f"{loaded.finding}; {loaded.remedy}", reason="LOAD_FAILED" if failed else "NOT_LOAD_CHECKED"
            )
        now = self._clock.now()
        store.add_approval(scope, ApprovalRow(actor.subject, roles, comment, now))
        if row.state == "PUSHED":
            store.put_state(scope, "APPROVED", "")
        store.record(actor, "ApproveVersion", row.name, now, roles=" ".join(roles))
        return self._version(store, scope)

    def reject(self, store: Store, actor: Actor, scope: Scope, reason: str) -> VersionRow:
        """Refuse a version for good.

        Raises:
            NotFound: no such version.
            FailedPrecondition: an alias points at it, or it is deployed (VERSION_IN_USE).
        """
        row = self._version(store, scope, reason, "reason")
        pointing = [item.alias for item in store.aliases(scope.project, scope.model) if item.number == scope.number]
        holders = store.holders(scope.project, "version", f"{scope.model}/{scope.number}")
        if pointing or holders:
            raise FailedPrecondition(
                f"version {row.number} is in use by {', '.join([*pointing, *holders][:3])}; move that first",
                reason="VERSION_IN_USE",
            )
        return self._end(store, actor, row, "REJECTED", reason)

    def deprecate(self, store: Store, actor: Actor, scope: Scope, reason: str) -> VersionRow:
        """Say that a version should not be used any more; one that was rejected stays so.

        Raises:
            NotFound: no such version.
        """
        row = self._version(store, scope, reason, "reason")
        return row if row.state == "REJECTED" else self._end(store, actor, row, "DEPRECATED", reason)

    def record_load_check(self, store: Store, actor: Actor, scope: Scope, content: bytes, *, loadable: bool) -> None:
        """Keep what came of loading a variant.

        Raises:
            NotFound: no such variant.
        """
        place = replace(scope, name="")
        if store.version(place) is None or not any(
            item.variant == scope.name for item in store.variants([place])[place]
        ):
            raise NotFound(f"version {scope.number} of {scope.model} has no variant {scope.name!r}; list its variants")
        store.put_load_check(scope, content)
        name = f"projects/{scope.project}/models/{scope.model}/versions/{scope.number}/variants/{scope.name}"
        store.record(actor, "RecordLoadCheck", name, self._clock.now(), loadable=str(loadable).lower())

    def _end(self, store: Store, actor: Actor, row: VersionRow, state: str, reason: str) -> VersionRow:
        store.put_state(row.scope, state, reason)
        action = "RejectVersion" if state == "REJECTED" else "DeprecateVersion"
        store.record(actor, action, row.name, self._clock.now())
        return self._version(store, row.scope)

    def _version(self, store: Store, scope: Scope, text: str = "", field: str = "") -> VersionRow:
        if len(text) > MAX_COMMENT:
            raise InvalidArgument(f"{field} has more than {MAX_COMMENT} characters; shorten it", field=field)
        row = store.version(scope)
        if row is None:
            raise NotFound(f"model {scope.model} has no version {scope.number}; list its versions")
        return row
