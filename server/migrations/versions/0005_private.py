"""Private sums: updates of format 3, sums that are opened by a helper or by the devices."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
_ENDED = "it had begun with updates of an earlier format"


def upgrade() -> None:
    """Add what each part needs."""
    _opening()
    _encoding()
    _secagg()


def _encoding() -> None:
    """What was counted of updates of format 2 cannot be gone on with: an open round of training
    that anybody was admitted to is abandoned, and the server opens the next one, when it also lets
    go of the sum: one that has no key yet must not stay in a free page. Whoever works for
    it is told that it is closed. No device counts by its examples any more.
    """
    connection = op.get_bind()
    for task, body in connection.execute(sa.text("SELECT task, body FROM tasks")).all():
        settings = json.loads(body)
        settings.get("rules", {}).pop("max_weight", None)
        connection.execute(
            sa.text("UPDATE tasks SET body = :body WHERE task = :task"),
            {"task": task, "body": json.dumps(settings)},
        )
        if settings.get("kind", "training") == "training":
            _abandon(connection, task)


def _abandon(connection: sa.Connection, task: str) -> None:
    of = {"task": task}
    at_work = connection.execute(
        sa.text(
            "SELECT round, COUNT(*) FROM assignments WHERE task = :task AND status = 'open' "
            "GROUP BY round"
        ),
        of,
    ).all()
    for number, count in at_work:
        where = of | {"round": number, "count": count}
        counted = sa.text(
            "UPDATE outcomes SET count = count + :count WHERE task = :task AND round = :round "
            "AND step = 'dropped' AND cause = 'round_closed'"
        )
        if not connection.execute(counted, where).rowcount:
            connection.execute(
                sa.text(
                    "INSERT INTO outcomes (task, round, step, cause, count) "
                    "VALUES (:task, :round, 'dropped', 'round_closed', :count)"
                ),
                where,
            )
    for statement in (
        "UPDATE assignments SET status = 'closed', cause = 'round_closed', admitted_at = 0 "
        "WHERE task = :task AND status = 'open'",
        "UPDATE rounds SET phase = 'abandoned', dropped = admitted - reported, reason = :reason "
        "WHERE task = :task AND closed_at IS NULL AND admitted > 0",
    ):
        values = of | ({"reason": _ENDED} if ":reason" in statement else {})
        connection.execute(sa.text(statement), values)


def _opening() -> None:
    """What opens a masked sum, and why a round was abandoned."""
    op.add_column("rounds", sa.Column("reason", sa.Text, nullable=False, server_default=""))
    op.add_column("rounds", sa.Column("overlap", sa.BigInteger, nullable=False, server_default="0"))
    enrolment = sa.Column("enrolment", sa.String(128), nullable=False, server_default="")
    op.add_column("devices", enrolment)
    barred = sa.Column("barred", sa.Boolean, nullable=False, server_default=sa.false())
    op.add_column("participations", barred)
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
    """The steps of SecAgg+: how far a round is, and what its devices have sent each other."""
    at = (
        sa.Column("task", sa.String(64), primary_key=True),
        sa.Column("round", sa.BigInteger, primary_key=True, autoincrement=False),
    )
    of_round = (("task", "round"), ("rounds.task", "rounds.round"))
    op.create_table(
        "secagg_rounds",
        *(column.copy() for column in at),
        sa.Column("step", sa.String(16), nullable=False),
        sa.Column("order", sa.String(64), nullable=False, server_default=""),
        sa.Column("shared", sa.Text, nullable=False, server_default=""),
        sa.Column("masked", sa.Text, nullable=False, server_default=""),
        *(
            sa.Column(name, sa.BigInteger, nullable=False, server_default="0")
            for name in ("keys", "shares", "consents", "unmasked")
        ),
        sa.ForeignKeyConstraint(*of_round),
    )
    op.create_table(
        "secagg_devices",
        *(column.copy() for column in at),
        sa.Column("device", sa.String(16), sa.ForeignKey("devices.device"), primary_key=True),
        *(sa.Column(name, sa.String(64), nullable=False) for name in ("mask_key", "box_key")),
        sa.Column("signature", sa.String(128), nullable=False),
        sa.Column("place", sa.BigInteger),
        *(
            sa.Column(name, sa.String(64), nullable=False, server_default="")
            for name in ("shares", "commitment", "unmasked")
        ),
        sa.Column("consent", sa.String(128), nullable=False, server_default=""),
        sa.Column("revealed", sa.Text, nullable=False, server_default=""),
        sa.ForeignKeyConstraint(*of_round),
    )
    op.create_table(
        "secagg_boxes",
        *(column.copy() for column in at),
        sa.Column("receiver", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("sender", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("box", sa.LargeBinary, nullable=False),
        sa.ForeignKeyConstraint(*of_round),
    )
