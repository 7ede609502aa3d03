"""Bounds: which values a field of a record may have, said at the field and checked in one call.

@dataclass(frozen=True)
class Step:
    rate: Annotated[float, Within(0.001, 10.0)] = 0.1

    def __post_init__(self) -> None:
        check(self, "step")
"""

import functools
import typing
from dataclasses import dataclass
from typing import Any

from device_runtime.errors import ConfigError

LONGEST = 40  # characters of a refused value that an error repeats


@dataclass(frozen=True)
class Within:
    """A number from `low` to `high`, both allowed; not a number, and infinity, are never within.

    Where both are whole numbers the value must be one too.
    """

    low: float
    high: float

    def require(self, name: str, value: Any) -> None:
        """Raises ConfigError, naming `name`, for a value that is outside or of another type."""
        kinds = int if self.is_whole else (int, float)
        if (
            isinstance(value, bool)
            or not isinstance(value, kinds)
            or not self.low <= value <= self.high
        ):
            raise ConfigError(name, f"expected {self}, found {_shown(value)}", "correct it")

    @property
    def is_whole(self) -> bool:
        """Whether only whole numbers are within."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def __str__(self) -> str:
        """
        >>> str(Within(1, 100_000)), str(Within(0.0, 0.5))
        ('1 to 100,000', '0 to 0.5')
        """
        return f"{_shown(self.low)} to {_shown(self.high)}"


@dataclass(frozen=True)
class OneOf:
    """One of several names."""

    choices: tuple[str, ...]

    def require(self, name: str, value: Any) -> None:
        """Raises ConfigError, naming `name` and all choices, for anything else."""
        if value not in self.choices:
            raise ConfigError(
                name,
                f"expected one of {', '.join(self.choices)}, found {_shown(value)}",
                "choose one of them",
            )


def within(name: str, value: Any, low: float, high: float) -> None:
    """`Within(low, high).require`, for a number that stands in no record."""
    Within(low, high).require(name, value)


def check(record: Any, where: str = "") -> None:
    """Raises ConfigError for the first field of a dataclass that is not within its bounds.

    The error names it `where.field`, or `field` alone.
    """
    kind: Any = type(record)  # whatever it is: a type can be looked up
    for name, bound in of(kind).items():
        bound.require(f"{where}.{name}" if where else name, getattr(record, name))


@functools.cache
def of(kind: type) -> dict[str, Within | OneOf]:
    """The bounds of a dataclass by field; a field without any is left out."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {
        name: bound
        for name, hint in hints.items()
        for bound in getattr(hint, "__metadata__", ())
        if isinstance(bound, Within | OneOf)
    }


def _shown(value: Any) -> str:
    """A value as an error repeats it: cut short, and never longer to write than to read.

    >>> _shown(5000), _shown(-0.5), _shown(10**5000), _shown("adam")
    ('5,000', '-0.5', 'a number of more than 30 digits', "'adam'")
    """
    if isinstance(value, int) and not isinstance(value, bool):
        # a very long number cannot even be written: Python refuses
        return f"{value:,}" if abs(value) < 10**30 else "a number of more than 30 digits"
    if isinstance(value, float):
        return f"{value:g}"
    text = repr(value)
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."
