"""Privacy that is accounted for: noise, what was spent, and a log that nobody can rewrite."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
_TASK, _SHA, _ROUND = sa.String(64), sa.String(64), sa.BigInteger


def upgrade() -> None:
    """Add what each part needs."""
    _spending()
    _log()
    _counts()


def _spending() -> None:
    """What an accountant needs of each device, and what a server that adds noise keeps of it."""
    op.add_column("participations", sa.Column("last_sum", _ROUND))
    op.add_column("participations", sa.Column("smallest_gap", _ROUND))
    in_sums = sa.Column("in_sums", sa.BigInteger, nullable=False, server_default="0")
    op.add_column("participations", in_sums)
    op.add_column("rounds", sa.Column("rho", sa.Float))
    op.add_column("rounds", sa.Column("epsilon", sa.Float))
    op.create_table(
        "members",
        sa.Column("task", _TASK, sa.ForeignKey("tasks.task"), primary_key=True),
        sa.Column("round", _ROUND, primary_key=True, autoincrement=False),
        sa.Column("device", sa.String(16), sa.ForeignKey("devices.device"), primary_key=True),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "spending",
        sa.Column("task", _TASK, sa.ForeignKey("tasks.task"), primary_key=True),
        sa.Column("blocks", sa.Text, nullable=False, server_default="[]"),
        sa.Column("separation", _ROUND),
        sa.Column("participations", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("noised", sa.Text, nullable=False, server_default=""),
        sa.Column("over", sa.Text, nullable=False, server_default=""),
        sa.Column("generation", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("buffers", sa.LargeBinary),
        sa.Column("round", _ROUND),
        sa.Column("noise", sa.LargeBinary),
        sa.Column("begins", sa.Boolean, nullable=False, server_default=sa.false()),
    )


def _log() -> None:
    """The log: its key, its entries, the roots of their ranges, the heads that were signed."""
    op.create_table(
        "logs",
        sa.Column("log", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("log_key", _SHA, nullable=False),
        sa.Column("over", sa.Text, nullable=False, server_default=""),
    )
    op.create_table(
        "log_entries",
        sa.Column("log", sa.BigInteger, sa.ForeignKey("logs.log"), primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("about", sa.String(160), nullable=False, index=True),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_table(
        "log_nodes",
        sa.Column("log", sa.BigInteger, sa.ForeignKey("logs.log"), primary_key=True),
        sa.Column("place", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("root", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "log_heads",
        sa.Column("log", sa.BigInteger, sa.ForeignKey("logs.log"), primary_key=True),
        sa.Column("size", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("head", sa.Text, nullable=False),
        sa.Column("countersigned", sa.Text),
    )


def _counts() -> None:
    """What the rounds of a task that counts have opened."""
    op.create_table(
        "tallies",
        sa.Column("task", _TASK, primary_key=True),
        sa.Column("round", _ROUND, primary_key=True, autoincrement=False),
        sa.Column("people", sa.BigInteger, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.ForeignKeyConstraint(("task", "round"), ("rounds.task", "rounds.round")),
    )
