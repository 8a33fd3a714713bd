"""The load-check task on a worker: real models in their boxes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from sealane.client.model_files import inspect, to_proto
from sealane.errors import SealaneError, Unavailable
from sealane.registry.v1 import variant_service_pb2 as registry
from sealane.scheduler.v1 import fleet_service_pb2 as pb
from sealane.scheduler.v1 import job_service_pb2
from sealane.security.model_signing import pem_of
from sealane_worker.artifacts import Artifacts
from sealane_worker.cache import ArtifactCache, Blob, Fetch
from sealane_worker.check_task import CheckWork
from sealane_worker.offer import Offered
from sealane_worker.preparation import Preparation, manifest_digest
from sealane_worker.runner import Cancelled, Progress
from sealane_worker.runtimes import known_runtimes
from sealane_worker.spec import HostPolicy

LIGHT = Path(__file__).parents[3] / "examples/digits/light"
MODEL = LIGHT / "litert-int8.tflite"


class Files(Artifacts):
    """The registry's files, and the grants that they were asked for with."""

    def __init__(self) -> None:
        self.stored: dict[str, bytes] = {}
        self.grants: list[str] = []
        self.failure: SealaneError | None = None

    def fetcher(self, project: str, grant: str) -> Fetch:
        def fetch(blob: Blob) -> Iterator[bytes]:
            self.grants.append(grant)
            if self.failure is not None:
                raise self.failure
            yield self.stored[blob.digest]

        return fetch

    def variant(self, name: str, content: bytes, model_format: registry.Format.ValueType) -> registry.Variant:
        digest = hashlib.sha256(content).hexdigest()
        self.stored[digest] = content
        made = registry.Variant(name=f"projects/p/models/m/versions/1/variants/{name}", format=model_format)
        made.files.add(path="model.tflite", sha256=digest, size_bytes=len(content))
        made.digest = manifest_digest(made.files)
        return made


class Bench:
    """A worker with the LiteRT runtime, and a task."""

    def __init__(self, folder: Path) -> None:
        self.files = Files()
        info = known_runtimes()["litert"]
        prepare = Preparation(ArtifactCache(folder), self.files, 1, {"litert": info})
        self.work = CheckWork(prepare, {"litert": Offered(info, "1", info.formats)}, HostPolicy())
        self.task = pb.TaskAssignment(task="projects/p/jobs/j/tasks/0", attempt=1)
        self.task.check.signatures.extend(to_proto(inspect(MODEL).signatures))

    def add(self, name: str, content: bytes, form: registry.Format.ValueType = registry.FORMAT_LITERT) -> None:
        self.task.check.variants.add(variant=self.files.variant(name, content, form), grant=f"grant of {name}")

    def run(self) -> dict[str, registry.LoadCheck]:
        found = {}
        for item in self.work(self.task, Progress()):
            assert isinstance(item, job_service_pb2.VariantCheck)
            found[item.variant_id] = item.load_check
        return found


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_one_good_one_broken_and_one_for_others(bench: Bench) -> None:
    bench.add("good", MODEL.read_bytes())
    bench.add("broken", b"no model")
    bench.add("onnx", b"for another worker", registry.FORMAT_ONNX)
    found = bench.run()
    assert found.keys() == {"good", "broken"}, "what it has no runtime for is not said to be bad"
    good = found["good"]
    assert good.loadable and good.runtime == "litert" and good.memory_bytes > 0 and good.load_seconds > 0
    assert not good.reason and not good.message
    assert not found["broken"].loadable and found["broken"].reason == "MODEL_UNREADABLE" and found["broken"].message
    assert bench.files.grants == ["grant of good", "grant of broken"]


def test_other_signatures_than_the_versions_are_a_finding(bench: Bench) -> None:
    bench.add("good", MODEL.read_bytes())
    bench.task.check.signatures[0].inputs[0].datatype = "INT64"
    found = bench.run()["good"]
    assert (found.loadable, found.reason) == (False, "SIGNATURES_DIFFER")
    assert "INT64" in found.message and found.runtime == "litert"


def test_what_is_not_signed_is_a_finding_and_is_not_loaded(bench: Bench) -> None:
    bench.add("good", MODEL.read_bytes())
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    bench.task.check.variants[0].variant.signer_keys.append(pem_of(key))
    assert bench.run()["good"].reason == "SIGNATURE_REQUIRED" and not bench.files.grants


def test_files_that_cannot_be_had_fail_the_task(bench: Bench) -> None:
    bench.add("good", MODEL.read_bytes())
    bench.files.failure = Unavailable("the registry is away")
    with pytest.raises(Unavailable):
        bench.run()


def test_a_cancelled_task_loads_nothing(bench: Bench) -> None:
    bench.add("good", MODEL.read_bytes())
    progress = Progress()
    progress.cancelled.set()
    with pytest.raises(Cancelled):
        bench.work(bench.task, progress)
    assert not bench.files.grants
