"""Limits: what a device refuses, by the numbers alone and of servers that ask for too much.

The attacks are here that read a message out of one update, and out of scores.
"""

import contextlib
import itertools
import json
import math
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime import config, limits, local, weights, wire
from device_runtime.causes import Cause
from device_runtime.config import from_json, to_json
from device_runtime.daemon import Daemon, NotAsked
from device_runtime.drive import Turn
from device_runtime.errors import ConfigError, ServerError
from device_runtime.finetune import finetune
from device_runtime.home import DeviceConfig, Home
from device_runtime.limits import Asked, Limits, OwnLimits, Today, why_not_asked, why_refused
from device_runtime.local import simulated
from device_runtime.noise import Mechanism, Noise
from device_runtime.transport import Interrupted, Reply
from device_runtime.turn import Status
from device_runtime.weights import Checkpoint
from device_runtime.wire import DAY_S, Abandon, Assignment, CheckIn, Kind, Plan, Scores
from tests.toy_server import chained, terms_for

SIGNED = Plan(max_rows=64, epochs=2, learning_rate=0.1, clipping_norm=10.0, bits=8)
OWN = limits.of(SIGNED, OwnLimits())
ABLE = "0\tbattery_charged_on\n0\twifi\n0\tscreen_off\n"
NUMBERS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True), st.integers(-(2**70), 2**70), st.just(10**400)
)


# by the numbers


def test_a_plan_may_ask_for_less_than_the_signed_one_and_never_for_more():
    assert OWN.most == replace(SIGNED, clipping_norm=1.0)  # the owner's is lower
    assert why_refused(OWN, Asked(Kind.TRAINING, plan=OWN.most)) is None
    less = replace(OWN.most, bits=1, clipping_norm=0.5, learning_rate=0.01, epochs=1, max_rows=9)
    assert why_refused(OWN, Asked(Kind.TRAINING, plan=less)) is None
    for name, value in (
        ("bits", 9),
        ("clipping_norm", 1.0001),
        ("learning_rate", 0.11),
        ("epochs", 3),
        ("max_rows", 65),
    ):
        over = why_refused(OWN, Asked(Kind.TRAINING, plan=replace(OWN.most, **{name: value})))
        assert over.limit == name
    assert str(over) == "max_rows: expected at most 64, found 65"


@given(st.sampled_from(["bits", "clipping_norm", "learning_rate", "epochs", "max_rows"]), NUMBERS)
def test_whatever_number_a_plan_has_it_is_refused_by_the_plan_or_by_the_limits_or_is_within_them(
    name, value
):
    try:
        plan = replace(OWN.most, **{name: value})
    except (ConfigError, OverflowError):
        return
    within = 0 < value <= getattr(OWN.most, name)
    assert (why_refused(OWN, Asked(Kind.TRAINING, plan=plan)) is None) is within


@given(
    st.sampled_from(list(Kind)),
    st.integers(0, 9),
    st.booleans(),
    st.floats(0, 100),
    st.floats(0, 100),
    st.integers(0, 20),
    st.integers(0, 400),
)
def test_work_is_done_only_if_all_its_numbers_are_within_the_limits(
    kind, done, scored, moved, reach, messages, words
):
    asked = Asked(kind, done, scored, OWN.most, moved, reach, messages, words)
    within_reach = moved <= reach
    score = within_reach and done < 2 and not scored and words >= 200
    allowed = {
        Kind.TRAINING: within_reach and done < 4 and messages >= 10 and words >= 100,
        Kind.EVALUATION: score,
        Kind.RELEASES: score,
        Kind.COUNTS: done < 4 and not scored and messages >= 10,  # of no weights
    }[kind]
    assert (why_refused(OWN, asked) is None) is allowed


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_the_deadline_is_a_time_within_a_day_whatever_is_said(told):
    assert 0 <= OWN.seconds(told) <= DAY_S


@given(st.integers(1, 10_000), st.integers(1, 10_000_000))
def test_two_numbers_of_rows_are_the_same_or_at_least_twice_as_many(signed, asked):
    own = Limits(Plan(max_rows=signed))
    rows = own.rows(Plan(max_rows=asked))
    assert rows <= asked and rows in {signed >> halves for halves in range(15)}


