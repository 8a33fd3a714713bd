"""Who must have signed a model before it is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from sealane.errors import FailedPrecondition, InvalidArgument
from sealane.registry.v1 import variant_service_pb2 as registry
from sealane.scheduler.v1 import fleet_service_pb2 as pb
from sealane.security.model_signing import key_id_of, pem_of, sign
from sealane_worker.artifacts import Artifacts
from sealane_worker.cache import ArtifactCache, Blob, Fetch
from sealane_worker.optimise_task import OptimiseWork
from sealane_worker.preparation import Preparation, manifest_digest
from sealane_worker.runner import Progress
from sealane_worker.runtimes import installed_runtimes
from sealane_worker.signers import check_signed, trusted_keys

OURS, OTHER = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
CONTENT = b"a model"


def variant(signer: ec.EllipticCurvePrivateKey | None = OURS, *, demanded: bool = True) -> registry.Variant:
    """A variant of one file, signed by `signer`; the project demands OURS."""
    file = registry.ModelFile(path="model.tflite", sha256=hashlib.sha256(CONTENT).hexdigest(), size_bytes=len(CONTENT))
    made = registry.Variant(name="projects/p/models/m/versions/1/variants/v", format=registry.FORMAT_LITERT)
    made.files.append(file)
    made.digest = manifest_digest(made.files)
    if signer is not None:
        made.signatures.add(bundle=sign({file.path: file.sha256}, "m", signer))
    if demanded:
        made.signer_keys.append(pem_of(OURS.public_key()))
    return made


def test_a_signature_of_a_demanded_key_is_enough() -> None:
    check_signed(variant(), {})
    both = variant(OTHER)
    both.signatures.extend(variant(OURS).signatures)
    check_signed(both, {})


def test_nothing_is_demanded_by_default() -> None:
    check_signed(variant(None, demanded=False), {})


def _flipped() -> registry.Variant:
    made = variant()
    digest = made.files[0].sha256
    made.files[0].sha256 = f"{int(digest[0], 16) ^ 1:x}{digest[1:]}"
    return made


def _one_more_file() -> registry.Variant:
    made = variant()
    made.files.add(path="extra.bin", sha256="0" * 64, size_bytes=1)
    return made


def _renamed() -> registry.Variant:
    made = variant()
    made.files[0].path = "other.tflite"
    return made


def _broken() -> registry.Variant:
    made = variant(None)
    made.signatures.add(bundle=b"{}")
    return made


BAD = {
    "a flipped bit in a digest": _flipped,
    "another key": lambda: variant(OTHER),
    "no bundle": lambda: variant(None),
    "one more file": _one_more_file,
    "another name": _renamed,
    "no bundle at all": _broken,
}


@pytest.mark.parametrize("make", BAD.values(), ids=BAD)
def test_anything_else_is_refused_by_the_project(make: object) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        check_signed(make(), {})  # type: ignore[operator]
    assert caught.value.reason == "SIGNATURE_REQUIRED"


@pytest.mark.parametrize("make", BAD.values(), ids=BAD)
def test_anything_else_is_refused_by_the_operator_whatever_the_registry_demands(make: object) -> None:
    made: registry.Variant = make()  # type: ignore[operator]
    del made.signer_keys[:]
    with pytest.raises(FailedPrecondition) as caught:
        check_signed(made, {key_id_of(OURS.public_key()): OURS.public_key()})
    assert caught.value.reason == "SIGNER_NOT_TRUSTED"


def test_the_projects_keys_are_not_the_operators() -> None:
    with pytest.raises(FailedPrecondition) as caught:
        check_signed(variant(), {key_id_of(OTHER.public_key()): OTHER.public_key()})
    assert caught.value.reason == "SIGNER_NOT_TRUSTED"


def test_the_operators_folder_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    assert trusted_keys(None) == {}
    for unfit in (tmp_path / "absent", tmp_path):
        with pytest.raises(InvalidArgument) as caught:
            trusted_keys(unfit)
        assert caught.value.reason == "SETTING_INVALID"
    (tmp_path / "a.pem").write_bytes(pem_of(OURS.public_key()))
    assert list(trusted_keys(tmp_path)) == [key_id_of(OURS.public_key())]
    (tmp_path / "b.pem").write_bytes(b"no key")
    with pytest.raises(InvalidArgument):
        trusted_keys(tmp_path)


class Files(Artifacts):
    """Gives the one file, and says whether it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def fetcher(self, project: str, grant: str) -> Fetch:
        def fetch(blob: Blob) -> Iterator[bytes]:
            self.asked += 1
            yield CONTENT

        return fetch


def test_what_is_not_signed_is_neither_fetched_nor_loaded(tmp_path: Path) -> None:
    files = Files()
    trusted = {key_id_of(OURS.public_key()): OURS.public_key()}
    prepare = Preparation(ArtifactCache(tmp_path), files, 1, installed_runtimes(), trusted=trusted)
    wanted = pb.Assignment(
        deployment="projects/p/deployments/d",
        model_version="projects/p/models/m/versions/1",
        variant=variant(OTHER, demanded=False),
    )
    with pytest.raises(FailedPrecondition) as caught:
        prepare(wanted)
    assert caught.value.reason == "SIGNER_NOT_TRUSTED" and not files.asked
    wanted.variant.CopyFrom(variant(OURS, demanded=False))
    assert (prepare(wanted).spec.path / "model.tflite").read_bytes() == CONTENT


def test_a_model_that_is_not_signed_is_not_optimised(tmp_path: Path) -> None:
    files = Files()
    trusted = {key_id_of(OURS.public_key()): OURS.public_key()}
    work = OptimiseWork(ArtifactCache(tmp_path / "cache"), files, trusted)
    task = pb.TaskAssignment(task="projects/p/jobs/j/tasks/0", attempt=1)
    task.optimise.source.CopyFrom(variant(OTHER, demanded=False))
    with pytest.raises(FailedPrecondition) as caught:
        work(task, Progress())
    assert caught.value.reason == "SIGNER_NOT_TRUSTED" and not files.asked
