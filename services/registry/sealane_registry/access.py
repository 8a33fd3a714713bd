"""Who may read and store which files: nodes by the scheduler's grant, limited tokens by the models that hold them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sealane.errors import NotFound, PermissionDenied
from sealane.rpc.call import Call
from sealane.security.work_grants import METADATA, WorkGrant, WorkGrants
from sealane_registry import present
from sealane_registry.places import variant_scope
from sealane_registry.store import Store


class Access:
    """The rules.

    Args:
        grants: verifies what nodes show.
    """

    def __init__(self, grants: WorkGrants) -> None:
        self._grants = grants

    def check_upload(self, call: Call, project: str) -> None:
        """Refuse a node that has no work of this project whose results it could store.

        Raises:
            PermissionDenied: so it is.
        """
        if call.peer.kind == "node" and not call.caller.project:
            grant = self._grant(call, project)
            if not grant.upload:
                raise PermissionDenied("the grant is not for storing files", reason="WORK_GRANT_REFUSED")

    def check_download(self, store: Store, call: Call, project: str, sha256: str) -> None:
        """Refuse a file that is not of the node's work, or of no model that a limited token is for.

        Raises:
            PermissionDenied: a node without a grant of this project.
            NotFound: the file is not for the caller to see.
        """
        if call.peer.kind == "node" and not call.caller.project:
            grant = self._grant(call, project)
            allowed = sha256 in grant.digests or _is_file_of(store, grant, sha256)
        elif "models:read" in call.caller.models:
            allowed = any(
                call.caller.may_use("models:read", model) for model in store.models_with_file(project, sha256)
            )
        else:
            allowed = True
        if not allowed:
            raise NotFound(f"artifact {sha256} does not exist; upload it first")

    def _grant(self, call: Call, project: str) -> WorkGrant:
        grant = self._grants.verify(call.metadata.get(METADATA, ""), call.peer.node)
        if grant.project != project:
            raise PermissionDenied("the grant is for another project", reason="WORK_GRANT_REFUSED")
        return grant


def check_files(store: Store, call: Call, project: str, digests: Iterable[str]) -> None:
    """Refuse files of models that a limited token is not for: in a version of its own it could read them.

    Raises:
        NotFound: so it is.
    """
    if "models:write" not in call.caller.models:
        return
    for sha256 in digests:
        models = store.models_with_file(project, sha256)
        if models and not any(call.caller.may_use("models:write", model) for model in models):
            raise NotFound(f"artifact {sha256} does not exist; upload it first")


def _is_file_of(store: Store, grant: WorkGrant, sha256: str) -> bool:
    if not grant.variant:
        return False
    scope = variant_scope(grant.variant)
    version = replace(scope, name="")
    rows = [row for row in store.variants([version])[version] if row.variant == scope.name]
    return any(file.sha256 == sha256 for row in rows for file in present.files(row))