@given(st.integers(-1000, 1000), st.floats(0, 1e9), st.integers(1, 10_000_000))
def test_weights_can_have_moved_no_further_than_their_rounds_or_their_time_let_them(
    apart, age, values
):
    rounds = limits.rounds_since(apart, age)
    assert 0 <= rounds <= min(abs(apart), 1 + age / 60)
    reach = OWN.reach(rounds, values, norm=8.0)
    assert (reach == 0) == (rounds == 0)
    assert reach <= rounds * max(10.0, 0.03 * math.sqrt(values)) + 8.0 / 1024 + 1e-6


@pytest.mark.parametrize(
    ("step", "rounds"),
    [
        ({}, 30),
        ({"algorithm": "fedavgm", "momentum": 0.9}, 30),
        ({"algorithm": "fedadam", "learning_rate": 0.03}, 30),
        ({"algorithm": "fedyogi", "learning_rate": 0.03}, 30),
    ],
)
def test_servers_of_the_usual_settings_stay_within_reach_even_if_all_updates_are_one(step, rounds):
    from server import step as steps

    rng = np.random.default_rng(0)
    start = {"a": rng.normal(0, 1, (50, 20)).astype(np.float32)}
    delta = rng.normal(0, 1, 1000)
    delta /= np.linalg.norm(delta)  # the clipping norm, and the same in every round: the worst case
    values, moments = start, None
    for round in range(1, rounds + 1):
        values, moments = steps.apply(steps.ServerStep(**step), values, moments, delta)
        moved = weights.norm(weights.subtract(values, start))
        assert moved <= OWN.reach(round, 1000, weights.norm(start))


def test_an_owner_says_what_his_device_does_and_nonsense_is_named():
    loose = limits.of(SIGNED, OwnLimits(bits=16, clipping_norm=50.0, epochs=1, least_words=1))
    assert loose.most == replace(SIGNED, epochs=1)  # the signed plan's are the most there is
    for name, value in (("bits", 17), ("clipping_norm", 0.0), ("least_score_words", 401)):
        with pytest.raises(ConfigError, match=f"limits.{name}: expected "):
            OwnLimits(**{name: value})


def test_an_owner_limits_what_is_spent_and_says_so_in_numbers():
    own = limits.of(SIGNED, OwnLimits(epsilon=4.0, require_noise=True))
    over = why_refused(own, Asked(Kind.TRAINING, epsilon=5.125))
    assert str(over) == "epsilon: expected at most 4, found 5.125"
    terms = terms_for(SIGNED, "5a" * 32, 50)
    over = why_refused(limits.of(SIGNED, OwnLimits(bits=8, require_noise=True)), _asked(terms))
    assert str(over) == "require_noise: expected noise on every sum, found none"
    noise = Noise(Mechanism.GAUSSIAN, 2.0, 8.0, 1e-10, 100, 6)
    assert why_refused(own, _asked(replace(terms, noise=noise))) is None
    assert str(why_refused(own, Asked(Kind.TRAINING, epsilon=math.inf))).endswith("found inf")
    for name, value in (("epsilon", -1.0), ("epsilon", math.nan), ("delta", 0.0), ("delta", 0.6)):
        with pytest.raises(ConfigError, match=f"limits.{name}: expected "):
            OwnLimits(**{name: value})


def _asked(terms):
    return Asked(Kind.TRAINING, terms=replace(terms, clipping_norm=1.0))


@pytest.mark.parametrize(
    ("today", "cause"),
    [
        (Today(3, 10, 100), None),
        (Today(4, 10, 100), Cause.PARTICIPATED_ENOUGH),
        (Today(4, 10, 100, half_done=True), None),
        (Today(0, 9, 100), Cause.TOO_FEW_EXAMPLES),
        (Today(0, 10, 99), Cause.TOO_FEW_EXAMPLES),
        (Today(0, 10, 100, owes=True), Cause.OVER_LIMIT),
        (Today(0, 10, 100, owes=True, half_done=True), Cause.OVER_LIMIT),
    ],
)
def test_a_device_that_could_do_nothing_asks_for_nothing(today, cause):
    assert why_not_asked(OWN, today) is cause


# against a server that asks for what it likes


# by checkpoint: the round that is said to have made it
MADE_IN: defaultdict[str, int] = defaultdict(itertools.count().__next__)


