"""The optimise task: files from the registry, :mod:`sealane_worker.optimise`, files to the registry."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from google.protobuf import json_format

from sealane.errors import Aborted, FailedPrecondition
from sealane.registry.v1 import variant_service_pb2 as registry
from sealane.scheduler.v1 import fleet_service_pb2 as pb
from sealane.scheduler.v1 import job_service_pb2
from sealane.security.sealing_messages import message_of
from sealane.security.sealing_policy import SealingPolicy
from sealane.type.v1 import manifest_pb2
from sealane_worker.artifacts import Artifacts
from sealane_worker.cache import Blob, Cache
from sealane_worker.machine import device_class
from sealane_worker.manifest import MANIFEST, read_serving
from sealane_worker.optimise import SOURCE_VARIANT, MeasuredVariant, OptimiseRun, OptimiseSpec, acceptable
from sealane_worker.preparation import files_of, project_of
from sealane_worker.runner import Cancelled, Progress, Results
from sealane_worker.signers import Keys, check_signed

CANCEL_POLL_SECONDS = 0.2
_PRECISION = {"litert-float": registry.PRECISION_FLOAT32, "litert-int8": registry.PRECISION_INT8}


@dataclass(frozen=True, slots=True)
class OptimiseWork:
    """Does optimise tasks.

    Attributes:
        cache: where inputs come to lie.
        artifacts: the registry's files.
        trusted: keys of which one must have signed whatever is loaded here; empty where none has to.
    """

    cache: Cache
    artifacts: Artifacts
    trusted: Keys = field(default_factory=dict)

    def __call__(self, task: pb.TaskAssignment, progress: Progress) -> Results:
        """Run one task; as :data:`sealane_worker.runner.Work` says."""
        scratch = self.cache.scratch
        scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=scratch) as folder, contextlib.ExitStack() as held:
            spec = self._fetch(task, Path(folder), progress, held)
            measured = _measure(spec, progress)
            _check_accuracy(measured, task.optimise.spec.max_accuracy_drop)
            progress.tell(0.98, "uploading")
            rows = _rows(Path(spec.test))
            # By the manifest, which the digest covers: the record of the variant may leave it out.
            policy = read_serving(Path(spec.saved_model)).sealing
            return [self._result(task, variant, rows, policy) for variant in measured]

    def _fetch(
        self, task: pb.TaskAssignment, folder: Path, progress: Progress, held: contextlib.ExitStack
    ) -> OptimiseSpec:
        progress.tell(0.01, "fetching model and data")
        wanted, source = task.optimise.spec, task.optimise.source
        check_signed(source, self.trusted)  # it is loaded, to be converted and measured
        fetcher = self.artifacts.fetcher(project_of(task.task), task.grant)
        files = self.cache.hold(source.digest.removeprefix("sha256:"), files_of(source), fetcher)
        model = held.enter_context(files)
        calibration = held.enter_context(self.cache.hold_file(Blob(wanted.calibration_sha256), fetcher))
        test = held.enter_context(self.cache.hold_file(Blob(wanted.test_sha256), fetcher))
        return OptimiseSpec(str(model), str(calibration), str(test), str(folder / "out"))

    def _result(
        self, task: pb.TaskAssignment, measured: MeasuredVariant, rows: int, policy: SealingPolicy
    ) -> job_service_pb2.VariantResult:
        measurement = _measurement(measured, rows)
        source = task.optimise.source
        if measured.name == SOURCE_VARIANT:
            name = source.name.rpartition("/")[2]
            return job_service_pb2.VariantResult(variant_id=name, variant=source, measurement=measurement)
        file = Path(measured.path)
        blob = self.artifacts.upload(project_of(task.task), file, task.grant)
        variant = registry.Variant(
            format=registry.FORMAT_LITERT,
            precision=_PRECISION[measured.name],
            files=[registry.ModelFile(path=file.name, sha256=blob.digest, size_bytes=measured.size_bytes)],
            source_variant=source.name,
            job=task.task.partition("/tasks/")[0],
        )
        if policy != SealingPolicy():
            self._demand_the_same(task, variant, message_of(policy), file.parent)
        return job_service_pb2.VariantResult(variant_id=measured.name, variant=variant, measurement=measurement)

    def _demand_the_same(
        self, task: pb.TaskAssignment, variant: registry.Variant, sealing: manifest_pb2.SealingPolicy, folder: Path
    ) -> None:
        """Another precision of a model is to be called, and read, by nobody who could not call the model itself."""
        path = folder / MANIFEST
        path.write_text(
            json_format.MessageToJson(manifest_pb2.Manifest(sealing=sealing), preserving_proto_field_name=True)
        )
        blob = self.artifacts.upload(project_of(task.task), path, task.grant)
        variant.files.add(path=MANIFEST, sha256=blob.digest, size_bytes=path.stat().st_size)
        variant.sealing.CopyFrom(sealing)


def _measure(spec: OptimiseSpec, progress: Progress) -> tuple[MeasuredVariant, ...]:
    run = OptimiseRun(spec)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(CANCEL_POLL_SECONDS):
            if progress.cancelled.is_set():
                run.cancel()
                return

    watcher = threading.Thread(target=watch, name="task-cancel", daemon=True)
    watcher.start()
    try:
        # 0.97: what follows is the upload.
        return run.result(lambda fraction, message: progress.tell(0.97 * fraction, message))
    except Aborted as error:
        raise Cancelled from error
    except Cancelled:
        run.cancel()
        raise
    finally:
        ended.set()
        watcher.join()


def _check_accuracy(measured: tuple[MeasuredVariant, ...], max_drop: float) -> None:
    good = acceptable(measured, max_drop)
    accuracy = {variant.name: variant.accuracy for variant in measured}
    for name in accuracy.keys() - set(good) - {SOURCE_VARIANT}:
        raise FailedPrecondition(
            f"{name} has accuracy {accuracy[name]:.4f}, {accuracy[SOURCE_VARIANT] - accuracy[name]:.4f} below the "
            f"source's {accuracy[SOURCE_VARIANT]:.4f}; the job allows {max_drop:.4f}: give more calibration rows or "
            "allow a larger drop",
            reason="ACCURACY_DROP",
        )


def _measurement(measured: MeasuredVariant, rows: int) -> registry.Measurement:
    measurement = registry.Measurement(
        device_class=device_class(),
        accuracy=measured.accuracy,
        rows=rows,
        batch_size=1,
        latency_p50_us=measured.p50_us,
        latency_p99_us=measured.p99_us,
        utilisation=measured.utilisation,
    )
    measurement.measure_time.GetCurrentTime()
    return measurement


def _rows(test: Path) -> int:
    with np.load(test, allow_pickle=False) as archive:
        return len(archive["y"])
