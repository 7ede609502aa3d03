"""The helper takes noise off each mask of a training task, once a sum, and keeps to its budget."""

import itertools
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime import accountant, masking, packing, signing
from device_runtime.accountant import Participation
from device_runtime.helper_wire import AnswerTaken, HelperProblem, Named, Noised
from device_runtime.noise import Mechanism
from device_runtime.shown import rounded_up
from device_runtime.wire import Kind
from helper import answers, budget, tasks
from helper.answers import History
from helper.budget import Spent
from helper.desk import Desk
from helper.tasks import Task
from server import noising
from tests.toy_helper import (
    NOISE,
    NOISED,
    RULES,
    SERVER,
    TASK_ID,
    TERMS,
    Report,
    begun,
    expected,
    key,
    keys_of,
    layout,
    named,
    new,
    noise_in,
    noised,
    opened,
    registration,
    reports,
)

GAUSSIAN = replace(NOISE, mechanism=Mechanism.GAUSSIAN, decays=(), scales=())
TREE = replace(GAUSSIAN, mechanism=Mechanism.TREE, restart=8)


def refusal(answer: object) -> str:
    assert isinstance(answer, HelperProblem), answer
    return answer.refusal.value


@pytest.fixture
def desk(fast_folder):
    return begun(fast_folder / "helper", NOISED)


def answered(desk: Desk, devices, round: int, terms=NOISED) -> bytes:
    """The answer to the reports of devices, once their round has a key."""
    body = desk.answer(named(sent(desk, devices, round, terms), round), 1.0)
    assert isinstance(body, bytes), body
    return body


def sent(desk: Desk, devices, round: int, terms=NOISED) -> list[Report]:
    return reports(devices, round, keys_of(desk, round), terms)


def spread(noise: np.ndarray) -> float:
    return float(np.sqrt(np.mean(noise.astype(float) ** 2)))


# what is added


def test_the_sum_that_a_leader_opens_carries_noise_in_whole_codes(desk):
    of = sent(desk, range(4), 1)
    body = desk.answer(named(of, 1), 1.0)
    noise = noise_in(body, of)
    # 2 clips of noise, a clip is so many codes; 4,096 values: their spread is right within 5 %
    assert spread(noise) == pytest.approx(NOISED.deviation, rel=0.05)
    assert abs(noise.mean()) < 4 * NOISED.deviation / math.sqrt(len(noise))


def test_the_sum_of_a_task_without_noise_has_none_and_nothing_is_kept_for_it(fast_folder):
    desk = begun(fast_folder / "helper", TERMS)
    of = sent(desk, range(4), 1, TERMS)
    body = desk.answer(named(of, 1), 1.0)
    assert opened(body, of) == expected(of)
    assert noised(body, TERMS) == Noised()
    assert not (fast_folder / "helper" / "noise").exists()


def test_the_sums_of_an_evaluation_carry_none(desk):
    id = "e0" * 16
    logged = registration(NOISED, log_key="10" * 32, start="5a" * 32)
    asked = replace(logged, task="accuracy", task_id=id, kind=Kind.EVALUATION)
    assert desk.register(asked, 0.0).terms == NOISED.name
    with desk._store.reading() as rows:
        task = rows.task(id).task
    assert task.noise is None and desk._step(Named(id, 1), task, None, History({}), False) is None


def test_updates_of_a_task_with_noise_are_not_opened_as_the_scores_of_another(fast_folder):
    desk = new(fast_folder / "helper")
    # another task's certificate, with the very same terms, for the id that devices train under
    other = registration(NOISED, task="other", task_id="e1" * 16)
    asked = replace(other, task="words", task_id=TASK_ID, kind=Kind.EVALUATION)
    assert refusal(desk.register(asked, 0.0)) == "foreign_policy"
    logged = registration(
        NOISED, task="other", task_id="e1" * 16, log_key="10" * 32, start="5a" * 32
    )
    asked = replace(logged, task="words", task_id=TASK_ID, kind=Kind.EVALUATION)
    assert desk.register(asked, 0.0).terms == NOISED.name
    # what devices sign is bound to the policy of their own task
    no = desk.answer(named(sent(desk, range(4), 1), 1), 1.0)
    assert refusal(no) == "bad_signature"


