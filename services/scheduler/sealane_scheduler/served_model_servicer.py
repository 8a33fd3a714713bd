"""ServedModelService. Translation only, and the caller's token verified again."""

from __future__ import annotations

import asyncio

from sealane import names
from sealane.clock import Clock
from sealane.errors import InvalidArgument, PermissionDenied
from sealane.records.tables import Actor
from sealane.rpc.call import Call, Identity
from sealane.scheduler.v1 import served_model_service_pb2 as pb
from sealane.security.keys import KeySet
from sealane.security.revocations import Revocations
from sealane.security.tokens import ISSUER, TokenVerifier, UnknownKey
from sealane_scheduler.served_models import MAX_VERSIONS, Change, ServedModels, Wanted, model_name

_AUDIENCE = "sealane-inference"
_PERMISSION = "deploy"
_ORIGINS = {
    pb.ApplyServedModelsRequest.ORIGIN_RELOAD_CONFIG: "reload-config",
    pb.ApplyServedModelsRequest.ORIGIN_REPOSITORY: "repository",
}
#: Deployments are called name-vN; together at most 63 characters.
_NAME_LENGTH = 52


class ServedModelServicer:
    """ServedModelService."""

    def __init__(self, rules: ServedModels, keys: KeySet, revocations: Revocations, clock: Clock) -> None:
        self._rules = rules
        self._clock = clock
        self._verifier = TokenVerifier(keys, issuer=ISSUER, audience=_AUDIENCE, clock=clock, revocations=revocations)

    async def ApplyServedModels(self, request: pb.ApplyServedModelsRequest, call: Call) -> pb.ApplyServedModelsResponse:
        """Bring about what a caller of a gateway asked for."""
        identity = await self._caller(request.access_token)
        origin = _ORIGINS.get(request.origin)
        if origin is None:
            raise InvalidArgument("the request names no origin; set it", field="origin")
        change = Change(
            project=identity.project,
            origin=origin,
            wanted=tuple(_wanted(identity.project, model) for model in request.models),
            replace_all=request.replace_all,
            remove=tuple(request.remove),
            may_deploy=lambda model: identity.may_use(_PERMISSION, model),
            actor=Actor(identity.subject, identity.project, request.request_id[:64]),
            deadline=self._clock.monotonic() + max(call.remaining - 1.0, 0.0),
        )
        deployments = await self._rules.apply(change)
        return pb.ApplyServedModelsResponse(deployments=deployments, revision=self._rules.revision)

    async def _caller(self, token: str) -> Identity:
        try:
            identity = self._verifier.verify(token)
        except UnknownKey:
            await asyncio.to_thread(self._verifier.keys.refresh)
            identity = self._verifier.verify(token)
        if _PERMISSION not in identity.scopes or not identity.project:
            raise PermissionDenied(
                f"the caller's token does not hold {_PERMISSION!r}; ask an admin for it", reason="SCOPE_MISSING"
            )
        return identity


def _wanted(project: str, model: pb.ServedModel) -> Wanted:
    if len(model.served_name) > _NAME_LENGTH:
        raise InvalidArgument(f"a name has at most {_NAME_LENGTH} characters", field="models.served_name")
    names.check_id(model.served_name, "models.served_name", label=True)
    count = len(model.versions) or model.latest or 1
    if not 1 <= count <= MAX_VERSIONS or len(set(model.versions)) < len(model.versions):
        raise InvalidArgument(f"serve from 1 to {MAX_VERSIONS} versions of a model, each once", field="models.versions")
    return Wanted(
        name=model.served_name,
        model=model_name(project, model.served_name, model.model),
        versions=tuple(model.versions),
        latest=model.latest or 1,
        labels={names.check_id(label, "models.labels"): number for label, number in model.labels.items()},
    )
