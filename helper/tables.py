"""The tables of a helper's database."""

import sqlalchemy as sa

FORMAT = 2  # of these tables; `store` brings those of format 1 along

metadata = sa.MetaData()
_TASK_ID, _HASH, _ROUND = sa.String(32), sa.String(64), sa.BigInteger

helpers = sa.Table(  # one row: whose database this is
    "helpers",
    metadata,
    sa.Column("helper", _HASH, primary_key=True),  # its identity
    sa.Column("format", sa.Integer, nullable=False),
)
tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("task_id", _TASK_ID, primary_key=True),
    sa.Column("task", sa.String(64), nullable=False),
    sa.Column("server", _TASK_ID, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("terms", sa.Text, nullable=False),  # JSON
    sa.Column("certificate", sa.Text, nullable=False),  # the newest, as it was signed
    # keys of rounds up to this one are dead; -1: none is
    sa.Column("dead_through", _ROUND, nullable=False, server_default="-1"),
    # the last round that a key was made for; -1: none
    sa.Column("newest", _ROUND, nullable=False, server_default="-1"),
)
seal_keys = sa.Table(  # the public halves of keys that live
    "seal_keys",
    metadata,
    sa.Column("task_id", _TASK_ID, primary_key=True),
    sa.Column("round", _ROUND, primary_key=True),
    sa.Column("public_key", _HASH, nullable=False),
)
answers = sa.Table(  # one a round, for ever
    "answers",
    metadata,
    sa.Column("task_id", _TASK_ID, primary_key=True),
    sa.Column("round", _ROUND, primary_key=True),
    sa.Column("set_digest", _HASH, nullable=False),
    sa.Column("answer_digest", _HASH, nullable=False),  # of the bytes that were given
    sa.Column("reports", _ROUND, nullable=False),
    sa.Column("answered_at", sa.Float, nullable=False),
    sa.Column("is_taken", sa.Boolean, nullable=False),  # the leader has it
)
participations = sa.Table(  # the ledger: which device was in how many answers
    "participations",
    metadata,
    sa.Column("task_id", _TASK_ID, primary_key=True),
    sa.Column("public_key", _HASH, primary_key=True),
    sa.Column("last_round", _ROUND, nullable=False),
    sa.Column("counted", _ROUND, nullable=False),
    # the number of the last sum with noise that it was in, from 1 on; 0: it was in none
    sa.Column("last_sum", _ROUND, nullable=False, server_default="0"),
)
heads = sa.Table(  # of each log the newest head that was signed, and so none that forks from it
    "heads",
    metadata,
    sa.Column("log_key", _HASH, primary_key=True),  # of the leader's log
    sa.Column("server", _TASK_ID, nullable=False, index=True),  # random name of its database
    sa.Column("place", _ROUND, nullable=False),  # among its logs: the last one alone goes on
    sa.Column("size", _ROUND, nullable=False),
    sa.Column("root", _HASH, nullable=False),
)
named = sa.Table(  # reports that were answered, by the round they were assigned in, while it lives
    "named",
    metadata,
    sa.Column("task_id", _TASK_ID, primary_key=True),
    sa.Column("round", _ROUND, primary_key=True),
    sa.Column("public_key", _HASH, primary_key=True),
)
noises = sa.Table(  # of tasks whose sums carry noise, from the first sum on
    "noises",
    metadata,
    sa.Column("task_id", _TASK_ID, primary_key=True),
    sa.Column("spent", sa.Text, nullable=False),  # JSON: `budget.Spent`
    # which buffers the next one needs: `buffers.Kept`; 0: none, for no sum is to come
    sa.Column("generation", _ROUND, nullable=False),
)
