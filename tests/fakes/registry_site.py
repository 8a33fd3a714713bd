"""A project with models, for tests of rules: whatever a test does not say is sound."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence

from cryptography.hazmat.primitives.asymmetric import ec

from sealane.clock import ManualClock
from sealane.records.tables import Actor
from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane.registry.v1 import variant_service_pb2 as variant_pb
from sealane.security import model_signing
from sealane_registry.aliases import AliasRules
from sealane_registry.catalog import CatalogRules, File, NewVariant, NewVersion
from sealane_registry.datasets import DatasetRules
from sealane_registry.facts import SCHEDULER, facts_of
from sealane_registry.limits import Defaults, LimitRules
from sealane_registry.policy import Policy, SignerKey
from sealane_registry.reviews import ReviewRules
from sealane_registry.rows import AliasRow, Scope, VersionRow
from sealane_registry.signing import SignatureRules
from sealane_registry.store_sql import SqlStore

ADA, BOB, EVE = (Actor(f"projects/p/serviceAccounts/{name}", "p", "r-1") for name in ("ada", "bob", "eve"))
JOBS = Actor(SCHEDULER, "p")
FORMAT = variant_pb.FORMAT_ONNX


class Site:
    """Rules on one store; versions are pushed by Ada."""

    def __init__(self, store: SqlStore, defaults: Defaults | None = None) -> None:
        self.store, self.clock = store, ManualClock()
        self.catalog = CatalogRules(self.clock, defaults)
        self.aliases = AliasRules(self.clock, facts_of)
        self.reviews = ReviewRules(self.clock, facts_of)
        self.limits = LimitRules(self.clock)
        self.datasets = DatasetRules(self.clock)
        self.signatures = SignatureRules(self.clock)
        self._contents = itertools.count()

    def file(self, path: str = "model.onnx") -> File:
        """A new file that the project has."""
        content = f"content {next(self._contents)}".encode()
        sha256 = hashlib.sha256(content).hexdigest()
        self.store.add_artifact("p", sha256, len(content), self.clock.now())
        return File(path, sha256, len(content))

    def variant(self, name: str = "onnx", files: Sequence[File] = (), **more: object) -> NewVariant:
        """A variant as it is asked for."""
        files = files or [self.file()]
        content = variant_pb.Variant(
            format=FORMAT,
            files=[{"path": file.path, "sha256": file.sha256, "size_bytes": file.size} for file in files],
        )
        return NewVariant(name, files, content.SerializeToString(), **more)  # type: ignore[arg-type]

    def push(self, model: str = "digits", lineage: Mapping[str, object] | None = None, **variant: object) -> VersionRow:
        """A new version."""
        if self.store.model("p", model) is None:
            self.catalog.create_model(self.store, ADA, model, "")
        content = model_pb.Version(lineage=model_pb.Lineage(**(lineage or {})))  # type: ignore[arg-type]
        return self.catalog.create_version(
            self.store, ADA, model, NewVersion(content.SerializeToString()), self.variant(**variant)
        )

    def add(self, version: VersionRow, name: str, **variant: object) -> None:
        """One more variant of a version."""
        self.catalog.create_variant(self.store, ADA, version.scope, self.variant(name, **variant))

    def checked(self, version: VersionRow, variant: str = "onnx", message: str = "") -> None:
        """A worker loaded it, or could not."""
        check = variant_pb.LoadCheck(loadable=not message, message=message)
        place = Scope(version.project, version.model, version.number, variant)
        self.reviews.record_load_check(self.store, JOBS, place, check.SerializeToString(), loadable=check.loadable)

    def measured(
        self, version: VersionRow, variant: str = "onnx", recorder: str = ADA.subject, **fields: object
    ) -> None:
        """Somebody measured it."""
        message = variant_pb.Measurement(recorder=recorder, **fields)  # type: ignore[arg-type]
        place = Scope(version.project, version.model, version.number, variant)
        self.catalog.add_measurement(self.store, JOBS, place, message.SerializeToString())

    def demand(self, **fields: object) -> None:
        """Set the policy."""
        self.limits.set_policy(self.store, ADA, Policy(**fields))  # type: ignore[arg-type]

    def move(self, version: VersionRow, alias: str = "production", etag: str | None = None) -> AliasRow:
        """Point an alias at a version."""
        scope = Scope(version.project, version.model, version.number, alias)
        present = self.store.alias(scope)
        seen = "" if present is None or present.number == 0 else present.etag
        return self.aliases.move(self.store, BOB, scope, seen if etag is None else etag)

    def unmet(self, version: VersionRow, alias: str = "production") -> list[str]:
        """Kinds of the conditions that are not met."""
        scope = Scope(version.project, version.model, version.number, alias)
        return [item.kind for item in self.aliases.explain(self.store, scope).checks if not item.passed]


class Signer:
    """Somebody with a key."""

    def __init__(self, name: str) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        public = self.key.public_key()
        self.known = SignerKey(name, model_signing.pem_of(public).decode(), model_signing.key_id_of(public))

    def sign(self, files: Sequence[File]) -> bytes:
        """A bundle over files."""
        return model_signing.sign({file.path: file.sha256 for file in files}, "m", self.key)
