"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables of a server of one task."""
    op.create_table(
        "devices",
        sa.Column("device", sa.String(16), primary_key=True),
        sa.Column("public_key", sa.String(64), nullable=False),
        sa.Column("enrolled_at", sa.Float, nullable=False),
        sa.Column("last_counted", sa.BigInteger),
    )
    op.create_table(
        "nonces",
        sa.Column("device", sa.String(16), sa.ForeignKey("devices.device"), primary_key=True),
        sa.Column("nonce", sa.String(32), primary_key=True),
        sa.Column("seen_at", sa.Float, nullable=False, index=True),
    )
    op.create_table(
        "tasks",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_table(
        "checkpoints",
        sa.Column("sha", sa.String(64), primary_key=True),
        sa.Column("round", sa.BigInteger, nullable=False, unique=True),
        sa.Column("half", sa.String(64), nullable=False),
        sa.Column("velocity", sa.String(64), nullable=False),
    )
    op.create_table(
        "rounds",
        sa.Column("round", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("phase", sa.String(16), nullable=False),
        sa.Column("base", sa.String(64), sa.ForeignKey("checkpoints.sha"), nullable=False),
        sa.Column("made", sa.String(64), sa.ForeignKey("checkpoints.sha")),
        sa.Column("opened_at", sa.Float, nullable=False),
        sa.Column("first_admitted", sa.Float),
        sa.Column("last_admitted", sa.Float),
        sa.Column("closed_at", sa.Float),
        sa.Column("bytes_down", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "check_ins",
        sa.Column("round", sa.BigInteger, sa.ForeignKey("rounds.round"), primary_key=True),
        sa.Column("device", sa.String(16), sa.ForeignKey("devices.device"), primary_key=True),
        sa.Column("outcome", sa.String(32), nullable=False),
    )
    op.create_table(
        "assignments",
        sa.Column("assignment", sa.String(32), primary_key=True),
        sa.Column("round", sa.BigInteger, sa.ForeignKey("rounds.round"), nullable=False),
        sa.Column(
            "device", sa.String(16), sa.ForeignKey("devices.device"), nullable=False, index=True
        ),
        sa.Column("admitted_at", sa.Float, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("cause", sa.String(32)),
        sa.Column("update_hash", sa.String(64)),
        sa.Column("examples", sa.BigInteger, nullable=False),
        sa.Column("bytes_up", sa.BigInteger, nullable=False),
        sa.Column("downloaded", sa.Boolean, nullable=False),
        sa.UniqueConstraint("round", "device"),
    )
    op.create_table(
        "sums",
        sa.Column(
            "round",
            sa.BigInteger,
            sa.ForeignKey("rounds.round"),
            primary_key=True,
            autoincrement=False,
        ),
        sa.Column("total", sa.LargeBinary, nullable=False),
        sa.Column("weight", sa.BigInteger, nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """Remove them, and all that was kept."""
    for table in (
        "sums",
        "assignments",
        "check_ins",
        "rounds",
        "checkpoints",
        "tasks",
        "nonces",
        "devices",
    ):
        op.drop_table(table)
