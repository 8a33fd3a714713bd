"""The rules about who may do what: role bindings, quotas, and that nobody gives what he does not hold."""

from __future__ import annotations

import secrets
from dataclasses import replace

from sealane.clock import Clock
from sealane.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from sealane.names import check_id, parse
from sealane.records.tables import Actor
from sealane.rpc.call import Quota
from sealane.security import permissions
from sealane.security.permissions import Bound, Grants
from sealane_auth.account_store import Account, Binding
from sealane_auth.store import Store

ACCOUNT = "projects/*/serviceAccounts/*"
_BINDINGS_PER_ACCOUNT = 32
_MAX_RATE = 1e12
_MAX_CONCURRENT = 2**31 - 1


def grants_of(store: Store, account: Account) -> Grants:
    """What an account may do now."""
    bindings = store.accounts.bindings(account.project, account.name)
    return permissions.grants_of((_bound(binding) for binding in bindings), account.scopes)


def account_of(store: Store, name: str, field: str = "name") -> Account:
    """An account by its resource name.

    Raises:
        NotFound: there is none, or it was deleted.
    """
    project, account_id = parse(name, ACCOUNT, field)
    found = store.accounts.account(project, account_id)
    if found is None or found.deleted:
        raise NotFound(f"{name} does not exist, or is not yours to see; check the name")
    return found


def demand(store: Store, actor: Actor, grants: Grants) -> None:
    """Refuse to let somebody give, or take hold of, what he does not hold himself.

    What counts is what his account holds now, not the scopes of the token in his hand: an administrator's token may
    well be narrowed to ``admin``.

    Raises:
        PermissionDenied: `grants` allow something that the actor's account does not.
    """
    parts = actor.subject.split("/")
    account = store.accounts.account(parts[1], parts[3]) if len(parts) == 4 and parts[2] == "serviceAccounts" else None
    held = grants_of(store, account) if account is not None and not account.deleted else Grants(frozenset(), {})
    if not grants.within(held):
        excess = " ".join(sorted(grants.scopes - held.scopes)) or "all models"
        raise PermissionDenied(
            f"this is about rights that your own account does not hold: {excess}; ask somebody who holds them",
            reason="RIGHTS_EXCEEDED",
        )


def demand_over(store: Store, actor: Actor, account: Account) -> None:
    """Refuse to change an account that may do more than the actor: its credential would be a way to its rights."""
    demand(store, actor, grants_of(store, account))


def is_platform_admin(store: Store, account: Account) -> bool:
    """Whether an account administers the platform."""
    return any(binding.member == account.name for binding in _platform_admins(store))


def demand_platform_admin(store: Store) -> None:
    """Refuse a change that left the platform without an administrator; call it after the change.

    Raises:
        FailedPrecondition: nobody is left.
    """
    if not _platform_admins(store):
        raise FailedPrecondition(
            "this is the last administrator of the platform; bind another account first", reason="LAST_ADMIN"
        )


