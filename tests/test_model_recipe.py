"""Recipes: schedules by hand, and what they refuse."""

import math
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import get_type_hints

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from device_runtime import bounds, limits
from device_runtime.bounds import Each, OneOf, Within
from device_runtime.config import from_table, from_toml, to_toml
from device_runtime.errors import ConfigError
from device_runtime.noise import Mechanism, Noise
from device_runtime.wire import Plan
from fedboard.run import Settings
from model.recipe import Client, Privacy, Recipe, Schedule

# those of training
CONFIGS = sorted(
    path
    for path in (Path(__file__).parents[1] / "configs").glob("*.toml")
    if path.name not in ("server.toml", "device-classes.toml")
)


def shares(rounds: int, **how) -> list[float]:
    return [round(share, 4) for share in Schedule(**how).shares(rounds)]


def test_schedules_follow_their_formulas():
    assert shares(3, kind="constant") == [1, 1, 1]
    assert shares(4, kind="cosine", final=0.0) == [1, 0.8536, 0.5, 0.1464]
    assert shares(5, kind="step", every=2, factor=0.5) == [1, 1, 0.5, 0.5, 0.25]
    assert shares(5, kind="inverse_sqrt", every=1) == [1, 0.7071, 0.5774, 0.5, 0.4472]


ENCODED = {"encoded": True, "device_limits": True}


def test_by_default_clients_refuse_nothing_and_with_limits_what_a_device_does():
    assert Recipe().limits is None
    assert Recipe().separation == 1
    recipe = Recipe(**ENCODED)
    assert recipe.limits == limits.of(recipe.plan, limits.OwnLimits())
    assert recipe.separation == 2
    assert replace(recipe, min_separation=5).separation == 5


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"encoded": False}, "no device sends an update that is not clipped"),
        ({"plan": Plan(clipping_norm=1.5)}, "clipping_norm: expected at most 1, found 1.5"),
        ({"plan": Plan(max_rows=9, clipping_norm=1.0)}, "least_messages: expected at least 10"),
        (
            {
                "encoded": False,
                "privacy": Privacy("tree", 0.5, clipping_norm=2.0),
                "client": Client(weighting="uniform"),
            },
            "clipping_norm: expected at most 1, found 2",
        ),
    ],
    ids=["not clipped", "norm", "rows", "private norm"],
)
def test_work_that_no_device_does_is_refused_where_limits_are_to_be_kept(how, said):
    with pytest.raises(ConfigError, match="device_limits") as refused:
        Recipe(**{**ENCODED, **how})
    assert said in str(refused.value)
    Recipe(**{**ENCODED, **how, "device_limits": False})


def blt(**how) -> Privacy:
    return Privacy(**{"mechanism": "blt", "decays": (0.9,), "scales": (0.4,), **how})


def test_noise_is_that_of_terms_for_the_rounds_and_participations_of_the_run():
    """Of 10 rounds at least 3 apart one client is in 4 at most, or in as many as it is allowed."""
    assert Recipe().noise is None
    client = Client(weighting="uniform")
    recipe = Recipe(rounds=10, min_separation=3, client=client, privacy=blt(noise_multiplier=2.0))
    noise = recipe.noise
    assert noise == Noise(Mechanism.BLT, 2.0, 0.0, 1e-10, 10, 4, 0, (0.9,), (0.4,))
    capped = replace(recipe, privacy=blt(participations=2))
    assert capped.participations == capped.noise.participations == 2


def test_the_noise_of_an_adaptive_norm_is_accounted_as_independent():
    recipe = Recipe(
        cohort=100,
        client=Client(weighting="uniform"),
        privacy=Privacy("gaussian-adaptive", noise_multiplier=4.0),
    )
    assert recipe.noise.mechanism is Mechanism.GAUSSIAN
    assert recipe.noise.multiplier == 4.0


def test_a_client_keeps_to_its_messages_uses_and_to_the_participations_it_is_allowed():
    how = {**ENCODED, "plan": Plan(max_rows=64), "client": Client(weighting="uniform")}
    assert Recipe(**how).participations == limits.MOST_USES
    assert Recipe(**how, privacy=blt(participations=7)).participations == 7
    assert Recipe(**how, privacy=blt(participations=99)).participations == limits.MOST_USES


def test_a_warm_up_rises_linearly_before_any_schedule():
    assert shares(5, kind="constant", warm_up=3) == [0.25, 0.5, 0.75, 1, 1]


