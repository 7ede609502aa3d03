"""The turn by itself: what it does next, driven by hand. With a real device it is in
test_device_runtime_drive.py.
"""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from device_runtime import config, limits, scores, turn, weights
from device_runtime.causes import Cause
from device_runtime.errors import BundleError, ServerError, Unanswered
from device_runtime.limits import OwnLimits
from device_runtime.noise import Mechanism, Noise
from device_runtime.spent import Part
from device_runtime.terms import Aggregation
from device_runtime.turn import (
    Ask,
    AskSigned,
    CheckConditions,
    Distrusted,
    Drop,
    Encode,
    Enrol,
    Evaluate,
    Fetch,
    FineTuned,
    Gather,
    Gathered,
    GatherHeld,
    GiveBack,
    HandIn,
    Held,
    HeldBack,
    History,
    Keep,
    KeepReport,
    Label,
    Note,
    Outcome,
    Outgoing,
    Participant,
    Progress,
    Protect,
    Recall,
    RecallReport,
    Report,
    Signed,
    Status,
    Train,
    Upload,
    Used,
    Verify,
    Withhold,
    Work,
)
from device_runtime.weights import Checkpoint
from device_runtime.wire import Ack, Assignment, CheckIn, Conditions, Kind, Plan, Reject, Scores
from tests import toy_server

PLAN = Plan(batch_size=2, length=3, clipping_norm=1.0)
VALUES = {"a": np.zeros(3, np.float32)}
HELD = weights.to_bytes(Checkpoint(VALUES), np.float16)
WORK = Work("w", 7, 60.0, (4, 5), "ab" * 32)
# an owner who lets two messages of six words be an update
LIMITS = limits.of(PLAN, OwnLimits(least_messages=2, least_words=6, min_separation=1))
ROWS = np.ones((2, 4), np.int32)
DEVICE = Participant(
    CheckIn(Conditions(True, True, True), 20, "cd" * 32),
    enrolled=True,
    shapes=weights.shapes_hash(VALUES),
    plan=PLAN,
    randomness=lambda assignment: np.random.default_rng(assignment.round),
    limits=LIMITS,
    signed=weights.digest(HELD),
    day_ends_in_s=5000.0,
)
ASSIGNMENT = Assignment(
    "w",
    7,
    plan="the plan",
    checkpoint=weights.digest(HELD),
    shapes=DEVICE.shapes,
    deadline_s=60.0,
)
TUNED = FineTuned({"a": np.ones(3, np.float32)}, 1, 2.0, 1.0, progress=Progress(VALUES, 1, 2.0))
# what is sent back for each kind of action, None for the others
TERMS = toy_server.terms_for(PLAN, DEVICE.shapes, 3)
HELPED = replace(TERMS, aggregation=Aggregation.HELPER, helper="0e" * 32, fewest=100)
SCORING = replace(ASSIGNMENT, kind=Kind.EVALUATION)
USUAL = {
    Verify: TERMS,
    Recall: History(),
    AskSigned: Signed(VALUES, 0, 0.0),
    Fetch: config.to_json(PLAN),
    Held: HELD,
    Gather: Gathered(WORK, ROWS, 6),
    GatherHeld: HeldBack((10, 20), ((13, 14), (15,)), 200),
    Train: TUNED,
    Encode: np.zeros(4096, np.uint8),
    Protect: b"protected",
    Evaluate: Scores(10, 2, 3, 10, 40.0),
    CheckConditions: None,
    Upload: Ack(True, 5.0),
    Report: Ack(True, 5.0),
    GiveBack: Ack(False, 9.0),
    Ask: ASSIGNMENT,
}


def play(actions, **told):
    """Drive a turn: the actions it took, and how it ended. `told` goes over what is usual; an
    exception is thrown in.
    """
    answers = USUAL | {getattr(turn, name): answer for name, answer in told.items()}
    taken = []
    try:
        action = next(actions)
        while True:
            taken.append(action)
            answer = answers.get(type(action))
            if isinstance(answer, list):
                answer = answer.pop(0)
            action = (
                actions.throw(answer) if isinstance(answer, Exception) else actions.send(answer)
            )
    except StopIteration as end:
        return taken, end.value
    except (ServerError, BundleError) as error:
        return taken, error


def kinds(actions):
    return [type(action) for action in actions]


