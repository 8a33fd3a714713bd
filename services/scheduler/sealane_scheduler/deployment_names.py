"""Which deployments and versions a caller may name; a foreign one is answered as an absent one."""

from __future__ import annotations

from sealane import names
from sealane.errors import NotFound
from sealane.rpc.authorisation import model_id
from sealane.rpc.call import Call
from sealane_scheduler.cluster import Deployed
from sealane_scheduler.controller import Controller
from sealane_scheduler.ensembles import Chained

_NAME = "projects/*/deployments/*"
_VERSION = "projects/*/models/*/versions/*"


def may_see(call: Call, model_version: str) -> bool:
    """Whether the caller's token, if it is limited to some models, is for this one."""
    return call.caller.may_use(call.method.access.permission, model_id(model_version))


def may_see_chain(call: Call, chained: Chained) -> bool:
    """Whether the caller's token, if it is limited to some models, is for all models of a chain."""
    return all(call.caller.may_use(call.method.access.permission, model) for model in chained.message.models)


def find(controller: Controller, call: Call, name: str, field: str = "name") -> Deployed:
    """A deployment that the caller may see.

    Raises:
        NotFound: there is none of that name, or it is not the caller's.
    """
    names.parse(name, _NAME, field)
    item = controller.get(name)
    if item is None or not may_see(call, item.row.model_version):
        raise NotFound(f"{name} does not exist, or is not yours to see; list them with 'sealane deployments list'")
    return item


def check_version(name: str, project: str) -> None:
    """Refuse the version of another project, as one that is not there."""
    owner, *_ = names.parse(name, _VERSION, "model_version")
    if owner != project:
        raise NotFound(f"{name} does not exist, or is not yours to see; check the name")
