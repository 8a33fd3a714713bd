"""The models that share this worker's memory: loaded on demand, the least recently used give way.

A model is loaded once however many callers wait for it, and each of them waits within its own deadline. What a model
takes is measured after every load. One that is pinned, or that has a request under way, never gives way.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass

from sealane.errors import DeadlineExceeded, Internal, ResourceExhausted, SealaneError, Unavailable
from sealane_worker.box import Box, BoxLimits, BoxState, closed
from sealane_worker.child import LoadedModel
from sealane_worker.spec import HostPolicy, ModelSpec, Ran, Run, size_on_disk

logger = logging.getLogger(__name__)

#: What an interpreter and a runtime take beside the weights, until a model was measured.
PROCESS_BYTES = 64 << 20
#: How often to look whether a busy model has become free.
_BUSY_LOOK = 0.01


@dataclass(frozen=True, slots=True)
class Host:
    """What all models of this worker have in common.

    Attributes:
        limits: when a box gives up.
        policy: what the operator allows models.
        budget_bytes: memory for all models together; 0 sets none.
    """

    limits: BoxLimits | None = None
    policy: HostPolicy | None = None
    budget_bytes: int = 0


class PooledModel:
    """One model, in memory or not. Made by :meth:`Pool.add`."""

    def __init__(self, pool: Pool, spec: ModelSpec, *, pinned: bool) -> None:
        self.spec = spec
        self.pinned = pinned
        self._last_used = time.monotonic()
        self.loads = 0
        self._pool = pool
        self._lock = threading.Lock()
        self._files_lock = threading.Lock()  # taken first; none is given back while it is taken for the next load
        self._box: Box | None = None
        self._loading: Future[Box] | None = None
        self._footprint = 0
        self._closed = False
        self._loaded: LoadedModel | None = None

    @property
    def loaded(self) -> LoadedModel:
        """What the model told at its last load."""
        if self._loaded is None:
            raise Internal("the model was never loaded")
        return self._loaded

    @property
    def box(self) -> Box | None:
        """Its box, while it is in memory."""
        return self._box

    @property
    def state(self) -> BoxState:
        """What it does with a call now."""
        if self._closed:
            return BoxState.CLOSED
        return self._box.state if self._box is not None else BoxState.IDLE

    @property
    def resident(self) -> bool:
        """Whether it is in memory."""
        return self._box is not None

    @property
    def last_used(self) -> float:
        """When it was last called, on the monotonic clock."""
        box = self._box
        native = box.native if box is not None else None
        return self._last_used if native is None else max(self._last_used, native.last_used)

    @property
    def native(self) -> bool:
        """Whether the native front has slots of its own to it."""
        return self._pool.native

    @property
    def expected_bytes(self) -> int:
        """Memory it takes: as measured at its last load, or from the size of its files."""
        return self._footprint or PROCESS_BYTES + 2 * size_on_disk(self.spec.path)

    def footprint_bytes(self) -> int:
        """Memory it takes now; 0 where it is not in memory."""
        return self._box.footprint_bytes() if self._box is not None else 0

    def run(self, run: Run) -> Ran:
        """Run once, loading the model first where it gave way.

        Raises:
            DeadlineExceeded: it was not loaded by the deadline, or see :meth:`sealane_worker.box.Box.run`.
            ResourceExhausted: there is no memory for it (MEMORY_EXHAUSTED).
        """
        self._last_used = time.monotonic()
        while True:
            box = self._box or self.load(run.deadline)
            try:
                return box.run(run)
            except Unavailable as error:
                # It gave way between the look and the run: load it again.
                if error.reason != "MODEL_CLOSED" or self._closed or self._box is box:
                    raise

    def load(self, deadline: float) -> Box:
        """Load it where it is not in memory; one load for all that wait.

        Raises:
            DeadlineExceeded: not ready by `deadline`; the load goes on.
            SealaneError: what the load ended in.
        """
        with self._lock:
            if self._box is not None:
                return self._box
            if self._closed:
                raise closed()
            loading = self._loading
            if loading is None:
                self._loading = loading = Future()
                threading.Thread(target=self._load, args=(loading, deadline), name="model-load", daemon=True).start()
        try:
            return loading.result(max(deadline - time.monotonic(), 0.0))
        except FutureTimeout as error:
            raise DeadlineExceeded(
                "the model is being loaded and was not ready by the deadline; allow more time or pin it",
                reason="MODEL_LOADING",
            ) from error

    def give_way(self) -> None:
        """Leave memory; the next call loads it again."""
        with self._files_lock:
            with self._lock:
                box, self._box = self._box, None
            if box is not None:
                box.close()
                self._give_back()

    def close(self) -> None:
        """Leave for good."""
        self._closed = True
        self.give_way()
        self._pool.forget(self)

    def _load(self, loading: Future[Box], deadline: float) -> None:
        try:
            if self.spec.files is not None:
                with self._files_lock:
                    self.spec.files.take()
            box = self._pool.start(self, deadline)
        except SealaneError as error:
            self._settle(None)
            loading.set_exception(error)
            return
        except OSError as error:
            self._settle(None)
            loading.set_exception(
                Internal(f"the model's process cannot be started: {error.strerror}; look at the machine's limits")
            )
            return
        except Exception:  # supervisor: those who wait must hear of it, whatever it was
            logger.exception("loading failed")
            self._settle(None)
            loading.set_exception(Internal("loading the model failed; the worker's log says why"))
            return
        self._settle(box)
        if self._closed:
            self.give_way()
            loading.set_exception(Unavailable("the model was taken off this worker", reason="MODEL_CLOSED"))
            return
        loading.set_result(box)

    def _settle(self, box: Box | None) -> None:
        with self._lock:
            self._loading = None
            self._box = box
            if box is not None:
                self.loads += 1
                self._last_used = time.monotonic()
                self._loaded, self._footprint = box.loaded, box.footprint_bytes()
            else:
                self._give_back()

    def _give_back(self) -> None:
        if self.spec.files is not None:
            self.spec.files.give_back()


class Pool:
    """All models of this worker. Every method may be called from any thread."""

    def __init__(self, host: Host | None = None) -> None:
        self._host = host or Host()
        self._models: list[PooledModel] = []
        self._reserved: dict[int, int] = {}
        self._lock = threading.Lock()

    @property
    def native(self) -> bool:
        """Whether models have slots for the native front."""
        return self._host.policy is not None and self._host.policy.native

    def add(self, spec: ModelSpec, *, pinned: bool = False) -> PooledModel:
        """Load a model now and keep it.

        Raises:
            SealaneError: see :meth:`sealane_worker.box.Box.start`; ResourceExhausted where there is no memory for it.
        """
        model = PooledModel(self, spec, pinned=pinned)
        with self._lock:
            self._models.append(model)
        try:
            model.load(time.monotonic() + (self._host.limits or BoxLimits()).load + 10.0)
        except SealaneError:
            model.close()  # a load that is still under way ends with its model
            raise
        return model

    def start(self, model: PooledModel, deadline: float) -> Box:
        """Make room, by `deadline`, and start a model's box."""
        self._reserve(model, deadline)
        try:
            box = Box.start(model.spec, self._host.limits, self._host.policy)
        finally:
            with self._lock:
                self._reserved.pop(id(model), None)
        self._shrink(model, box.footprint_bytes())
        return box

    def forget(self, model: PooledModel) -> None:
        """Stop counting a model."""
        with self._lock:
            if model in self._models:
                self._models.remove(model)

    def close(self) -> None:
        """Have all models leave for good."""
        for model in list(self._models):
            model.close()

    def resident_bytes(self) -> int:
        """Memory of all models now."""
        return sum(model.footprint_bytes() for model in list(self._models))

    def _reserve(self, model: PooledModel, deadline: float) -> None:
        """Take memory for a model that is about to load, from those that were not used for longest.

        Waits for one that is busy; where all others are pinned there is nothing to wait for.
        """
        budget, need = self._host.budget_bytes, model.expected_bytes
        while True:
            with self._lock:
                while budget and self._used(model) + need > budget:
                    victim = self._victim(model)
                    if victim is None:
                        break
                    self._evict(victim)
                else:
                    self._reserved[id(model)] = need
                    return
                hopeless = not any(other.resident and not other.pinned for other in self._models if other is not model)
                used = self._used(model)
            if hopeless or time.monotonic() > deadline:
                raise ResourceExhausted(
                    f"no memory for this model: it takes about {need >> 20} MiB, {used >> 20} of {budget >> 20} MiB "
                    "are in use by pinned or busy models; unpin one, add memory or use a smaller variant",
                    reason="MEMORY_EXHAUSTED",
                    retry_after=1.0,
                )
            time.sleep(_BUSY_LOOK)

    def _shrink(self, loaded: PooledModel, footprint: int) -> None:
        """A model may turn out larger than expected: others give way after it."""
        with self._lock:
            while self._host.budget_bytes and self._used(loaded) + footprint > self._host.budget_bytes:
                victim = self._victim(loaded)
                if victim is None:
                    logger.warning("models take more than the budget", extra={"bytes": self._used(loaded) + footprint})
                    return
                self._evict(victim)

    def _used(self, but: PooledModel) -> int:
        others = [model for model in self._models if model is not but]
        return sum(self._reserved.get(id(model), 0) or model.footprint_bytes() for model in others)

    def _victim(self, but: PooledModel) -> PooledModel | None:
        able = [
            model
            for model in self._models
            if model is not but and not model.pinned and model.box is not None and not model.box.in_flight
        ]
        return min(able, key=lambda model: model.last_used, default=None)

    def _evict(self, victim: PooledModel) -> None:
        logger.info("model gives way", extra={"path": victim.spec.path.name, "bytes": victim.expected_bytes})
        victim.give_way()