class Greedy:
    """A server that answers every check-in with work of its making, and takes whatever it gets. It
    has a round key that the operator has certified, so what it does is no forgery.
    """

    def __init__(self, bundle, plan: Plan, kind: Kind = Kind.TRAINING, values=None, round: int = 1):
        self.plan, self.kind = plan, kind
        self.values = bundle.checkpoint.weights if values is None else values
        self.round, self.shapes = round, bundle.manifest.shapes
        self.sent, self.given, self.asked = [], [], []
        self.assignments = 0
        self.deadline_s, self.seed = 3600.0, 1  # of the rotation
        self.dimension = sum(array.size for array in bundle.checkpoint.weights.values())
        self.repeats = False  # whether it names all its work alike

    def __call__(self, method, path, body, headers):
        if path == "/v1/server":
            return self._ok({"server": "5e" * 16, "time": 0, "version": wire.VERSION})
        if path == "/v1/devices":
            return self._ok({"device": "d0" * 8})
        if path == "/v1/check-in":
            self.asked.append(from_json(CheckIn, body, "CheckIn"))
            return Reply(200, {}, to_json(self._work()))
        if "/blobs/" in path:
            return Reply(200, {}, self.blobs[path.rpartition("/")[2]])
        if path.endswith("/abandon"):
            self.given.append(from_json(Abandon, body, "Abandon").cause)
            return self._ok({"counted": False, "retry_in_s": 1.0})
        self.sent.append(body)
        return self._ok({"counted": True, "retry_in_s": 1.0})

    def _work(self) -> Assignment:
        self.assignments += not (self.repeats and self.assignments)
        plan = self.plan if isinstance(self.plan, bytes) else to_json(self.plan)
        half = weights.to_bytes(Checkpoint(self.values, self.round), np.float16)
        self.blobs = {weights.digest(data): data for data in (plan, half)}
        said = Plan() if isinstance(self.plan, bytes) else self.plan
        terms = replace(terms_for(said, self.shapes, self.dimension), rotation_seed=self.seed)
        agreed = f"{terms.name} {weights.digest(plan)}" if not self.repeats else ""
        work = Assignment(
            f"{self.assignments:032x}",
            10_000 + self.assignments,
            weights.digest(plan),
            weights.digest(half),
            self.shapes,
            self.deadline_s,
            kind=self.kind,
            server="5e" * 16,
            # every time another task
            task_id=weights.digest(f"{self.assignments} {agreed}".encode())[:32],
        )
        return chained(work, MADE_IN[work.checkpoint], terms=terms)

    @staticmethod
    def _ok(table: dict) -> Reply:
        return Reply(200, {}, json.dumps(table).encode())


@pytest.fixture
def phone(tmp_path, tiny_bundle, trusted):
    """Makes a device of a user who typed so many messages of five words and a secret one."""

    def make(messages: int = 400, **own) -> Home:
        (tmp_path / "able.tsv").write_text(ABLE)
        settings = DeviceConfig(
            tuple(trusted),
            str(tiny_bundle.path),
            conditions=str(tmp_path / "able.tsv"),
            limits=OwnLimits(**{"least_messages": 8, "least_words": 40, **own}),
        )
        typed = [("i will see my dog", float(i)) for i in range(messages - 1)]
        return Home.create(
            tmp_path / "phone", settings, [*typed, ("they do not know you", float(messages))]
        )

    return make


def take(home, server, at: float, train=finetune):
    return Turn(home, server, simulated(at), train, sleep=lambda s: None).whole()


