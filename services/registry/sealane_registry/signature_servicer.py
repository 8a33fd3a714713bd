"""SignatureService: proto to plain, call the rules, plain to proto."""

from __future__ import annotations

from sealane.errors import SealaneError
from sealane.records import listing
from sealane.records.listing import TEXT, TIME, Fields
from sealane.records.transactions import Transactions, actor
from sealane.registry.v1 import signature_service_pb2 as pb
from sealane.registry.v1 import variant_service_pb2 as variant_pb
from sealane.rpc.call import Call
from sealane_registry import policy, present, signing
from sealane_registry.catalog import CatalogRules
from sealane_registry.inspector import Inspector
from sealane_registry.places import variant_scope
from sealane_registry.rows import Scope, VariantRow
from sealane_registry.signing import SignatureRules
from sealane_registry.store import Store

SIGNATURES = Fields({"key_id": TEXT, "key_name": TEXT, "create_time": TIME}, ("create_time",))


class SignatureServicer:
    """SignatureService."""

    def __init__(
        self, records: Transactions[Store], rules: SignatureRules, catalog: CatalogRules, inspector: Inspector
    ) -> None:
        self._records = records
        self._rules = rules
        self._catalog = catalog
        self._inspector = inspector

    async def AttachSignature(self, request: pb.AttachSignatureRequest, call: Call) -> bytes:
        scope = variant_scope(request.parent, "parent")
        who = actor(call, scope.project)

        def attach(store: Store) -> variant_pb.VariantSignature:
            row = self._catalog.get_variant(store, scope)
            added = self._rules.attach(store, who, row, request.bundle, _files(row))
            return next(item for item in self._signatures(store, scope) if item.key_id == added.key_id)

        return await self._records.once(call, request, request.request_id, attach)

    async def ListSignatures(self, request: pb.ListSignaturesRequest, call: Call) -> pb.ListSignaturesResponse:
        scope = variant_scope(request.parent, "parent")
        asked = listing.read(SIGNATURES, request)
        found = await self._records.read(lambda store: self._signatures(store, scope))
        values = [
            (
                {
                    "key_id": item.key_id,
                    "key_name": item.key_name,
                    "create_time": item.create_time.ToNanoseconds() / 1e9,
                },
                item.key_id,
            )
            for item in found
        ]
        chosen, token = listing.page_in_memory(asked, values)
        return pb.ListSignaturesResponse(signatures=[found[place] for place in chosen], next_page_token=token)

    async def VerifySignatures(self, request: pb.VerifySignaturesRequest, call: Call) -> pb.VerifySignaturesResponse:
        scope = variant_scope(request.name)
        row, files, demands = await self._records.read(
            lambda store: (
                found := self._catalog.get_variant(store, scope),
                _files(found),
                policy.from_json(store.policy(scope.project).content),
            )
        )
        corrupt = []
        for path, sha256 in sorted(files.items()):
            try:
                await self._inspector.verify(sha256)
            except SealaneError:
                corrupt.append(path)
        answer = pb.VerifySignaturesResponse(corrupt_files=corrupt)
        for verdict in signing.verdicts(demands, row, files):
            valid = not verdict.reason and not corrupt
            why = verdict.reason or ("files no longer match their digests" if corrupt else "")
            answer.verdicts.add(key_id=verdict.key_id, key_name=verdict.key_name, valid=valid, reason=why)
        good = [item.key_id for item in answer.verdicts if item.valid]
        answer.satisfied = not corrupt and not demands.unsigned_reason(good)
        return answer

    def _signatures(self, store: Store, scope: Scope) -> list[variant_pb.VariantSignature]:
        row = self._catalog.get_variant(store, scope)
        demands = policy.from_json(store.policy(scope.project).content)
        return list(present.variant(row, demands).signatures)


def _files(row: VariantRow) -> dict[str, str]:
    return {file.path: file.sha256 for file in present.files(row)}