UNIFORM = {"client": {"weighting": "uniform"}}


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (
            {"server": {"algorithm": "adam"}},
            "expected one of fedavg, fedavgm, fedadam, fedyogi, fedadagrad, fedprox",
        ),
        ({"server": {"algorithm": "fedprox"}}, "needs a pull above 0"),
        ({"client": {"dropout": 1.0}}, "client.dropout: expected 0 to 0.999999, found 1"),
        ({"client": {"weighting": "words"}}, "expected one of rows, tokens, capped, uniform"),
        ({"sampling": "poisson"}, "expected one of shuffled, uniform"),
        (
            {"server": {"schedule": {"kind": "linear"}}},
            "expected one of constant, cosine, inverse_sqrt, step",
        ),
        ({"privacy": {"mechanism": "gaussian"}}, "privacy counts every client once"),
        ({"encoded": True, "client": {"weighting": "tokens"}}, "count once each, found 'tok"),
        ({"encoded": True, "plan": {"bits": 17}}, "expected 1 to 16, found 17"),
        ({"compression": 2}, "only what is encoded is compressed, found 2 and `encoded` off"),
        ({"encoded": True, "compression": 12}, "compression: expected a power of 2, found 12"),
        (
            {"encoded": True, "privacy": {"mechanism": "gaussian-adaptive"}, **UNIFORM},
            "privacy.mechanism: encoded updates have a fixed clipping norm, found gaussian-adap",
        ),
        (
            {"privacy": {"mechanism": "blt-adaptive"}, **UNIFORM},
            "expected one of none, gaussian, gaussian-adaptive, tree, blt, found 'blt-adaptive'",
        ),
        (
            {"privacy": {"mechanism": "gaussian-adaptive", "report_goal": 100}, **UNIFORM},
            "report_goal: expected 0 for gaussian-adaptive, .*, found 100",
        ),
        (
            {"privacy": {"mechanism": "blt", "report_goal": 19}, **UNIFORM},
            "report_goal: expected 0, or at least the 20 clients that stand for it, found 19",
        ),
        (
            {"privacy": {"mechanism": "tree", "decays": [0.5]}, **UNIFORM},
            "noise.decays: expected a",
        ),
        (
            {"privacy": {"mechanism": "gaussian", "restart": 5}, **UNIFORM},
            "expected 0 for gaussian",
        ),
        (
            {"rounds": 100_001, "privacy": {"mechanism": "tree"}, **UNIFORM},
            "rounds: expected at most 100,000 with privacy, found 100,001",
        ),
        ({"plan": {"batch_size": 0}}, "plan.batch_size: expected 1 to 65,536, found 0"),
        ({"seed": -1}, "seed: expected 0 to 9,223,372,036,854,775,807, found -1"),
        ({"cohort": 0}, "cohort: expected 1 to 100,000, found 0"),
        ({"cohrot": 5}, "unknown key"),
        ({"size": "huge"}, "size: expected one of tiny, small, gboard, found 'huge'"),
        ({"client": {"weight_cap": math.inf}}, "client.weight_cap: expected 1e-06 to 1e"),
        ({"server": {"learning_rate": -0.5}}, "server.learning_rate: expected .*, found -0.5"),
        ({"plan": {"learning_rate": 0.0}}, "plan.learning_rate: expected .*, found 0"),
        ({"server": {"learning_rate": math.nan}}, "server.learning_rate: expected .*, found nan"),
        ({"server": {"learning_rate": 10**400}}, "server.learning_rate: expected float"),
        ({"server": {"learning_rate": 10**5000}}, "expected float, found int of thousands"),
        ({"rounds": 10**30}, "rounds: expected 1 to 1,000,000, found a number of more than 30"),
        ({"rounds": 10**5000}, "rounds: expected 1 to 1,000,000, found a number of more than 30"),
        ({"rounds": True}, "rounds: expected int, found bool True"),
        ({"patience": -1}, "patience: expected 0 to 1,000,000, found -1"),
        (
            {
                "privacy": {"mechanism": "gaussian-adaptive", "noise_multiplier": 2.0},
                "client": {"weighting": "uniform"},
            },
            "an adaptive norm needs less than a tenth of the 20 clients",
        ),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused(table, says):
    with pytest.raises(ConfigError, match=says):
        from_table(Recipe, table, "recipe")


NUMBERS = [
    0,
    -1,
    10**30,
    10**5000,
    True,
    0.0,
    -0.5,
    1.5,
    math.nan,
    math.inf,
    -math.inf,
    5e-324,
    1.7e308,
    3.5e38,
]


