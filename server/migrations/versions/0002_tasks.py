"""Several tasks, enrolment codes, counts kept with their rounds, participations, sums by replica.

A server of the first tables had one task: it becomes the task `default`. What can be counted from
the old ledger is counted from it.
"""

import numpy as np
import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

OLD = ("sums", "assignments", "check_ins", "rounds", "checkpoints", "tasks", "nonces", "devices")
FINER = 16  # a unit of an old sum, in units of a new one


def upgrade() -> None:
    """Make the tables of several tasks, and move what the first ones held into them."""
    op.drop_index("ix_nonces_seen_at", "nonces")
    op.drop_index("ix_assignments_device", "assignments")
    for table in OLD:
        op.rename_table(table, f"old_{table}")
    _create()
    for statement in COPY:
        op.execute(statement)
    _copy_sums()
    for table in OLD:
        op.drop_table(f"old_{table}")


def _create() -> None:
    op.create_table(
        "devices",
        sa.Column("device", sa.String(16), primary_key=True),
        sa.Column("public_key", sa.String(64), nullable=False),
        sa.Column("enrolled_at", sa.Float, nullable=False),
    )
    op.create_table(
        "codes",
        sa.Column("code", sa.String(64), primary_key=True),
        sa.Column("expires_at", sa.Float, nullable=False),
        sa.Column("device", sa.String(16), sa.ForeignKey("devices.device")),
    )
    op.create_table(
        "nonces",
        sa.Column("device", sa.String(16), sa.ForeignKey("devices.device"), primary_key=True),
        sa.Column("nonce", sa.String(32), primary_key=True),
        sa.Column("seen_at", sa.Float, nullable=False, index=True),
    )
    op.create_table(
        "tasks",
        sa.Column("task", sa.String(64), primary_key=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_table(
        "checkpoints",
        sa.Column("task", sa.String(64), sa.ForeignKey("tasks.task"), primary_key=True),
        sa.Column("sha", sa.String(64), primary_key=True),
        sa.Column("round", sa.BigInteger, nullable=False),
        sa.Column("parent", sa.String(64), nullable=False),
        sa.Column("half", sa.String(64), nullable=False),
        sa.Column("moments", sa.String(64), nullable=False),
        sa.Column("made_at", sa.Float, nullable=False),
        sa.UniqueConstraint("task", "round"),
    )
    counts = (
        "admitted",
        "reported",
        "dropped",
        "assigned",
        "downloaded",
        "uploaded",
        "examples",
        "bytes_up",
        "bytes_down",
    )
    scores = ("targets", "top1", "top3", "in_vocabulary", "loss")
    op.create_table(
        "rounds",
        sa.Column("task", sa.String(64), sa.ForeignKey("tasks.task"), primary_key=True),
        sa.Column("round", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("phase", sa.String(16), nullable=False),
        sa.Column("base", sa.String(64), nullable=False),
        sa.Column("base_round", sa.BigInteger, nullable=False),
        sa.Column("half", sa.String(64), nullable=False),
        sa.Column("made", sa.String(64)),
        sa.Column("opened_at", sa.Float, nullable=False),
        sa.Column("first_admitted", sa.Float),
        sa.Column("last_admitted", sa.Float),
        sa.Column("closed_at", sa.Float),
        *(
            sa.Column(name, sa.BigInteger, nullable=False, server_default="0")
            for name in (*counts, *scores)
        ),
    )
    op.create_table(
        "outcomes",
        sa.Column("task", sa.String(64), primary_key=True),
        sa.Column("round", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("step", sa.String(16), primary_key=True),
        sa.Column("cause", sa.String(32), primary_key=True),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(("task", "round"), ("rounds.task", "rounds.round")),
    )
    op.create_table(
        "check_ins",
        sa.Column("device", sa.String(16), sa.ForeignKey("devices.device"), primary_key=True),
        sa.Column("task", sa.String(64), sa.ForeignKey("tasks.task"), primary_key=True),
        sa.Column("outcome", sa.String(32), nullable=False),
    )
    op.create_table(
        "assignments",
        sa.Column("assignment", sa.String(32), primary_key=True),
        sa.Column("task", sa.String(64), nullable=False),
        sa.Column("round", sa.BigInteger, nullable=False),
        sa.Column(
            "device", sa.String(16), sa.ForeignKey("devices.device"), nullable=False, index=True
        ),
        sa.Column("admitted_at", sa.Float, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("cause", sa.String(32)),
        sa.Column("update_hash", sa.String(64)),
        sa.Column("downloaded", sa.Boolean, nullable=False),
        sa.Column("uploaded", sa.Boolean, nullable=False),
        sa.Column("counted_in", sa.BigInteger),
        sa.UniqueConstraint("task", "round", "device"),
        sa.ForeignKeyConstraint(("task", "round"), ("rounds.task", "rounds.round")),
    )
    op.create_table(
        "participations",
        sa.Column("device", sa.String(16), sa.ForeignKey("devices.device"), primary_key=True),
        sa.Column("task", sa.String(64), sa.ForeignKey("tasks.task"), primary_key=True),
        sa.Column("last_counted", sa.BigInteger, nullable=False),
        sa.Column("counted", sa.BigInteger, nullable=False),
        sa.Column("smallest_separation", sa.BigInteger),
    )
    op.create_table(
        "sums",
        sa.Column("task", sa.String(64), primary_key=True),
        sa.Column("round", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("replica", sa.String(32), primary_key=True),
        sa.Column("total", sa.LargeBinary, nullable=False),
        sa.Column("weight", sa.BigInteger, nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(("task", "round"), ("rounds.task", "rounds.round")),
    )
    if op.get_bind().dialect.name == "postgresql":
        # sums do not compress: trying takes longer than writing
        op.execute("ALTER TABLE sums ALTER COLUMN total SET STORAGE EXTERNAL")


COPY = (
    "INSERT INTO devices SELECT device, public_key, enrolled_at FROM old_devices",
    "INSERT INTO nonces SELECT device, nonce, seen_at FROM old_nonces",
    """INSERT INTO tasks SELECT 'default',
        CASE WHEN EXISTS (SELECT 1 FROM old_rounds WHERE closed_at IS NULL)
            THEN 'running' ELSE 'finished' END,
        COALESCE((SELECT MIN(opened_at) FROM old_rounds), 0), body FROM old_tasks""",
    """INSERT INTO checkpoints SELECT 'default', c.sha, c.round,
        COALESCE((SELECT r.base FROM old_rounds r WHERE r.made = c.sha), ''), c.half, c.velocity,
        COALESCE((SELECT r.closed_at FROM old_rounds r WHERE r.made = c.sha),
            (SELECT MIN(opened_at) FROM old_rounds), 0) FROM old_checkpoints c""",
    """INSERT INTO rounds (task, round, phase, base, base_round, half, made, opened_at,
        first_admitted, last_admitted, closed_at,
        admitted, reported, dropped, assigned, downloaded, uploaded, examples, bytes_up, bytes_down)
        SELECT 'default', r.round, r.phase, r.base, c.round, c.half, r.made, r.opened_at,
        r.first_admitted, r.last_admitted, r.closed_at,
        (SELECT COUNT(*) FROM old_assignments a WHERE a.round = r.round),
        (SELECT COUNT(*) FROM old_assignments a WHERE a.round = r.round AND a.status = 'counted'),
        (SELECT COUNT(*) FROM old_assignments a WHERE a.round = r.round
            AND a.status IN ('refused', 'abandoned')),
        (SELECT COUNT(*) FROM old_assignments a WHERE a.round = r.round),
        (SELECT COUNT(*) FROM old_assignments a WHERE a.round = r.round AND a.downloaded),
        (SELECT COUNT(*) FROM old_assignments a WHERE a.round = r.round AND a.bytes_up > 0),
        (SELECT COALESCE(SUM(a.examples), 0) FROM old_assignments a WHERE a.round = r.round),
        (SELECT COALESCE(SUM(a.bytes_up), 0) FROM old_assignments a WHERE a.round = r.round),
        r.bytes_down
        FROM old_rounds r JOIN old_checkpoints c ON c.sha = r.base""",
    """INSERT INTO outcomes SELECT 'default', round, 'refused', outcome, COUNT(*) FROM old_check_ins
        WHERE outcome <> 'assigned' GROUP BY round, outcome""",
    """INSERT INTO outcomes SELECT 'default', round, 'dropped', cause, COUNT(*) FROM old_assignments
        WHERE cause IS NOT NULL GROUP BY round, cause""",
    """INSERT INTO check_ins SELECT c.device, 'default', c.outcome FROM old_check_ins c
        JOIN old_rounds r ON r.round = c.round WHERE r.closed_at IS NULL""",
    """INSERT INTO assignments SELECT assignment, 'default', round, device, admitted_at,
        status, cause, update_hash, downloaded,
        bytes_up > 0, CASE WHEN status = 'counted' THEN round END FROM old_assignments""",
    """INSERT INTO participations SELECT device, 'default', MAX(round), COUNT(*),
        MIN(round - before) FROM (SELECT device, round,
            LAG(round) OVER (PARTITION BY device ORDER BY round) AS before
        FROM old_assignments WHERE status = 'counted') AS counted GROUP BY device""",
)


def _copy_sums() -> None:
    connection = op.get_bind()
    for round, total, weight, count in connection.execute(
        sa.text("SELECT round, total, weight, count FROM old_sums")
    ).all():
        finer = (np.frombuffer(total, "<i8") * FINER).astype("<i8").tobytes()
        row = {"round": round, "total": finer, "weight": weight, "count": count}
        connection.execute(
            sa.text("INSERT INTO sums VALUES ('default', :round, '', :total, :weight, :count)"), row
        )


def downgrade() -> None:
    """Raises NotImplementedError: several tasks do not fit the tables of one."""
    raise NotImplementedError(
        "a server of several tasks does not fit the first tables: restore the backup made before "
        "the upgrade"
    )
