"""Releases, the scores of those who run them, and the signed chain of rounds."""

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add what each part needs."""
    _releases()
    _release_scores()
    _chain()


def _releases() -> None:
    """What has been published, and the differences between releases."""


def _release_scores() -> None:
    """How each release does on held-back messages."""


def _chain() -> None:
    """Certificates of round keys, and the link of each checkpoint."""
