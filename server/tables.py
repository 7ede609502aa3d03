"""The tables of a server's database, as the newest migration leaves them."""

import sqlalchemy as sa

REVISION = "0006"  # of the newest migration

metadata = sa.MetaData()
_SHA = sa.String(64)
_DEVICE = sa.String(16)
_TASK = sa.String(64)
_ROUND = sa.BigInteger
servers = sa.Table(  # one row: replicas share it, and a server begun anew has another
    "servers",
    metadata,
    sa.Column("server", sa.String(32), primary_key=True),  # random
)
devices = sa.Table(
    "devices",
    metadata,
    sa.Column("device", _DEVICE, primary_key=True),
    sa.Column("public_key", sa.String(64), nullable=False),
    sa.Column("enrolled_at", sa.Float, nullable=False),
    # an enrolment key's signature of the public key, hexadecimal; empty: there is none
    sa.Column("enrolment", sa.String(128), nullable=False, server_default=""),
)
codes = sa.Table(
    "codes",
    metadata,
    sa.Column("code", _SHA, primary_key=True),  # its SHA-256
    sa.Column("expires_at", sa.Float, nullable=False),
    sa.Column("device", _DEVICE, sa.ForeignKey("devices.device")),  # that has used it
)
nonces = sa.Table(
    "nonces",
    metadata,
    sa.Column("nonce", sa.String(32), primary_key=True),  # first: it is looked for by itself
    sa.Column("device", _DEVICE, sa.ForeignKey("devices.device"), primary_key=True),
    sa.Column("signed_at", sa.BigInteger, nullable=False, index=True),
    sqlite_with_rowid=False,
)
tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("task", _TASK, primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)
checkpoints = sa.Table(
    "checkpoints",
    metadata,
    sa.Column("task", _TASK, sa.ForeignKey("tasks.task"), primary_key=True),
    sa.Column("sha", _SHA, primary_key=True),
    sa.Column("round", _ROUND, nullable=False),
    sa.Column("parent", _SHA, nullable=False),
    sa.Column("half", _SHA, nullable=False),
    sa.Column("moments", _SHA, nullable=False),
    sa.Column("made_at", sa.Float, nullable=False),
    sa.Column("certificate", sa.BigInteger),  # number of the one that the link belongs to
    sa.Column("link", sa.Text),  # `chain.Link`, signed, as JSON
    sa.UniqueConstraint("task", "round"),
)
certificates = sa.Table(  # of round keys; their private halves lie in slots
    "certificates",
    metadata,
    sa.Column("task", _TASK, sa.ForeignKey("tasks.task"), primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),  # the last is newest
    sa.Column("body", sa.Text, nullable=False),  # `chain.Certificate`, signed, as JSON
    sa.Column("round_key", _SHA, nullable=False),  # public, hexadecimal
    sa.Column("first_round", _ROUND, nullable=False),
    sa.Column("rounds", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
    sa.Column("made_at", sa.Float, nullable=False),
)
rounds = sa.Table(
    "rounds",
    metadata,
    sa.Column("task", _TASK, sa.ForeignKey("tasks.task"), primary_key=True),
    sa.Column("round", _ROUND, primary_key=True, autoincrement=False),
    sa.Column("phase", sa.String(16), nullable=False),
    sa.Column("base", _SHA, nullable=False),
    sa.Column("base_round", _ROUND, nullable=False),
    sa.Column("half", _SHA, nullable=False),  # of the base
    sa.Column("made", _SHA),
    sa.Column("opened_at", sa.Float, nullable=False),
    sa.Column("first_admitted", sa.Float),
    sa.Column("last_admitted", sa.Float),
    # None while it is open: every group looks for those
    sa.Column("closed_at", sa.Float, index=True),
    sa.Column("places", sa.Text),  # `places.Places` as JSON, once anybody has asked for one
    *(
        sa.Column(name, sa.BigInteger, nullable=False, server_default="0")
        for name in ("admitted", "reported", "dropped")
    ),
    *(
        sa.Column(name, sa.BigInteger, nullable=False, server_default="0")
        for name in ("assigned", "downloaded", "uploaded", "examples")
    ),
    *(
        sa.Column(name, sa.BigInteger, nullable=False, server_default="0")
        for name in ("bytes_up", "bytes_down")
    ),
    *(
        sa.Column(name, sa.BigInteger, nullable=False, server_default="0")
        for name in ("targets", "top1", "top3", "in_vocabulary", "loss")
    ),
    # `scores.Total.spread` as a JSON list; empty where no score was counted
    sa.Column("spread", sa.Text, nullable=False, server_default=""),
    sa.Column("reason", sa.Text, nullable=False, server_default=""),  # why it was abandoned
    # devices of a masked sum that were in that of the round before too
    sa.Column("overlap", sa.BigInteger, nullable=False, server_default="0"),
    # of a task with noise: what it had spent once the round was committed
    sa.Column("rho", sa.Float),
    sa.Column("epsilon", sa.Float),
)
outcomes = sa.Table(  # devices refused at check-in, or dropped after it, by cause
    "outcomes",
    metadata,
    sa.Column("task", _TASK, primary_key=True),
    sa.Column("round", _ROUND, primary_key=True, autoincrement=False),
    sa.Column("step", sa.String(16), primary_key=True),
    sa.Column("cause", sa.String(32), primary_key=True),
    sa.Column("count", sa.BigInteger, nullable=False),
    sa.ForeignKeyConstraint(("task", "round"), ("rounds.task", "rounds.round")),
)
check_ins = sa.Table(  # of the open rounds only: who asked when is nobody's business afterwards
    "check_ins",
    metadata,
    sa.Column("device", _DEVICE, sa.ForeignKey("devices.device"), primary_key=True),
    sa.Column("task", _TASK, sa.ForeignKey("tasks.task"), primary_key=True),
    sa.Column("outcome", sa.String(32), nullable=False),
    sa.Column("window", sa.BigInteger),  # of the round's places: the device has a ticket for it
    sa.Column("place", sa.BigInteger),  # of the ticket, in the order that was drawn
)
due = sa.Table(  # when devices were told to come again; forgotten an hour after
    "due",
    metadata,
    sa.Column("device", _DEVICE, sa.ForeignKey("devices.device"), primary_key=True),
    sa.Column("told_at", sa.Float, nullable=False),
    sa.Column("due_at", sa.Float, nullable=False, index=True),
    sqlite_with_rowid=False,
)
assignments = sa.Table(
    "assignments",
    metadata,
    sa.Column("assignment", sa.String(32), primary_key=True),
    sa.Column("task", _TASK, nullable=False),
    sa.Column("round", _ROUND, nullable=False),
    sa.Column("device", _DEVICE, sa.ForeignKey("devices.device"), nullable=False, index=True),
    sa.Column("admitted_at", sa.Float, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("cause", sa.String(32)),
    sa.Column("update_hash", _SHA),
    sa.Column("downloaded", sa.Boolean, nullable=False),
    sa.Column("uploaded", sa.Boolean, nullable=False),
    sa.Column("counted_in", _ROUND),  # the round; of a buffered task it may be a later one
    sa.ForeignKeyConstraint(("task", "round"), ("rounds.task", "rounds.round")),
    # a device that gave back its work in a buffered round may have more of the same round
    sa.Index("ix_assignments_round", "task", "round"),
)
participations = sa.Table(  # what an accountant needs of each device, and all that is kept for ever
    "participations",
    metadata,
    sa.Column("device", _DEVICE, sa.ForeignKey("devices.device"), primary_key=True),
    sa.Column("task", _TASK, sa.ForeignKey("tasks.task"), primary_key=True),
    sa.Column("last_counted", _ROUND, nullable=False),
    sa.Column("counted", sa.BigInteger, nullable=False),
    sa.Column("smallest_separation", _ROUND),
    # of sums that were released with noise: the number of the last one it was in, from one of them
    # to its next at least, and how many it was in
    sa.Column("last_sum", _ROUND),
    sa.Column("smallest_gap", _ROUND),
    sa.Column("in_sums", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("barred", sa.Boolean, nullable=False, server_default=sa.false()),
)
members = sa.Table(  # who was in which sum with noise: round numbers without times, for ever
    "members",
    metadata,
    sa.Column("task", _TASK, sa.ForeignKey("tasks.task"), primary_key=True),
    sa.Column("round", _ROUND, primary_key=True, autoincrement=False),
    sa.Column("device", _DEVICE, sa.ForeignKey("devices.device"), primary_key=True),
    sqlite_with_rowid=False,
)
spending = sa.Table(  # of a task with noise
    "spending",
    metadata,
    sa.Column("task", _TASK, sa.ForeignKey("tasks.task"), primary_key=True),
    # an `accountant.Participation`: its blocks as a JSON list
    sa.Column("blocks", sa.Text, nullable=False, server_default="[]"),
    sa.Column("separation", _ROUND),
    sa.Column("participations", sa.BigInteger, nullable=False, server_default="0"),
    # what its helper said when it was heard last: `helper_wire.Noised`, JSON; empty: nothing yet
    sa.Column("noised", sa.Text, nullable=False, server_default=""),
    # why no further round starts, in a sentence; empty while one may
    sa.Column("over", sa.Text, nullable=False, server_default=""),
    # where the server adds the noise: the number of the slot that has the key of what follows
    sa.Column("generation", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("buffers", sa.LargeBinary),  # `noising.sealed`
    # the round whose noise has been drawn, and that noise, sealed, until its checkpoint is on disk
    sa.Column("round", _ROUND),
    sa.Column("noise", sa.LargeBinary),
    # that noise is the first after a beginning: what was kept of those before is lost
    sa.Column("begins", sa.Boolean, nullable=False, server_default=sa.false()),
)
sums = sa.Table(  # what each replica has counted of an open round
    "sums",
    metadata,
    sa.Column("task", _TASK, primary_key=True),
    sa.Column("round", _ROUND, primary_key=True, autoincrement=False),
    sa.Column("replica", sa.String(32), primary_key=True),
    sa.Column("total", sa.LargeBinary, nullable=False),  # sealed: server/masks.py
    sa.Column("generation", sa.BigInteger, nullable=False, server_default="0"),  # of its key
    sa.ForeignKeyConstraint(("task", "round"), ("rounds.task", "rounds.round")),
)
seal_keys = sa.Table(  # of rounds to come and under way, as the helper signed them
    "seal_keys",
    metadata,
    sa.Column("task", _TASK, sa.ForeignKey("tasks.task"), primary_key=True),
    sa.Column("round", _ROUND, primary_key=True, autoincrement=False),
    sa.Column("key", sa.Text, nullable=False),  # `helper_wire.SealKey`, signed, as JSON
)
seals = sa.Table(  # of the reports that an open round has counted: only the helper reads them
    "seals",
    metadata,
    sa.Column("assignment", sa.String(32), primary_key=True),
    sa.Column("task", _TASK, nullable=False),
    sa.Column("round", _ROUND, nullable=False),  # that counts it
    sa.Column("assigned", _ROUND, nullable=False),  # the round it was assigned in
    sa.Column("device", _DEVICE, sa.ForeignKey("devices.device"), nullable=False),
    sa.Column("seal", sa.LargeBinary, nullable=False),
    sa.Column("signature", sa.LargeBinary, nullable=False),
    sa.ForeignKeyConstraint(("task", "round"), ("rounds.task", "rounds.round")),
    sa.Index("ix_seals_round", "task", "round"),
)
last_sums = sa.Table(  # whose reports were in the masked sum that was opened last, as hashes
    "last_sums",
    metadata,
    sa.Column("task", _TASK, sa.ForeignKey("tasks.task"), primary_key=True),
    sa.Column("members", sa.LargeBinary, nullable=False),
)
releases = sa.Table(  # what has been published, as its newest statement leaves it
    "releases",
    metadata,
    sa.Column("population", _TASK, primary_key=True),
    sa.Column("release", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("manifest", sa.Text, nullable=False),  # as it was signed
    sa.Column("signature", sa.Text, nullable=False),  # of the manifest: manifest.sig
    sa.Column("statement", sa.Text, nullable=False),  # the newest, a `wire.Signed` as JSON
    sa.Column("new_vocabulary", sa.Boolean, nullable=False),
    sa.Column("published_at", sa.Float, nullable=False),
    sa.Column("changed_at", sa.Float, nullable=False),
    # why the server names it no more; empty while it does
    sa.Column("stopped", sa.Text, nullable=False, server_default=""),
    sa.Column("stopped_at", sa.Float),
)
release_files = sa.Table(  # the blobs of a release: its manifest, and the files that lists
    "release_files",
    metadata,
    sa.Column("population", _TASK, primary_key=True),
    sa.Column("release", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("file", sa.String(64), primary_key=True),
    sa.Column("sha", _SHA, nullable=False, index=True),
    sa.ForeignKeyConstraint(("population", "release"), ("releases.population", "releases.release")),
)
release_differences = sa.Table(  # what makes one predict.tflite of an older release's
    "release_differences",
    metadata,
    sa.Column("population", _TASK, primary_key=True),
    sa.Column("release", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("older", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("sha", sa.String(64), nullable=False, index=True),  # empty: it would save too little
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.ForeignKeyConstraint(("population", "release"), ("releases.population", "releases.release")),
)
release_indexes = sa.Table(  # a `releases.Newest` as its bytes: what check-ins name
    "release_indexes",
    metadata,
    sa.Column("population", _TASK, primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("sha", _SHA, nullable=False, index=True),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("newest", sa.Boolean, nullable=False, index=True),
)
heartbeats = sa.Table(  # whoever asks whether a server is ready has it write
    "heartbeats",
    metadata,
    sa.Column("heartbeat", sa.String(16), primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
)
release_scores = sa.Table(  # what is told of releases: rows of enough devices, added up
    "release_scores",
    metadata,
    sa.Column("population", _TASK, primary_key=True),
    sa.Column("release", sa.BigInteger, primary_key=True, autoincrement=False),
    # that the devices ran before, and scored too; 0: none
    sa.Column("before", sa.BigInteger, primary_key=True, autoincrement=False),
    *(
        sa.Column(name, sa.BigInteger, nullable=False)
        for name in ("devices", "targets", "top1", "top3", "in_vocabulary", "loss")
    ),
    *(
        sa.Column(name, sa.BigInteger, nullable=False)
        for name in ("words_squared", "top1_squared", "top1_words")
    ),
    *(
        sa.Column(name, sa.BigInteger, nullable=False)
        for name in ("before_top1", "before_top3", "before_loss", "gain_squared", "gain_words")
    ),
    sa.Column("spread", sa.Text, nullable=False),  # JSON list
)
secagg_rounds = sa.Table(  # of SecAgg+: how far a round is, and how many came to each step
    "secagg_rounds",
    metadata,
    sa.Column("task", _TASK, primary_key=True),
    sa.Column("round", _ROUND, primary_key=True, autoincrement=False),
    sa.Column("step", sa.String(16), nullable=False),
    sa.Column("order", _SHA, nullable=False, server_default=""),  # of its devices, once it is drawn
    # places, as `secagg_wire.to_bits` writes them
    sa.Column("shared", sa.Text, nullable=False, server_default=""),
    sa.Column("masked", sa.Text, nullable=False, server_default=""),
    *(
        sa.Column(name, sa.BigInteger, nullable=False, server_default="0")
        for name in ("keys", "shares", "consents", "unmasked")
    ),
    sa.ForeignKeyConstraint(("task", "round"), ("rounds.task", "rounds.round")),
)
secagg_devices = sa.Table(  # what each device of an open round has sent
    "secagg_devices",
    metadata,
    sa.Column("task", _TASK, primary_key=True),
    sa.Column("round", _ROUND, primary_key=True, autoincrement=False),
    sa.Column("device", _DEVICE, sa.ForeignKey("devices.device"), primary_key=True),
    *(sa.Column(name, _SHA, nullable=False) for name in ("mask_key", "box_key")),
    sa.Column("signature", sa.String(128), nullable=False),
    sa.Column("place", sa.BigInteger),  # once the order is drawn
    # SHA-256 of its shares as they came, what they commit it to, and SHA-256 of what it reveals;
    # empty before
    *(
        sa.Column(name, _SHA, nullable=False, server_default="")
        for name in ("shares", "commitment", "unmasked")
    ),
    sa.Column("consent", sa.String(128), nullable=False, server_default=""),
    sa.Column("revealed", sa.Text, nullable=False, server_default=""),  # as JSON
    sa.ForeignKeyConstraint(("task", "round"), ("rounds.task", "rounds.round")),
)
secagg_boxes = sa.Table(  # shares of one device for another, as the one sealed them
    "secagg_boxes",
    metadata,
    sa.Column("task", _TASK, primary_key=True),
    sa.Column("round", _ROUND, primary_key=True, autoincrement=False),
    sa.Column("receiver", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("sender", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("box", sa.LargeBinary, nullable=False),
    sa.ForeignKeyConstraint(("task", "round"), ("rounds.task", "rounds.round")),
)
logs = sa.Table(  # the newest is the one that goes on; most servers have one all their life
    "logs",
    metadata,
    sa.Column("log", sa.BigInteger, primary_key=True, autoincrement=False),  # from 1 on
    sa.Column("log_key", _SHA, nullable=False),  # public; its private half lies in a slot
    # why nobody will believe it any more, in a sentence; empty while they do
    sa.Column("over", sa.Text, nullable=False, server_default=""),
)
tallies = sa.Table(  # what the rounds of a task that counts have opened
    "tallies",
    metadata,
    sa.Column("task", _TASK, primary_key=True),
    sa.Column("round", _ROUND, primary_key=True, autoincrement=False),
    sa.Column("people", sa.BigInteger, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),  # `store.StoredTally.body`
    sa.ForeignKeyConstraint(("task", "round"), ("rounds.task", "rounds.round")),
)
log_entries = sa.Table(  # append-only: `device_runtime.log_wire`
    "log_entries",
    metadata,
    sa.Column("log", sa.BigInteger, sa.ForeignKey("logs.log"), primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),  # from 0 on
    sa.Column("about", sa.String(160), nullable=False, index=True),  # how it is found again
    sa.Column("body", sa.Text, nullable=False),  # the entry, as JSON
)
log_nodes = sa.Table(  # the roots of the entries and of their whole ranges
    "log_nodes",
    metadata,
    sa.Column("log", sa.BigInteger, sa.ForeignKey("logs.log"), primary_key=True),
    sa.Column("place", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("root", sa.LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
log_heads = sa.Table(  # that this server has signed, from the newest countersigned one on
    "log_heads",
    metadata,
    sa.Column("log", sa.BigInteger, sa.ForeignKey("logs.log"), primary_key=True),
    sa.Column("size", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("head", sa.Text, nullable=False),  # a `wire.Signed` of a head, as JSON
    sa.Column("countersigned", sa.Text),  # the same by a helper; None before it has signed
)
