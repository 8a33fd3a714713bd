"""Models in the registry: push, pull, versions, variants, aliases."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypedDict, Unpack

from sealane.client import layout_transfers, layouts, model_companions, model_files, push_sources, references
from sealane.client.artifacts import Progress, no_progress
from sealane.client.layout_transfers import ExportedFolder, Imported
from sealane.client.model_files import LocalModel
from sealane.client.model_reviews import ModelReviews
from sealane.client.paging import pages
from sealane.errors import AlreadyExists, DataLoss, NotFound
from sealane.registry.v1 import model_service_pb2 as pb
from sealane.registry.v1 import variant_service_pb2, variant_service_pb2_grpc
from sealane.security import model_signing
from sealane.security.sealing_messages import message_of, policy_of
from sealane.security.sealing_policy import SealingPolicy, check
from sealane.tensors import Array, Signature


class PushOptions(TypedDict, total=False):
    """What may be said about a push; everything has a default."""

    variant: str
    """Id of the variant, such as ``litert-int8``; default: by the files."""
    example: object
    """One request: an array, a dict of arrays by input name, or a tuple with an array for each input. Recorded as
    `examples` are; an object in memory is held against it."""
    examples: Sequence[Mapping[str, Array]]
    """Requests, arrays by input name, that workers run before they call the model ready."""
    runtime: str
    """Runtime that has to run it, such as ``openvino``; default: whichever of a worker's reads the format."""
    signatures: Sequence[Signature]
    """What the model takes and gives; default: read from its files."""
    sealing: SealingPolicy
    """What is demanded of callers, and of workers that may open what is sealed; default: what ``sealane.json`` says."""
    alias: str
    """Alias to point at the new version."""
    description: str
    """What the model is for, when it is created."""
    commit: str
    """Commit of the training code."""
    dataset_digests: Sequence[str]
    """Digests of the training data."""
    metrics: Mapping[str, float]
    """Metrics measured in training."""
    datasets: Sequence[str]
    """Names of the registry's datasets that it was trained on."""
    source_version: str
    """Version that it was made from, such as ``digits@2``."""
    job: str
    """Job, or run elsewhere, that made it."""
    framework: tuple[str, str]
    """Framework that it was made with, and its version; default: that of an object in memory."""
    license: str
    """Licence, an SPDX expression."""
    labels: Mapping[str, str]
    """Labels of the version."""
    notes: str
    """What is new in the version."""
    sign_key: Path | bytes
    """Private key, PEM, or its file, to sign with: ECDSA on P-256, P-384 or P-521."""
    sign_password: bytes
    """Password of that key."""
    request_id: str
    """UUID that makes a repeat of this push safe across processes; default: a new one."""
    progress: Progress
    """Called with file name, bytes done and bytes in all."""


