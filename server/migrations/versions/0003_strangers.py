"""The server's name, windows of asking, masked sums, spreads of scores."""

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
    """The server's name; nonces by the time they were signed at."""


def _windows() -> None:
    """Who asked in an open window, and when a device was told to come again."""


def _masks() -> None:
    """Which key hides a sum."""


def _spreads() -> None:
    """How the scores of an evaluation's devices are spread."""
    op.add_column("rounds", sa.Column("spread", sa.Text, nullable=False, server_default=""))
