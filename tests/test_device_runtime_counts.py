"""A public list of words, and what a phone says of it: which were typed, once, and never more."""

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime import agreement, config, counts, limits, log_wire, signing, table, weights
from device_runtime.causes import Cause
from device_runtime.counts import Counted
from device_runtime.drive import Turn
from device_runtime.errors import ConfigError
from device_runtime.home import OUTGOING, DeviceConfig, Home, parts
from device_runtime.limits import Asked, Limits, OwnLimits
from device_runtime.local import simulated
from device_runtime.noise import Mechanism, Noise
from device_runtime.packing import Layout
from device_runtime.table import Table
from device_runtime.terms import Aggregation, Terms
from device_runtime.turn import Status
from device_runtime.typing_log import HELD_ONE_IN
from device_runtime.wire import Assignment, Kind, Plan
from fedboard.device_words import ledger_lines
from tests.test_device_runtime_drive import ABLE, EASY
from tests.toy_leader import (
    HELPER,
    ROUND,
    SERVER,
    Leader,
    learnt,
    seal_key,
    seed_and_codes,
)
from tests.toy_server import chained

WORDS = ("am", "cat", "i", "see", "will", "you")
LIST = counts.to_list(WORDS)


# the list


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "expected 1 to 200,000 words, found 0"),
        (b"are\nyou", "expected a line break after the last word"),
        (b"you\nare\n", "line 2: expected words in order, each once, found 'are' after 'you'"),
        (b"are\nare\n", "line 2: expected words in order, each once"),
        (b"Are\n", "line 1: expected a word, found 'Are'"),
        (b"two words\n", "line 1: expected a word, found 'two words'"),
        (b"7\n", "line 1: expected a word, found '7'"),
        (b"!\n", "line 1: expected a word"),
        (b"are\r\n", "line 1: expected a word"),
        (b"\n", "line 1: expected a word, found ''"),
        (b"a" * 65 + b"\n", "line 1: expected a word"),
        (b"\xff\n", "expected text in UTF-8"),
        (b"a" * (table.MOST_BYTES + 1), "expected at most 4,194,304 bytes, found 4,194,305"),
    ],
)
def test_a_file_that_is_no_list_is_refused_by_its_line(data, problem):
    with pytest.raises(ConfigError) as refused:
        counts.read_list(data)
    assert problem in str(refused.value)


@given(st.sets(st.from_regex("[a-z]{1,8}", fullmatch=True), min_size=1, max_size=30))
def test_a_list_has_one_file_in_whatever_order_its_words_come(words):
    data = counts.to_list(words)
    assert data == counts.to_list(reversed(sorted(words)))
    assert counts.read_list(data) == tuple(sorted(words))


