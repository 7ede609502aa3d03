"""Releases, the scores of those who run them, and the signed chain of rounds."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add what each part needs."""
    _releases()
    _release_scores()
    _chain()


def _releases() -> None:
    """What has been published, and the differences between releases."""
    release = (
        sa.Column("population", sa.String(64), primary_key=True),
        sa.Column("release", sa.BigInteger, primary_key=True, autoincrement=False),
    )
    op.create_table(
        "releases",
        *(column.copy() for column in release),
        sa.Column("manifest", sa.Text, nullable=False),
        sa.Column("signature", sa.Text, nullable=False),
        sa.Column("statement", sa.Text, nullable=False),
        sa.Column("new_vocabulary", sa.Boolean, nullable=False),
        sa.Column("published_at", sa.Float, nullable=False),
        sa.Column("changed_at", sa.Float, nullable=False),
        sa.Column("stopped", sa.Text, nullable=False, server_default=""),
        sa.Column("stopped_at", sa.Float),
    )
    of_release = (("population", "release"), ("releases.population", "releases.release"))
    op.create_table(
        "release_files",
        *(column.copy() for column in release),
        sa.Column("file", sa.String(64), primary_key=True),
        sa.Column("sha", sa.String(64), nullable=False, index=True),
        sa.ForeignKeyConstraint(*of_release),
    )
    op.create_table(
        "release_differences",
        *(column.copy() for column in release),
        sa.Column("older", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("sha", sa.String(64), nullable=False, index=True),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(*of_release),
    )
    op.create_table(
        "release_indexes",
        sa.Column("population", sa.String(64), primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("sha", sa.String(64), nullable=False, index=True),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("newest", sa.Boolean, nullable=False, index=True),
    )


def _release_scores() -> None:
    """How each release does on held-back messages."""
    numbers = (
        *("devices", "targets", "top1", "top3", "in_vocabulary", "loss"),
        *("words_squared", "top1_squared", "top1_words"),
        *("before_top1", "before_top3", "before_loss", "gain_squared", "gain_words"),
    )
    op.create_table(
        "release_scores",
        sa.Column("population", sa.String(64), primary_key=True),
        sa.Column("release", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("before", sa.BigInteger, primary_key=True, autoincrement=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in numbers),
        sa.Column("spread", sa.Text, nullable=False),
    )


def _chain() -> None:
    """Certificates of round keys, and the link of each checkpoint: none yet, so that no task of
    before gives out work until its operator has certified it.
    """
    op.create_table(
        "certificates",
        sa.Column("task", sa.String(64), sa.ForeignKey("tasks.task"), primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("round_key", sa.String(64), nullable=False),
        sa.Column("first_round", sa.BigInteger, nullable=False),
        sa.Column("rounds", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
        sa.Column("made_at", sa.Float, nullable=False),
    )
    op.add_column("checkpoints", sa.Column("certificate", sa.BigInteger))
    op.add_column("checkpoints", sa.Column("link", sa.Text))
