"""Tables and messages: how TOML or JSON becomes a frozen dataclass, and what is refused.

An unknown key, a wrong type and a value outside of its field's bounds are errors. JSON is read
strictly, here and nowhere else where it comes from another machine: UTF-8, each name once, numbers
that are finite, and no more of anything than a message of ours has. Source: RFC 8259, and I-JSON,
RFC 7493.
"""

import contextlib
import functools
import json
import math
import tomllib
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any, TypeVar, cast

import tomli_w

from device_runtime import bounds
from device_runtime.errors import ConfigError

T = TypeVar("T")
MOST_BYTES = 1 << 20  # of a message
DEEPEST = 32  # tables and lists inside one another
LONGEST_KEY = 60  # characters of an unknown key that an error repeats


def from_table(kind: type[T], table: Any, where: str) -> T:
    """The dataclass `kind` filled from `table`, checked field by field.

    Fields may be bool, int, float, str, `X | None`, `tuple[X, ...]`, `dict[str, X]` or another
    dataclass. A whole number is accepted for a float. Raises ConfigError naming the field for an
    unknown key, a missing value, a value of another type, or one that is not within its bounds.
    """
    dataclass: Any = kind  # whatever it is: a type can be looked up
    record = _taken(dataclass, table)
    if record is not None:
        return cast(T, record)
    # something is to be converted, or to be refused by name
    if not isinstance(table, dict):
        raise ConfigError(
            where, f"expected a table, found {_name(table)}", "write `key = value` pairs"
        )
    known = _fields(dataclass)
    for key in table:
        if key not in known:
            raise ConfigError(
                f"{where}.{str(key)[:LONGEST_KEY]}",
                f"unknown key, expected one of {', '.join(sorted(known))}",
                "remove or rename it",
            )
    values = {}
    for name, (hint, is_needed, as_they_are) in known.items():
        if name in table:
            value = table[name]
            # most fields: nothing to convert, and no name to build for an error
            values[name] = (
                value if type(value) in as_they_are else _convert(hint, value, f"{where}.{name}")
            )
        elif is_needed:
            raise ConfigError(f"{where}.{name}", "missing", "add it")
    built = kind(**values)
    bounds.check(built, where)
    return built


def from_json(
    kind: type[T], data: bytes | bytearray, where: str, most_bytes: int = MOST_BYTES
) -> T:
    """The dataclass `kind` from a JSON object. Raises ConfigError for bytes that are not one."""
    return from_table(kind, read_json(data, where, most_bytes), where)


def read_json(data: bytes | bytearray, where: str, most_bytes: int = MOST_BYTES) -> Any:
    """The value of a JSON text that may come from anybody.

    Raises ConfigError unless it is UTF-8 of at most `most_bytes` and DEEPEST, has each name once in
    its table, and no number that is not finite or text with half a character.
    """
    if len(data) > most_bytes:
        raise ConfigError(
            where, f"expected at most {most_bytes:,} bytes, found {len(data):,}", "send less"
        )
    try:
        value = _STRICT.decode(str(data, "utf-8"))
        if data.count(b"{") + data.count(b"[") > DEEPEST:
            _require_shallow(value)
        if b"\\u" in data:  # the only way to write half a character
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ConfigError(where, f"not JSON ({_reason(error)})", "send one JSON object") from None
    return value


def _require_shallow(value: Any) -> None:
    """Raises ValueError for tables and lists deeper than DEEPEST."""
    level, depth = [value], 0
    while level:
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} tables and lists inside one another")
        inside = [each for each in level if isinstance(each, dict | list)]
        level = [
            item for each in inside for item in (each.values() if isinstance(each, dict) else each)
        ]
        depth += 1


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):  # another reader might take the other one
        raise ValueError("a name is there twice")
    return table


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number that is not finite")
    return value


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _reason(error: Exception) -> str:
    """Why a text is no JSON, without what it holds."""
    if isinstance(error, UnicodeError):
        return "not UTF-8"
    return "too deep" if isinstance(error, RecursionError) else str(error)


_STRICT = json.JSONDecoder(object_pairs_hook=_table, parse_float=_finite, parse_constant=_no_number)


def is_toml_of(kind: type[Any], path: Path) -> bool:
    """Whether a TOML file holds the dataclass `kind`: what a folder of ours is known by."""
    try:
        from_toml(kind, path)
    except ConfigError:
        return False
    return True


def from_toml(kind: type[T], path: Path) -> T:
    """The dataclass `kind` from a TOML file. Raises ConfigError for a file that cannot be read or
    parsed.
    """
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(path, f"cannot be read ({reason})", "give a TOML file") from None
    except (ValueError, RecursionError) as error:  # also of a number of thousands of digits
        raise ConfigError(path, f"not TOML ({error})", "correct that line") from None
    return from_table(kind, table, str(path))


def to_json(value: Any) -> bytes:
    """A dataclass (or plain value) as canonical JSON: sorted keys, no spaces, so equal values have
    equal bytes.
    """
    return _written(value).encode()


def to_toml(value: Any) -> str:
    """A dataclass as TOML: plain fields first, then one table per nested dataclass. None is left
    out: it is the default.
    """
    return tomli_w.dumps(_set(_plain(value)))