def spelled(number):
    """A word of six letters for each number, in their order."""
    return "".join(chr(97 + number // 26**place % 26) for place in range(5, -1, -1))


def test_a_list_is_as_long_as_it_may_be_and_no_longer():
    numbers = [spelled(number) for number in range(table.MOST_ENTRIES + 1)]
    assert len(counts.read_list(counts.to_list(numbers[1:]))) == table.MOST_ENTRIES
    with pytest.raises(ConfigError, match="found 200,001"):
        counts.to_list(numbers)


# what one phone marks


def test_a_word_counts_once_however_often_it_was_typed_and_by_the_rules_of_text():
    typed = ["I see, I SEE!", "you’ll see", "catalogue"]
    assert counts.marks(typed, WORDS).tolist() == [0, 0, 1, 1, 0, 0]


@given(
    st.lists(st.booleans(), min_size=1, max_size=40),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
)
def test_no_more_ones_than_allowed_and_only_those_there_were(marks, most, seed):
    given_ = np.array(marks, np.uint8)
    kept = table.at_most(given_, most, np.random.default_rng(seed))
    assert kept.sum() == min(most, given_.sum())
    assert (kept <= given_).all()


def test_which_ones_stay_does_not_depend_on_where_they_stand():
    rng = np.random.default_rng(1)
    kept = sum(table.at_most(np.ones(8), 2, rng).astype(int) for _ in range(4000))
    # each stays in a quarter of 4,000: a standard deviation is 27
    assert np.abs(kept - 1000).max() < 5 * 27


@given(
    st.lists(st.lists(st.integers(0, 1), min_size=4, max_size=4), min_size=1, max_size=9),
)
def test_what_honest_devices_add_up_to_is_within_reach(marks):
    vectors = np.array(marks)
    most = max(1, int(vectors.sum(axis=1).max()))
    assert table.beyond_reach(vectors.sum(axis=0), len(marks), most) == ""


def test_noise_of_as_much_as_there_is_room_for_is_within_reach_and_more_is_not():
    assert table.beyond_reach(np.array([-5, 8]), 3, 1, room=5) == ""
    assert "counts 9" in table.beyond_reach(np.array([0, 9]), 3, 1, room=5)
    assert "counts -6" in table.beyond_reach(np.array([-6, 0]), 3, 1, room=5)


# what is told


def test_a_word_of_fewer_people_is_not_told_and_with_noise_a_count_must_be_higher():
    total = Counted(np.array([5, 4, 9]), people=9)
    assert counts.told(("a", "b", "c"), total, 5) == [("c", 9), ("a", 5)]
    noised = replace(total, deviation=1.0)  # four standard deviations over five people
    assert counts.told(("a", "b", "c"), noised, 5) == [("c", 9)]


def test_sums_of_different_people_add_up_and_so_do_the_variances_of_their_noise():
    parts = [Counted(np.array([1, 2]), 3, 3.0), Counted(np.array([4, 0]), 5, 4.0)]
    total = counts.added(parts)
    assert (total.counts.tolist(), total.people, total.deviation) == ([5, 2], 8, 5.0)


# terms


def terms(data: bytes = LIST, most_ones: int = 4, **changed) -> Terms:
    """Terms of a task that counts the words of a list, whose masks HELPER takes off."""
    name = weights.digest(data)
    of = Terms(
        Aggregation.HELPER,
        1,
        sqrt(most_ones),
        data.count(b"\n"),
        name,
        7,
        most=108,
        fewest=100,
        min_separation=table.NEVER_AGAIN,
        helper=signing.public_hex(HELPER),
        table=Table(name, most_ones, least_people=3),
    )
    return replace(of, **changed)


def test_an_answer_of_108_devices_lies_nine_numbers_a_word():
    # 109 ** 9 is below 256 ** 8, and 109 ** 10 is not
    assert terms().layout == Layout(6, 109, 9, 8) or terms().layout.base == 109
    assert (terms().values, terms().largest, terms().room) == (6, 1, 0)


def test_terms_that_know_no_table_keep_the_name_they_had():
    plain = Terms(Aggregation.PLAIN, 8, 1.0, 50, "0" * 64, 1, 2, 1, 1)
    table_of = {
        name: value
        for name, value in vars(plain).items()
        if name not in ("table", "noise", "compression", "turn", "name")
    }
    assert plain.name == weights.digest(config.to_json(table_of))


@pytest.mark.parametrize(
    ("agreed", "kind", "reason"),
    [
        (terms(), Kind.TRAINING, "terms.table: expected none, found one"),
        (terms(), Kind.EVALUATION, "terms.table: expected none, found one"),
        (
            Terms(Aggregation.PLAIN, 8, 1.0, 50, "0" * 64, 1, 2, 1, 1),
            Kind.COUNTS,
            "terms.table: expected a table, found none",
        ),
        (terms(b"other\n"), Kind.COUNTS, "terms.table.entries: expected "),
        (terms(), Kind.COUNTS, ""),
    ],
)
def test_who_signed_for_updates_has_signed_for_no_question_and_no_other_list(agreed, kind, reason):
    name = weights.digest(LIST)
    work = Assignment("a5" * 16, 1, "00" * 32, name, name, 60.0, kind=kind)
    assert agreement.why_another_kind(agreed, work).startswith(reason or "")
    assert bool(agreement.why_another_kind(agreed, work)) == bool(reason)


# the owner's limit


def test_a_phone_answers_as_many_lists_as_its_owner_allows_each_once():
    own = Limits(Plan(), OwnLimits(word_lists=2))
    asked = Asked(Kind.COUNTS, done_today=1)
    assert limits.why_refused(own, asked) is None
    over = limits.why_refused(own, replace(asked, done_today=2))
    assert str(over) == "word_lists: expected at most 2, found 3"
    again = limits.why_refused(own, replace(asked, scored_before=True))
    assert str(again) == "word_lists: expected a list once, found one answered before"
    none = Limits(Plan(), OwnLimits(word_lists=0))
    assert limits.why_refused(none, Asked(Kind.COUNTS)) is not None


# a real phone


class Counting(Leader):
    """A leader that asks which words of a list were typed."""

    data = LIST
    kind = Kind.COUNTS

    def work(self) -> Assignment:
        plan = config.to_json(Plan(bits=1, clipping_norm=self.terms.clipping_norm))
        self.blobs = {weights.digest(each): each for each in (plan, self.data)}
        bare = Assignment(
            self.name,
            self.round,
            *self.blobs,
            weights.digest(self.data),
            deadline_s=3600.0,
            kind=self.kind,
            server=SERVER,
            task_id=self.task_id,
        )
        work = chained(bare, self.made_in, terms=self.terms)
        head = work.log.head.text.encode()  # the helper has seen that it extends the last one
        seen = signing.sign_text(HELPER, log_wire.SEEN, head).signature
        work = replace(work, log=replace(work.log, countersignature=seen))
        return replace(work, seal_key=self.seal_key)


@pytest.fixture
def leader(tmp_path, tiny_bundle):
    (tmp_path / "bodies").mkdir()
    return Counting(tiny_bundle, tmp_path / "bodies", terms(), seal_key(terms()))


@pytest.fixture
def phone(tmp_path, tiny_bundle, trusted):
    def make(typed=None, own=EASY) -> Home:
        (tmp_path / "able.tsv").write_text(ABLE)
        settings = DeviceConfig(
            tuple(trusted),
            str(tiny_bundle.path),
            "http://127.0.0.1:1",
            str(tmp_path / "able.tsv"),
            limits=own,
        )
        typed = [f"i will see you {i}" for i in range(20)] if typed is None else typed
        return Home.create(
            tmp_path / "phone", settings, [(each, float(i)) for i, each in enumerate(typed)]
        )

    return make


def turn(home, leader, at=0.0):
    taken = Turn(home, leader, simulated(at, batch_s=0.0), learnt, sleep=lambda seconds: None)
    return taken.whole()


def answered(leader, home) -> list[int]:
    device = signing.public_hex(home.key)
    _, codes = seed_and_codes(leader.bodies()[-1], leader, device, leader.terms.layout)
    return codes


def test_a_phone_says_under_a_mask_which_listed_words_it_typed_and_nothing_else(leader, phone):
    home = phone()
    assert turn(home, leader).status is Status.COUNTED
    assert answered(leader, home) == [0, 0, 1, 1, 1, 1]
    (line,) = home.contributions()
    assert (line.kind, line.examples, line.scored) == ("counts", 4, weights.digest(LIST))
    assert home.kept(OUTGOING) is None
    said = ledger_lines([line])[0]
    assert "a public list" in said and "4 words" in said and "update" not in said


def test_of_more_words_than_a_person_may_mark_as_many_are_told_by_chance(leader, phone):
    leader.terms = terms(most_ones=2)
    leader.seal_key = seal_key(leader.terms)
    home = phone()
    assert turn(home, leader).status is Status.COUNTED
    told = answered(leader, home)
    assert sum(told) == 2 and told[:2] == [0, 0]


def test_a_list_that_was_answered_is_given_back_whoever_asks_and_the_phone_goes_on(leader, phone):
    home = phone()
    assert turn(home, leader).status is Status.COUNTED
    leader.name, leader.task_id = "b6" * 16, "8b" * 16  # another task, with the same list
    leader.seal_key = seal_key(leader.terms, task_id="8b" * 16)
    again = turn(home, leader, 10.0)
    assert (again.status, again.cause) == (Status.ABANDONED, Cause.OVER_LIMIT)
    assert len(leader.bodies()) == 1
    assert leader.given_back == [Cause.OVER_LIMIT]
    assert "a list once" in home.contributions()[-1].detail
    assert home.withheld() is None  # nothing keeps it from training


def test_an_owner_who_asks_for_noise_answers_nothing_without(leader, phone):
    home = phone(own=replace(EASY, require_noise=True))
    assert turn(home, leader).cause is Cause.OVER_LIMIT
    assert "require_noise: expected noise on every sum" in home.contributions()[-1].detail
    assert leader.bodies() == []


def test_what_an_answer_spends_counts_with_what_updates_have_spent(leader, phone):
    noise = Noise(Mechanism.GAUSSIAN, 2.0, 8.0, 1e-6, rounds=9, participations=1)
    leader.terms = replace(terms(), noise=noise)
    leader.seal_key = seal_key(leader.terms)
    home = phone()
    assert turn(home, leader).status is Status.COUNTED
    (part,) = parts(home.contributions())
    assert (part.rounds, part.noise) == ((ROUND,), noise)


def test_an_owner_who_answers_no_lists_fetches_none(leader, phone):
    home = phone(own=replace(EASY, word_lists=0))
    assert turn(home, leader).cause is Cause.OVER_LIMIT
    assert leader.bodies() == []
    assert not [path for path in leader.asked if "/blobs/" in path]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"you\nare\n", "line 2: expected words in order"),
        (counts.to_list(["cat", "see"]), "terms.dimension: expected 2, found 6"),
    ],
)
def test_a_list_that_is_none_or_not_the_one_that_was_signed_is_given_back(
    leader, phone, data, reason
):
    leader.data = data
    leader.terms = replace(terms(data), dimension=6)
    leader.seal_key = seal_key(leader.terms)
    home = phone()
    assert turn(home, leader).cause is Cause.UNCERTIFIED
    assert leader.bodies() == []
    assert reason in home.contributions()[-1].detail


