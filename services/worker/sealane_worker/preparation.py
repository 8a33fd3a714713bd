"""From an assignment of the scheduler to a model on this disk."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from sealane.errors import FailedPrecondition, InvalidArgument
from sealane.registry.v1 import variant_service_pb2 as registry
from sealane.scheduler.v1 import fleet_service_pb2
from sealane.security.sealing_policy import SealingPolicy
from sealane_worker.artifacts import Artifacts
from sealane_worker.cache import Blob, Cache, Held
from sealane_worker.deployment import Assignment
from sealane_worker.manifest import read_serving, read_warm_up
from sealane_worker.runtimes import RuntimeInfo, runtime_for
from sealane_worker.signers import Keys, check_signed
from sealane_worker.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Preparation:
    """Gets the files of assignments.

    Attributes:
        cache: where they come to lie.
        artifacts: where they come from.
        threads: processor threads for one inference.
        runtimes: runtimes that this worker offers, by name.
        facts: what auth says of this worker in its sealing statement; empty while it says nothing.
        trusted: keys of which one must have signed whatever is loaded here; empty where none has to.
    """

    cache: Cache
    artifacts: Artifacts
    threads: int
    runtimes: Mapping[str, RuntimeInfo]
    facts: Callable[[], Mapping[str, str]] = dict
    trusted: Keys = field(default_factory=dict)

    def check_policy(self, policy: SealingPolicy) -> None:
        """Whether a model may stay here. While auth says nothing of this worker it may: nothing sealed is opened then.

        Raises:
            FailedPrecondition: its owner forbids it (SEALING_POLICY).
        """
        if policy.refusal({}) and (facts := self.facts()):
            check_sealing([policy], lambda: facts)

    def fetch(self, variant: registry.Variant, project: str, grant: str) -> Held:
        """The folder of a variant that may be loaded here, fetched where it is not here yet, every file verified.

        Whoever asks gives it back.

        Raises:
            FailedPrecondition: not signed by whom it has to be (SIGNATURE_REQUIRED, SIGNER_NOT_TRUSTED), a digest that
                is not that of its files, or forbidden here by its owner.
            SealaneError: what the cache and the registry raise.
        """
        check_manifest(variant)
        check_signed(variant, self.trusted)
        source = self.artifacts.fetcher(project, grant)
        held = self.cache.hold(variant.digest.removeprefix("sha256:"), files_of(variant), source)
        with given_back_on_failure(held):
            self.check_policy(read_serving(held.path).sealing)
        return held

    def __call__(self, wanted: fleet_service_pb2.Assignment) -> Assignment:
        """Fetch and verify; raises what :meth:`fetch` raises."""
        model, _, version = wanted.model_version.rpartition("/versions/")
        variant, project = wanted.variant, project_of(wanted.deployment)
        runtime = runtime_for(
            registry.Format.Name(variant.format).removeprefix("FORMAT_"), self.runtimes, variant.runtime
        )
        held = self.fetch(variant, project, wanted.grant)
        with given_back_on_failure(held):
            serving, warm_up = read_serving(held.path), read_warm_up(held.path)
        return Assignment(
            deployment=wanted.deployment,
            model=model,
            version=int(version),
            variant=variant.name.rpartition("/")[2],
            digest=variant.digest,
            epoch=wanted.epoch,
            spec=ModelSpec(
                runtime=runtime.name,
                path=held.path,
                threads=self.threads,
                serving=serving,
                warm_up=warm_up,
                files=held,
            ),
            pinned=wanted.pinned,
            served_name=wanted.served_name,
            labels=tuple(wanted.labels),
        )


@contextlib.contextmanager
def given_back_on_failure(held: Held) -> Iterator[None]:
    """Give files back where what follows fails."""
    done = False
    try:
        yield
        done = True
    finally:
        if not done:
            held.give_back()


def check_sealing(policies: Iterable[SealingPolicy], facts: Callable[[], Mapping[str, str]]) -> None:
    """Whether this worker may open what is sealed to a deployment.

    The manifest says so, which the variant's digest covers: no scheduler can have it opened anywhere else.

    Args:
        policies: of the variants' manifests.
        facts: of this worker's statement.

    Raises:
        FailedPrecondition: it may not (SEALING_POLICY).
    """
    for policy in policies:
        if policy.refusal({}) and (refusal := policy.refusal(facts())):
            raise FailedPrecondition(f"the model's owner forbids this worker: {refusal}", reason="SEALING_POLICY")


def project_of(name: str) -> str:
    """The project of a resource name, ``projects/{project}/...``.

    Raises:
        InvalidArgument: it has none.
    """
    parts = name.split("/")
    if len(parts) < 4 or parts[0] != "projects" or not parts[1]:
        raise InvalidArgument(f"{name!r} is no resource of a project", reason="NAME_MALFORMED")
    return parts[1]


def files_of(variant: registry.Variant) -> dict[str, Blob]:
    """Path -> content of a variant's files."""
    return {file.path: Blob(file.sha256, file.size_bytes) for file in variant.files}


def check_manifest(variant: registry.Variant) -> None:
    """Refuse a variant whose digest is not that of its files: sealed calls are bound to that digest.

    Raises:
        FailedPrecondition: it is not.
    """
    if manifest_digest(variant.files) != variant.digest:
        raise FailedPrecondition(
            "the variant's digest is not that of its files; push it again", reason="MANIFEST_DIGEST_MISMATCH"
        )


def manifest_digest(files: Iterable[registry.ModelFile]) -> str:
    """``sha256:`` and the SHA-256 over the sorted lines ``sha256 size path``, as the registry makes it."""
    lines = sorted(f"{file.sha256} {file.size_bytes} {file.path}\n" for file in files)
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()
