"""Bounds: which values a field of a record may have, said at the field and checked in one call.

@dataclass(frozen=True)
class Step:
    rate: Annotated[float, Within(0.001, 10.0)] = 0.1

    def __post_init__(self) -> None:
        check(self, "step")
"""

import functools
import re
import types
import typing
from collections.abc import Callable
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

    def holds(self, value: Any) -> bool:
        """Whether a value is within."""
        return (
            isinstance(value, self._kinds)
            and self.low <= value <= self.high
            and (type(value) is not bool)
        )

    def require(self, name: str, value: Any) -> None:
        """Raises ConfigError, naming `name`, for a value that is outside or of another type."""
        if not self.holds(value):
            raise ConfigError(name, f"expected {self}, found {_shown(value)}", "correct it")

    @functools.cached_property
    def _kinds(self) -> Any:  # what isinstance takes
        return (int,) if self.is_whole else (int, float)

    def schema(self) -> dict[str, Any]:
        """The same in words of JSON Schema."""
        return {"minimum": self.low, "maximum": self.high}

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

    def schema(self) -> dict[str, Any]:
        """The same in words of JSON Schema."""
        return {"enum": list(self.choices)}

    def holds(self, value: Any) -> bool:
        """Whether a value is one of them."""
        return value in self.choices

    def require(self, name: str, value: Any) -> None:
        """Raises ConfigError, naming `name` and all choices, for anything else."""
        if not self.holds(value):
            raise ConfigError(
                name,
                f"expected one of {', '.join(self.choices)}, found {_shown(value)}",
                "choose one of them",
            )


@dataclass(frozen=True)
class Matches:
    """A text of at most `most` characters that is wholly what `pattern` says."""

    pattern: str
    most: int

    def holds(self, value: Any) -> bool:
        """Whether a value is such a text."""
        return type(value) is str and len(value) <= self.most and self._fullmatch(value) is not None

    def require(self, name: str, value: Any) -> None:
        """Raises ConfigError, naming `name`, for any other text, and for what is none."""
        if not self.holds(value):
            raise ConfigError(name, f"expected {self}, found {_shown(value)}", "correct it")

    @functools.cached_property
    def _fullmatch(self) -> Callable[[str], object]:
        return re.compile(self.pattern).fullmatch

    def schema(self) -> dict[str, Any]:
        """The same in words of JSON Schema."""
        return {"pattern": f"^({self.pattern})$", "maxLength": self.most}

    def __str__(self) -> str:
        """
        >>> str(Matches("[a-z]+", 8))
        'at most 8 characters like [a-z]+'
        """
        return f"at most {self.most:,} characters like {self.pattern}"


@dataclass(frozen=True)
class Each:
    """A list or a table of at most `most` values, each within `values`, and its names within
    `names`.
    """

    values: "Bound | None" = None
    most: int = 1000
    names: Matches | None = None

    def holds(self, value: Any) -> bool:
        """Whether a value is such a list or table."""
        if not isinstance(value, tuple | list | dict) or len(value) > self.most:
            return False
        items = value.values() if isinstance(value, dict) else value
        names = () if self.names is None or not isinstance(value, dict) else value
        return all(map(self.names.holds, names) if self.names else ()) and (
            self.values is None or all(map(self.values.holds, items))
        )

    def require(self, name: str, value: Any) -> None:
        """Raises ConfigError, naming `name`, for anything else."""
        if not self.holds(value):
            raise ConfigError(name, f"expected {self}, found {_shown(value)}", "correct it")

    def schema(self) -> dict[str, Any]:
        """The same in words of JSON Schema, for a list."""
        return {"maxItems": self.most}

    def __str__(self) -> str:
        """
        >>> str(Each(Within(1, 5), 3)), str(Each(most=3))
        ('at most 3 values, each 1 to 5', 'at most 3 values')
        """
        each = "" if self.values is None else f", each {self.values}"
        named = "" if self.names is None else f", named by {self.names}"
        return f"at most {self.most:,} values{each}{named}"


Bound = Within | OneOf | Matches | Each


def within(name: str, value: Any, low: float, high: float) -> None:
    """`Within(low, high).require`, for a number that stands in no record."""
    Within(low, high).require(name, value)


def check(record: Any, where: str = "") -> None:
    """Raises ConfigError for the first field of a dataclass that is not within its bounds; one that
    may be None is within them if it is.

    The error names it `where.field`, or `field` alone.
    """
    kind: Any = type(record)  # whatever it is: a type can be looked up
    for name, holds, may_be_none in _checks(kind):
        value = getattr(record, name)
        if not holds(value) and (value is not None or not may_be_none):
            of(kind)[name].require(f"{where}.{name}" if where else name, value)


@functools.cache
def _checks(kind: type) -> tuple[tuple[str, Callable[[Any], bool], bool], ...]:
    """Of each bounded field of a dataclass: its name, what its values are asked, and whether it may
    be None.
    """
    optional = _may_be_none(kind)
    return tuple((name, bound.holds, name in optional) for name, bound in of(kind).items())


@functools.cache
def of(kind: type) -> dict[str, Bound]:
    """The bounds of a dataclass by field; a field without any is left out."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {
        name: bound
        for name, hint in hints.items()
        for bound in getattr(hint, "__metadata__", ())
        if isinstance(bound, Bound)
    }


@functools.cache
def _may_be_none(kind: type) -> frozenset[str]:
    """The fields of a dataclass that may be None, whatever their bounds."""
    return frozenset(
        name
        for name, hint in typing.get_type_hints(kind).items()
        if isinstance(hint, types.UnionType) and type(None) in typing.get_args(hint)
    )


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
    if isinstance(value, dict | list | tuple):
        return f"{len(value):,}"
    text = repr(value[: LONGEST + 1] if isinstance(value, str) else value)
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."
