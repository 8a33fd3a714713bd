"""Models that tasks run: loaded for the first of them, kept for those that follow, gone a while after the last."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sealane.registry.v1 import variant_service_pb2 as registry
from sealane_worker.pool import Pool, PooledModel
from sealane_worker.preparation import Preparation

IDLE_SECONDS = 20.0


@dataclass(slots=True)
class _Kept:
    """One model; `ready` holds its load, so that others wait for it and not for each other."""

    model: PooledModel | None = None
    users: int = 0
    used: float = 0.0
    ready: threading.Lock = field(default_factory=threading.Lock)


class TaskModels:
    """They count in the memory of all models of this worker, like those that serve.

    Args:
        prepare: gets files, under the same conditions as those of what is served.
        pool: of all models.
    """

    def __init__(self, prepare: Preparation, pool: Pool) -> None:
        self.prepare = prepare
        self._pool = pool
        self._kept: dict[str, _Kept] = {}
        self._lock = threading.Lock()

    @contextmanager
    def model(self, variant: registry.Variant, project: str, grant: str) -> Iterator[PooledModel]:
        """A loaded model.

        Raises:
            SealaneError: what :meth:`Preparation.spec` and :meth:`Pool.add` raise.
        """
        with self._lock:
            kept = self._kept.setdefault(variant.digest, _Kept())
            kept.users += 1
        try:
            with kept.ready:
                if kept.model is None:
                    kept.model = self._load(variant, project, grant)
            yield kept.model
        finally:
            with self._lock:
                kept.users -= 1
                kept.used = time.monotonic()
            timer = threading.Timer(IDLE_SECONDS, self.tidy)
            timer.daemon = True
            timer.start()

    def tidy(self, idle: float = IDLE_SECONDS) -> None:
        """Let models go that no task has used for so many seconds."""
        before = time.monotonic() - idle
        with self._lock:
            gone = [name for name, kept in self._kept.items() if not kept.users and kept.used <= before]
            models = [self._kept.pop(name).model for name in gone]
        for model in models:
            if model is not None:
                model.close()

    def _load(self, variant: registry.Variant, project: str, grant: str) -> PooledModel:
        spec = self.prepare.spec(variant, project, grant)
        done = False
        try:
            model = self._pool.add(spec)
            done = True
        finally:
            if not done and spec.files is not None:
                spec.files.give_back()
        return model
