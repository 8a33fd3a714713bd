"""Models that tasks run: loaded for the first of them, kept for those that follow, gone a while after the last.

Variants of the same files may differ in what loads them: each is a model of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
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
        idle: called when none is kept any more.
    """

    def __init__(self, prepare: Preparation, pool: Pool, idle: Callable[[], None] = lambda: None) -> None:
        self.prepare = prepare
        self._pool = pool
        self._idle = idle
        self._kept: dict[tuple[str, str], _Kept] = {}
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()

    @contextmanager
    def model(self, variant: registry.Variant, project: str, grant: str) -> Iterator[PooledModel]:
        """A loaded model.

        Raises:
            SealaneError: what :meth:`Preparation.spec` and :meth:`Pool.add` raise.
        """
        with self._lock:
            kept = self._kept.setdefault((variant.name, variant.digest), _Kept())
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
                self._look_later()

    def tidy(self, idle: float = IDLE_SECONDS) -> None:
        """Let models go that no task has used for so many seconds."""
        before = time.monotonic() - idle
        with self._lock:
            gone = [name for name, kept in self._kept.items() if not kept.users and kept.used <= before]
            models = [self._kept.pop(name).model for name in gone]
            rest = bool(self._kept)
        for model in models:
            if model is not None:
                model.close()
        if not rest:
            self._idle()

    def _look_later(self) -> None:
        """One timer for all: tasks may end many times a second. The lock is held."""
        if self._timer is None and self._kept:
            self._timer = threading.Timer(IDLE_SECONDS, self._look)
            self._timer.daemon = True
            self._timer.start()

    def _look(self) -> None:
        self.tidy()
        with self._lock:
            self._timer = None
            self._look_later()

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