def test_a_plan_of_one_row_and_sixteen_bits_with_a_server_s_own_weights_gets_nothing_in_ten_days(
    phone, tiny_bundle
):
    """The attack that read secret messages out of an update each, word for word."""
    rng = np.random.default_rng(0)
    values = {
        name: rng.normal(0, 100, array.shape).astype(np.float32)
        for name, array in tiny_bundle.checkpoint.weights.items()
    }
    greedy = {"max_rows": 1, "bits": 16, "clipping_norm": 1e9, "learning_rate": 1.0}
    fair = replace(tiny_bundle.plan, clipping_norm=1.0)
    home = phone()

    def never(*_):
        raise AssertionError("it was trained on")

    for day in range(10):
        # by turns all of it, and each part alone
        plan = (
            replace(fair, **greedy),
            replace(fair, max_rows=1),
            replace(fair, bits=16),
            replace(fair, clipping_norm=1e9),
            fair,
        )[day % 5]
        server = Greedy(tiny_bundle, plan, values=values if day % 5 in (0, 4) else None)
        outcomes = [take(home, server, day * DAY_S + hour * 3600.0, never) for hour in range(23)]
        assert server.sent == []
        # the refusal of the day before is all that is told, and there is no second try on a day
        assert server.given == ([Cause.OVER_LIMIT] if day else [])
        assert len(server.asked) == 1
        assert Counter(outcome.status for outcome in outcomes) == {
            Status.ABANDONED: 1,
            Status.NOT_ASKED: 22,
        }
    told = [line.detail.partition(":")[0] for line in home.contributions()]
    assert told == ["bits", "least_messages", "bits", "clipping_norm", "weights"] * 2


def test_evaluations_with_weights_that_are_a_bias_alone_learn_nothing_of_a_message(
    phone, tiny_bundle
):
    """The attack that read a held-back message out of 35 scores."""
    home = phone(messages=400)  # 40 are held back, 199 words of them known by heart
    zero = {name: np.zeros_like(array) for name, array in tiny_bundle.checkpoint.weights.items()}
    plan = replace(tiny_bundle.plan, max_rows=1)
    answers = []
    for turn in range(35):
        bias = np.zeros_like(zero["output_bias"])
        bias[turn % len(bias)] = 10.0
        server = Greedy(
            tiny_bundle, plan, Kind.EVALUATION, {**zero, "output_bias": bias}, round=1000
        )
        take(home, server, 60.0 * turn)
        answers += [from_json(Scores, body, "Scores") for body in server.sent]
    # a bias far from the signed weights is refused at once, and ends the day
    assert answers == []
    near = tiny_bundle.checkpoint.weights
    answers = []
    for turn in range(35):
        bias = near["output_bias"].copy()
        bias[turn % len(bias)] += 0.5
        server = Greedy(tiny_bundle, plan, Kind.EVALUATION, {**near, "output_bias": bias})
        take(home, server, DAY_S + 60.0 * turn)
        answers += [from_json(Scores, body, "Scores") for body in server.sent]
    # the server's one row is not what is scored: whole two hundred words twice a day
    assert [scores.targets for scores in answers] == [200, 200]
    with home.typing_log() as log:
        used = dict(log._rows("SELECT id, uses FROM records", ()))
    assert {number for number, times in used.items() if times == 2} == set(range(10, 401, 10))
    assert sum(used.values()) == 80


def test_the_same_weights_are_never_scored_twice_whatever_was_typed_meanwhile(phone, tiny_bundle):
    """Between two sums over the same weights lies what was typed between them."""
    home, values = phone(messages=400), tiny_bundle.checkpoint.weights
    for day, (round, status) in enumerate(((0, Status.COUNTED), (1, Status.ABANDONED))):
        server = Greedy(tiny_bundle, fair(tiny_bundle), Kind.EVALUATION, values, round)
        assert take(home, server, day * DAY_S).status is status
        with home.typing_log() as log:
            log.append_many([("they do not know", 1000.0)] * 10)
    assert [line.detail for line in home.contributions()] == [
        "",
        "scores: expected one of a checkpoint, found one made before",
    ]


def test_half_done_work_is_not_gone_on_with_from_other_weights_of_the_same_name(
    phone, tiny_bundle, tmp_path
):
    """As a server has it that was restored from a backup: an update would hold their difference."""
    home, seen = phone(), []
    server = Greedy(tiny_bundle, fair(tiny_bundle))
    (tmp_path / "able.tsv").write_text(
        ABLE + "420\tbattery_charged_off\n1000\tbattery_charged_on\n"
    )
    home = Home.open(home.folder)
    assert take(home, server, 0.0).status is Status.PAUSED
    bias = tiny_bundle.checkpoint.weights["output_bias"]
    other = {**tiny_bundle.checkpoint.weights, "output_bias": bias + np.float32(0.1)}
    again = Greedy(tiny_bundle, fair(tiny_bundle), values=other)

    def train(graph, action, may_continue):
        seen.append(action.start)
        return finetune(graph, action, may_continue)

    assert take(home, again, 2000.0, train).status is Status.COUNTED
    assert seen == [None]