def test_sending_is_noted_before_the_update_leaves_and_what_became_of_it_after():
    actions, outcome = play(turn.work(DEVICE, ASSIGNMENT))
    assert kinds(actions) == [
        *(Verify, Recall, RecallReport, CheckConditions, Fetch, Held, Gather, Train),
        *(CheckConditions, Encode, Protect, KeepReport, Used, Note, Upload, Note, Drop),
    ]
    before, after = (action for action in actions if isinstance(action, Note))
    assert (before.status, after.status) == (Status.SENDING, Status.COUNTED)
    assert before.seen_by == after.seen_by == "the server"  # by its terms, which are plain
    assert outcome == Outcome(Status.COUNTED, None, 7, 5.0, 2, 1, 2.0, 1.0)


@pytest.mark.parametrize("kind", list(Kind))
def test_work_of_newer_text_rules_is_given_back_before_anything_of_it_is_fetched(kind):
    actions, outcome = play(turn.work(DEVICE, replace(ASSIGNMENT, kind=kind, rules=3)))
    assert kinds(actions) == [Note, GiveBack]
    note = actions[0]
    assert note.cause is outcome.cause is Cause.OUTDATED_RULES
    assert note.detail == "of text rules 3, and this device follows 2: update it"


NOISE = Noise(Mechanism.GAUSSIAN, 2.0, 8.0, 1e-10, 100, participations=2)
NOISED = replace(TERMS, noise=NOISE)


def test_the_ledger_notes_the_noise_of_the_sum_that_an_update_is_for():
    actions, _ = play(turn.work(DEVICE, ASSIGNMENT), Verify=NOISED)
    (kept,) = (action for action in actions if isinstance(action, KeepReport))
    noted = [action.noise for action in actions if isinstance(action, Note)]
    assert noted == [kept.report.label.noise] * 2
    assert config.from_json(Noise, noted[0].encode(), "ledger") == NOISE
    # scores have none
    helped = replace(HELPED, noise=NOISE)
    actions, _ = play(turn.work(DEVICE, SCORING), Verify=helped)
    assert [action.noise for action in actions if isinstance(action, Note)] == ["", ""]


@pytest.mark.parametrize("rounds", [(), (1,), (1, 3), (1, 3, 5)])
def test_a_device_is_in_no_more_sums_of_a_task_than_its_noise_is_meant_for(rounds):
    named = ASSIGNMENT.server, ASSIGNMENT.task, ASSIGNMENT.task_id
    others = Part(ASSIGNMENT.server, "another", "8b" * 16, (1, 2, 3, 4), NOISE)
    past = History(parts=(Part(*named, rounds, NOISE), others))
    actions, outcome = play(turn.work(DEVICE, ASSIGNMENT), Verify=NOISED, Recall=past)
    if len(rounds) < 2:
        assert outcome.status is Status.COUNTED
    else:
        assert kinds(actions) == [Verify, Recall, RecallReport, GiveBack, Note]
        assert outcome.cause is Cause.PARTICIPATED_ENOUGH
    # without noise, and for scores, there is no such number
    assert play(turn.work(DEVICE, ASSIGNMENT), Recall=past)[1].status is Status.COUNTED
    scored = play(turn.work(DEVICE, SCORING), Verify=NOISED, Recall=past)[1]
    assert scored.status is Status.COUNTED


def owned(**own):
    """The device of an owner who has set these limits too."""
    usual = {"least_messages": 2, "least_words": 6, "min_separation": 1}
    return replace(DEVICE, limits=limits.of(PLAN, OwnLimits(**usual, **own)))


def test_an_owner_bounds_what_all_updates_of_his_device_spend_together():
    """Each of multiplier 2 is rho 1/8; two of them are epsilon 4.49 at delta 1e-10, three 5.60."""
    other = Part("5e" * 16, "another", "8b" * 16, (7,), NOISE)
    open_ = Part("5e" * 16, "open", "9c" * 16, (7,), None)
    for past, epsilon, refused in (
        ((), 3.2, False),
        ((), 2.9, True),
        ((other,), 4.5, False),
        ((other,), 4.4, True),
        ((other, open_), 4.5, False),  # what has no epsilon is not in it
        ((other,), None, False),
    ):
        actions, outcome = play(
            turn.work(owned(epsilon=epsilon), ASSIGNMENT),
            Verify=NOISED,
            Recall=History(parts=past),
        )
        assert (Withhold in kinds(actions)) is refused
        assert (outcome.cause is Cause.OVER_LIMIT) is refused


