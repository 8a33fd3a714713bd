"""Has variants loaded once in a worker's box, where nobody did yet."""

from __future__ import annotations

from sealane.client import references
from sealane.client.artifacts import Artifacts
from sealane.client.jobs import Jobs
from sealane.client.session import Session
from sealane.registry.v1 import model_service_pb2 as pb
from sealane.registry.v1 import model_service_pb2_grpc
from sealane.registry.v1 import variant_service_pb2 as variant_pb

#: Reasons of a failed check that lie not in the variant's files: it is worth another try.
PASSING = frozenset(
    {"RUNTIME_ABSENT", "WORKER_ABSENT", "SIGNATURE_REQUIRED", "SIGNER_NOT_TRUSTED", "MODEL_LOAD_TIMEOUT"}
)


def ensure(session: Session, version: str, *, timeout: float | None = None) -> pb.Version:
    """The version, each variant of which was loaded once; a job does it for those that nobody loaded yet.

    A variant that can be loaded is not loaded again, nor one whose files are at fault.

    Args:
        session: of the client.
        version: ``digits@3``, ``digits@production`` or the full name.
        timeout: seconds to wait for the job; None waits until it has ended.

    Raises:
        PermissionDenied: the caller may not submit jobs, and one is needed.
        FailedPrecondition: the job did not succeed; that a variant cannot be loaded is no reason for that.
        DeadlineExceeded: it has not ended in `timeout`.
    """
    found = _version(session, references.version(session.project, version))
    left = [references.last(item.name) for item in found.variants if _is_open(item)]
    if not left:
        return found
    jobs = Jobs(session, Artifacts(session))
    jobs.wait(jobs.check(found.name, variants=left).name, timeout)
    return _version(session, found.name)


def _is_open(variant: variant_pb.Variant) -> bool:
    check = variant.load_check
    return not variant.HasField("load_check") or (not check.loadable and check.reason in PASSING)


def _version(session: Session, name: str) -> pb.Version:
    stub = model_service_pb2_grpc.ModelServiceStub(session.channel("registry"))
    return stub.GetVersion(pb.GetVersionRequest(name=name), timeout=session.timeout)
