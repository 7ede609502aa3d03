"""Private sums: updates of format 3, sums that are opened by a helper or by the devices."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add what each part needs."""
    _encoding()
    _opening()
    _secagg()


def _encoding() -> None:
    """Sums of format 2 cannot be gone on with: open rounds begin anew."""


def _opening() -> None:
    """What opens a masked sum, and why a round was abandoned."""
    op.add_column("rounds", sa.Column("reason", sa.Text, nullable=False, server_default=""))
    op.add_column("rounds", sa.Column("overlap", sa.BigInteger, nullable=False, server_default="0"))
    enrolment = sa.Column("enrolment", sa.String(128), nullable=False, server_default="")
    op.add_column("devices", enrolment)
    task = sa.String(64)
    op.create_table(
        "seal_keys",
        sa.Column("task", task, sa.ForeignKey("tasks.task"), primary_key=True),
        sa.Column("round", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("key", sa.Text, nullable=False),
    )
    op.create_table(
        "seals",
        sa.Column("assignment", sa.String(32), primary_key=True),
        sa.Column("task", task, nullable=False),
        sa.Column("round", sa.BigInteger, nullable=False),
        sa.Column("assigned", sa.BigInteger, nullable=False),
        sa.Column("device", sa.String(16), sa.ForeignKey("devices.device"), nullable=False),
        sa.Column("seal", sa.LargeBinary, nullable=False),
        sa.Column("signature", sa.LargeBinary, nullable=False),
        sa.ForeignKeyConstraint(("task", "round"), ("rounds.task", "rounds.round")),
    )
    op.create_index("ix_seals_round", "seals", ["task", "round"])
    op.create_table(
        "last_sums",
        sa.Column("task", task, sa.ForeignKey("tasks.task"), primary_key=True),
        sa.Column("members", sa.LargeBinary, nullable=False),
    )


def _secagg() -> None:
    """The steps of SecAgg+."""
