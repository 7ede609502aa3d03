"""Records: a frozen record with other values in some of its fields, at little cost.

`dataclasses.replace` asks each field how it was declared, which takes longer than most events of a
round. For records without `__post_init__`: nothing of the new one is looked at.
"""

from typing import Any, TypeVar

T = TypeVar("T")


def changed(record: T, **changes: Any) -> T:
    """The record with these fields changed; they must be among its own."""
    after = object.__new__(type(record))
    after.__dict__.update(record.__dict__)
    after.__dict__.update(changes)
    return after