def fields_of(kind: type) -> list[tuple[type, str]]:
    """Every field of a record and of the records in it, with the record that has it."""
    own = [
        (kind, field.name)
        for field in fields(kind)
        if not is_dataclass(get_type_hints(kind)[field.name])
    ]
    inner = [hint for hint in get_type_hints(kind).values() if is_dataclass(hint)]
    return own + [one for hint in inner for one in fields_of(hint)]


def values_of(kind: type, name: str) -> st.SearchStrategy:
    """What may stand in a field, its bounds included."""
    bound = bounds.of(kind).get(name)
    if isinstance(bound, OneOf):
        return st.sampled_from(bound.choices)
    if bound is None:  # `encoded` and `device_limits`, and only they, have none
        return st.booleans()
    if isinstance(bound, Each):
        return st.lists(st.floats(bound.values.low, bound.values.high), max_size=bound.most)
    if bound.is_whole:
        return st.integers(bound.low, bound.high) | st.sampled_from([bound.low, bound.high])
    return st.floats(bound.low, bound.high)


def records(kind: type) -> st.SearchStrategy:
    """A record with any values that its bounds allow, as a table."""
    hints = get_type_hints(kind)
    return st.fixed_dictionaries(
        {
            name: records(hint) if is_dataclass(hint) else values_of(kind, name)
            for name, hint in hints.items()
        }
    )


def together(table: dict) -> dict:
    """The same, but for numbers that few others go together with."""
    privacy = table["privacy"]
    count = min(map(len, (privacy["decays"], privacy["scales"])))
    count *= privacy["mechanism"] == "blt"
    whole = 1 << (table["compression"].bit_length() - 1)
    return table | {
        "compression": whole if table["encoded"] else 1,
        "privacy": privacy
        | {
            "decays": privacy["decays"][:count],
            "scales": privacy["scales"][:count],
            "restart": privacy["restart"] * (privacy["mechanism"] == "tree"),
        },
    }


def accepted(table: dict) -> Recipe | None:
    """The recipe of a table, or None if what is within bounds does not go together."""
    try:
        return from_table(Recipe, table, "recipe")
    except ConfigError:
        return None


@settings(max_examples=200, derandomize=True, deadline=None)
@given(records(Recipe).map(together))
def test_whatever_recipe_is_accepted_survives_its_file(tmp_path_factory, table):
    recipe = accepted(table)
    assume(recipe is not None)
    path = tmp_path_factory.getbasetemp() / "recipe.toml"
    path.write_text(to_toml(recipe))
    assert from_toml(Recipe, path) == recipe
    rates = Schedule.shares(recipe.server.schedule, 3)
    assert all(0 < rate <= 1 for rate in rates)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.text(), st.text(), st.booleans())
def test_whatever_a_corpus_is_called_its_name_survives_the_file(
    tmp_path_factory, data, init, central
):
    path = tmp_path_factory.getbasetemp() / "settings.toml"
    path.write_bytes(to_toml(Settings(data, init, central)).encode())
    assert from_toml(Settings, path) == Settings(data, init, central)


def test_a_name_of_no_characters_is_refused_where_it_is_said():
    with pytest.raises(ConfigError, match="data: expected a name of UTF-8 characters"):
        Settings("corpus\udcff")


@pytest.mark.parametrize(("kind", "name"), sorted(set(fields_of(Recipe)), key=str))
def test_every_field_of_a_recipe_has_finite_bounds(kind, name):
    """Whatever number stands there, it is refused in one line or is one that a file can hold."""
    if name in ("encoded", "device_limits"):
        return
    bound = bounds.of(kind)[name]
    if isinstance(bound, Within):
        assert math.isfinite(bound.low)
        assert math.isfinite(bound.high)
    for value in [] if isinstance(bound, Each) else NUMBERS:
        try:
            record = replace(kind(), **{name: value})
        except ConfigError as refused:
            assert "\n" not in str(refused)
        else:
            assert getattr(record, name) == value
            assert math.isfinite(value)
            assert type(value) in (int, float)


@pytest.mark.parametrize("digits", [31, 5000])
def test_a_number_too_long_for_any_float_is_one_line(tmp_path, digits):
    path = tmp_path / "r.toml"
    path.write_text(f"rounds = {'9' * digits}")
    with pytest.raises(ConfigError, match=r"r\.toml|rounds") as refused:
        from_toml(Recipe, path)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_configuration_of_the_project_can_be_read(path):
    assert from_toml(Settings, path).data == "chitchat"