@pytest.mark.parametrize("noise", [NOISE, GAUSSIAN, TREE], ids=lambda each: each.mechanism.value)
def test_the_same_set_gets_the_same_noise_and_the_next_sum_another(fast_folder, noise):
    terms = replace(NOISED, noise=noise)
    desk = begun(fast_folder / "helper", terms)
    first = sent(desk, range(4), 1, terms)
    body = desk.answer(named(first, 1), 1.0)
    assert desk.answer(named(first, 1), 2.0) == body
    desk.close()
    desk = new(fast_folder / "helper")
    assert desk.answer(named(first, 1), 3.0) == body
    second = sent(desk, range(4), 2, terms)
    other = desk.answer(named(second, 2), 4.0)
    same = noise_in(body, first, terms) == noise_in(other, second, terms)
    assert same.mean() < 0.01


def test_no_set_that_was_refused_takes_noise_with_it(desk):
    answered(desk, range(4), 1)
    for devices in (range(2), [5, 5, 6, 7]):
        assert isinstance(desk.answer(named(sent(desk, devices, 2), 2), 2.0), HelperProblem)
    assert noised(answered(desk, range(4), 2)).sums == 2


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_noise_beyond_its_room_still_tells_the_sum_with_noise_and_no_more(data):
    """Whatever the codes and their noise add up to: the leader has words of that alone."""
    terms = replace(NOISED, noise=replace(NOISE, multiplier=0.01))
    task, by = Task(TASK_ID, "words", SERVER, Kind.TRAINING, terms), layout(terms)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    codes = rng.integers(0, 2 * terms.encoding.largest + 1, by.count)
    noise = rng.integers(-5 * terms.room, 5 * terms.room + 1, by.count)
    moved = rng.integers(-codes, 1, by.count)  # from the codes to the noise
    opened = []
    for numbers, added in ((codes, noise), (codes + moved, noise - moved)):
        seed = rng.bytes(32)
        given = answers.finished(masking.mask_sum([seed], by), added, task)
        opened.append(packing.subtract(masking.masked(numbers, seed, by), given, by))
    assert np.array_equal(*opened)


def test_six_deviations_have_room_and_what_has_none_alters_one_value_by_more():
    task, by = Task(TASK_ID, "words", SERVER, Kind.TRAINING, NOISED), layout(NOISED)
    codes = np.full(by.count, NOISED.encoding.largest * NOISED.most)  # the most that devices send
    seed, room = bytes(32), NOISED.room
    assert room >= 6 * NOISED.deviation
    for added in (room, -room):
        noise = np.full(by.count, added)
        given = answers.finished(masking.mask_sum([seed], by), noise, task)
        words = packing.subtract(masking.masked(codes, seed, by), given, by)
        assert np.array_equal(packing.unpack(words, by).astype(int) - room, codes + noise)
    noise[0] = room + 1  # one more than there is room for: it wraps around into its neighbour
    given = answers.finished(masking.mask_sum([seed], by), noise, task)
    words = packing.subtract(masking.masked(codes, seed, by), given, by)
    off = packing.unpack(words, by).astype(int) - room - codes - noise
    neighbour = by.words  # of the same word
    assert off[neighbour] == 1 and np.flatnonzero(off).tolist() == [0, neighbour]


# what is kept


def test_only_the_key_of_the_newest_buffers_lies_there_and_the_one_before_is_written_over(
    fast_folder, desk
):
    slots = fast_folder / "helper" / "noise"
    answered(desk, range(4), 1)
    (first,) = slots.iterdir()
    assert (first.name, len(first.read_bytes())) == (f"{TASK_ID}~1", 32)
    with open(first, "rb") as held:  # as whoever keeps the file's blocks reads it
        answered(desk, range(4), 2)
        assert held.read() == bytes(32)
    assert [path.name for path in slots.iterdir()] == [f"{TASK_ID}~2"]
    assert (slots.stat().st_mode & 0o777, next(slots.iterdir()).stat().st_mode & 0o777) == (
        0o700,
        0o600,
    )


