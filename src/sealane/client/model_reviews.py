"""Changes to models, and what people say of versions: approve, reject, deprecate, sign."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from sealane.client import load_checks, references
from sealane.client.model_aliases import ModelAliases
from sealane.client.paging import pages
from sealane.errors import FailedPrecondition
from sealane.registry.v1 import model_service_pb2 as pb
from sealane.registry.v1 import signature_service_pb2, signature_service_pb2_grpc
from sealane.registry.v1 import variant_service_pb2 as variant_pb
from sealane.security import model_signing


class ModelReviews(ModelAliases):
    """Part of :class:`sealane.client.models.Models`."""

    def update(
        self, name: str, *, description: str | None = None, labels: Mapping[str, str] | None = None, etag: str = ""
    ) -> pb.Model:
        """Change what is given of a model.

        Raises:
            Aborted: `etag` is not the present one.
        """
        full = references.resource(self._session.project, "models", name)
        request = pb.UpdateModelRequest(name=full, model=pb.Model(etag=etag), request_id=str(uuid.uuid4()))
        if description is not None:
            request.model.description = description
            request.update_mask.paths.append("description")
        if labels is not None:
            request.model.labels.update(labels)
            request.update_mask.paths.append("labels")
        if not request.update_mask.paths:
            raise FailedPrecondition("there is nothing to change; give a description or labels")
        return self._stub().UpdateModel(request, timeout=self._session.timeout)

    def delete(self, name: str, *, etag: str = "") -> None:
        """Delete a model with its versions. Its name is never given out again.

        Raises:
            FailedPrecondition: a deployment or job uses it (reason MODEL_IN_USE).
        """
        request = pb.DeleteModelRequest(
            name=references.resource(self._session.project, "models", name), etag=etag, request_id=str(uuid.uuid4())
        )
        self._stub().DeleteModel(request, timeout=self._session.timeout)

    def find(self, filter_: str = "", order_by: str = "") -> Iterator[pb.Model]:
        """Models that a filter fits, such as ``labels.team = vision AND update_time > "2026-11-01"``."""

        def fetch(token: str) -> pb.ListModelsResponse:
            request = pb.ListModelsRequest(
                parent=self._session.parent, page_token=token, filter=filter_, order_by=order_by
            )
            return self._stub().ListModels(request, timeout=self._session.timeout)

        return pages(fetch, lambda page: page.models)

    def find_versions(self, name: str, filter_: str = "", order_by: str = "") -> Iterator[pb.Version]:
        """Versions of a model that a filter fits, such as ``state = APPROVED``."""
        parent = references.resource(self._session.project, "models", name)

        def fetch(token: str) -> pb.ListVersionsResponse:
            request = pb.ListVersionsRequest(parent=parent, page_token=token, filter=filter_, order_by=order_by)
            return self._stub().ListVersions(request, timeout=self._session.timeout)

        return pages(fetch, lambda page: page.versions)

    def load_check(self, version: str) -> pb.Version:
        """Have workers load every variant once that nobody loaded yet; returns the version with what came of it."""
        name = self._numbered(version)
        load_checks.ensure(self._session, name)
        return self._stub().GetVersion(pb.GetVersionRequest(name=name), timeout=self._session.timeout)

    def approve(self, version: str, comment: str = "", *, load_check: bool = True) -> pb.Version:
        """Approve a version; it counts for every role whose rights the caller holds.

        Args:
            version: ``digits@3`` or the full name.
            comment: what to say of it.
            load_check: have a worker load first what nobody loaded yet.

        Raises:
            FailedPrecondition: a variant could not be loaded (LOAD_FAILED), or the caller pushed it (OWN_VERSION).
        """
        request = pb.ApproveVersionRequest(name=self._numbered(version), comment=comment, request_id=str(uuid.uuid4()))
        try:
            return self._stub().ApproveVersion(request, timeout=self._session.timeout)
        except FailedPrecondition as error:
            if not load_check or error.reason != "NOT_LOAD_CHECKED":
                raise
        load_checks.ensure(self._session, request.name)
        request.request_id = str(uuid.uuid4())
        return self._stub().ApproveVersion(request, timeout=self._session.timeout)

    def reject(self, version: str, reason: str) -> pb.Version:
        """Refuse a version for good.

        Raises:
            FailedPrecondition: it is in use (reason VERSION_IN_USE).
        """
        request = pb.RejectVersionRequest(name=self._numbered(version), reason=reason, request_id=str(uuid.uuid4()))
        return self._stub().RejectVersion(request, timeout=self._session.timeout)

    def deprecate(self, version: str, reason: str) -> pb.Version:
        """Say that a version should not be used any more."""
        request = pb.DeprecateVersionRequest(name=self._numbered(version), reason=reason, request_id=str(uuid.uuid4()))
        return self._stub().DeprecateVersion(request, timeout=self._session.timeout)

    def sign(
        self, version: str, key: Path | bytes, *, password: bytes | None = None
    ) -> list[variant_pb.VariantSignature]:
        """Sign all variants of a version that is in the registry, or that one (``digits@3/onnx``).

        What is signed are the digests that the registry tells: pull and look at the files first where that matters.

        Args:
            version: the version or variant.
            key: private key, PEM, or its file: ECDSA on P-256, P-384 or P-521.
            password: of the key.

        Raises:
            FailedPrecondition: the project's policy does not know the key (reason SIGNER_UNKNOWN).
        """
        private = model_signing.load_private_key(key if isinstance(key, bytes) else key.read_bytes(), password)
        head, _, variant = (
            version.rpartition("/variants/") if version.startswith("projects/") else version.partition("/")
        )
        there = self._stub().GetVersion(
            pb.GetVersionRequest(name=references.version(self._session.project, head or version)),
            timeout=self._session.timeout,
        )
        added = []
        for item in there.variants:
            if not variant or references.last(item.name) == variant:
                files = {file.path: file.sha256 for file in item.files}
                added.append(self.attach_signature(item.name, model_signing.sign(files, item.name, private)))
        return added

    def attach_signature(self, variant: str, bundle: bytes) -> variant_pb.VariantSignature:
        """Add a model-signing bundle, made here or by the public tool, to a variant."""
        request = signature_service_pb2.AttachSignatureRequest(
            parent=references.variant(self._session.project, variant), bundle=bundle, request_id=str(uuid.uuid4())
        )
        return self._signatures().AttachSignature(request, timeout=self._session.timeout)

    def verify_signatures(self, variant: str) -> signature_service_pb2.VerifySignaturesResponse:
        """Have the registry read a variant's files again and verify all signatures by the policy's present keys."""
        request = signature_service_pb2.VerifySignaturesRequest(name=references.variant(self._session.project, variant))
        return self._signatures().VerifySignatures(request, timeout=max(self._session.timeout, 600.0))

    def _numbered(self, version: str) -> str:
        """Full name of a version by its number, also where an alias was given."""
        name = references.version(self._session.project, version)
        if references.last(name).isdigit():
            return name
        return self._stub().GetVersion(pb.GetVersionRequest(name=name), timeout=self._session.timeout).name

    def _signatures(self) -> signature_service_pb2_grpc.SignatureServiceStub:
        return signature_service_pb2_grpc.SignatureServiceStub(self._session.channel("registry"))
