"""Brings what this worker serves in line with what the scheduler wants, and remembers it across restarts.

One thread does all loading and unloading, so that two decisions about a deployment never overlap. The last desired
state lies on disk: a worker that starts while it is cut off serves it at once, every file verified.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from google.protobuf import json_format

from sealane import ensemble_messages
from sealane.errors import Aborted, DataLoss, DeadlineExceeded, Internal, ResourceExhausted, SealaneError, Unavailable
from sealane.scheduler.v1 import deployment_service_pb2, fleet_service_pb2
from sealane.security.sealing_policy import SealingPolicy
from sealane_worker.box import BoxState
from sealane_worker.chains import ServedChain
from sealane_worker.deployment import Assignment, Served
from sealane_worker.engine import Engine

log = logging.getLogger("sealane.worker.assignments")

State = deployment_service_pb2.Placement.State
#: Turns an assignment into local files; raises SealaneError.
Prepare = Callable[[fleet_service_pb2.Assignment], Assignment]
Report = Callable[[fleet_service_pb2.AssignmentReport], None]
Tidy = Callable[[set[str]], None]

RETRYABLE = (Unavailable, DataLoss, DeadlineExceeded, ResourceExhausted, Aborted)
MAX_TRIES = 5
RETRY_SECONDS = 1.0
#: What was out of reach is tried again after so long, however often it was tried.
LATER_SECONDS = 15.0
WATCH_SECONDS = 1.0


class Assignments:
    """The worker's assignments.

    Args:
        engine: what serves.
        prepare: gets the files of an assignment.
        path: file that keeps the last desired assignments.
        report: tells the scheduler how an assignment stands.
        tidy: told the digests of all variants that are wanted, once they are served; may remove the others' files.
        check: whether what is loaded may stay, asked again and again; raises FailedPrecondition.
    """

    def __init__(
        self,
        engine: Engine,
        prepare: Prepare,
        path: Path,
        report: Report,
        *,
        tidy: Tidy = lambda digests: None,
        check: Callable[[SealingPolicy], None] = lambda policy: None,
    ) -> None:
        self._engine = engine
        self._check = check
        self._prepare = prepare
        self._path = path
        self._report = report
        self._tidy = tidy
        self._wanted: dict[str, fleet_service_pb2.Assignment] = {}
        self._tries: dict[tuple[str, int], int] = {}
        self._later: dict[tuple[str, int], float] = {}
        self._standing: dict[tuple[str, int], tuple[bool, bool]] = {}
        self._generation = 0
        self._written: fleet_service_pb2.DesiredState | None = None
        self._changed = threading.Event()
        self._settled = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="assignments", daemon=True)

    def start(self) -> None:
        """Load what the disk remembers, and go on with what :meth:`apply` brings."""
        remembered = self._read()
        if remembered.assignments:
            log.info("serving remembered assignments", extra={"count": len(remembered.assignments)})
            self._set(remembered)
        else:
            self._settled.set()
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Wait until what the disk remembers has been tried once; whether it has."""
        return self._settled.wait(seconds)

    def apply(
        self,
        assignments: Iterable[fleet_service_pb2.Assignment],
        ensembles: Iterable[fleet_service_pb2.ServedEnsemble] = (),
    ) -> None:
        """Replace the whole desired state; loading happens in the background."""
        wanted = fleet_service_pb2.DesiredState(assignments=assignments, ensembles=ensembles)
        if wanted != self._written:  # tasks of jobs come with the same assignments again and again
            self._write(wanted)
            self._written = wanted
        self._set(wanted)

    def reports(self) -> list[fleet_service_pb2.AssignmentReport]:
        """How everything that is loaded stands, for a registration."""
        return [_report(served) for served in self._engine.served()]

    def stop(self) -> None:
        """End the thread; what is served goes on being served."""
        self._stop.set()
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    def _set(self, wanted: fleet_service_pb2.DesiredState) -> None:
        self._wanted = {item.deployment: item for item in wanted.assignments}
        self._generation += 1
        self._expect()
        self._engine.chain(_chain(item) for item in wanted.ensembles)
        self._changed.set()

    def _expect(self) -> None:
        """Let callers of what is still to be loaded wait, and callers of what cannot be loaded know."""
        self._engine.expect(
            {
                item.deployment: item.model_version.partition("/versions/")[0]
                for item in self._wanted.values()
                if self._tries.get((item.deployment, item.epoch), 0) < MAX_TRIES
            }
        )

    def _run(self) -> None:
        """Supervise: reconcile after every change and when something is due, look after what is loaded in between."""
        due = math.inf
        while not self._stop.is_set():
            changed = self._changed.wait(max(min(due - time.monotonic(), WATCH_SECONDS), 0.0))
            if changed or time.monotonic() >= due:
                self._changed.clear()
                try:
                    pause = self._reconcile()
                    self._settled.set()
                    if not pause:
                        self._tidy({item.variant.digest for item in self._wanted.values()})
                except Exception:  # supervisor: one bad pass must not end the reconciling
                    log.exception("reconciling failed, trying again")
                    pause = RETRY_SECONDS
                due = time.monotonic() + pause if pause else math.inf
            self._remove_forbidden()
            self._report_changes()

    def _reconcile(self) -> float:
        """One pass; returns after how many seconds to try again, 0 where nothing is left to do."""
        generation, wanted = self._generation, self._wanted
        keys = {(item.deployment, item.epoch) for item in wanted.values()}
        self._tries = {key: tries for key, tries in self._tries.items() if key in keys}
        self._later = {key: later for key, later in self._later.items() if key in keys}
        for model in self._engine.models():
            if model.assignment.deployment not in wanted:
                self._engine.unload(model.assignment.deployment)
        pauses = [0.0]
        for assignment in wanted.values():
            if self._generation != generation or self._stop.is_set():
                break  # a newer state is there: what follows may be outdated
            pauses.append(self._bring_up(assignment))
        return min((pause for pause in pauses if pause), default=0.0)

    def _bring_up(self, wanted: fleet_service_pb2.Assignment) -> float:
        """Load one assignment where it is not loaded; after how many seconds to try again, 0 for not at all."""
        key = (wanted.deployment, wanted.epoch)
        loaded = next((item for item in self._engine.models() if item.assignment.deployment == wanted.deployment), None)
        if loaded and _is_as_wanted(loaded.assignment, wanted):
            return 0.0
        if self._tries.get(key, 0) >= MAX_TRIES and (left := self._later.get(key, 0.0) - time.monotonic()) > 0:
            return left if left < math.inf else 0.0
        if loaded is None or loaded.assignment.digest != wanted.variant.digest:
            self._tell(wanted, State.STATE_PREPARING)
        try:
            served = self._engine.load(self._prepare(wanted))
        except SealaneError as error:
            return self._failed(key, wanted, error)
        except OSError as error:
            return self._failed(key, wanted, Internal(f"the worker's disk failed: {error.strerror}; free space on it"))
        self._tries.pop(key, None)
        self._report(_report(served))
        return 0.0

    def _failed(self, key: tuple[str, int], wanted: fleet_service_pb2.Assignment, error: SealaneError) -> float:
        """Take note of a failure; after how many seconds to try again, 0 for not at all.

        The scheduler is told when it should wait no longer. What was out of reach is tried on after that: it may come
        back, and a worker that is cut off has nobody else to place its work.
        """
        tries = self._tries.get(key, 0) + 1 if isinstance(error, RETRYABLE) else MAX_TRIES
        self._tries[key] = tries
        log.warning(
            "assignment not loaded", extra={"deployment": wanted.deployment, "reason": error.reason, "tries": tries}
        )
        if tries < MAX_TRIES:
            return RETRY_SECONDS
        self._later[key] = time.monotonic() + LATER_SECONDS if isinstance(error, Unavailable) else math.inf
        self._tell(wanted, State.STATE_FAILED, error.message)
        self._expect()
        return LATER_SECONDS if isinstance(error, Unavailable) else 0.0

    def _remove_forbidden(self) -> None:
        """Unload what was loaded before auth said where this worker stands, or stood elsewhere."""
        for model in self._engine.models():
            loaded = model.assignment
            try:
                self._check(loaded.spec.serving.sealing)
            except SealaneError as error:
                self._engine.unload(loaded.deployment)
                wanted = self._wanted.get(loaded.deployment)
                if wanted is not None:
                    self._failed((wanted.deployment, wanted.epoch), wanted, error)

    def _report_changes(self) -> None:
        """Tell what changes by itself: a model that is quarantined, gives way to others, or is back in memory."""
        for served in self._engine.served():
            key = (served.assignment.deployment, served.assignment.epoch)
            standing = (served.state is BoxState.QUARANTINED, served.resident)
            if self._standing.get(key, (False, True)) != standing:
                self._standing[key] = standing
                self._report(_report(served))

    def _tell(self, wanted: fleet_service_pb2.Assignment, state: State.ValueType, message: str = "") -> None:
        self._report(
            fleet_service_pb2.AssignmentReport(
                deployment=wanted.deployment,
                epoch=wanted.epoch,
                state=state,
                message=message,
                variant_digest=wanted.variant.digest,
            )
        )

    def _read(self) -> fleet_service_pb2.DesiredState:
        try:
            return json_format.Parse(self._path.read_text(), fleet_service_pb2.DesiredState())
        except FileNotFoundError:
            return fleet_service_pb2.DesiredState()
        except (json_format.ParseError, OSError):
            log.warning("remembered assignments cannot be read; waiting for the scheduler")
            return fleet_service_pb2.DesiredState()

    def _write(self, wanted: fleet_service_pb2.DesiredState) -> None:
        text = json_format.MessageToJson(wanted)
        temporary = self._path.with_suffix(".new")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)