def _set(value: Any) -> Any:
    """A table without what is None."""
    if isinstance(value, dict):
        return {key: _set(item) for key, item in value.items() if item is not None}
    return value


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
_LEAVES = frozenset({str, int, float, bool, type(None)})


def _written(value: Any) -> str:
    """A value as `_CANONICAL` writes it. A dataclass without making a table of it first, nor
    sorting its names each time: that takes longer than writing it.
    """
    write = _WRITERS.get(type(value))
    if write is not None:
        return write(value)
    if isinstance(value, str):  # a name of an enumeration
        return encode_basestring_ascii(value)
    if not is_dataclass(value):
        return _CANONICAL.encode(_plain(value))
    values, parts = vars(value), []
    kind: Any = type(value)
    for name, key in _names(kind):
        item = values[name]
        write = _WRITERS.get(type(item))
        parts.append(key + (_written(item) if write is None else write(item)))
    return f"{{{','.join(parts)}}}"


def _float(value: float) -> str:
    return repr(value) if math.isfinite(value) else _CANONICAL.encode(value)


_WRITERS: dict[type, Callable[[Any], str]] = {
    str: encode_basestring_ascii,
    int: repr,
    float: _float,
    bool: lambda value: "true" if value else "false",
    type(None): lambda value: "null",
}


@functools.cache
def _names(kind: type) -> tuple[tuple[str, str], ...]:
    """The names of a dataclass' fields in their order, and each as it stands before its value."""
    return tuple(
        (field.name, f'"{field.name}":')
        for field in sorted(fields(kind), key=lambda each: each.name)
    )


def _plain(value: Any) -> Any:
    """Dataclasses inside as tables. (`asdict` copies all else as well, which takes longer than
    writing it.)
    """
    if type(value) in _LEAVES:  # nearly all that a message has inside
        return value
    if is_dataclass(value):
        # not all of `vars`: a property that is kept once it is known stands there too
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _taken(kind: type, table: Any) -> Any:
    """A dataclass of a table whose values all are of the types and within the bounds of its fields
    as they are: most messages. None for any other.
    """
    if type(table) is not dict:
        return None
    left, values = len(table), {}
    for name, kinds, inner, holds, is_needed in _takers(kind):
        if name in table:
            left -= 1
            value = table[name]
            if type(value) not in kinds:
                value = None if inner is None else _taken(inner, value)
                if value is None:
                    return None
            elif holds is not None and not holds(value):
                return None
            values[name] = value
        elif is_needed:
            return None
    return None if left else kind(**values)


@functools.cache
def _takers(kind: type) -> tuple[tuple[str, frozenset[type], Any, Any, bool], ...]:
    """Of each field of a dataclass: its name, of which types its values are taken as they are, the
    dataclass of one that is a table, what its bounds ask of a value, and whether it must be given:
    also where a default is to be looked at.
    """
    takers = []
    for field in fields(kind):
        hint, is_needed, kinds = _fields(kind)[field.name]
        bound = bounds.of(kind).get(field.name)
        inner = hint if is_dataclass(hint) and bound is None else None
        holds = None if bound is None else _or_none(bound.holds, type(None) in kinds)
        if hasattr(kind, "__post_init__"):
            kinds, inner = frozenset(), None  # whatever it does comes before the bounds
        elif holds is not None and not is_needed:
            is_needed = field.default is MISSING or not holds(field.default)
        takers.append((field.name, kinds, inner, holds, is_needed))
    return tuple(takers)


def _or_none(holds: Callable[[Any], bool], may_be_none: bool) -> Callable[[Any], bool]:
    return (lambda value: value is None or holds(value)) if may_be_none else holds


@functools.cache
def _fields(kind: type) -> dict[str, tuple[Any, bool, frozenset[type]]]:
    """The type of each field of a dataclass, whether it must be given, and of which types its
    values are taken as they are. Working them out takes longer than reading a message.
    """
    hints = typing.get_type_hints(kind)
    return {
        field.name: (
            hints[field.name],
            field.default is MISSING and field.default_factory is MISSING,
            _as_they_are(hints[field.name]),
        )
        for field in fields(kind)
    }


def _as_they_are(hint: Any) -> frozenset[type]:
    """The types of JSON and TOML whose values need no conversion to be of a type."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return frozenset({bool, int, float, str, type(None)}.intersection(options))


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(
            next(option for option in arguments if option is not type(None)), value, where
        )
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(where, f"expected a list, found {_name(value)}", "correct it")
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise ConfigError(where, f"expected a table, found {_name(value)}", "correct it")
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if is_dataclass(hint):
        return from_table(hint, value, where)  # type: ignore[arg-type]
    if issubclass(hint, Enum):
        try:
            return hint(value)
        except ValueError:
            raise ConfigError(
                where,
                f"expected one of {', '.join(str(option.value) for option in hint)}, found "
                f"{_name(value)}",
                "correct it",
            ) from None
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # no float is as large
            return float(value)
    if type(value) is not hint:
        raise ConfigError(where, f"expected {hint.__name__}, found {_name(value)}", "correct it")
    return value


def _name(value: Any) -> str:
    if isinstance(value, dict | list | tuple):  # it may be as deep or as large as it likes
        return f"{type(value).__name__} of {len(value)}"
    try:
        return f"{type(value).__name__} {value!r}"[:60]
    except ValueError:  # Python does not write numbers of thousands of digits
        return f"{type(value).__name__} of thousands of digits"
