"""Lists: how a statement takes the names of a whole group: as one parameter, however many they are.

A parameter for each would have its statement written anew for each group, which takes longer than
running it.
"""

import json
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class _IsOneOf(FunctionElement[Any]):
    """Whether a column's value is in a list."""

    inherit_cache = True
    type = sa.types.NullType()  # of a truth value, SQLite would be asked whether it is 1


def is_one_of(column: sa.Column[str], name: str) -> sa.ColumnElement[bool]:
    """Whether a column's value is in the list that is given as the parameter `name`, as
    `parameter` makes it.
    """
    return _IsOneOf(column, sa.bindparam(name, type_=sa.types.NullType()))


def parameter(names: Iterable[str], dialect: str) -> str | list[str]:
    """A list of texts as that database's driver takes it."""
    return json.dumps(list(names)) if dialect == "sqlite" else list(names)


@compiles(_IsOneOf, "sqlite")
def _on_sqlite(element: _IsOneOf, compiler: Any, **options: Any) -> str:
    column, names = (compiler.process(each, **options) for each in element.clauses)
    return f"{column} IN (SELECT value FROM json_each({names}))"


@compiles(_IsOneOf, "postgresql")
def _on_postgresql(element: _IsOneOf, compiler: Any, **options: Any) -> str:
    column, names = (compiler.process(each, **options) for each in element.clauses)
    return f"{column} = ANY({names})"
