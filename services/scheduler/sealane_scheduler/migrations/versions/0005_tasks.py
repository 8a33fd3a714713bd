"""Jobs of many tasks, the tasks, and the attempts at them; decisions by their deployment."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.String, nullable=False)


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False)


def _time(name: str) -> sa.Column[float]:
    return sa.Column(name, sa.Float, nullable=False)


def upgrade() -> None:
    """Make the tables; jobs of before have one task each, in their own row."""
    op.add_column("jobs", sa.Column("execution", sa.LargeBinary, nullable=False, server_default=""))
    op.add_column("jobs", sa.Column("begin_time", sa.Float, nullable=False, server_default="0"))
    for name in ("attempts_allowed", "tasks_total", "tasks_running", "tasks_succeeded", "tasks_failed"):
        op.add_column("jobs", sa.Column(name, sa.BigInteger, nullable=False, server_default="0"))
    op.create_index("decisions_by_deployment", "decisions", ["project", "deployment", "id"])
    op.create_table(
        "tasks",
        sa.Column("project", sa.String, primary_key=True),
        sa.Column("job", sa.String, primary_key=True),
        sa.Column("task", sa.BigInteger, primary_key=True),
        _text("state"),
        _number("first_row"),
        _number("rows"),
        _text("variant"),
        sa.Column("input", sa.LargeBinary, nullable=False),
        _number("attempt"),
        _number("failures"),
        _time("not_before"),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("output", sa.LargeBinary, nullable=False),
        _time("update_time"),
    )
    op.create_index("tasks_by_state", "tasks", ["project", "job", "state", "task"])
    op.create_table(
        "attempts",
        sa.Column("project", sa.String, primary_key=True),
        sa.Column("job", sa.String, primary_key=True),
        sa.Column("task", sa.BigInteger, primary_key=True),
        sa.Column("attempt", sa.BigInteger, primary_key=True),
        _text("node"),
        _text("state"),
        _time("lease_until"),
        _time("begin_time"),
        _time("end_time"),
        _time("progress"),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("log", sa.Text, nullable=False),
    )
    op.create_index("attempts_by_state", "attempts", ["state"])