def _is_as_wanted(loaded: Assignment, wanted: fleet_service_pb2.Assignment) -> bool:
    has = (loaded.epoch, loaded.digest, loaded.served_name, loaded.labels)
    return has == (wanted.epoch, wanted.variant.digest, wanted.served_name, tuple(wanted.labels))


def _chain(item: fleet_service_pb2.ServedEnsemble) -> ServedChain:
    return ServedChain(
        deployment=item.deployment,
        epoch=item.epoch,
        chain=ensemble_messages.chain_of(item.ensemble),
        signature=ensemble_messages.signature_of(item.ensemble.signature),
        models=tuple(item.ensemble.models),
    )


def _report(served: Served) -> fleet_service_pb2.AssignmentReport:
    failed = served.state is BoxState.QUARANTINED
    return fleet_service_pb2.AssignmentReport(
        deployment=served.assignment.deployment,
        epoch=served.assignment.epoch,
        state=State.STATE_FAILED if failed else State.STATE_SERVING,
        message="the model crashed again and again and is quarantined; deploy a version that does not"
        if failed
        else "",
        variant_digest=served.assignment.digest,
        memory_bytes=served.footprint_bytes,
        warm_up=fleet_service_pb2.WarmUpReport(
            requests=served.loaded.warmed_requests,
            batch_sizes=served.loaded.warmed_rows,
            load_seconds=served.loaded.load_seconds,
        ),
        resident=served.resident,
    )
