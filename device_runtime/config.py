"""Tables and messages: how TOML or JSON becomes a frozen dataclass, and what is refused.

An unknown key or a wrong type is an error.
"""

import contextlib
import functools
import json
import tomllib
import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from device_runtime.errors import ConfigError

T = TypeVar("T")


def from_table(kind: type[T], table: Any, where: str) -> T:
    """The dataclass `kind` filled from `table`, checked field by field.

    Fields may be bool, int, float, str, `X | None`, `tuple[X, ...]`, `dict[str, X]` or another
    dataclass. A whole number is accepted for a float. Raises ConfigError naming the field for an
    unknown key, a missing value, or a value of another type.
    """
    if not isinstance(table, dict):
        raise ConfigError(
            where, f"expected a table, found {_name(table)}", "write `key = value` pairs"
        )
    dataclass: Any = kind  # whatever it is: a type can be looked up
    known = _fields(dataclass)
    for key in table:
        if key not in known:
            raise ConfigError(
                f"{where}.{key}",
                f"unknown key, expected one of {', '.join(sorted(known))}",
                "remove or rename it",
            )
    values = {}
    for name, (hint, is_needed) in known.items():
        if name in table:
            value = table[name]
            # most fields: nothing to convert, and no name to build for an error
            values[name] = (
                value if type(value) is hint else _convert(hint, value, f"{where}.{name}")
            )
        elif is_needed:
            raise ConfigError(f"{where}.{name}", "missing", "add it")
    return kind(**values)


def from_json(kind: type[T], data: bytes | bytearray, where: str) -> T:
    """The dataclass `kind` from a JSON object. Raises ConfigError for bytes that are not one."""
    try:
        table = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(where, f"not JSON ({error})", "send one JSON object") from None
    return from_table(kind, table, where)


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
    return _CANONICAL.encode(_plain(value)).encode()


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


def _plain(value: Any) -> Any:
    """Dataclasses inside as tables. (`asdict` copies all else as well, which takes longer than
    writing it.)
    """
    if is_dataclass(value):
        return {name: _plain(item) for name, item in vars(value).items()}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


@functools.cache
def _fields(kind: type) -> dict[str, tuple[Any, bool]]:
    """The type of each field of a dataclass, and whether it must be given: working them out takes
    longer than reading a message.
    """
    hints = typing.get_type_hints(kind)
    return {
        field.name: (
            hints[field.name],
            field.default is MISSING and field.default_factory is MISSING,
        )
        for field in fields(kind)
    }


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
    try:
        return f"{type(value).__name__} {value!r}"[:60]
    except ValueError:  # Python does not write numbers of thousands of digits
        return f"{type(value).__name__} of thousands of digits"
