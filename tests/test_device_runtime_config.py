import json
import math
import tomllib
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime import config
from device_runtime.bounds import Matches, Within
from device_runtime.causes import Cause
from device_runtime.errors import ConfigError
from device_runtime.wire import Abandon, CheckIn, Conditions


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    count: int
    note: str | None = None
    on: bool = False
    inner: Inner = field(default_factory=Inner)


@dataclass(frozen=True)
class Pair:
    second: Any
    first: Any


@dataclass(frozen=True)
class Bounded:
    count: Annotated[int, Within(0, 1)]
    note: Annotated[str | None, Matches("[a-z]*", 3)] = None
    on: bool = False
    rate: Annotated[float, Within(0.0, 1.0)] = 0.5


@dataclass(frozen=True)
class LooksAtItself(Bounded):
    def __post_init__(self) -> None:
        pass


def test_a_table_becomes_a_dataclass_and_a_whole_number_may_stand_for_a_float():
    assert config.from_table(Outer, {"count": 2, "inner": {"rate": 1}}, "x") == Outer(
        2, inner=Inner(1.0)
    )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"count": 1, "cuont": 2}, "x.cuont: unknown key"),
        ({}, "x.count: missing"),
        ({"count": True}, "x.count: expected int, found bool True"),
        ({"count": 1, "inner": {"rate": "fast"}}, "x.inner.rate: expected float"),
        ({"count": 1, "inner": {"names": [1]}}, r"x.inner.names\[0\]: expected str"),
        ([], "x: expected a table"),
        ({"a\nb\x1b[31m\ud800": 1}, r"x.a\\nb\\x1b\[31m\\ud800: unknown key"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(table, message):
    with pytest.raises(ConfigError, match=message):
        config.from_table(Outer, table, "x")


@given(
    st.builds(
        Outer,
        st.integers(-(2**40), 2**40),
        st.none() | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])),
        st.booleans(),
    )
)
def test_toml_and_json_bring_back_what_was_written(value):
    assert config.from_table(Outer, tomllib.loads(config.to_toml(value)), "x") == value
    assert config.from_json(Outer, config.to_json(value), "x") == value


@pytest.mark.parametrize("rate", [float("inf"), float("-inf"), float("nan"), 1e-300])
def test_toml_holds_every_float_as_tomllib_reads_it(rate):
    written = config.to_toml(Outer(1, inner=Inner(rate)))
    read = config.from_table(Outer, tomllib.loads(written), "x").inner.rate
    assert read == rate or (math.isnan(read) and math.isnan(rate))


def test_messages_survive_the_wire_and_causes_are_checked():
    message = CheckIn(Conditions(True, None, False), 12, "ab")
    assert config.from_json(CheckIn, config.to_json(message), "x") == message
    assert (
        config.from_json(Abandon, b'{"cause":"condition_lost"}', "x").cause is Cause.CONDITION_LOST
    )
    with pytest.raises(ConfigError, match="expected one of"):
        config.from_json(Abandon, b'{"cause":"boredom"}', "x")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b'{"count": NaN}', "NaN is no JSON"),
        (b'{"count": -Infinity}', "-Infinity is no JSON"),
        (b'{"count": 1e999}', "not finite"),
        (b'{"count": 1, "count": 2}', "a name is there twice"),
        (b'{"count": 1, "inner": {"rate": 1, "rate": 1}}', "a name is there twice"),
        (b'{"count": 1, "note": "\\ud83d"}', "not UTF-8"),
        (b'{"count": 1, "note": "\xed\xa0\x80"}', "not UTF-8"),
        (b"\xef\xbb\xbf{}", "Expecting value"),
        ('{"count": 1}'.encode("utf-16"), "not UTF-8"),
        (b'{"count": %s}' % (b"9" * 5000), "not JSON"),
        (b'{"count": 1, "inner": {"rate": %s}}' % (b"9" * 400), "expected float"),
        (b"[" * 200_000, "not JSON"),
        (b'{"note": %s1%s}' % (b"[" * 33, b"]" * 33), "more than 32"),
        (b'{"count": %s1%s}' % (b"[" * 30, b"]" * 30), "expected int, found list of 1"),
        (b'{"note": "%s"}' % (b"x" * 2**20), "at most 1,048,576 bytes"),
        (b'{"%s": 1}' % (b"k" * 5000), "x.k{60}: unknown key"),
    ],
)
def test_json_from_anybody_is_read_strictly(text, why):
    with pytest.raises(ConfigError, match=why) as refused:
        config.from_json(Outer, text, "x")
    assert len(str(refused.value)) < 300


def test_a_whole_character_may_be_written_as_an_escape():
    smile = b'{"count": 1, "note": "\\ud83d\\ude00"}'
    assert config.from_json(Outer, smile, "x").note == "\U0001f600"


@given(st.binary(max_size=60))
def test_bytes_that_are_no_message_are_a_config_error(data):
    with pytest.raises(ConfigError):
        config.from_json(CheckIn, data, "x")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text(max_size=3), inner, max_size=3)
            | st.builds(Pair, inner, inner)
        ),
        max_leaves=8,
    )
)
def test_what_is_written_is_canonical_json_of_the_same_value_as_tables(value):
    plain = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=vars)
    assert config.to_json(value) == plain.encode(value).encode()


@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: st.none() | st.booleans() | st.integers(-2, 2) | st.just("ab") | st.just({})
            for name in ("count", "note", "on", "rate", "other")
        },
    )
)
def test_a_table_that_needs_no_second_look_is_read_as_one_that_does(table):
    def read(record):
        try:
            return record(table)
        except ConfigError as error:
            return str(error)

    quick = read(lambda each: config.from_table(Bounded, each, "x"))
    # a record that looks at itself is always read field by field
    slow = read(lambda each: config.from_table(LooksAtItself, each, "x"))
    assert quick == slow if isinstance(quick, str) else vars(quick) == vars(slow)