def test_an_owner_who_asks_for_noise_or_a_budget_makes_no_update_without_noise():
    for own in ({"require_noise": True}, {"epsilon": 8.0}):
        actions, outcome = play(turn.work(owned(**own), ASSIGNMENT))
        assert outcome.cause is Cause.OVER_LIMIT and Fetch not in kinds(actions)
        assert play(turn.work(owned(**own), ASSIGNMENT), Verify=NOISED)[1].cause is None
        # scores go on: no update is asked for
        assert play(turn.work(owned(**own), SCORING))[1].status is Status.COUNTED


def test_an_update_nobody_answered_is_kept_and_the_ledger_goes_on_saying_that_it_may_have_left():
    lost = Unanswered("PUT update", "no whole reply came", "try again")
    actions, error = play(turn.work(DEVICE, ASSIGNMENT), Upload=lost)
    assert error is lost
    assert kinds(actions)[-4:] == [KeepReport, Used, Note, Upload]
    assert [action.status for action in actions if isinstance(action, Note)] == [Status.SENDING]


def test_training_that_failed_is_noted_before_it_is_told():
    """A server that breaks off when it has heard so is not told a fifth time on that day."""
    failed = replace(TUNED, stopped=Cause.TRAINING_FAILED)
    lost = Unanswered("POST abandon", "no whole reply came", "try again")
    actions, error = play(turn.work(DEVICE, ASSIGNMENT), Train=failed, GiveBack=lost)
    assert error is lost
    assert kinds(actions)[-3:] == [Train, Note, GiveBack]
    assert actions[-2].cause is Cause.TRAINING_FAILED


LABEL = Label("w", 7, "", "", TERMS.name, Kind.TRAINING, (4, 5), 2, seen_by="the server")
KEPT = Outgoing(LABEL, b"as it was")


def test_a_report_that_is_kept_is_sent_as_it_is_and_nothing_is_fetched_or_trained():
    for again in (False, True):  # the device died before it was noted, or after
        actions, outcome = play(
            turn.work(DEVICE, ASSIGNMENT), Recall=History(again=again), RecallReport=KEPT
        )
        # what is sent again is no second use of its messages
        used = [] if again else [Used]
        assert kinds(actions) == [
            *(Verify, Recall, RecallReport, CheckConditions, *used, Note, Upload, Note, Drop)
        ]
        (upload,) = (action for action in actions if isinstance(action, Upload))
        assert upload.update == b"as it was"
        assert (outcome.status, outcome.examples) == (Status.COUNTED, 2)


def test_a_report_that_may_have_left_and_is_not_there_any_more_is_not_made_anew():
    actions, outcome = play(turn.work(DEVICE, ASSIGNMENT), Recall=History(again=True))
    assert kinds(actions) == [Verify, Recall, RecallReport, GiveBack, Note]
    assert (outcome.status, outcome.cause) == (Status.ABANDONED, Cause.REPORTED_RECENTLY)


@pytest.mark.parametrize(
    ("keeps", "forbidden", "last", "status", "cause"),
    [
        (True, Cause.IN_USE, [CheckConditions, Note], Status.PAUSED, Cause.IN_USE),
        (
            *(True, Cause.TIMED_OUT, [CheckConditions, Drop, GiveBack, Note]),
            *(Status.ABANDONED, Cause.TIMED_OUT),
        ),
        (
            *(False, Cause.IN_USE, [CheckConditions, Drop, GiveBack, Note]),
            *(Status.ABANDONED, Cause.CONDITION_LOST),
        ),
    ],
)
def test_a_report_that_is_kept_waits_for_the_conditions_or_is_given_back(
    keeps, forbidden, last, status, cause
):
    actions, outcome = play(
        turn.work(replace(DEVICE, keeps_work=keeps), ASSIGNMENT),
        RecallReport=KEPT,
        CheckConditions=forbidden,
    )
    assert kinds(actions) == [Verify, Recall, RecallReport, *last]
    assert (outcome.status, outcome.cause) == (status, cause)


