"""PolicyService: proto to plain, call the rules, plain to proto."""

from __future__ import annotations

from sealane.names import parse
from sealane.records.transactions import Transactions, actor
from sealane.registry.v1 import policy_service_pb2 as pb
from sealane.rpc.call import Call
from sealane_registry import policy, present_policy
from sealane_registry.catalog import check_etag
from sealane_registry.limits import Defaults, LimitRules
from sealane_registry.rows import QuotaRow
from sealane_registry.store import Store

_POLICY, _QUOTA = "projects/*/policy", "projects/*/storageQuota"


class PolicyServicer:
    """PolicyService."""

    def __init__(self, records: Transactions[Store], rules: LimitRules, defaults: Defaults) -> None:
        self._records = records
        self._rules = rules
        self._defaults = defaults

    async def GetPolicy(self, request: pb.GetPolicyRequest, call: Call) -> pb.Policy:
        (project,) = parse(request.name, _POLICY)
        return await self._records.read(lambda store: present_policy.policy(project, store.policy(project)))

    async def UpdatePolicy(self, request: pb.UpdatePolicyRequest, call: Call) -> bytes:
        (project,) = parse(request.name, _POLICY)
        who = actor(call, project)

        def update(store: Store) -> pb.Policy:
            row = store.policy(project)
            check_etag(request.policy.etag, row.etag, "policy")
            wanted = present_policy.changed(policy.from_json(row.content), request.policy, request.update_mask.paths)
            return present_policy.policy(project, self._rules.set_policy(store, who, wanted))

        return await self._records.once(call, request, request.request_id, update)

    async def GetStorageQuota(self, request: pb.GetStorageQuotaRequest, call: Call) -> pb.StorageQuota:
        (project,) = parse(request.name, _QUOTA)
        return await self._records.read(lambda store: self._quota(store, project))

    async def SetStorageQuota(self, request: pb.SetStorageQuotaRequest, call: Call) -> bytes:
        (project,) = parse(request.name, _QUOTA)
        who, wanted = actor(call, project), request.storage_quota
        row = QuotaRow(wanted.max_bytes, wanted.max_models, wanted.max_versions)

        def put(store: Store) -> pb.StorageQuota:
            self._rules.set_quota(store, who, row)
            return self._quota(store, project)

        return await self._records.once(call, request, request.request_id, put)

    def _quota(self, store: Store, project: str) -> pb.StorageQuota:
        pending = store.pending_bytes(project)
        return present_policy.quota(project, store.quota(project), store.usage(project), pending, self._defaults)