class Models(ModelReviews):
    """The models of the project."""

    def push(self, model: Path | str | object, name: str, **options: Unpack[PushOptions]) -> pb.Version:
        """Upload a model and make it the next version of `name`, which is created where it is not there.

        Files that the registry has are not sent again; a push that was cut goes on where it was. A model in memory is
        exported here and held against what it answers itself to `example`.

        Args:
            model: a path as in :func:`sealane.client.model_files.inspect`, or an object as in
                :func:`sealane.client.exports.export`.
            name: id of the model.
            options: see :class:`PushOptions`.

        Raises:
            InvalidArgument: no model at the path, or an object that cannot be exported.
            FailedPrecondition: the exported model answers otherwise than the object (EXPORT_DIFFERS).
            SealaneError: the registry refused, or is out of reach.
        """
        local, examples = push_sources.prepare(model, options)
        variant = self._upload(local, options.get("progress", no_progress), options.get("runtime", ""))
        self._demand(variant, local, options.get("sealing"))
        if examples:
            warm_up = model_companions.warm_up(examples, local.signatures)
            self._put(variant, model_companions.WARM_UP_FILE, warm_up)
        parent = references.resource(self._session.project, "models", name)
        self._ensure_model(parent, options.get("description", ""))
        there = pb.Version(
            signatures=model_files.to_proto(local.signatures),
            lineage=self._lineage(options, options.get("framework") or push_sources.framework_of(model)),
            license=options.get("license", ""),
            labels=dict(options.get("labels", {})),
            description=options.get("notes", ""),
        )
        request = pb.CreateVersionRequest(
            parent=parent,
            version=there,
            variant_id=local.variant,
            variant=variant,
            request_id=options.get("request_id") or str(uuid.uuid4()),
            bundles=_bundles(variant, name, options),
        )
        version = self._stub().CreateVersion(request, timeout=self._session.timeout)
        if alias := options.get("alias", ""):
            self.move_alias(name, alias, version.name)
        return version

    def add_variant(
        self,
        version: str,
        path: Path | str,
        *,
        variant: str = "",
        runtime: str = "",
        progress: Progress = no_progress,
    ) -> variant_service_pb2.Variant:
        """Add another form of the same function to a version.

        Args:
            version: ``digits@3``, ``digits@production`` or the full name.
            path: a SavedModel directory or a ``.tflite`` file with the signatures of the version.
            variant: its id; default: by the files.
            runtime: runtime that has to run it; default: whichever of a worker's reads the format.
            progress: called after every chunk.

        What the version's first variant demands of sealing holds for this one, unless its manifest says something else.
        """
        there = self.get_version(version)
        local = model_files.inspect(Path(path), variant=variant, signatures=model_files.from_proto(there.signatures))
        added = self._upload(local, progress, runtime)
        own = model_companions.manifest_of(local.files).HasField("sealing")
        demanded = next((item.sealing for item in there.variants if item.HasField("sealing")), None)
        self._demand(added, local, policy_of(demanded) if demanded is not None and not own else None)
        request = variant_service_pb2.CreateVariantRequest(
            parent=there.name,
            variant_id=local.variant,
            variant=added,
            request_id=str(uuid.uuid4()),
        )
        stub = variant_service_pb2_grpc.VariantServiceStub(self._session.channel("registry"))
        return stub.CreateVariant(request, timeout=self._session.timeout)

    def record_measurement(
        self, variant: str, measurement: variant_service_pb2.Measurement
    ) -> variant_service_pb2.Variant:
        """Add a measurement (accuracy, latency, utilisation on one class of device) to a variant.

        Args:
            variant: ``digits@3/litert-int8`` or the full name.
            measurement: what was measured.
        """
        request = variant_service_pb2.RecordMeasurementRequest(
            name=references.variant(self._session.project, variant),
            measurement=measurement,
            request_id=str(uuid.uuid4()),
        )
        stub = variant_service_pb2_grpc.VariantServiceStub(self._session.channel("registry"))
        return stub.RecordMeasurement(request, timeout=self._session.timeout)

    def pull(
        self, version: str, directory: Path | str, *, variant: str = "", progress: Progress = no_progress
    ) -> variant_service_pb2.Variant:
        """Fetch the files of a variant into `directory`; every digest is checked.

        Args:
            version: ``digits@3``, ``digits@production`` or the full name.
            directory: folder to write to; files of the same names are replaced.
            variant: id of the variant; default: the one that was pushed first.
            progress: called after every chunk.

        Raises:
            NotFound: no such version or variant.
            DataLoss: what arrived does not match its digest.
        """
        there = self.get_version(version)
        known = {references.last(item.name): item for item in there.variants}
        wanted = variant or next(iter(known), "")
        if wanted not in known:
            raise NotFound(
                f"{there.name} has no variant {wanted!r}; it has {sorted(known)}", reason="VARIANT_NOT_FOUND"
            )
        files = {Path(directory) / _safe(file.path): file.sha256 for file in known[wanted].files}
        self._artifacts.download_all(files, progress=progress)
        return known[wanted]

    def import_layout(
        self, path: Path | str, name: str, *, layout: str = "", versions: str = "", **options: Unpack[PushOptions]
    ) -> tuple[Imported, ...]:
        """Push what another system laid out, oldest version first, each as the next version of `name`.

        Args:
            path: a model folder of MLflow, a ``base_path`` of TensorFlow Serving, or a model of a Triton repository.
            name: id of the model.
            layout: ``mlflow``, ``tensorflow-serving`` or ``triton``; default: by what lies in the folder.
            versions: ``latest``, ``all`` or a number; default: as the layout says, mostly the latest.
            options: see :class:`PushOptions`; what the folder says itself is added to them.

        Raises:
            InvalidArgument: no such layout, or one with what cannot be served; the message says what to do.
        """
        found = layouts.read(Path(path), layout, versions)
        return layout_transfers.import_all(lambda model, more: self.push(model, name, **more), found, options)

    def export_layout(
        self, version: str, directory: Path | str, *, layout: str, variant: str = "", name: str = ""
    ) -> ExportedFolder:
        """Write a version as another server wants it.

        Args:
            version: as in :meth:`pull`.
            directory: where; ``tensorflow-serving`` gets ``directory/NUMBER``, ``triton`` ``directory/NAME``.
            layout: ``tensorflow-serving`` or ``triton``.
            variant: id of the variant; default: the one that was pushed first.
            name: what that server calls the model; default: as here.

        Raises:
            FailedPrecondition: the layout cannot hold this variant (LAYOUT_CANNOT_HOLD); the message says what.
        """
        return layout_transfers.export(self, version, Path(directory), layout, (variant, name))

    def get(self, name: str) -> pb.Model:
        """A model."""
        request = pb.GetModelRequest(name=references.resource(self._session.project, "models", name))
        return self._stub().GetModel(request, timeout=self._session.timeout)

    def list(self) -> Iterator[pb.Model]:
        """All models, by name."""

        def fetch(token: str) -> pb.ListModelsResponse:
            request = pb.ListModelsRequest(parent=self._session.parent, page_token=token)
            return self._stub().ListModels(request, timeout=self._session.timeout)

        return pages(fetch, lambda page: page.models)

    def get_version(self, version: str) -> pb.Version:
        """A version with its variants; `version` as in :meth:`pull`."""
        request = pb.GetVersionRequest(name=references.version(self._session.project, version))
        return self._stub().GetVersion(request, timeout=self._session.timeout)

    def versions(self, name: str) -> Iterator[pb.Version]:
        """The versions of a model, newest first."""
        parent = references.resource(self._session.project, "models", name)

        def fetch(token: str) -> pb.ListVersionsResponse:
            request = pb.ListVersionsRequest(parent=parent, page_token=token)
            return self._stub().ListVersions(request, timeout=self._session.timeout)

        return pages(fetch, lambda page: page.versions)

    def _lineage(self, options: PushOptions, framework: tuple[str, str]) -> pb.Lineage:
        source = options.get("source_version", "")
        return pb.Lineage(
            commit=options.get("commit", ""),
            dataset_digests=options.get("dataset_digests", ()),
            metrics=dict(options.get("metrics", {})),
            source_version=self._numbered(source) if source else "",
            job=options.get("job", ""),
            datasets=[
                references.resource(self._session.project, "datasets", name) for name in options.get("datasets", ())
            ],
            framework=framework[0],
            framework_version=framework[1],
        )

    def _ensure_model(self, name: str, description: str) -> None:
        try:
            self.get(name)
        except NotFound:
            request = pb.CreateModelRequest(
                parent=self._session.parent,
                model_id=references.last(name),
                model=pb.Model(description=description),
                request_id=str(uuid.uuid4()),
            )
            try:
                self._stub().CreateModel(request, timeout=self._session.timeout)
            except AlreadyExists:
                self.get(name)  # made by somebody else meanwhile: fine

    def _demand(self, variant: variant_service_pb2.Variant, local: LocalModel, policy: SealingPolicy | None) -> None:
        """What is demanded of sealing stands in the manifest, which the digest covers, and in the variant."""
        manifest = model_companions.manifest_of(local.files)
        if policy is not None:
            manifest.sealing.CopyFrom(message_of(check(policy)))
            self._put(variant, model_companions.MANIFEST_FILE, model_companions.manifest_file(manifest))
        if manifest.HasField("sealing"):
            variant.sealing.CopyFrom(manifest.sealing)

    def _put(self, variant: variant_service_pb2.Variant, path: str, content: bytes) -> None:
        """Add a file; it takes the place of one that lay beside the model."""
        others = [file for file in variant.files if file.path != path]
        added = variant_service_pb2.ModelFile(
            path=path, sha256=self._artifacts.upload(content), size_bytes=len(content)
        )
        del variant.files[:]
        variant.files.extend([*others, added])

    def _upload(self, local: LocalModel, progress: Progress, runtime: str) -> variant_service_pb2.Variant:
        digests = self._artifacts.upload_all(list(local.files.values()), progress=progress)
        files = [
            variant_service_pb2.ModelFile(path=inside, sha256=sha256, size_bytes=file.stat().st_size)
            for (inside, file), sha256 in zip(local.files.items(), digests, strict=True)
        ]
        return variant_service_pb2.Variant(format=local.format, precision=local.precision, files=files, runtime=runtime)


def _bundles(variant: variant_service_pb2.Variant, name: str, options: PushOptions) -> list[bytes]:
    key = options.get("sign_key")
    if key is None:
        return []
    pem = key if isinstance(key, bytes) else Path(key).read_bytes()
    private = model_signing.load_private_key(pem, options.get("sign_password"))
    return [model_signing.sign({file.path: file.sha256 for file in variant.files}, name, private)]


def _safe(path: str) -> Path:
    """A path from the registry, refused where it would leave the folder: the server is not trusted with that."""
    parts = path.split("/")
    if not path or "\\" in path or ":" in parts[0] or any(part in ("", ".", "..") for part in parts):
        raise DataLoss(f"the registry names a file {path!r}, which would leave its folder; do not use this variant")
    return Path(*parts)