def test_a_device_that_died_sends_the_same_bytes_though_more_was_typed_meanwhile(
    phone, tiny_bundle
):
    class Died(BaseException):
        pass

    home, bodies = phone(), []
    server = Greedy(tiny_bundle, fair(tiny_bundle))
    server.repeats = True

    def dying(method, path, body, headers):
        if method == "PUT":
            bodies.append(body)
            raise Died
        return server(method, path, body, headers)

    with pytest.raises(Died):
        take(home, dying, 0.0)
    with home.typing_log() as log:
        log.append_many([("what they said", 1000.0)] * 12)
    assert take(home, server, 60.0).status is Status.COUNTED
    assert server.sent == bodies


def test_one_name_for_all_work_gets_one_update_past_the_separation(phone, tiny_bundle):
    """What was sent for a name is sent again if nobody answered, and nothing else is."""
    home, server = phone(), Greedy(tiny_bundle, fair(tiny_bundle))
    server.repeats = True
    assert take(home, server, 0.0).status is Status.COUNTED
    with home.typing_log() as log:
        log.append_many([("what they said", 1000.0)] * 12)
    bias = tiny_bundle.checkpoint.weights["output_bias"]
    server.values = {**server.values, "output_bias": bias + np.float32(0.01)}
    outcome = take(home, server, 3600.0)
    assert (outcome.status, outcome.cause) == (Status.ABANDONED, Cause.REPORTED_RECENTLY)
    assert len(server.sent) == 1


def test_an_update_the_server_could_not_look_at_is_one_of_its_day_however_often_it_is_sent(
    phone, tiny_bundle
):
    """A server that is full for an hour costs a device no share of its day, and no use."""
    home, server = phone(), Greedy(tiny_bundle, fair(tiny_bundle))
    server.repeats = True

    def full(method, path, body, headers):
        if method == "PUT":
            return Reply(503, {}, json.dumps({"cause": "unavailable", "detail": ""}).encode())
        return server(method, path, body, headers)

    for hour in range(5):
        assert take(home, full, 3600.0 * hour).status is Status.SENDING
    assert take(home, server, 5 * 3600.0).status is Status.COUNTED
    with home.typing_log() as log:
        assert {uses for (uses,) in log._rows("SELECT uses FROM records", ())} == {0, 1}
    server.repeats = False
    counted = [take(home, server, 3600.0 * hour).status for hour in range(6, 10)]
    assert counted == [Status.COUNTED] * 3 + [Status.NOT_ASKED]


def test_an_update_nobody_answered_is_not_made_anew_by_another_rotation(phone, tiny_bundle):
    """Each rotation rounds in another way: the mean of many is finer than its bits."""

    def silent(method, path, body, headers):
        if method == "PUT":
            server.sent.append(body)
            raise Interrupted(path, "the reply was lost", "try again")
        return server(method, path, body, headers)

    home, server = phone(), Greedy(tiny_bundle, fair(tiny_bundle))
    server.repeats = True
    for server.seed in range(3):
        with contextlib.suppress(ServerError):
            take(home, silent, 3600.0 * server.seed)
    assert len(set(server.sent)) == 1


@pytest.mark.parametrize(
    "plan",
    [
        b'{"learning_rate": NaN}',
        b'{"clipping_norm": Infinity}',
        b'{"epochs": 1000000000}',
        b'{"max_rows": 10000000000000000000}',
        b'{"learning_rate": 1' + b"0" * 400 + b"}",
    ],
)
def test_a_plan_of_numbers_that_are_none_never_reaches_a_trainer(phone, tiny_bundle, plan):
    def never(*_):
        raise AssertionError("it was trained on")

    home, server = phone(), Greedy(tiny_bundle, plan)
    with pytest.raises(ServerError, match="plan: cannot be read"):
        take(home, server, 0.0, never)
    assert server.sent == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_and_not_kept(phone, tiny_bundle, value):
    values = dict(tiny_bundle.checkpoint.weights)
    values["cell_bias"] = np.full_like(values["cell_bias"], value)
    home, server = phone(), Greedy(tiny_bundle, fair(tiny_bundle), values=values)
    outcome = take(home, server, 0.0)
    assert (outcome.status, outcome.cause) == (Status.ABANDONED, Cause.OVER_LIMIT)
    assert home.contributions()[0].detail.startswith("weights: expected those of a checkpoint")
    assert home.checkpoint() is None


