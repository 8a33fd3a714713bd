"""Whether the caller may do it: the permission that the contract demands, in its own project, for this model."""

from __future__ import annotations

from google.protobuf.message import Message

from sealane.errors import InvalidArgument, NotFound, PermissionDenied
from sealane.rpc.call import Call, Identity
from sealane.rpc.middleware import Inward
from sealane.rpc.policy import not_served
from sealane.security.revocations import Revocations


class Authorise(Inward):
    """Whether the caller's token holds the permission that the contract demands.

    Args:
        revocations: methods of high risk are refused while they are not fresh; None demands nothing.
    """

    def __init__(self, revocations: Revocations | None = None) -> None:
        self._revocations = revocations

    def before(self, call: Call) -> None:
        """Refuse a caller without the permission; peers were matched by name already."""
        if not call.method.served:
            raise not_served(call.method.path)  # no permission is for what is not there
        access, identity = call.method.access, call.identity
        if call.method.public or identity is None or not identity.project:
            return
        if access.permission not in identity.scopes:
            raise PermissionDenied(
                f"{call.method.name} needs scope {access.permission!r}; ask an admin of {identity.project} for it",
                reason="SCOPE_MISSING",
                scope=access.permission,
            )
        if self._revocations is not None and access.high_risk:
            self._revocations.demand_fresh()


class Validate(Inward):
    """A caller acts inside its own project and limits; a foreign resource is answered as an absent one."""

    def before(self, call: Call) -> None:
        """Compare what the request names with what the token allows."""
        if call.message is not None:
            check_resource(call, call.message)


def check_resource(call: Call, message: Message) -> None:
    """Refuse a resource of another project or model than the caller's, with the answer of an absent one.

    Raises:
        NotFound: it is another's, or there is none.
        InvalidArgument: the field holds no resource name.
        PermissionDenied: the token is limited to some models, and the method is not about models.
    """
    access, identity = call.method.access, call.identity
    if identity is None or not identity.project:
        return
    name = ""
    if access.resource:
        name = getattr(message, access.resource)
        if not name.startswith("projects/"):
            raise InvalidArgument(
                f"{access.resource} {name!r} is no resource name; it starts with 'projects/'", field=access.resource
            )
        if name.split("/")[1] != identity.project:
            raise absent(name)
    if identity.models and access.permission in identity.models and not access.narrowed:
        _check_model(call, identity, _value(message, access.model) if access.model else name)


def absent(name: str) -> NotFound:
    """The one answer for what does not exist and for what is not the caller's."""
    return NotFound(f"{name} does not exist, or is not yours to see; check the name")


def check_model(identity: Identity, permission: str, model: str, name: str) -> None:
    """Refuse a model that the caller's token is not for, with the answer of an absent one: for rules behind a method.

    Raises:
        NotFound: so it is.
    """
    if not identity.may_use(permission, model):
        raise absent(name)


def model_id(name: str) -> str:
    """The id of a model in a resource name at or below it, or the id itself; empty where there is none."""
    if "/" not in name:
        return name
    parts = name.split("/")
    return parts[3] if len(parts) > 3 and parts[2] == "models" else ""


def _check_model(call: Call, identity: Identity, name: str) -> None:
    model = model_id(name)
    if not model:
        raise PermissionDenied(
            f"the token is limited to some models and {call.method.name} is about more; use one without limits",
            reason="MODEL_LIMITED",
        )
    check_model(identity, call.method.access.permission, model, name)


def _value(message: Message, path: tuple[str, ...]) -> str:
    value: object = message
    for part in path:
        value = getattr(value, part)
    return str(value)
