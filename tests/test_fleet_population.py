"""A population: who its devices are, and what of it can be kept in a folder."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.errors import ConfigError, FedboardError, RunError
from fleet import columns, draws, population
from fleet.population import PopulationSettings, Where

MANY = population.make(PopulationSettings(devices=20_000), 1000, seed=1)


def same(one, other, first=None):
    others = population.columns(other)
    return all(
        np.array_equal(column[:first], others[name][:first])
        for name, column in population.columns(one).items()
    )


@pytest.mark.parametrize("where", Where)
@pytest.mark.parametrize("users", [1, 30, 1000])
def test_a_larger_population_begins_with_the_smaller_one(users, where):
    small, large = (
        population.make(PopulationSettings(devices=size, where=where), users, seed=3)
        for size in (20, 200)
    )
    assert same(large, small, first=20)


def test_each_user_types_on_a_device_before_any_types_on_two():
    assert MANY.user[:1000].tolist() == list(range(1000))
    assert MANY.user.min() >= 0 and MANY.user.max() == 999


def test_devices_have_the_bandwidths_that_were_measured_on_people_s_phones():
    assert np.median(MANY.down) == pytest.approx(4.3e6, rel=0.05)
    assert np.median(MANY.up) == pytest.approx(3.3e6, rel=0.05)
    # of 19 people the slowest had 2.4 and 0.4 MB/s, the fastest 17.3 and 6.6
    assert np.quantile(MANY.down, [1 / 19, 18 / 19]) == pytest.approx([2.0e6, 9.6e6], rel=0.15)
    assert MANY.spread.min() >= 0.15 and MANY.spread.max() <= 1.0
    assert np.corrcoef(np.log(MANY.down), np.log(MANY.up))[0, 1] > 0.3


def test_classes_regions_and_languages_have_their_shares():
    assert np.bincount(MANY.kind) / len(MANY) == pytest.approx([0.3, 0.5, 0.2], abs=0.02)
    shares = [each.share for each in MANY.regions]
    assert np.bincount(MANY.region) / len(MANY) == pytest.approx(shares, abs=0.02)
    english = MANY.language == MANY.languages.index("en")
    assert english.mean() == pytest.approx(0.79, abs=0.02)


@pytest.mark.parametrize("where", Where)
def test_the_shares_of_classes_of_regions_and_of_their_languages_are_one_together(where):
    assert sum(each.share for each in population.CLASSES) == pytest.approx(1)
    regions = population.REGIONS[where]
    assert sum(each.share for each in regions) == pytest.approx(1)
    assert all(sum(each.languages.values()) == pytest.approx(1) for each in regions)


def test_devices_of_the_world_live_by_many_clocks():
    world = population.make(PopulationSettings(devices=2000, where=Where.WORLD), 1, seed=1)
    assert len(np.unique(world.zone_h)) == 12
    assert set(np.unique(MANY.zone_h)) == {-8.0, -7.0, -6.0, -5.0}


def transfers(of, count, device=0, up=0.0, down=1e6):
    told = [population.transfer(of, device, number, up, down) for number in range(count)]
    return np.array([seconds for seconds, _ in told]), np.array([broke for _, broke in told])


def test_the_speed_of_one_device_varies_from_transfer_to_transfer_as_much_as_is_its_own():
    steady = replace(MANY, breaks=0.0, spread=np.full(len(MANY), 0.3, np.float32))
    seconds, broke = transfers(steady, 4000)
    speed = 1e6 / (seconds - steady.latency_s[0])
    assert not broke.any()
    assert speed.mean() == pytest.approx(steady.down[0], rel=0.03)
    assert speed.std() / speed.mean() == pytest.approx(0.3, rel=0.1)


def test_a_share_of_transfers_breaks_off_before_its_end():
    seconds, broke = transfers(replace(MANY, breaks=0.25), 2000)
    assert broke.mean() == pytest.approx(0.25, abs=0.03)
    assert seconds[broke].mean() == pytest.approx(seconds[~broke].mean() / 2, rel=0.2)


def test_a_transfer_is_the_same_whenever_it_is_asked_for():
    assert population.transfer(MANY, 7, 3, 10, 10) == population.transfer(MANY, 7, 3, 10, 10)
    assert population.transfer(MANY, 7, 3, 10, 10) != population.transfer(MANY, 7, 4, 10, 10)


@given(st.integers(0, 2**62), st.lists(st.integers(-(2**40), 2**40), max_size=4))
def test_one_number_is_drawn_as_it_is_in_a_column(seed, of):
    assert draws.one(seed, *of) == float(draws.uniform(seed, *of))


def test_a_population_that_was_saved_is_read_as_it_was(tmp_path):
    some = population.make(PopulationSettings(devices=50), 7, seed=2)
    population.save(some, tmp_path / "people")
    read = population.load(tmp_path / "people")
    assert same(read, some)
    assert (read.seed, read.classes, read.regions) == (some.seed, some.classes, some.regions)
    assert population.digest(read) == population.digest(some)


def test_equal_populations_are_saved_as_equal_bytes(tmp_path):
    for name in ("one", "other"):
        population.save(
            population.make(PopulationSettings(devices=50), 7, seed=2),
            tmp_path / name,
        )
    for name in (population.ABOUT, population.COLUMNS):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


@pytest.fixture
def saved(tmp_path):
    population.save(population.make(PopulationSettings(devices=9), 7, seed=2), tmp_path)
    return tmp_path


def rewrite(folder, **changed):
    arrays = columns.read(folder / population.COLUMNS, population.TYPES)
    columns.write(folder / population.COLUMNS, arrays | changed)


def test_a_folder_without_a_population_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"population\.toml: cannot be read"):
        population.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "column", "says"),
    [
        ("kind", np.full(9, 3, np.uint8), "expected kind of 9 devices from 0 to 2"),
        ("down", np.full(9, np.nan, np.float32), "expected down of 9 devices from 1 to"),
        ("user", np.full(8, 3, np.int32), "expected user of 9 devices"),
        ("user", np.full(9, 3, np.int64), "expected user as a row of int32, found int64"),
        ("user", np.zeros((9, 1), np.int32), "found int32 of 2 dimensions"),
        ("user", np.full(9, 3, np.int32), "are not those that population.toml names"),
        ("more", np.zeros(9), "expected the columns batch_s"),
    ],
)
def test_columns_that_are_not_the_population_s_are_refused(saved, name, column, says):
    rewrite(saved, **{name: column})
    with pytest.raises(RunError, match=says):
        population.load(saved)


def test_pickles_are_never_read(saved):
    with open(saved / population.COLUMNS, "wb") as file:
        np.savez(file, **dict.fromkeys(population.TYPES, np.array([object()])))
    with pytest.raises(RunError, match=r"columns\.npz"):
        population.load(saved)


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_file_of_columns_with_an_altered_byte_is_read_as_it_was_or_refused(
    tmp_path_factory, place, by
):
    path = tmp_path_factory.mktemp("columns") / "columns.npz"
    arrays = {"a": np.arange(5, dtype=np.int32), "b": np.ones(3, np.float32)}
    types = {"a": np.int32, "b": np.float32}
    columns.write(path, arrays)
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= by
    path.write_bytes(data)
    try:
        read = columns.read(path, types)
    except FedboardError:
        return
    assert all(np.array_equal(read[name], arrays[name]) for name in arrays)


@given(st.binary(max_size=300))
def test_a_file_that_is_none_of_columns_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("columns") / "columns.npz"
    path.write_bytes(data)
    with pytest.raises(RunError, match=r"columns.npz"):
        columns.read(path, {"a": np.int32})


def test_a_number_of_devices_that_is_out_of_bounds_is_refused():
    with pytest.raises(ConfigError, match=r"population.devices: expected 1 to 100,000,000"):
        PopulationSettings(devices=0)