def fair(bundle) -> Plan:
    return replace(bundle.plan, clipping_norm=1.0)


def test_four_updates_leave_on_a_day_whoever_asks_and_then_nobody_is_asked(phone, tiny_bundle):
    home, server = phone(), Greedy(tiny_bundle, fair(tiny_bundle))
    counted = [take(home, server, 3000.0 * hour).status for hour in range(8)]
    assert counted == [Status.COUNTED] * 4 + [Status.NOT_ASKED] * 4
    assert take(home, server, DAY_S).status is Status.COUNTED


def test_work_ends_at_the_deadline_and_no_later_than_a_day(phone, tiny_bundle):
    server = Greedy(tiny_bundle, fair(tiny_bundle))
    server.deadline_s = 120.0  # a look a minute
    home = phone()
    outcome = take(home, server, 0.0)
    assert (outcome.status, outcome.cause) == (Status.ABANDONED, Cause.TIMED_OUT)
    assert (server.sent, server.given) == ([], [Cause.TIMED_OUT])
    server.kind = Kind.EVALUATION
    assert take(home, server, 1000.0).cause is Cause.TIMED_OUT
    server.kind, server.deadline_s = Kind.TRAINING, 1e12
    ends = []

    def train(graph, action, may_continue):
        while may_continue():
            ends.append(1)
        return finetune(graph, action, may_continue)

    assert take(home, server, 2000.0, train).cause is Cause.TIMED_OUT
    assert len(ends) == DAY_S / local.BATCH_S - 1


def test_what_was_withheld_is_told_before_all_else_and_any_answer_to_it_is_taken(
    phone, tiny_bundle
):
    home = phone(least_words=10_000)
    over = Greedy(tiny_bundle, fair(tiny_bundle))
    home = Home.open(home.folder)
    assert take(home, over, 0.0).cause is Cause.TOO_FEW_EXAMPLES  # it does not even ask
    (home.folder / "device.toml").write_text(
        config.to_toml(replace(home.config, limits=OwnLimits(least_messages=8, least_words=40)))
    )
    home = Home.open(home.folder)
    assert take(home, Greedy(tiny_bundle, tiny_bundle.plan), 0.0).cause is Cause.OVER_LIMIT
    order = []

    def cross(method, path, body, headers):
        order.append(path.rpartition("/")[2])
        if path.endswith("/abandon"):
            return Reply(500, {}, b"\xff" * 9)
        return over(method, path, body, headers)

    assert take(home, cross, DAY_S).status is Status.COUNTED
    assert order[0] == "abandon" and home.withheld() is None


def test_what_nobody_heard_is_told_again(phone, tiny_bundle):
    home = phone()
    assert take(home, Greedy(tiny_bundle, tiny_bundle.plan), 0.0).cause is Cause.OVER_LIMIT

    def away(method, path, body, headers):
        raise Interrupted(path, "the reply was lost", "try again")

    with pytest.raises(ServerError):
        take(home, away, DAY_S)
    server = Greedy(tiny_bundle, fair(tiny_bundle))
    assert take(home, server, DAY_S + 60.0).status is Status.COUNTED
    assert server.given == [Cause.OVER_LIMIT]


def test_how_many_messages_wait_is_told_in_steps(phone, tiny_bundle):
    server = Greedy(tiny_bundle, fair(tiny_bundle))
    take(phone(messages=99), server, 0.0)
    assert [message.examples for message in server.asked] == [50]


def test_a_daemon_says_why_it_asks_for_nothing_until_the_day_is_over(phone, tiny_bundle):
    def never(method, path, body, headers):
        assert not path.endswith("check-in"), "the server was asked"
        return Greedy(tiny_bundle, fair(tiny_bundle))(method, path, body, headers)

    home = phone(messages=5)
    resident = Daemon(home, never, lambda: DAY_S - 100.0, rng=np.random.default_rng(0))
    assert resident.once() == NotAsked("too_few_examples", 100.0)
    assert 100.0 <= resident.schedule.wait_s <= 100.0 + 3600.0
