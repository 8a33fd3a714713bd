"""What the project demands of its models, and what it may store."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from sealane.client.session import Session
from sealane.registry.v1 import policy_service_pb2 as pb
from sealane.registry.v1 import policy_service_pb2_grpc


class Policies:
    """The policy and the storage quota of a project."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self) -> pb.Policy:
        """The policy; one that was never set demands nothing."""
        request = pb.GetPolicyRequest(name=f"{self._session.parent}/policy")
        return self._stub().GetPolicy(request, timeout=self._session.timeout)

    def update(self, policy: pb.Policy, fields: Sequence[str] = ()) -> pb.Policy:
        """Change fields of the policy, all of them where none is named.

        Raises:
            Aborted: ``policy.etag`` is set and not the present one.
            InvalidArgument: it means nothing; the message names the field.
        """
        request = pb.UpdatePolicyRequest(
            name=f"{self._session.parent}/policy", policy=policy, request_id=str(uuid.uuid4())
        )
        request.update_mask.paths.extend(fields)
        return self._stub().UpdatePolicy(request, timeout=self._session.timeout)

    def storage(self, project: str = "") -> pb.StorageQuota:
        """What a project stores and may store; the own one by default."""
        request = pb.GetStorageQuotaRequest(name=self._quota_name(project))
        return self._stub().GetStorageQuota(request, timeout=self._session.timeout)

    def set_storage(
        self, *, max_bytes: int = 0, max_models: int = 0, max_versions: int = 0, project: str = ""
    ) -> pb.StorageQuota:
        """Set what a project may store; 0 is what the registry gives everybody. For admins of the platform."""
        quota = pb.StorageQuota(max_bytes=max_bytes, max_models=max_models, max_versions=max_versions)
        request = pb.SetStorageQuotaRequest(
            name=self._quota_name(project), storage_quota=quota, request_id=str(uuid.uuid4())
        )
        return self._stub().SetStorageQuota(request, timeout=self._session.timeout)

    def _quota_name(self, project: str) -> str:
        return f"projects/{project or self._session.project}/storageQuota"

    def _stub(self) -> policy_service_pb2_grpc.PolicyServiceStub:
        return policy_service_pb2_grpc.PolicyServiceStub(self._session.channel("registry"))