class RightRules:
    """Role bindings and quotas."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def bind(self, store: Store, actor: Actor, member: str, bound: Bound) -> Binding:
        """Give a role to an account of the actor's project; a binding that is there already is returned.

        Raises:
            PermissionDenied: the actor does not hold all that it grants.
        """
        permissions.check(bound)
        check_prefix(bound.model_prefix, "role_binding.model_prefix")
        account = account_of(store, member, "role_binding.member")
        if account.project != actor.project:
            raise NotFound(f"{member} does not exist, or is not yours to see; check the name")
        demand(store, actor, permissions.grants_of([bound]))
        return self.add(store, actor, account, bound)

    def add(self, store: Store, actor: Actor, account: Account, bound: Bound) -> Binding:
        """Give a role, without asking who gives it."""
        present = store.accounts.bindings(account.project, account.name)
        for binding in present:
            if _bound(binding) == bound:
                return binding
        if len(present) >= _BINDINGS_PER_ACCOUNT:
            raise FailedPrecondition(f"{account.name} has {len(present)} role bindings already; delete some first")
        now = self._clock.now()
        binding = Binding(
            account.project,
            secrets.token_hex(8),
            account.name,
            bound.role,
            bound.model_prefix,
            bound.platform,
            now,
        )
        store.accounts.put_binding(binding)
        touch(store, account)
        store.record(
            actor,
            "CreateRoleBinding",
            f"projects/{binding.project}/roleBindings/{binding.binding_id}",
            now,
            member=account.name,
            role=bound.role,
            model_prefix=bound.model_prefix,
            platform=str(bound.platform).lower(),
        )
        return binding

    def unbind(self, store: Store, actor: Actor, project: str, binding_id: str) -> None:
        """Take a role away; the member's tokens, which say that it holds it, are revoked.

        Raises:
            NotFound: no such binding.
            FailedPrecondition: it is the last platform administrator's.
        """
        name = f"projects/{project}/roleBindings/{binding_id}"
        binding = store.accounts.delete_binding(project, binding_id)
        if binding is None:
            raise NotFound(f"{name} does not exist, or is not yours to see; check the name")
        demand(store, actor, permissions.grants_of([_bound(binding)]))
        if binding.platform and binding.role == "admin":
            demand_platform_admin(store)
        now = self._clock.now()
        store.revocations.revoke_subject(binding.member, now)
        touch(store, account_of(store, binding.member))
        store.record(actor, "DeleteRoleBinding", name, now, member=binding.member, role=binding.role)

    def quota(self, store: Store, name: str) -> Quota:
        """The quota of a project or an account; all zero where none is set.

        Raises:
            NotFound: no such project or account.
        """
        self._demand_named(store, name)
        return Quota(*(store.accounts.quota(name) or (0.0, 0, 0)))

    def set_quota(self, store: Store, actor: Actor, name: str, quota: Quota) -> Quota:
        """Set the quota of a project or an account."""
        rates = (quota.requests_per_second, quota.bytes_per_second)
        # `not (0 <= x)` refuses NaN as well.
        if not all(0 <= rate <= _MAX_RATE for rate in rates) or not 0 <= quota.concurrent_requests <= _MAX_CONCURRENT:
            raise InvalidArgument("a quota is a number from 0, which is without limit, to 1e12", field="quota")
        self._demand_named(store, name)
        values = (float(quota.requests_per_second), int(quota.bytes_per_second), quota.concurrent_requests)
        store.accounts.put_quota(name, values)
        store.record(actor, "UpdateQuota", name, self._clock.now(), quota=" ".join(map(str, values)))
        return Quota(*values)

    def _demand_named(self, store: Store, name: str) -> None:
        parts = name.split("/")
        if len(parts) == 2 and store.accounts.project(parse(name, "projects/*")[0]) is None:
            raise NotFound(f"{name} does not exist, or is not yours to see; check the name")
        if len(parts) != 2:
            account_of(store, name)


def quota_claim(store: Store, account: Account) -> tuple[Quota, Quota] | None:
    """The quotas that an account's tokens carry: its own and its project's; None where neither is set."""
    found = [store.accounts.quota(name) for name in (account.name, f"projects/{account.project}")]
    if not any(any(each) for each in found if each):
        return None
    own, project = (Quota(*(each or (0.0, 0, 0))) for each in found)
    return own, project


def touch(store: Store, account: Account) -> None:
    """Give an account a new etag, after a change of what belongs to it."""
    store.accounts.put_account(replace(account, etag=secrets.token_hex(8)))


def check_prefix(prefix: str, field: str) -> None:
    """Refuse a prefix that no model id can begin with.

    Raises:
        InvalidArgument: other characters than an id has, or too long.
    """
    if prefix:
        check_id(prefix, field)


def _platform_admins(store: Store) -> list[Binding]:
    return [binding for binding in store.accounts.platform_bindings() if binding.role == "admin"]


def _bound(binding: Binding) -> Bound:
    return Bound(binding.role, binding.model_prefix, binding.platform)