def test_a_report_is_protected_by_its_terms_and_kept_before_it_is_noted():
    actions, _ = play(turn.work(DEVICE, ASSIGNMENT))
    protect, keep, upload = (
        next(action for action in actions if isinstance(action, kind))
        for kind in (Protect, KeepReport, Upload)
    )
    assert (protect.terms, protect.largest, len(protect.numbers)) == (TERMS, 255, 4096)
    assert keep.report == Outgoing(LABEL, b"protected")
    assert upload.update == b"protected"


@pytest.mark.parametrize(
    ("terms", "reason", "fetched"),
    [
        ({"bits": 9}, None, 0),
        ({"clipping_norm": 1.5}, None, 0),
        ({"dimension": 4}, "terms.dimension: expected 3, found 4", 1),
    ],
)
def test_terms_that_do_not_agree_with_the_work_are_over_a_limit_or_given_back(
    terms, reason, fetched
):
    actions, outcome = play(turn.work(DEVICE, ASSIGNMENT), Verify=replace(TERMS, **terms))
    assert kinds(actions).count(Fetch) == fetched
    assert Train not in kinds(actions)
    note = next(action for action in actions if isinstance(action, Note))
    if reason is None:  # more than the device's own limits: its server hears nothing today
        assert note.cause is outcome.cause is Cause.OVER_LIMIT
        assert note.detail.startswith(f"{next(iter(terms))}: expected at most ")
    else:
        assert (note.cause, note.detail) == (Cause.UNCERTIFIED, reason)


def test_terms_beyond_the_plan_they_were_signed_with_are_given_back():
    narrow = config.to_json(replace(PLAN, bits=4))
    actions, outcome = play(turn.work(DEVICE, ASSIGNMENT), Fetch=narrow)
    assert kinds(actions)[-3:] == [Fetch, Note, GiveBack]
    assert actions[-2].detail == "terms.bits: expected at most the plan's 4, found 8"
    assert outcome.cause is Cause.UNCERTIFIED


def test_the_larger_separation_of_server_terms_and_owner_holds():
    past = History(last=5)
    apart = replace(TERMS, min_separation=3)
    _, outcome = play(turn.work(DEVICE, ASSIGNMENT), Recall=past, Verify=apart)
    assert outcome.cause is Cause.REPORTED_RECENTLY
    _, outcome = play(turn.work(DEVICE, ASSIGNMENT), Recall=past)
    assert outcome.status is Status.COUNTED


@pytest.mark.parametrize("cause", [Cause.UNAVAILABLE, Cause.TOO_MANY_REQUESTS])
def test_an_update_the_server_could_not_look_at_is_kept_and_sent_again_when_it_says(cause):
    actions, outcome = play(turn.work(DEVICE, ASSIGNMENT), Upload=Reject(cause, 30.0))
    assert KeepReport in kinds(actions) and Drop not in kinds(actions)
    assert [action.status for action in actions if isinstance(action, Note)] == [Status.SENDING]
    assert (outcome.status, outcome.cause, outcome.retry_in_s) == (Status.SENDING, cause, 30.0)


def test_an_update_that_was_not_taken_names_the_server_s_cause():
    _, outcome = play(turn.work(DEVICE, ASSIGNMENT), Upload=Reject(Cause.LATE, 30.0))
    assert (outcome.status, outcome.cause, outcome.retry_in_s) == (
        Status.NOT_COUNTED,
        Cause.LATE,
        30.0,
    )


def test_a_condition_lost_after_training_keeps_the_work_or_gives_it_back():
    actions, outcome = play(turn.work(DEVICE, ASSIGNMENT), CheckConditions=[None, Cause.IN_USE])
    assert (outcome.status, outcome.cause) == (Status.PAUSED, Cause.IN_USE)
    assert Keep in kinds(actions) and not {Upload, GiveBack, Used} & set(kinds(actions))
    actions, outcome = play(
        turn.work(replace(DEVICE, keeps_work=False), ASSIGNMENT),
        CheckConditions=[None, Cause.IN_USE],
    )
    assert (outcome.status, outcome.cause) == (Status.ABANDONED, Cause.CONDITION_LOST)
    assert GiveBack in kinds(actions) and not {Upload, Keep, Used} & set(kinds(actions))


