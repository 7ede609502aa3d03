"""Numbers of a task: each is bounded where it is declared, whichever way it comes in."""

import json
import math
import tomllib
from dataclasses import fields, is_dataclass, replace
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime import bounds, config
from device_runtime.bounds import Within
from device_runtime.errors import ConfigError
from device_runtime.wire import Plan
from server.eligibility import Policy
from server.rounds import Rules
from server.settings import ServerSettings
from server.step import ServerStep
from server.task import MASKED_BITS, SERVED_NORM, TaskSettings, for_bundle, settings_of

RECORDS = {"plan": Plan, "rules": Rules, "policy": Policy, "step": ServerStep}
NUMBERS = [
    -5,
    0,
    1,
    17,
    10**30,
    10**400,
    True,
    -0.5,
    0.0,
    5e-324,
    0.5,
    1e30,
    1.7e308,
    math.nan,
    math.inf,
    -math.inf,
]
FIELDS = [(table, field.name) for table, kind in RECORDS.items() for field in fields(kind)] + [
    ("", "seed")
]


def message(table: str, field: str, value: Any) -> bytes:
    """As `fedboard task create` sends settings, or somebody else."""
    return json.dumps({table: {field: value}} if table else {field: value}).encode()


def is_within(table: str, field: str, value: Any) -> bool:
    kind: Any = RECORDS[table] if table else TaskSettings
    hint, bound = get_type_hints(kind)[field], bounds.of(kind).get(field)
    wanted = {hint, *get_args(hint)}
    if isinstance(value, bool) or not wanted & {
        type(value),
        *([float] if type(value) is int else []),
    }:
        return False
    return bound is None or bound.low <= value <= bound.high


@pytest.mark.parametrize(("table", "field"), FIELDS)
def test_every_number_of_a_task_has_bounds(table, field):
    kind: Any = RECORDS[table] if table else TaskSettings
    hint = get_type_hints(kind)[field]
    if {int, float} & {hint, *get_args(hint)}:
        assert isinstance(bounds.of(kind)[field], Within)


@given(st.sampled_from(FIELDS), st.sampled_from(NUMBERS) | st.integers() | st.floats())
@settings(max_examples=400)
def test_a_message_with_a_number_out_of_bounds_is_refused_by_its_name_and_no_other_is(where, value):
    table, field = where
    try:
        read = config.from_json(TaskSettings, message(table, field, value), "TaskSettings")
    except ConfigError as error:
        # what is no number is no JSON: refused before anybody asks what it is for
        assert field in str(error) or (isinstance(value, float) and not math.isfinite(value))
        # the report goal also bounds min_reports
        assert not is_within(table, field, value) or field in ("min_reports", "report_goal")
    else:
        assert is_within(table, field, value)
        kept = getattr(getattr(read, table) if table else read, field)
        assert math.isfinite(kept)


@pytest.mark.parametrize(
    ("table", "field", "value"),
    [
        ("plan", "learning_rate", math.nan),
        ("plan", "epochs", -5),
        ("plan", "max_rows", 1e30),
        ("plan", "bits", 17),
        ("plan", "clipping_norm", 0.0),
        ("policy", "trust_s", math.inf),
        ("policy", "min_separation", 10**30),
        ("rules", "reporting_s", 1e30),
        ("rules", "report_goal", 10**400),
        ("rules", "over_selection", math.inf),
        ("rules", "retry_s", math.nan),
        ("step", "learning_rate", 1e300),
        ("step", "momentum", math.nan),
        ("step", "epsilon", math.inf),
        ("", "seed", -1),
    ],
)
def test_a_task_that_no_device_could_ever_work_for_cannot_be_written_down(
    table, field, value, tmp_path
):
    with pytest.raises(ConfigError, match=f"{field}|no JSON"):
        config.from_json(TaskSettings, message(table, field, value), "TaskSettings")
    written = str(value) if isinstance(value, int) else repr(value)
    line = f"{field} = {written}\n"
    (tmp_path / "server.toml").write_text(f"[{table}]\n{line}" if table else line)
    assert tomllib.loads((tmp_path / "server.toml").read_text())  # it is TOML
    with pytest.raises(ConfigError, match=field):
        config.from_toml(ServerSettings, tmp_path / "server.toml")


def test_the_defaults_are_within_their_bounds():
    for kind in (*RECORDS.values(), TaskSettings, ServerSettings):
        assert is_dataclass(kind())


SIGNED = Plan(learning_rate=0.1, max_rows=64, clipping_norm=10.0, bits=8)


def test_a_plan_of_a_bundle_is_served_with_a_clipping_norm_of_today():
    plan = for_bundle(TaskSettings(name="words"), SIGNED).plan
    assert plan == replace(SIGNED, clipping_norm=SERVED_NORM, bits=MASKED_BITS)
    tighter = replace(SIGNED, clipping_norm=0.25, bits=2)
    assert for_bundle(TaskSettings(), tighter).plan == tighter


def test_a_plan_that_is_asked_for_is_served_as_it_is_if_it_is_within_the_bundles():
    own = replace(SIGNED, clipping_norm=5.0, bits=4, max_rows=32)
    assert for_bundle(TaskSettings(own), SIGNED).plan == own


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("bits", 16, "plan.bits: expected at most the 8 of the bundle's signed plan"),
        ("clipping_norm", 1e6, "plan.clipping_norm: expected at most the 10 of the bundle's"),
        ("learning_rate", 0.2, "plan.learning_rate: expected at most the 0.1"),
        ("max_rows", 65, "plan.max_rows: expected at most the 64"),
        ("max_rows", 15, "plan.max_rows: expected enough for 10 messages, found 15, of which"),
        ("epochs", 2, "plan.epochs: expected at most the 1"),
        ("batch_size", 4, "plan.batch_size: expected the 8"),
        ("length", 19, "plan.length: expected the 20"),
    ],
)
def test_a_plan_over_the_bundles_is_refused_with_the_reason_before_there_is_a_task(
    field, value, says
):
    with pytest.raises(ConfigError, match=says):
        for_bundle(TaskSettings(replace(SIGNED, **{field: value})), SIGNED)


def test_settings_of_a_server_file_are_those_of_a_task(tmp_path):
    (tmp_path / "server.toml").write_text("[rules]\nreport_goal = 3\n")
    read = config.from_toml(ServerSettings, tmp_path / "server.toml")
    assert settings_of(read).rules == Rules(report_goal=3)
