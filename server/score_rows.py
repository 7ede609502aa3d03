"""Score rows: what is told of releases, read and written inside a transaction."""

import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from server.release_scores import NUMBERS, Figures, Pair
from server.tables import release_scores, releases


class ScoreRows:
    """Reading and writing inside one transaction."""

    def __init__(self, connection: sa.Connection):
        self._connection = connection

    def published(self, population: str) -> frozenset[int]:
        """The numbers of all releases that there ever were."""
        query = sa.select(releases.c.release).where(releases.c.population == population)
        return frozenset(self._connection.execute(query).scalars())

    def told(self, population: str) -> dict[Pair, Figures]:
        """What is told of the releases of a population, by pair."""
        return {
            (row.release, row.before): _figures(row)
            for row in self._connection.execute(_TOLD.where(_of(population)))
        }

    def add(self, population: str, told: Mapping[Pair, Figures]) -> None:
        """Tell more of releases, each row of enough devices."""
        before = self.told(population)
        for (release, other), more in told.items():
            at = {"population": population, "release": release, "before": other}
            figures = before.get((release, other), Figures()) + more
            values = {name: getattr(figures, name) for name in NUMBERS}
            values["spread"] = json.dumps(figures.spread)
            if (release, other) in before:
                mine = _of(population) & (release_scores.c.release == release)
                mine &= release_scores.c.before == other
                self._connection.execute(release_scores.update().where(mine).values(**values))
            else:
                self._connection.execute(release_scores.insert(), at | values)


_TOLD = sa.select(
    *(release_scores.c[name] for name in ("release", "before", *NUMBERS, "spread"))
).order_by(release_scores.c.release, release_scores.c.before)


def _of(population: str) -> Any:
    return release_scores.c.population == population


def _figures(row: Any) -> Figures:
    numbers = {name: int(getattr(row, name)) for name in NUMBERS}
    return Figures(**numbers, spread=tuple(json.loads(row.spread)))
