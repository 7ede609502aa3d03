"""Eligibility: who may join a round."""

import pytest

from device_runtime.causes import Cause
from device_runtime.errors import ConfigError
from server.eligibility import History, Policy, decide
from tests.toy_server import READY, TOKENIZER, check_in

POLICY = Policy(min_examples=10, min_separation=3)
NEW = History(enrolled_at=0.0)


def why_not(message=READY, history=NEW, round=1, policy=POLICY, now=100.0) -> Cause | None:
    return decide(message, history, round, TOKENIZER, policy, now)


def test_a_ready_device_may_join():
    assert why_not() is None


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        ({"version": 1}, Cause.UNSUPPORTED_VERSION),
        ({"tokenizer": "0" * 64}, Cause.WRONG_MODEL),
        ({"charging": False}, Cause.NOT_CHARGING),
        ({"unmetered": False}, Cause.METERED_NETWORK),
        ({"idle": False}, Cause.IN_USE),
        ({"examples": 9}, Cause.TOO_FEW_EXAMPLES),
    ],
)
def test_each_reason_to_refuse_has_its_cause(changed, cause):
    assert why_not(check_in(**changed)) is cause


@pytest.mark.parametrize("signal", ["charging", "unmetered", "idle"])
def test_a_condition_that_is_not_known_is_not_met(signal):
    assert why_not(check_in(**{signal: None})) is not None


def test_a_device_counted_in_round_5_may_join_again_in_round_8():
    causes = [
        why_not(history=History(0.0, last_counted=5, counted=1), round=number)
        for number in (5, 6, 7, 8)
    ]
    assert causes == [Cause.REPORTED_RECENTLY] * 3 + [None]


def test_the_device_is_told_about_its_model_before_its_conditions():
    assert (
        why_not(check_in(tokenizer="0" * 64, charging=False, examples=0), History(0.0, 1, 1))
        is Cause.WRONG_MODEL
    )


def test_a_device_cannot_be_allowed_twice_in_one_round():
    with pytest.raises(ConfigError, match="min_separation"):
        Policy(min_separation=0)


def test_a_device_that_lost_its_history_is_new_and_waits_as_long_as_any_new_one():
    policy = Policy(trust_s=1000.0)
    enrolled_anew = History(enrolled_at=500.0)
    assert [
        why_not(history=enrolled_anew, policy=policy, now=now) for now in (500.0, 1499.9, 1500.0)
    ] == [Cause.TOO_NEW, Cause.TOO_NEW, None]


def test_a_device_takes_part_as_often_as_the_policy_says_and_no_more():
    policy = Policy(max_participations=2)
    causes = [
        why_not(history=History(0.0, last_counted=1, counted=counted), round=9, policy=policy)
        for counted in (1, 2, 3)
    ]
    assert causes == [None, Cause.PARTICIPATED_ENOUGH, Cause.PARTICIPATED_ENOUGH]


@pytest.mark.parametrize(
    ("policy", "message", "cause"),
    [
        (Policy(min_runtime="2.14.0"), {"runtime": "2.14.0"}, None),
        (Policy(min_runtime="2.14.0"), {"runtime": "ai-edge-litert 2.3.0"}, None),
        (Policy(min_runtime="2.14.0"), {"runtime": "2.9.1"}, Cause.OUTDATED_RUNTIME),
        (Policy(min_runtime="2.14.0"), {"runtime": "new"}, Cause.OUTDATED_RUNTIME),
        (Policy(min_runtime="2.14.0"), {}, Cause.OUTDATED_RUNTIME),
        (Policy(min_release=450), {}, None),  # of an earlier version: nobody tells it any more
        (Policy(device_classes=("low", "middle")), {"device_class": "middle"}, None),
        (
            Policy(device_classes=("low", "middle")),
            {"device_class": "high"},
            Cause.OTHER_DEVICE_CLASS,
        ),
        (Policy(device_classes=("low", "middle")), {}, Cause.OTHER_DEVICE_CLASS),
    ],
)
def test_a_policy_can_ask_for_a_runtime_and_a_class_of_device(policy, message, cause):
    assert why_not(check_in(**message), policy=policy) is cause


def test_a_policy_with_a_runtime_that_is_no_version_is_refused():
    with pytest.raises(ConfigError, match="min_runtime"):
        Policy(min_runtime="newest")
