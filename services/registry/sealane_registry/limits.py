"""The rules about what a project demands and may store: its policy and its quota, and what is in use."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sealane.clock import Clock
from sealane.errors import InvalidArgument, ResourceExhausted
from sealane.records.tables import Actor
from sealane_registry import policy
from sealane_registry.policy import Policy
from sealane_registry.rows import PolicyRow, QuotaRow, UseRow
from sealane_registry.store import Store

_MOST = 2**53


@dataclass(frozen=True, slots=True)
class Defaults:
    """What every project may store where its own quota says nothing; 0 is without limit."""

    max_bytes: int = 0
    max_models: int = 0
    max_versions: int = 0


class LimitRules:
    """What may be done to policies and quotas. Every method runs inside one transaction."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def set_policy(self, store: Store, actor: Actor, wanted: Policy) -> PolicyRow:
        """Set a project's policy.

        Raises:
            InvalidArgument: it means nothing.
        """
        row = PolicyRow(policy.to_json(policy.check(wanted)), secrets.token_hex(8), self._clock.now())
        store.put_policy(actor.project, row)
        store.record(actor, "UpdatePolicy", f"projects/{actor.project}/policy", row.update_time)
        return row

    def set_quota(self, store: Store, actor: Actor, row: QuotaRow) -> QuotaRow:
        """Set what a project may store.

        Raises:
            InvalidArgument: a negative limit.
        """
        if not all(0 <= value <= _MOST for value in (row.max_bytes, row.max_models, row.max_versions)):
            raise InvalidArgument("a limit is a number from 0; 0 is the default", field="storage_quota")
        store.put_quota(actor.project, row)
        now = self._clock.now()
        told = {"max_bytes": row.max_bytes, "max_models": row.max_models, "max_versions": row.max_versions}
        details = {name: str(value) for name, value in told.items()}
        store.record(actor, "SetStorageQuota", f"projects/{actor.project}/storageQuota", now, **details)
        return row

    def report_uses(self, store: Store, rows: Sequence[UseRow]) -> None:
        """Replace what deployments and jobs refer to."""
        store.put_uses(rows, self._clock.now())


def check_models(store: Store, project: str, defaults: Defaults) -> None:
    """Refuse one more model than the project may have.

    Raises:
        ResourceExhausted: so it is.
    """
    most = store.quota(project).max_models or defaults.max_models
    if most and store.usage(project).models >= most:
        raise _exhausted(f"the project has {most} models, as many as it may", "delete some")


def check_versions(store: Store, project: str, present: int, defaults: Defaults) -> None:
    """Refuse one more version than a model may have.

    Raises:
        ResourceExhausted: so it is.
    """
    most = store.quota(project).max_versions or defaults.max_versions
    if most and present >= most:
        raise _exhausted(f"the model has {most} versions, as many as it may", "begin a new model")


def check_bytes(store: Store, project: str, size: int, defaults: Defaults) -> None:
    """Refuse an upload that, with those under way, is more than the project may store.

    Raises:
        ResourceExhausted: so it is.
    """
    most = store.quota(project).max_bytes or defaults.max_bytes
    if not most:
        return
    held = store.usage(project).bytes + store.pending_bytes(project)
    if held + size > most:
        raise _exhausted(
            f"{size} bytes more than the {held} that the project stores or uploads would be over its {most}",
            "delete models that nobody uses",
        )


def _exhausted(what: str, remedy: str) -> ResourceExhausted:
    return ResourceExhausted(f"{what}; {remedy}, or ask for a larger quota", reason="STORAGE_QUOTA")
