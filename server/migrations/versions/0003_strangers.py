"""The server's name, windows of asking, masked sums, spreads of scores."""

import secrets

import numpy as np
import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add what each part needs."""
    _identity()
    _windows()
    _masks()
    _spreads()
    _indices()


def _identity() -> None:
    """The server's name; nonces by the time they were signed at. Those of signatures that named
    no time are good for nothing any more. When a device was given work that is over is forgotten.
    """
    servers = op.create_table("servers", sa.Column("server", sa.String(32), primary_key=True))
    op.bulk_insert(servers, [{"server": secrets.token_hex(16)}])
    op.drop_table("nonces")
    op.create_table(
        "nonces",
        sa.Column("nonce", sa.String(32), primary_key=True),
        sa.Column("device", sa.String(16), sa.ForeignKey("devices.device"), primary_key=True),
        sa.Column("signed_at", sa.BigInteger, nullable=False, index=True),
        sqlite_with_rowid=False,
    )
    op.execute("UPDATE assignments SET admitted_at = 0 WHERE status != 'open'")


def _windows() -> None:
    """Who asked in an open window, and when a device was told to come again."""
    op.add_column("rounds", sa.Column("places", sa.Text))
    op.add_column("check_ins", sa.Column("window", sa.BigInteger))
    op.add_column("check_ins", sa.Column("place", sa.BigInteger))
    op.create_table(
        "due",
        sa.Column("device", sa.String(16), sa.ForeignKey("devices.device"), primary_key=True),
        sa.Column("told_at", sa.Float, nullable=False),
        sa.Column("due_at", sa.Float, nullable=False, index=True),
        sqlite_with_rowid=False,
    )
    # SQLite names no constraint: it gets one for the time that the table is copied
    named = {"uq": "%(table_name)s_task_round_device_key"}
    with op.batch_alter_table("assignments", naming_convention=named) as table:
        table.drop_constraint("assignments_task_round_device_key", type_="unique")
        table.create_index("ix_assignments_round", ["task", "round"])


def _masks() -> None:
    """Which key hides a sum: none (generation 0) those that are there, until each is written again.
    Count and weight are hidden with it: they go before the total.
    """
    op.add_column(
        "sums", sa.Column("generation", sa.BigInteger, nullable=False, server_default="0")
    )
    connection = op.get_bind()
    rows = connection.execute(
        sa.text("SELECT task, round, replica, count, weight, total FROM sums")
    ).all()
    for task, number, replica, count, weight, total in rows:
        head = np.array([count, weight], "<i8").tobytes()
        connection.execute(
            sa.text(
                "UPDATE sums SET total = :total WHERE task = :task AND round = :round "
                "AND replica = :replica"
            ),
            {"task": task, "round": number, "replica": replica, "total": head + bytes(total)},
        )
    op.drop_column("sums", "weight")
    op.drop_column("sums", "count")
    op.create_table(
        "heartbeats",
        sa.Column("heartbeat", sa.String(16), primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
    )


def _spreads() -> None:
    """How the scores of an evaluation's devices are spread."""
    op.add_column("rounds", sa.Column("spread", sa.Text, nullable=False, server_default=""))


def _indices() -> None:
    """Open rounds are found without looking through all that ever were."""
    op.create_index("ix_rounds_closed_at", "rounds", ["closed_at"])
