"""Permissions, the roles that bundle them, and what a set of role bindings grants. Pure.

The contract says which permission a method demands (``sealane.type.v1.access``); a role binding says who holds which
role, where. A binding may be limited to models whose ids begin with a prefix: it then grants only what is about models,
and the token carries the prefixes (claim ``models``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sealane.errors import InvalidArgument

#: Permissions about models and what is made of them; these can be limited to some models.
MODEL_PERMISSIONS = frozenset(
    {
        *("models:read", "models:write", "models:approve"),
        *("infer", "deploy", "jobs:submit", "jobs:read", "jobs:cancel"),
    }
)
#: Permissions inside one project that are about no model.
PROJECT_PERMISSIONS = frozenset(
    {
        *("datasets:read", "datasets:write", "nodes:read", "reflect"),
        *("audit:read", "tokens:introspect", "admin"),
    }
)
#: Permissions over what belongs to no project: nodes and join tokens, signing keys, projects, the whole audit log.
PLATFORM_PERMISSIONS = frozenset({"fleet", "keys", "projects", "audit:export", "backup"})
PERMISSIONS = MODEL_PERMISSIONS | PROJECT_PERMISSIONS | PLATFORM_PERMISSIONS

_VIEWER = frozenset({"models:read", "datasets:read", "jobs:read", "nodes:read", "reflect"})
#: What each role may do inside its project.
ROLES: Mapping[str, frozenset[str]] = {
    "viewer": _VIEWER,
    "invoker": frozenset({"infer", "reflect"}),
    "publisher": _VIEWER | {"models:write", "datasets:write", "jobs:submit", "jobs:cancel"},
    # A version is loaded once before it is approved, which is a job.
    "approver": _VIEWER | {"models:approve", "jobs:submit"},
    "deployer": _VIEWER | {"deploy"},
    "operator": _VIEWER | {"deploy", "models:approve", "jobs:submit", "jobs:cancel", "tokens:introspect"},
    "auditor": _VIEWER | {"audit:read"},
    "admin": MODEL_PERMISSIONS | PROJECT_PERMISSIONS,
}
#: What a role may do beyond, where its binding is for the platform.
PLATFORM_ROLES: Mapping[str, frozenset[str]] = {
    "operator": frozenset({"fleet", "backup"}),
    "auditor": frozenset({"audit:export"}),
    "admin": PLATFORM_PERMISSIONS,
}
#: Roles that can be bound to some models.
MODEL_ROLES = frozenset({"viewer", "invoker", "publisher", "approver", "deployer"})


@dataclass(frozen=True, slots=True)
class Bound:
    """One role binding, as far as it says what is granted."""

    role: str
    model_prefix: str = ""
    platform: bool = False


@dataclass(frozen=True, slots=True)
class Grants:
    """What somebody may do.

    Args:
        scopes: permissions.
        models: for permissions limited to some models, the prefixes of their ids; a permission that is not here is not
            limited.
    """

    scopes: frozenset[str]
    models: Mapping[str, tuple[str, ...]]

    def within(self, other: Grants) -> bool:
        """Whether this allows nothing that `other` does not."""
        return self.scopes <= other.scopes and all(
            all(other.may(scope, prefix) for prefix in self.models.get(scope, ("",))) for scope in self.scopes
        )

    def may(self, permission: str, model: str) -> bool:
        """Whether `permission` is granted for a model id, or for all ids that begin so."""
        limits = self.models.get(permission)
        return permission in self.scopes and (limits is None or model.startswith(limits))


def roles_held(scopes: frozenset[str]) -> tuple[str, ...]:
    """Roles all of whose rights are among `scopes`, by name; what an approval counts for."""
    return tuple(sorted(role for role, rights in ROLES.items() if rights <= scopes))


def check(bound: Bound) -> None:
    """Refuse a binding that means nothing.

    Raises:
        InvalidArgument: an unknown role, a limit on a role that has none, a platform binding of a project's role.
    """
    if bound.role not in ROLES:
        raise InvalidArgument(f"role {bound.role!r} is unknown; use one of {sorted(ROLES)}", field="role")
    if bound.model_prefix and bound.role not in MODEL_ROLES:
        raise InvalidArgument(f"role {bound.role} cannot be limited to models", field="model_prefix")
    if bound.platform and bound.role not in PLATFORM_ROLES:
        raise InvalidArgument(f"role {bound.role} cannot be for the platform", field="platform")


def grants_of(bindings: Iterable[Bound], direct: Iterable[str] = ()) -> Grants:
    """What bindings, and scopes given directly, grant together: the widest of each permission."""
    free: set[str] = set(direct)
    limited: dict[str, set[str]] = {}
    for bound in bindings:
        allowed = ROLES[bound.role]
        if bound.platform:
            allowed |= PLATFORM_ROLES[bound.role]
        if not bound.model_prefix:
            free |= allowed
            continue
        for permission in allowed & MODEL_PERMISSIONS:
            limited.setdefault(permission, set()).add(bound.model_prefix)
    models = {name: _shortest(prefixes) for name, prefixes in limited.items() if name not in free}
    return Grants(frozenset(free | set(models)), models)


def narrowed(grants: Grants, scopes: Iterable[str], prefixes: Iterable[str] = ()) -> Grants:
    """The part of `grants` that `scopes` ask for, limited further to `prefixes` where there are any."""
    wanted, limits = frozenset(scopes), tuple(prefixes)
    models = {name: found for name, found in grants.models.items() if name in wanted}
    if limits:
        for name in wanted & MODEL_PERMISSIONS:
            models[name] = _overlap(models.get(name, ("",)), limits)
        wanted -= PROJECT_PERMISSIONS | PLATFORM_PERMISSIONS
        wanted -= {name for name, found in models.items() if not found}
        models = {name: found for name, found in models.items() if found}
    return Grants(wanted, models)


def _overlap(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    return _shortest({max(a, b, key=len) for a in one for b in other if a.startswith(b) or b.startswith(a)})


def _shortest(prefixes: set[str]) -> tuple[str, ...]:
    return tuple(
        sorted(each for each in prefixes if not any(each != other and each.startswith(other) for other in prefixes))
    )
