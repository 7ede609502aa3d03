"""Spending rows: what was spent of each task's privacy, read and written inside a transaction.

Who was in which sum with noise is kept for ever, as numbers of rounds without times; of each
device in how many it was and the least from one to its next, so that no sum costs more to write
down than the devices in it.
"""

import json

import sqlalchemy as sa

from device_runtime import config
from device_runtime.accountant import Account, Participation
from device_runtime.helper_wire import Noised
from server import budget
from server.budget import Spending
from server.tables import assignments, members, participations, rounds, spending


class SpendingRows:
    """Reading and writing inside one transaction."""

    def __init__(self, connection: sa.Connection):
        self._connection = connection

    def all(self) -> dict[str, Spending]:
        """By task, of those with noise that have begun."""
        names = ("task", "blocks", "separation", "participations", "noised", "over", "round")
        query = sa.select(*(spending.c[name] for name in (*names, "begins")))
        return {
            task: Spending(
                Participation(tuple(json.loads(blocks)), apart, most),
                config.from_json(Noised, noised.encode(), "noised") if noised else None,
                over,
                drawn,
                bool(begins),
            )
            for task, blocks, apart, most, noised, over, drawn, begins in self._connection.execute(
                query
            )
        }

    def of(self, task: str) -> Spending:
        """What is written down of a task."""
        return self.all().get(task, Spending())

    def begin(self, task: str) -> None:
        """A new task has noise."""
        self._connection.execute(spending.insert(), {"task": task})

    def record(
        self,
        task: str,
        round: int,
        oldest: int | None,
        begins: bool,
        noised: Noised | None,
    ) -> Spending:
        """Write down that the sum of a round was made: of the devices whose reports it has counted,
        of those assigned in it, or since `oldest`. What is kept of its noise is gone.
        """
        before = self.of(task)
        number = before.happened.sums + 1
        since = round if oldest is None else oldest
        counted = sa.select(
            sa.literal(task), sa.literal(round, sa.BigInteger), assignments.c.device
        ).where(
            assignments.c.task == task,
            assignments.c.round >= since,
            assignments.c.round <= round,
            assignments.c.counted_in == round,
        )
        self._connection.execute(
            members.insert().from_select(["task", "round", "device"], counted.distinct())
        )
        in_it = sa.select(members.c.device).where(members.c.task == task, members.c.round == round)
        mine = (participations.c.task == task) & participations.c.device.in_(in_it)
        last, smallest = participations.c.last_sum, participations.c.smallest_gap
        is_less = last.is_not(None) & (smallest.is_(None) | (number - last < smallest))
        self._connection.execute(
            participations.update()
            .where(mine)
            .values(
                smallest_gap=sa.case((is_less, number - last), else_=smallest),
                last_sum=number,
                in_sums=participations.c.in_sums + 1,
            )
        )
        most, apart = self._connection.execute(
            sa.select(
                sa.func.coalesce(sa.func.max(participations.c.in_sums), 0), sa.func.min(smallest)
            ).where(mine)
        ).one()
        happened = budget.recorded(before.happened, begins, most, apart)
        after = budget.after_sum(before, happened, noised)
        self._connection.execute(
            spending.update()
            .where(spending.c.task == task)
            .values(
                blocks=json.dumps(happened.blocks),
                separation=happened.separation,
                participations=happened.participations,
                noised=config.to_json(after.noised).decode() if after.noised else "",
                round=None,
                noise=None,
                begins=False,
            )
        )
        return after

    def members(self, task: str) -> dict[int, list[str]]:
        """Who was in the sum of which round."""
        query = (
            sa.select(members.c.round, members.c.device)
            .where(members.c.task == task)
            .order_by(members.c.round, members.c.device)
        )
        listed: dict[int, list[str]] = {}
        for round, device in self._connection.execute(query):
            listed.setdefault(round, []).append(device)
        return listed

    def last_round(self, task: str) -> int:
        """The newest round whose sum was made; -1 if none was."""
        newest = sa.select(sa.func.max(members.c.round)).where(members.c.task == task)
        last: int | None = self._connection.execute(newest).scalar_one()
        return -1 if last is None else last

    def note(self, task: str, round: int, account: Account) -> None:
        """Keep what a task has spent, its sum of this round with the others."""
        at = (rounds.c.task == task) & (rounds.c.round == round)
        values = {"rho": account.rho, "epsilon": account.epsilon}
        self._connection.execute(rounds.update().where(at).values(**values))

    def set_over(self, task: str, why: str) -> None:
        """No further round of the task starts."""
        mine = spending.c.task == task
        self._connection.execute(spending.update().where(mine).values(over=why))

    # of a server that adds the noise itself

    def sealed(self, task: str) -> tuple[int, bytes | None, bytes | None]:
        """The number of the keys of what follows; what the noise of the next sum needs, sealed; and
        the noise that is drawn and not published yet, sealed.
        """
        names = ("generation", "buffers", "noise")
        query = sa.select(*(spending.c[name] for name in names)).where(spending.c.task == task)
        generation, buffers, noise = self._connection.execute(query).one()
        return (
            generation,
            None if buffers is None else bytes(buffers),
            None if noise is None else bytes(noise),
        )

    def draw(
        self, task: str, round: int, generation: int, buffers: bytes, noise: bytes, begins: bool
    ) -> None:
        """Keep the noise of a round, sealed, and what the one after it needs."""
        self._connection.execute(
            spending.update()
            .where(spending.c.task == task)
            .values(round=round, generation=generation, buffers=buffers, noise=noise, begins=begins)
        )