def test_a_question_under_the_terms_of_a_training_task_is_given_back_unread(leader, phone):
    leader.kind = Kind.TRAINING
    assert turn(phone(), leader).cause is Cause.UNCERTIFIED
    assert not [path for path in leader.asked if "/blobs/" in path]


def test_words_of_a_phone_on_which_little_was_typed_are_not_told_and_neither_is_that(leader, phone):
    home = phone(typed=["i see you"] * 4, own=replace(EASY, least_messages=5, least_words=1))
    outcome = turn(home, leader)
    assert outcome.status is Status.NOT_ASKED and leader.bodies() == []


def test_every_message_that_was_looked_at_counts_as_used_held_back_or_not(leader, phone):
    home = phone()
    turn(home, leader)
    with home.typing_log() as log:
        used = log._rows("SELECT id, uses FROM records ORDER BY id", ())
    assert [uses for _, uses in used] == [1] * 20
    assert any(number % HELD_ONE_IN == 0 for number, _ in used)


def test_what_no_list_has_is_in_nothing_that_leaves(leader, phone):
    home = phone(typed=[f"zebracorn will see {i}" for i in range(20)])
    assert turn(home, leader).status is Status.COUNTED
    assert all(b"zebracorn" not in body for body in leader.bodies())
    assert answered(leader, home) == [0, 0, 0, 1, 1, 0]