def test_a_round_too_near_the_last_is_given_back_before_anything_is_fetched():
    near = replace(ASSIGNMENT, min_separation=3)
    actions, outcome = play(turn.work(DEVICE, near), Recall=History(last=5))
    assert kinds(actions) == [Verify, Recall, GiveBack, Note]
    assert outcome.cause is Cause.REPORTED_RECENTLY
    _, outcome = play(turn.work(DEVICE, near), Recall=History(last=4))
    assert outcome.status is Status.COUNTED


@pytest.mark.parametrize("cause", [Cause.UNCERTIFIED, Cause.EXPOSED])
def test_what_is_not_trusted_is_noted_and_given_back_before_anything_is_fetched(cause):
    for kind in (Kind.TRAINING, Kind.EVALUATION):
        actions, outcome = play(
            turn.work(DEVICE, replace(ASSIGNMENT, kind=kind)),
            Verify=Distrusted(cause, "link: expected another"),
        )
        assert kinds(actions) == [Verify, Note, GiveBack]
        assert (outcome.status, outcome.cause) == (Status.ABANDONED, cause)
        assert outcome.retry_in_s == 9.0
        assert actions[1].detail == "link: expected another"
        assert actions[2].cause is cause


UNTRUSTED = Distrusted(Cause.UNCERTIFIED, "no link")


def test_that_a_checkpoint_was_not_trusted_stands_in_the_ledger_though_nobody_hears_it():
    lost = Unanswered("POST abandon", "no whole reply came", "try again")
    actions, error = play(turn.work(DEVICE, ASSIGNMENT), Verify=UNTRUSTED, GiveBack=lost)
    assert error is lost
    assert kinds(actions) == [Verify, Note, GiveBack]


@pytest.mark.parametrize(
    ("plan", "problem"),
    [
        (b'{"bits":0}', "plan.bits: expected 1 to 16, found 0"),
        (b'{"epochs":0}', "plan.epochs: expected 1 to 1,000, found 0"),
        (b"not a plan", "not JSON"),
    ],
)
def test_a_plan_no_device_can_work_by_is_given_back_and_named(plan, problem):
    actions, error = play(turn.work(DEVICE, ASSIGNMENT), Fetch=plan)
    assert kinds(actions)[-2:] == [GiveBack, Note]
    assert problem in str(error)


def test_work_that_does_not_fit_the_graphs_is_given_back_and_named():
    longer = config.to_json(replace(PLAN, length=4))
    actions, error = play(turn.work(DEVICE, ASSIGNMENT), Fetch=longer)
    assert kinds(actions)[-2:] == [GiveBack, Note]
    assert "does not fit its graphs" in str(error)


def test_an_evaluation_sends_scores_and_never_an_update():
    actions, outcome = play(turn.work(DEVICE, SCORING))
    assert kinds(actions) == [
        *(Verify, Recall, RecallReport, CheckConditions, Fetch, Held, GatherHeld, Evaluate),
        *(CheckConditions, Used, Note, Report, Note),
    ]
    assert (outcome.status, outcome.examples) == (Status.COUNTED, 10)


def test_scores_of_a_masked_task_go_the_way_of_its_updates_as_the_vector_that_adds_up():
    actions, outcome = play(turn.work(DEVICE, SCORING), Verify=HELPED)
    assert kinds(actions) == [
        *(Verify, Recall, RecallReport, CheckConditions, Fetch, Held, GatherHeld, Evaluate),
        *(CheckConditions, Protect, KeepReport, Used, Note, Upload, Note, Drop),
    ]
    (protect,) = (action for action in actions if isinstance(action, Protect))
    assert protect.largest == scores.MOST_LOSS
    # ten words, two of them right: a fifth, which is the bin with the number 4
    assert protect.numbers.tolist() == [10, 2, 3, 10, 40 * 2**30, 0, 0, 0, 0, 1, *[0] * 15]
    (keep,) = (action for action in actions if isinstance(action, KeepReport))
    assert keep.report.label.kind is Kind.EVALUATION
    assert keep.report.label.scored == weights.values_hash(VALUES)
    sending = next(action for action in actions if isinstance(action, Note))
    assert sending.scored == weights.values_hash(VALUES)
    assert (outcome.status, outcome.examples) == (Status.COUNTED, 10)