def test_no_seed_no_noise_and_no_buffer_is_anywhere_on_disk_in_clear(fast_folder):
    folder, drawn = fast_folder / "helper", []
    source = np.random.default_rng(3)

    def random(size: int) -> bytes:
        drawn.append(source.bytes(size))
        return drawn[-1]

    desk = new(folder, random=random)
    desk.register(registration(NOISED), 0.0)
    for round in (1, 2, 3):
        of = sent(desk, range(4), round)
        noise = noise_in(desk.answer(named(of, round), 1.0), of)
        desk.taken(AnswerTaken(TASK_ID, round))
    with desk._store.reading() as rows:
        generation = rows.noise(TASK_ID).generation
    arrays = desk._buffers.get(TASK_ID, generation, NOISED).arrays
    desk.close()
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    newest = folder / "noise" / f"{TASK_ID}~3"
    assert files.pop(newest) in drawn  # the one secret that is needed for the next sum
    everything = b"".join(files.values())
    assert len(everything) > 2 * arrays.nbytes  # of two sums, sealed
    assert len(drawn) > 8
    secret = [*drawn, arrays[0, :8].tobytes(), arrays[1, -8:].tobytes()]
    for part in (noise[:8], noise[-8:]):
        secret += [part.tobytes(), part.astype(np.int32).tobytes()]
    for each in secret:
        assert each not in everything and each.hex().encode() not in everything


LOSSES = {
    "key": lambda folder: (folder / "noise" / f"{TASK_ID}~2").unlink(),
    "all keys": lambda folder: shutil.rmtree(folder / "noise"),
    "short": lambda folder: (folder / "noise" / f"{TASK_ID}~2").write_bytes(b"short"),
    "another": lambda folder: (folder / "noise" / f"{TASK_ID}~2").write_bytes(bytes(32)),
    "buffers": lambda folder: (folder / "buffers" / f"{TASK_ID}~0").unlink(),
    "half of them": lambda folder: os.truncate(folder / "buffers" / f"{TASK_ID}~0", 20_000),
    "those before": lambda folder: shutil.copy(
        folder / "buffers" / f"{TASK_ID}~1", folder / "buffers" / f"{TASK_ID}~0"
    ),
    "an older database": lambda folder: older(folder / "helper.sqlite"),
}


