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


def _secagg() -> None:
    """The steps of SecAgg+."""
