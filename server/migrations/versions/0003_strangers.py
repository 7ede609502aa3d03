"""The server's name, windows of asking, masked sums, spreads of scores."""

import secrets

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


def _identity() -> None:
    """The server's name; nonces by the time they were signed at. Those of signatures that named
    no time are good for nothing any more.
    """
    servers = op.create_table("servers", sa.Column("server", sa.String(32), primary_key=True))
    op.bulk_insert(servers, [{"server": secrets.token_hex(16)}])
    op.drop_table("nonces")
    op.create_table(
        "nonces",
        sa.Column("device", sa.String(16), sa.ForeignKey("devices.device"), primary_key=True),
        sa.Column("nonce", sa.String(32), primary_key=True),
        sa.Column("signed_at", sa.BigInteger, nullable=False, index=True),
    )


def _windows() -> None:
    """Who asked in an open window, and when a device was told to come again."""


def _masks() -> None:
    """Which key hides a sum."""


def _spreads() -> None:
    """How the scores of an evaluation's devices are spread."""
    op.add_column("rounds", sa.Column("spread", sa.Text, nullable=False, server_default=""))
