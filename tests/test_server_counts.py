"""Which words of a public list people typed, through sums that a helper opens: exact without noise.

A real coordinator, a real helper's desk, and a function between them; every device is in one sum.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as trying
from hypothesis import strategies as st

from device_runtime import chain, counts, protection, signing, table
from device_runtime.causes import Cause
from device_runtime.errors import ConfigError
from device_runtime.helper_wire import Registration
from device_runtime.noise import Mechanism, Noise
from device_runtime.table import Table
from device_runtime.terms import Aggregation, Terms
from device_runtime.wire import Abandon, Assignment, Kind, Phase
from helper.tasks import Rules as HelperRules
from helper.tasks import admitted
from server import dashboard, mechanism, operators, overview, tallies, tasks
from server.metrics import Metrics
from server.requests import Refused
from server.rounds import Rules
from server.task import Task, TaskSettings, for_list, policy_hash, task_of, terms
from tests import toy_opening
from tests.toy_helper import HELPER, certificate
from tests.toy_opening import THREE, desk, joined, way_to
from tests.toy_server import OPERATOR, READY, OneByOne, by_arrival, certify, enrolled, key

WORDS = ("are", "hello", "how", "rare", "you")
LIST = counts.to_list(WORDS)
# by device, what was typed
TYPED = ["hello how are you", "how are you", "you rare you"]


def noise(multiplier: float = 4.0, **other) -> Noise:
    numbers = {"epsilon": 8.0, "delta": 1e-6, "rounds": 10, "participations": 1}
    return Noise(Mechanism.GAUSSIAN, multiplier, **(numbers | other))


def counting(coordinator: OneByOne, data: bytes = LIST, rules: Rules = THREE, **other) -> Task:
    """A task that counts the words of a list, certified, whose helper has given keys."""
    most, least = other.pop("most_ones", 5), other.pop("least_people", 2)
    stored = operators.put_list(coordinator, data)
    named = {"name": "words", "helper": HELPER, "least_count": 2, "seed": 7}
    settings = TaskSettings(
        rules=by_arrival(rules),
        kind=Kind.COUNTS,
        table=Table(stored.sha256, most, least),
        **(named | other),
    )
    task = tasks.create(coordinator, settings, 0.0)
    certify(coordinator, 0.0, "words")
    coordinator.open_sums(0.0)
    return task


@pytest.fixture
def helper(tmp_path):
    return desk(tmp_path / "helper")


@pytest.fixture
def coordinator(tmp_path, helper):
    server = toy_opening.opened(tmp_path / "server", way_to(helper))
    yield server
    server.close()


def answer(work: Assignment, number: int, typed: str, words: tuple[str, ...] = WORDS) -> bytes:
    """What a device sends that typed this."""
    agreed = chain.terms_of(work)
    about = protection.addressed(work, agreed)
    marks = counts.marks([typed], words)
    ones = table.at_most(marks, agreed.table.most_ones, np.random.default_rng(number))
    random = np.random.default_rng([number, work.round]).bytes
    return protection.protected(ones, table.LARGEST, about, key(number), random)


def round_of(coordinator: OneByOne, people: list[int], typed: list[str], now: float) -> None:
    """One round in which these devices say what they typed, until its sum is opened."""
    devices = enrolled(coordinator, 9)
    works = joined(coordinator, [devices[number] for number in people], now)
    for number, work, text in zip(people, works, typed, strict=True):
        body = answer(work, number, text)
        assert coordinator.update(devices[number], work.assignment, body, now).counted
    coordinator.open_sums(now + 0.5)


def test_the_sum_of_masked_answers_is_how_many_people_typed_each_word(coordinator):
    counting(coordinator)
    round_of(coordinator, [0, 1, 2], TYPED, 1.0)
    report = operators.counted(coordinator, "words")
    # rare was typed by one person and hello by one: two people are needed
    assert list(report.counts.items()) == [("you", 3), ("are", 2), ("how", 2)]
    assert (report.people, report.rounds, report.listed, report.epsilon) == (3, 1, 5, None)


def test_rounds_have_different_people_and_their_counts_add_up(coordinator):
    counting(coordinator, least_people=1)
    round_of(coordinator, [0, 1, 2], TYPED, 1.0)
    round_of(coordinator, [3, 4, 5], ["rare", "rare", "hello"], 2.0)
    report = operators.counted(coordinator, "words")
    assert dict(report.counts) == {"you": 3, "rare": 3, "are": 2, "hello": 2, "how": 2}
    assert (report.people, report.rounds) == (6, 2)


def test_nobody_is_asked_twice(coordinator):
    counting(coordinator)
    round_of(coordinator, [0, 1, 2], TYPED, 1.0)
    device = enrolled(coordinator, 1)[0]
    assert coordinator.check_in(device, READY, 2.0).cause is Cause.PARTICIPATED_ENOUGH


def test_a_device_of_any_vocabulary_is_asked_and_fetches_the_list_by_its_hash(coordinator):
    task = counting(coordinator)
    device = enrolled(coordinator, 1)[0]
    other = replace(READY, tokenizer="ff" * 32)
    work = coordinator.check_in(device, other, 1.0)
    assert (work.kind, work.checkpoint, work.shapes) == (Kind.COUNTS, *2 * (task.table.entries,))
    assert coordinator.blob(device, work.checkpoint, 1.0, signed_for=("words", 1)) == LIST
    assert coordinator.reports(1.0, "words").rounds[0].downloaded == 1
    by = chain.Verifier(frozenset({signing.public_hex(OPERATOR)}), "default", 1.0)
    assert chain.why_untrusted(work, by) is None


def test_who_drops_out_is_in_no_count(coordinator):
    counting(coordinator, rules=Rules(report_goal=2, over_selection=2.0), least_people=1)
    devices = enrolled(coordinator, 3)
    works = joined(coordinator, devices, 1.0)
    coordinator.abandon(devices[2], works[2].assignment, Abandon(Cause.CONDITION_LOST), 1.5)
    for number in (0, 1):
        body = answer(works[number], number, TYPED[number])
        assert coordinator.update(devices[number], works[number].assignment, body, 2.0).counted
    coordinator.open_sums(3.0)
    report = operators.counted(coordinator, "words")
    assert report.counts == {"are": 2, "how": 2, "you": 2, "hello": 1}
    # it has added nothing, and may come again
    assert isinstance(coordinator.check_in(devices[2], READY, 4.0), Assignment)


def test_one_who_marks_more_than_it_may_is_refused_where_each_is_seen(coordinator):
    counting(coordinator, aggregation=Aggregation.PLAIN, helper="", most_ones=2)
    device = enrolled(coordinator, 1)[0]
    (work,) = joined(coordinator, [device], 1.0)
    agreed = chain.terms_of(work)
    about = protection.addressed(work, agreed)
    four = np.array([1, 1, 1, 0, 1], np.uint8)
    body = protection.protected(four, 1, about, key(0), np.random.default_rng(0).bytes)
    with pytest.raises(Refused) as refused:
        coordinator.update(device, work.assignment, body, 2.0)
    assert refused.value.cause is Cause.NORM_TOO_LARGE
    assert np.count_nonzero(counts.marks(["hello how are you"], WORDS)) == 4


def test_by_name_a_server_may_see_each_answer_and_counts_the_same(coordinator):
    counting(coordinator, aggregation=Aggregation.PLAIN, helper="")
    round_of(coordinator, [0, 1, 2], TYPED, 1.0)
    assert operators.counted(coordinator, "words").counts == {"you": 3, "are": 2, "how": 2}


def test_a_round_whose_marks_are_more_than_its_people_may_have_is_abandoned(coordinator):
    counting(coordinator, most_ones=2)
    devices = enrolled(coordinator, 3)
    works = joined(coordinator, devices, 1.0)
    for number, (device, work) in enumerate(zip(devices, works, strict=True)):
        marks = np.array([1, 1, 1, 1, 1] if number == 0 else [1, 1, 0, 0, 0], np.uint8)
        about = protection.addressed(work, chain.terms_of(work))
        body = protection.protected(
            marks, 1, about, key(number), np.random.default_rng(number).bytes
        )
        assert coordinator.update(device, work.assignment, body, 2.0).counted
    coordinator.open_sums(3.0)
    report = coordinator.reports(4.0, "words").rounds[0]
    assert report.phase is Phase.ABANDONED
    assert "all entries count 9, and 3 devices reach 6" in report.reason
    assert operators.counted(coordinator, "words").people == 0


# noise


@pytest.mark.parametrize("aggregation", [Aggregation.HELPER, Aggregation.PLAIN])
def test_with_noise_each_count_is_off_by_about_the_deviation_that_is_told(coordinator, aggregation):
    many = tuple(sorted(f"word{one}{other}" for one in "abcdefghij" for other in "abcdefghij"))
    task = counting(
        coordinator,
        counts.to_list(many),
        noise=noise(2.0),
        most_ones=25,
        least_people=1,
        aggregation=aggregation,
        helper=HELPER if aggregation is Aggregation.HELPER else "",
    )
    assert terms(task).deviation == 10.0  # 2 x the root of 25
    devices = enrolled(coordinator, 3)
    works = joined(coordinator, devices, 1.0)
    for number, (device, work) in enumerate(zip(devices, works, strict=True)):
        body = answer(work, number, " ".join(many[:20]), many)
        assert coordinator.update(device, work.assignment, body, 2.0).counted
    coordinator.open_sums(3.0)
    with coordinator.store.reading() as rows:
        total = tallies.counted(task, rows.tallies("words"))
    errors = total.counts - np.array([3] * 20 + [0] * 80)
    assert 6.0 < np.std(errors) < 14.0
    assert total.deviation == 10.0
    with coordinator.store.reading() as rows:
        exposed = mechanism.Exposure(1, 1, None, rows.spending.of("words"))
    spent = mechanism.of(task).spent(exposed)  # as the page has it
    assert (spent.budget, spent.sums) == (task.noise.epsilon, 1)
    assert spent.epsilon == pytest.approx(tallies.spent(task).epsilon)


def test_the_account_of_one_who_took_part_is_that_of_one_sum_however_many_there_are(coordinator):
    task = counting(coordinator, noise=noise(2.0), most_ones=4)
    round_of(coordinator, [0, 1, 2], TYPED, 1.0)
    report = operators.counted(coordinator, "words")
    assert report.deviation == pytest.approx(4.0) and report.told_from == pytest.approx(18.0)
    # rho = 1 / (2 x 2 squared) = 0.125
    assert tallies.spent(task).rho == pytest.approx(0.125)
    assert report.epsilon == tallies.spent(task).epsilon and report.delta == 1e-6
    round_of(coordinator, [3, 4, 5], TYPED, 2.0)
    assert operators.counted(coordinator, "words").epsilon == report.epsilon
    assert operators.counted(coordinator, "words").deviation == pytest.approx(4 * math.sqrt(2))


def test_whoever_asks_for_a_task_that_counts_is_told_what_it_has_spent(coordinator):
    counting(coordinator, noise=noise(2.0))
    round_of(coordinator, [0, 1, 2], TYPED, 1.0)
    shown = operators.report(coordinator, "words", 2.0)
    assert (shown.rho, shown.sums) == (pytest.approx(0.125), 1)
    assert shown.epsilon == operators.counted(coordinator, "words").epsilon
    assert "gaussian noise of multiplier 2" in shown.privacy


# settings and terms


@pytest.mark.parametrize(
    "changed",
    [
        {"bits": 2},
        {"clipping_norm": 3.0},
        {"shapes": "ff" * 32},
        {"compression": 2},
        {"noise": replace(noise(), participations=2)},
        {"noise": replace(noise(), mechanism=Mechanism.TREE)},
    ],
)
def test_terms_of_a_table_that_do_not_hold_together_are_none(changed):
    good = Terms(Aggregation.PLAIN, 1, 2.0, 5, "aa" * 32, 1, 3, 2, 9, table=Table("aa" * 32, 4, 2))
    with pytest.raises(ConfigError, match=f"terms.{next(iter(changed))}"):
        replace(good, **changed)


def test_a_list_that_is_none_is_refused_when_it_is_put(coordinator):
    with pytest.raises(Refused, match="line 2: expected words in order, each once"):
        operators.put_list(coordinator, b"you\nare\n")


def test_a_task_is_fixed_by_its_list_least_people_and_most_words():
    base = TaskSettings(name="words", kind=Kind.COUNTS, table=Table("aa" * 32, 5, 2))
    assert policy_hash(base) != policy_hash(replace(base, table=Table("aa" * 32, 5, 3)))
    assert policy_hash(base) != policy_hash(replace(base, table=Table("aa" * 32, 6, 2)))
    assert policy_hash(base) != policy_hash(replace(base, table=Table("bb" * 32, 5, 2)))


def test_a_table_without_the_kind_and_the_kind_without_a_table_are_refused():
    for wrong in ({"kind": Kind.COUNTS}, {"table": Table("aa" * 32, 5, 2)}):
        with pytest.raises(ConfigError, match=r"task\.table"):
            TaskSettings(**wrong)


def test_a_helper_takes_no_certificate_of_counts_for_another_kind_of_task():
    settings = for_list(
        TaskSettings(rules=THREE, helper=HELPER, least_count=2, seed=1), Table("aa" * 32, 4, 2)
    )
    agreed = terms(task_of(settings, "", "aa" * 32, 5))
    rules = HelperRules(HELPER, 2)
    signed, id = certificate(agreed), "7a" * 16
    task = admitted(Registration(signed, "words", id, Kind.COUNTS), rules, 0.0, None)
    assert task.separation == table.NEVER_AGAIN  # by the helper's own ledger nobody is in two sums
    for kind in (Kind.TRAINING, Kind.EVALUATION):
        problem = admitted(Registration(signed, "words", id, kind), rules, 0.0, None)
        assert "expected terms of no table" in problem.detail


def test_pages_and_numbers_of_a_server_that_counts_can_be_read(coordinator):
    counting(coordinator)
    round_of(coordinator, [0, 1, 2], TYPED, 1.0)
    shown = operators.report(coordinator, "words", 2.0)
    assert shown.kind is Kind.COUNTS and shown.committed == 1 and shown.signer
    page = dashboard.page(overview.read(coordinator, 2.0, 0.0, {})).html
    assert "words" in page and "rare" not in page
    assert 'kind="counts"' in Metrics(coordinator, lambda: 2.0).text().decode()


@trying(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), max_size=5), min_size=3, max_size=6), st.integers(1, 5))
def test_what_is_told_is_never_of_fewer_than_least_people(answers, least_people):
    vectors = [np.isin(np.arange(5), each).astype(np.int64) for each in answers]
    total = counts.Counted(np.sum(vectors, axis=0), len(vectors))
    told = counts.told(WORDS, total, least_people)
    for word, count in told:
        at = WORDS.index(word)
        assert count == sum(at in each for each in answers) >= least_people
    assert len(told) == sum(sum(at in each for each in answers) >= least_people for at in range(5))