@pytest.mark.parametrize("terms", [{"is_beside": True}, {"fewest": 99}, {}])
def test_a_score_of_fewer_words_is_made_only_where_nobody_can_see_it_outside_a_large_sum(terms):
    few = HeldBack((10, 20), ((13, 14), (15,)), 50)
    hidden = replace(HELPED, **terms)
    actions, outcome = play(turn.work(DEVICE, SCORING), Verify=hidden, GatherHeld=few)
    assert (Upload in kinds(actions)) == (not terms)
    if terms:
        assert outcome.cause is Cause.OVER_LIMIT
        assert actions[-1].detail == "least_score_words: expected at least 200, found 50"
    fewer = replace(few, words=49)
    actions, _ = play(turn.work(DEVICE, SCORING), Verify=HELPED, GatherHeld=fewer)
    assert actions[-1].detail == "least_private_score_words: expected at least 50, found 49"


def test_a_device_enrols_before_its_first_check_in_and_again_where_nobody_knows_it():
    actions, answer = play(turn.check_in(replace(DEVICE, enrolled=False)))
    assert (kinds(actions), answer) == ([Enrol, Ask], ASSIGNMENT)
    forgotten = [Reject(Cause.UNKNOWN_DEVICE, 0.0), ASSIGNMENT]
    actions, answer = play(turn.check_in(DEVICE), Ask=forgotten)
    assert (kinds(actions), answer) == ([Ask, Enrol, Ask], ASSIGNMENT)


def test_a_refusal_that_says_the_round_stands_no_more_drops_half_done_work_and_others_do_not():
    actions, outcome = play(turn.check_in(DEVICE), Ask=Reject(Cause.NO_ROUND, 60.0))
    assert (kinds(actions), outcome.status) == ([Ask, Drop], Status.REFUSED)
    actions, outcome = play(turn.check_in(DEVICE), Ask=Reject(Cause.IN_USE, 60.0))
    assert (kinds(actions), outcome.retry_in_s) == ([Ask], 60.0)


def test_a_turn_is_taken_without_a_socket_an_interpreter_or_a_database():
    script = (
        "import device_runtime.turn, sys\n"
        "print([name for name in ('socket', 'httpx', 'sqlite3', 'tflite_runtime', "
        "'ai_edge_litert') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("numbers", "problem"),
    [
        ({"learning_rate": float("nan")}, "plan.learning_rate: expected 1e-30 to 1e+38, found nan"),
        ({"learning_rate": float("inf")}, "plan.learning_rate: expected 1e-30 to 1e+38, found inf"),
        ({"clipping_norm": 0.0}, "plan.clipping_norm: expected 1e-09 to 1e+12, found 0"),
        ({"bits": 17}, "plan.bits: expected 1 to 16, found 17"),
        ({"max_rows": 0}, "plan.max_rows: expected 1 to 10,000,000, found 0"),
    ],
)
def test_a_plan_holds_its_own_bounds(numbers, problem):
    from device_runtime.errors import ConfigError

    with pytest.raises(ConfigError, match="correct it") as refused:
        Plan(**numbers)
    assert problem in str(refused.value)


# --- limits
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "limit"),
    [
        ({"Fetch": config.to_json(replace(PLAN, bits=9))}, "bits"),
        ({"Gather": Gathered(WORK, ROWS, 5)}, "least_words"),
        ({"Gather": Gathered(replace(WORK, records=(4,)), ROWS, 6)}, "least_messages"),
        ({"Gather": Gathered(replace(WORK, records=()), ROWS[:0], 0)}, "least_messages"),
        ({"Recall": History(today=4)}, "updates_a_day"),
    ],
)
def test_work_over_a_limit_is_withheld_and_the_server_hears_nothing(told, limit):
    actions, outcome = play(turn.work(DEVICE, ASSIGNMENT), **told)
    assert kinds(actions)[-2:] == [Withhold, Note]
    assert not {GiveBack, Train, Upload, Used} & set(kinds(actions))
    assert (outcome.status, outcome.cause) == (Status.ABANDONED, Cause.OVER_LIMIT)
    assert outcome.retry_in_s == 5000.0  # until the day is over
    assert actions[-1].detail.startswith(f"{limit}: expected at ")


@pytest.mark.parametrize(
    ("told", "limit"),
    [
        ({"GatherHeld": HeldBack((), (), 199)}, "least_score_words"),
        ({"GatherHeld": HeldBack((), (), 0)}, "least_score_words"),
        ({"Recall": History(today=2)}, "scores_a_day"),
        ({"Recall": History(scored=frozenset({weights.values_hash(VALUES)}))}, "scores"),
    ],
)
def test_a_score_over_a_limit_is_withheld_by_the_same_cause(told, limit):
    actions, outcome = play(turn.work(DEVICE, replace(ASSIGNMENT, kind=Kind.EVALUATION)), **told)
    assert kinds(actions)[-2:] == [Withhold, Note]
    assert not {GiveBack, Evaluate, Report} & set(kinds(actions))
    assert outcome.cause is Cause.OVER_LIMIT
    assert actions[-1].detail.startswith(f"{limit}: expected ")


def test_half_done_work_of_a_day_with_no_update_left_is_gone_on_with():
    begun = Gathered(WORK, ROWS, 6, Progress(VALUES, 1, 2.0))
    _, outcome = play(turn.work(DEVICE, ASSIGNMENT), Recall=History(today=4), Gather=begun)
    assert outcome.status is Status.COUNTED


def test_weights_of_another_are_measured_from_the_bundle_s_and_withheld_when_too_far():
    far = {"a": np.full(3, 20.0, np.float32)}
    data = weights.to_bytes(Checkpoint(far, 1), np.float16)
    other = replace(ASSIGNMENT, checkpoint=weights.digest(data))
    plan = config.to_json(PLAN)
    # sqrt(3 x 400) is 34.6; one round is 10, and there was time for four after three minutes
    for round, age, status in (
        (1, 0.0, Status.ABANDONED),
        (4, 180.0, Status.COUNTED),
        (4, 100.0, Status.ABANDONED),
        (3, 1e9, Status.ABANDONED),
    ):
        data = weights.to_bytes(Checkpoint(far, round), np.float16)
        other = replace(ASSIGNMENT, checkpoint=weights.digest(data))
        signed = Signed(VALUES, 0, age)
        actions, outcome = play(turn.work(DEVICE, other), Fetch=[plan, data], AskSigned=signed)
        assert outcome.status is status
    assert actions[-1].detail == "weights: expected at most 30, found 34.641"
    # the bundle's own are known to within five of those that were signed
    rounded = replace(signed, rounding=5.0)
    _, outcome = play(turn.work(DEVICE, other), Fetch=[plan, data], AskSigned=rounded)
    assert outcome.status is Status.COUNTED


def test_what_was_withheld_is_handed_in_before_the_device_asks_or_rests():
    owing = replace(DEVICE, owes=ASSIGNMENT)
    actions, _ = play(turn.check_in(owing))
    assert kinds(actions) == [HandIn, Ask]
    actions, outcome = play(turn.check_in(replace(owing, rests=Cause.TOO_FEW_EXAMPLES)))
    assert kinds(actions) == [HandIn]
    assert (outcome.status, outcome.retry_in_s) == (Status.NOT_ASKED, 5000.0)


def test_a_condition_lost_before_a_transfer_stops_it_and_work_is_kept_or_given_back():
    actions, outcome = play(turn.work(DEVICE, ASSIGNMENT), CheckConditions=Cause.METERED_NETWORK)
    assert kinds(actions) == [Verify, Recall, RecallReport, CheckConditions, Note]
    assert (outcome.status, outcome.cause) == (Status.PAUSED, Cause.METERED_NETWORK)
    other = replace(ASSIGNMENT, checkpoint="ef" * 32)
    lost = [None, Cause.METERED_NETWORK]
    actions, outcome = play(turn.work(DEVICE, other), CheckConditions=lost)
    assert kinds(actions) == [
        *(Verify, Recall, RecallReport, CheckConditions, Fetch, Held, CheckConditions, Note)
    ]
    scoring = replace(ASSIGNMENT, kind=Kind.EVALUATION)
    actions, outcome = play(turn.work(DEVICE, scoring), CheckConditions=[None, Cause.IN_USE])
    assert (outcome.status, outcome.cause) == (Status.ABANDONED, Cause.CONDITION_LOST)
    assert Report not in kinds(actions)


def test_work_past_its_deadline_is_thrown_away_and_given_back_as_that():
    actions, outcome = play(turn.work(DEVICE, ASSIGNMENT), CheckConditions=[None, Cause.TIMED_OUT])
    assert kinds(actions)[-3:] == [Drop, GiveBack, Note]
    assert (outcome.status, outcome.cause) == (Status.ABANDONED, Cause.TIMED_OUT)
