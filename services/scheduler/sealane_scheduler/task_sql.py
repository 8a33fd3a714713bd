"""Tasks and attempts on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from sealane.records.tables import values_of
from sealane_scheduler.task_store import AttemptRow, TaskRow

metadata = sa.MetaData()


def _key(name: str, kind: type[sa.types.TypeEngine[Any]] = sa.String) -> sa.Column[Any]:
    return sa.Column(name, kind, primary_key=True)


def _value(name: str, kind: type[sa.types.TypeEngine[Any]] = sa.String) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=False)


tasks = sa.Table(
    "tasks",
    metadata,
    _key("project"),
    _key("job"),
    _key("task", sa.BigInteger),
    _value("state"),
    _value("first_row", sa.BigInteger),
    _value("rows", sa.BigInteger),
    _value("variant"),
    _value("input", sa.LargeBinary),
    _value("attempt", sa.BigInteger),
    _value("failures", sa.BigInteger),
    _value("not_before", sa.Float),
    _value("error", sa.Text),
    _value("output", sa.LargeBinary),
    _value("update_time", sa.Float),
    sa.Index("tasks_by_state", "project", "job", "state", "task"),
)
attempts = sa.Table(
    "attempts",
    metadata,
    _key("project"),
    _key("job"),
    _key("task", sa.BigInteger),
    _key("attempt", sa.BigInteger),
    _value("node"),
    _value("state"),
    _value("lease_until", sa.Float),
    _value("begin_time", sa.Float),
    _value("end_time", sa.Float),
    _value("progress", sa.Float),
    _value("error", sa.Text),
    _value("log", sa.Text),
    sa.Index("attempts_by_state", "state"),
)


def _of(table: sa.Table, project: str, job: str, task: int | None = None) -> sa.ColumnElement[bool]:
    found = (table.c.project == project) & (table.c.job == job)
    return found if task is None else found & (table.c.task == task)


def _open() -> sa.ColumnElement[bool]:
    return tasks.c.state.in_(("PENDING", "RUNNING"))


def _running(row: AttemptRow) -> sa.ColumnElement[bool]:
    mine = _of(attempts, row.project, row.job, row.task) & (attempts.c.attempt == row.attempt)
    return mine & (attempts.c.node == row.node) & (attempts.c.state == "RUNNING")


class TaskSql:
    """Implements :class:`sealane_scheduler.task_store.Tasks` on one connection."""

    _connection: sa.Connection

    def add_tasks(self, rows: Iterable[TaskRow]) -> None:
        """See :class:`Tasks`."""
        values = [values_of(row) for row in rows]
        if values:
            self._connection.execute(tasks.insert(), values)

    def tasks(self, project: str, job: str, after: int, limit: int) -> list[TaskRow]:
        """See :class:`Tasks`."""
        query = sa.select(tasks).where(_of(tasks, project, job) & (tasks.c.task > after))
        return self._tasks(query.order_by(tasks.c.task).limit(limit))

    def task(self, project: str, job: str, task: int) -> TaskRow | None:
        """See :class:`Tasks`."""
        return next(iter(self._tasks(sa.select(tasks).where(_of(tasks, project, job, task)))), None)

    def task_counts(self, project: str, job: str) -> Mapping[str, int]:
        """See :class:`Tasks`."""
        query = sa.select(tasks.c.state, sa.func.count()).where(_of(tasks, project, job)).group_by(tasks.c.state)
        return {str(state): int(count) for state, count in self._connection.execute(query)}

    def waiting(self, project: str, job: str, now: float, limit: int) -> list[TaskRow]:
        """See :class:`Tasks`."""
        ready = (tasks.c.state == "PENDING") & (tasks.c.not_before <= now)
        return self._tasks(sa.select(tasks).where(_of(tasks, project, job) & ready).order_by(tasks.c.task).limit(limit))

    def running(self) -> list[AttemptRow]:
        """See :class:`Tasks`."""
        return self._attempts(sa.select(attempts).where(attempts.c.state == "RUNNING"))

    def attempts(self, project: str, job: str, task: int) -> list[AttemptRow]:
        """See :class:`Tasks`."""
        query = sa.select(attempts).where(_of(attempts, project, job, task))
        return self._attempts(query.order_by(attempts.c.attempt))

    def durations(self, project: str, job: str, limit: int) -> list[float]:
        """See :class:`Tasks`."""
        done = _of(attempts, project, job) & (attempts.c.state == "SUCCEEDED")
        query = sa.select(attempts.c.end_time - attempts.c.begin_time).where(done)
        return [
            float(took) for (took,) in self._connection.execute(query.order_by(attempts.c.end_time.desc()).limit(limit))
        ]

    def outputs(self, project: str, job: str) -> list[bytes]:
        """See :class:`Tasks`."""
        query = sa.select(tasks.c.output).where(_of(tasks, project, job) & (tasks.c.state == "SUCCEEDED"))
        return [bytes(output) for (output,) in self._connection.execute(query.order_by(tasks.c.task))]

    def give_out(self, row: TaskRow, node: str, lease_until: float, now: float) -> int:
        """See :class:`Tasks`."""
        given = (
            tasks.update()
            .where(_of(tasks, row.project, row.job, row.task) & (tasks.c.state == row.state) & _open())
            .values(state="RUNNING", attempt=tasks.c.attempt + 1, update_time=now)
            .returning(tasks.c.attempt)
        )
        attempt = int(self._connection.execute(given).scalar_one_or_none() or 0)
        if attempt:
            begun = AttemptRow(row.project, row.job, row.task, attempt, node, lease_until=lease_until, begin_time=now)
            self._connection.execute(attempts.insert().values(values_of(begun)))
        return attempt

    def renew(self, row: AttemptRow, lease_until: float, progress: float, log: str) -> bool:
        """See :class:`Tasks`."""
        renewed = attempts.update().where(_running(row)).values(lease_until=lease_until, progress=progress, log=log)
        return self._connection.execute(renewed).rowcount == 1

    def finish(self, attempt: AttemptRow, task: TaskRow) -> bool:
        """See :class:`Tasks`."""
        held = sa.exists(sa.select(attempts.c.attempt).where(_running(attempt)))
        mine = _of(tasks, task.project, task.job, task.task) & (tasks.c.state == "RUNNING") & held
        values = {name: getattr(task, name) for name in ("state", "failures", "not_before", "error", "output")}
        written = tasks.update().where(mine).values(**values, update_time=task.update_time)
        return self._connection.execute(written).rowcount == 1

    def end(self, row: AttemptRow) -> None:
        """See :class:`Tasks`."""
        self._connection.execute(attempts.update().where(_running(row)).values(values_of(row)))

    def stop(self, project: str, job: str, now: float, task: int | None = None) -> int:
        """See :class:`Tasks`."""
        under_way = _of(attempts, project, job, task) & (attempts.c.state == "RUNNING")
        stopped = attempts.update().where(under_way).values(state="STOPPED", end_time=now)
        return int(self._connection.execute(stopped).rowcount)

    def drop_rest(self, project: str, job: str, now: float) -> None:
        """See :class:`Tasks`."""
        rest = _of(tasks, project, job) & _open()
        self._connection.execute(tasks.update().where(rest).values(state="CANCELLED", update_time=now))

    def _tasks(self, query: sa.Select[Any]) -> list[TaskRow]:
        return [TaskRow(**row._mapping) for row in self._connection.execute(query)]

    def _attempts(self, query: sa.Select[Any]) -> list[AttemptRow]:
        return [AttemptRow(**row._mapping) for row in self._connection.execute(query)]