def older(database: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{database}")
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE noises SET generation = 1"))
    engine.dispose()


@pytest.mark.parametrize("what", LOSSES)
def test_lost_buffers_are_a_new_beginning_that_is_accounted_for(fast_folder, desk, what):
    answered(desk, range(4), 1)
    answered(desk, range(4), 2)
    desk.close()
    LOSSES[what](fast_folder / "helper")
    desk = new(fast_folder / "helper")
    told = noised(answered(desk, range(4), 3))
    assert (told.began, told.sums) == ((1, 3), 3)
    spent = accountant.account(NOISE, Participation((2, 1), 1, 3))
    assert (told.rho, told.epsilon) == (spent.rho, spent.epsilon)
    # from here on it goes on
    assert noised(answered(desk, range(4), 5)).began == (1, 3)


def test_the_noise_begins_anew_with_each_basis_which_is_no_loss(fast_folder, caplog):
    terms = replace(NOISED, turn=3)  # bases of rounds 0 to 2, 3 to 5 and so on
    desk = begun(fast_folder / "helper", terms)
    for round, began, blocks in (
        (1, (1,), (1,)),
        (2, (1,), (2,)),
        (4, (1, 4), (2, 1)),  # round 3 had no sum
        (5, (1, 4), (2, 2)),
        (9, (1, 4, 9), (2, 2, 1)),  # nor had any of a whole basis
    ):
        body = desk.answer(named(sent(desk, range(4), round, terms), round), 1.0)
        desk.close()  # killed between any two
        desk = new(fast_folder / "helper")
        told, happened = noised(body, terms), Participation(blocks, *_of(sum(blocks)))
        spent = accountant.account(NOISE, happened)
        assert told == Noised(began, sum(blocks), spent.rho, spent.epsilon)
    assert "begins anew" not in caplog.text


def _of(sums: int) -> tuple[int | None, int]:
    """Separation and participations of a device that is in each of so many sums."""
    return (None if sums == 1 else 1), sums


def test_the_noise_after_a_new_beginning_has_nothing_to_do_with_the_one_before(fast_folder):
    terms = replace(NOISED, noise=replace(NOISE, decays=(1.0,), scales=(1.0,)))
    for is_lost, correlation in ((False, -math.sqrt(0.5)), (True, 0.0)):
        folder = fast_folder / f"helper {is_lost}"
        desk = begun(folder, terms, random=np.random.default_rng(4).bytes)
        noises = []
        for round in (1, 2):
            of = sent(desk, range(4), round, terms)
            noises.append(noise_in(desk.answer(named(of, round), 1.0), of, terms))
            if is_lost:
                shutil.rmtree(folder / "noise")
        # with one buffer that forgets nothing the second noise takes off what the first added
        together = float(np.corrcoef(*noises)[0, 1])
        assert together == pytest.approx(correlation, abs=4 / math.sqrt(4096))


def test_after_a_task_s_last_sum_no_buffer_is_left(fast_folder):
    terms = replace(NOISED, noise=replace(NOISE, rounds=2))
    desk = begun(fast_folder / "helper", terms)
    for round in (1, 2):
        answered(desk, range(4), round, terms)
    with desk._store.reading() as rows:
        assert rows.generations() == []
    for each in ("noise", "buffers"):
        assert list((fast_folder / "helper" / each).iterdir()) == []
    no = desk.answer(named(sent(desk, range(4), 3, terms), 3), 1.0)
    assert (refusal(no), no.detail) == ("over_budget", "all 2 sums of the task have been given")


# the budget


def test_an_answer_says_what_has_been_spent_by_who_was_there(desk):
    # devices 0 to 3, then 4 to 7, then 0 to 3 again: two sums at most, two numbers apart
    for round, devices, happened in (
        (1, range(4), Participation((1,), None, 1)),
        (4, range(4, 8), Participation((2,), None, 1)),
        (9, range(4), Participation((3,), 2, 2)),
        (10, [3, 5, 6, 7], Participation((4,), 1, 3)),
        (12, range(8), Participation((5,), 1, 4)),
    ):
        told, spent = noised(answered(desk, devices, round)), accountant.account(NOISE, happened)
        assert told == Noised((1,), happened.sums, spent.rho, spent.epsilon)
    assert [(task.task, spent.told) for task, spent in desk.budgets()] == [("words", told)]


def test_a_sum_that_would_pass_the_budget_is_refused_and_changes_nothing(fast_folder):
    one, two = (accountant.account(GAUSSIAN, Participation((n,), 1, n)).epsilon for n in (1, 2))
    terms = replace(NOISED, noise=replace(GAUSSIAN, epsilon=(one + two) / 2))
    desk = begun(fast_folder / "helper", terms)
    answered(desk, range(4), 1, terms)
    again = sent(desk, [0, 4, 5, 6], 2, terms)
    no = desk.answer(named(again, 2), 1.0)
    assert refusal(no) == "over_budget"
    assert no.detail == (
        f"with this sum, number 2, epsilon would be {rounded_up(two)} at delta 1e-06, and the "
        f"budget is {(one + two) / 2:g} (a device was in 2 sums at most, 1 numbers of sums from "
        "one to its next at least)"
    )
    # others spend nothing more: who is in one sum only is as safe as before
    told = noised(answered(desk, range(4, 8), 2, terms), terms)
    assert (told.sums, told.epsilon) == (2, one)
    assert desk.refusals == {"over_budget": 1}


def test_a_device_is_in_no_more_sums_than_the_noise_is_for(fast_folder):
    terms = replace(NOISED, noise=replace(NOISE, participations=2))
    desk = begun(fast_folder / "helper", terms)
    for round in (1, 2):
        answered(desk, range(4), round, terms)
    no = desk.answer(named(sent(desk, [1, 4, 5, 2], 3, terms), 3), 1.0)
    names = sorted(signing.name_of(signing.public_hex(key(number))) for number in (1, 2))
    assert (refusal(no), list(no.devices)) == ("over_budget", names)
    assert no.detail == "2 devices have been in 2 sums, the most of one"
    answered(desk, range(4, 8), 3, terms)


def test_without_noise_that_protects_no_budget_is_kept_and_no_sum_opened(fast_folder):
    terms = replace(NOISED, noise=replace(GAUSSIAN, multiplier=0.0))
    desk = begun(fast_folder / "helper", terms)
    assert refusal(desk.answer(named(sent(desk, range(4), 1, terms), 1), 1.0)) == "over_budget"


KEYS = [f"{number:064x}" for number in range(6)]


@settings(deadline=None)
@given(st.lists(st.tuples(st.sets(st.sampled_from(KEYS), min_size=1), st.booleans()), max_size=12))
def test_what_is_kept_of_the_past_is_what_one_who_knew_it_all_would_say(sums):
    """Sums of any devices, with or without a new beginning, beside the same counted anew."""
    noise, spent, history = (
        replace(NOISE, rounds=99, epsilon=1e6),
        Spent(),
        History({}, frozenset()),
    )
    so_far: list[set[str]] = []
    blocks: list[int] = []
    for number, (devices, is_lost) in enumerate(sums, start=1):
        begins = is_lost or number == 1
        of = tuple(replace(_REPORT, public_key=each) for each in sorted(devices))
        spent = budget.after(spent, Named(TASK_ID, 10 * number, of), noise, history, begins)
        so_far.append(devices)
        blocks = [*blocks, 1] if begins else [*blocks[:-1], blocks[-1] + 1]
        counted = {each: sum(each in those for those in so_far) for each in KEYS}
        where = {each: [i for i, those in enumerate(so_far, 1) if each in those] for each in KEYS}
        gaps = [b - a for at in where.values() for a, b in itertools.pairwise(at)]
        history = History(
            {}, frozenset(), counted, {k: max(at, default=0) for k, at in where.items()}
        )
        happened = Participation(tuple(blocks), min(gaps, default=None), max(counted.values()))
        assert spent.happened == happened
        assert spent.epsilon == accountant.account(noise, happened).epsilon
        assert len(spent.began) == len(blocks)


_REPORT = reports([0], 1, {1: "50" * 32})[0].sealed

# of which tasks


REFUSED = {
    "an epsilon of at most 8, found 100": (NOISE, replace(RULES, max_epsilon=8.0)),
    "a delta of at most 1e-05, found 0.01": (
        replace(NOISE, delta=0.01),
        replace(RULES, max_epsilon=200.0),
    ),
    "noise in every sum, found none": (None, replace(RULES, requires_noise=True)),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_task_whose_noise_the_helper_cannot_keep_or_may_not_is_not_served(fast_folder, why):
    noise, rules = REFUSED[why]
    terms = replace(NOISED, noise=noise)
    no = new(fast_folder / "helper", rules).register(registration(terms), 1.0)
    assert refusal(no) == "foreign_policy" and why in no.detail


def test_a_task_whose_noise_grows_beyond_all_words_is_not_served(fast_folder):
    noise = replace(NOISE, rounds=1000)
    object.__setattr__(noise, "decays", (1.0,) * 3)  # nobody here makes such a noise
    object.__setattr__(noise, "scales", (1.0,) * 3)
    asked = registration(replace(NOISED, noise=noise))
    assert refusal(new(fast_folder / "helper").register(asked, 1.0)) == "foreign_policy"


def test_a_task_whose_buffers_have_no_room_in_a_row_is_not_served():
    terms = replace(NOISED, dimension=2**28)  # two buffers of a gigabyte
    task = tasks.admitted(registration(terms), RULES, 1.0, None)
    assert "expected buffers of noise of at most 512 MB, found 2048 MB" in task.detail


def test_a_task_within_the_rules_of_the_helper_is_served(fast_folder):
    rules = replace(RULES, max_epsilon=100.0, requires_noise=True)
    assert begun(fast_folder / "helper", NOISED, rules).budgets()[0][1] == Spent()


# how buffers are sealed


def test_sealed_buffers_open_with_their_key_for_their_use_alone():
    rng = np.random.default_rng(1)
    _, buffers = noising.noise(NOISED, noising.begin(NOISED), rng.bytes)
    sealed = noising.sealed(buffers, bytes(32), "a")
    assert len(sealed) == noising.sealed_bytes(NOISED)
    back = noising.opened(sealed, bytes(32), "a", NOISED)
    assert back.step == 1 and np.array_equal(back.arrays, buffers.arrays)
    one = replace(NOISED, noise=replace(NOISE, decays=(0.9,), scales=(0.3,)))
    for data, by, about, terms in (
        (sealed, None, "a", NOISED),
        (sealed, bytes(31), "a", NOISED),
        (sealed, b"\1" * 32, "a", NOISED),
        (sealed, bytes(32), "b", NOISED),
        (sealed[:-1], bytes(32), "a", NOISED),
        (b"", bytes(32), "a", NOISED),
        (sealed, bytes(32), "a", replace(NOISED, dimension=5000)),
        (sealed, bytes(32), "a", one),
        (sealed, bytes(32), "a", replace(NOISED, noise=TREE)),
    ):
        assert noising.opened(data, by, about, terms) is None


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(0, 255))
def test_sealed_buffers_with_any_byte_changed_open_nothing(place, change):
    sealed = bytearray(noising.sealed(noising.begin(NOISED), bytes(32), "a"))
    sealed[place % len(sealed)] ^= change
    is_open = noising.opened(bytes(sealed), bytes(32), "a", NOISED) is not None
    assert is_open == (change == 0)
