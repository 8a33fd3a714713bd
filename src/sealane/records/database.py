"""One database thread per process, with group commit.

A mutation is a function of a connection. Mutations that wait together commit together, each in a
SAVEPOINT; answers go out after the commit; reads run between groups. SQLite therefore has exactly one
connection (below 3.51.3 two connections can corrupt a WAL), and `synchronous=FULL` costs one fsync a
group. The same functions run on PostgreSQL.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import sqlalchemy as sa

from sealane.errors import SealaneError, Unavailable
from sealane.failpoint import failpoint
from sealane.records.tables import RECORDED

T = TypeVar("T")
_GROUP = 256


@dataclass(slots=True)
class _Work(Generic[T]):
    function: Callable[[sa.Connection], T]
    future: Future[T]
    mutates: bool
    guarded: bool = True
    outcome: T | None = None
    failure: BaseException | None = None

    def run(self, connection: sa.Connection, *, alone: bool = False) -> None:
        """Run in a SAVEPOINT, or in the transaction itself where it is `alone` there; a failure undoes this work."""
        try:
            if self.mutates and not alone:
                with connection.begin_nested():
                    self.outcome = self.function(connection)
            else:
                self.outcome = self.function(connection)
        except Exception as error:  # handed to whoever waits
            self.failure = error
            if alone:
                connection.rollback()

    def answer(self, failure: BaseException | None = None) -> None:
        """Tell whoever waits."""
        failure = failure or self.failure
        if failure is not None:
            self.future.set_exception(failure)
        else:
            self.future.set_result(self.outcome)  # type: ignore[arg-type]  # None is a T where T is None


class Database:
    """A database and its one thread.

    Args:
        url: SQLAlchemy URL; ``sqlite:///path`` or ``postgresql+psycopg://...``.
        idle_seconds: a server ends the session of a process that stopped in the middle of a transaction for so long,
            and with it its locks; 0 for never.
    """

    def __init__(self, url: str, idle_seconds: float = 0.0) -> None:
        self._engine = _engine(url, idle_seconds)
        self._queue: queue.SimpleQueue[_Work[object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="database", daemon=True)
        self._closed = False
        self.guard: Callable[[sa.Connection], None] | None = None
        """Asked before each group of mutations, in their transaction: raises where this process may not write."""

    @property
    def is_shared(self) -> bool:
        """Whether other processes may write to it too."""
        return self._engine.dialect.name != "sqlite"

    @classmethod
    def at(cls, path: Path) -> Database:
        """The SQLite database in a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return cls(f"sqlite:///{path}")

    def start(self, prepare: Callable[[sa.Connection], None]) -> None:
        """Prepare the schema, then serve work."""
        with self._engine.begin() as connection:
            prepare(connection)
        self._thread.start()

    def write(self, function: Callable[[sa.Connection], T], *, guarded: bool = True) -> Future[T]:
        """Run a mutation; the future ends after its commit.

        Args:
            function: the mutation.
            guarded: whether the guard is asked first; what says who may write is not.
        """
        return self._submit(_Work(function, Future(), mutates=True, guarded=guarded))

    def read(self, function: Callable[[sa.Connection], T]) -> Future[T]:
        """Run a read; it sees every commit before it."""
        return self._submit(_Work(function, Future(), mutates=False))

    def close(self) -> None:
        """Finish what waits and end the thread."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            if self._thread.is_alive():
                self._thread.join(timeout=10)
            self._engine.dispose()

    def _submit(self, work: _Work[T]) -> Future[T]:
        if self._closed:
            raise Unavailable("the service is shutting down; try again")
        # From here on it cannot be cancelled: a caller that goes away must not take the thread's answer with it.
        work.future.set_running_or_notify_cancel()
        self._queue.put(work)  # type: ignore[arg-type]  # T is the submitter's
        return work.future

    def _run(self) -> None:
        with self._engine.connect() as connection:
            while True:
                group, ended = self._collect()
                self._commit(connection, [work for work in group if work.mutates])
                for work in (work for work in group if not work.mutates):
                    work.run(connection)
                    work.answer()
                connection.rollback()
                if ended:
                    return

    def _collect(self) -> tuple[list[_Work[object]], bool]:
        first = self._queue.get()
        if first is None:
            return [], True
        group = [first]
        while len(group) < _GROUP:
            try:
                work = self._queue.get_nowait()
            except queue.Empty:
                return group, False
            if work is None:
                return group, True
            group.append(work)
        return group, False

    def _commit(self, connection: sa.Connection, group: list[_Work[object]]) -> None:
        if not group:
            return
        failure: BaseException | None = None
        try:
            refusal = self._refusal(connection) if any(work.guarded for work in group) else None
            for work in group:
                if refusal is not None and work.guarded:
                    work.failure = refusal
                else:
                    work.run(connection, alone=len(group) == 1)
            failpoint("database.before_commit")
            connection.commit()
            failpoint("database.after_commit")
            for action in connection.info.pop(RECORDED, ()):
                failpoint(f"{action}.committed")
        except sa.exc.SQLAlchemyError as error:
            connection.rollback()
            failure = Unavailable("the database did not take the change; try again")
            failure.__cause__ = error
        for work in group:
            work.answer(failure)

    def _refusal(self, connection: sa.Connection) -> SealaneError | None:
        """Why this process may not write; None where it may. What is asked is locked until the group is committed."""
        try:
            if self.guard is not None:
                self.guard(connection)
        except SealaneError as error:
            return error
        return None


def _engine(url: str, idle_seconds: float) -> sa.Engine:
    if not url.startswith("sqlite"):
        options = f"-c idle_in_transaction_session_timeout={int(idle_seconds * 1000)}"
        return sa.create_engine(url, pool_size=1, max_overflow=0, connect_args={"options": options})
    engine = sa.create_engine(url, poolclass=sa.pool.StaticPool, connect_args={"check_same_thread": False})

    @sa.event.listens_for(engine, "connect")
    def configure(connection, _record):  # type: ignore[no-untyped-def]  # a DBAPI connection
        # SQLAlchemy, not the driver, says BEGIN: only then do SAVEPOINTs nest as they should.
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA busy_timeout=5000")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine
