"""One table says what follows from a cause."""

from device_runtime.causes import MEANING, Cause, Step, label, sentence


def of(**wanted: object) -> set[Cause]:
    """The causes whose meaning has these values."""
    return {
        cause
        for cause in Cause
        if all(getattr(MEANING[cause], name) == value for name, value in wanted.items())
    }


def test_every_cause_has_a_meaning_and_a_sentence_of_its_own():
    assert set(MEANING) == set(Cause)
    sentences = [meaning.sentence for meaning in MEANING.values()]
    assert len(set(sentences)) == len(Cause)
    assert all(0 < len(each) <= 60 and "_" not in each for each in sentences)


def test_a_request_that_breaks_a_rule_has_a_status_and_a_refusal_at_check_in_has_none():
    assert of(step=Step.REQUEST) & of(status=None) == set()
    # a device of another version may not even sign as this one reads it
    assert of(step=Step.REFUSED) - {Cause.UNSUPPORTED_VERSION} <= of(status=None)
    assert {MEANING[cause].status for cause in of(step=Step.DROPPED)} == {None, 422}
    assert all(400 <= (meaning.status or 400) < 600 for meaning in MEANING.values())


def test_a_report_after_the_end_is_told_why_it_was_not_waited_for():
    assert MEANING[Cause.TIMED_OUT].told_late is Cause.LATE
    assert MEANING[Cause.SURPLUS].told_late is Cause.SURPLUS
    assert MEANING[Cause.STALE].told_late is Cause.STALE
    assert MEANING[Cause.CONDITION_LOST].told_late is Cause.ROUND_CLOSED


def test_lost_conditions_and_a_request_that_was_not_looked_at_let_work_wait():
    conditions = {Cause.NOT_CHARGING, Cause.METERED_NETWORK, Cause.IN_USE}
    not_now = {Cause.UNAVAILABLE, Cause.TOO_MANY_REQUESTS, Cause.TOO_SLOW, Cause.WRONG_TIME}
    assert of(keeps_work=True) == conditions | not_now
    assert conditions <= of(gives_back=True)


def test_a_device_without_a_place_was_eligible_and_comes_back_late_only_if_the_task_is_done():
    assert of(no_place=True) <= of(step=Step.REFUSED)
    assert of(no_place=True, lasts=True) == {Cause.NO_ROUND, Cause.TASK_PAUSED}


def test_a_cause_read_from_a_ledger_is_looked_up_by_its_value_and_a_later_one_keeps_its_own_words():
    assert sentence("not_charging") == MEANING[Cause.NOT_CHARGING].sentence
    assert sentence("sun_spots") == label("sun_spots") == "sun spots"
