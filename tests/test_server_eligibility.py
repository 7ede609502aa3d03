"""Eligibility: who may join a round."""

import pytest

from device_runtime.errors import ConfigError
from device_runtime.wire import Cause
from server.eligibility import Policy, decide
from tests.toy_server import READY, TOKENIZER, check_in

POLICY = Policy(min_examples=10, min_separation=3)


def test_a_ready_device_may_join():
    assert decide(READY, None, 1, TOKENIZER, POLICY) is None


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        ({"version": 2}, Cause.UNSUPPORTED_VERSION),
        ({"tokenizer": "0" * 64}, Cause.WRONG_MODEL),
        ({"charging": False}, Cause.NOT_CHARGING),
        ({"unmetered": False}, Cause.METERED_NETWORK),
        ({"idle": False}, Cause.IN_USE),
        ({"examples": 9}, Cause.TOO_FEW_EXAMPLES),
    ],
)
def test_each_reason_to_refuse_has_its_cause(changed, cause):
    assert decide(check_in(**changed), None, 1, TOKENIZER, POLICY) is cause


@pytest.mark.parametrize("signal", ["charging", "unmetered", "idle"])
def test_a_condition_that_is_not_known_is_not_met(signal):
    assert decide(check_in(**{signal: None}), None, 1, TOKENIZER, POLICY) is not None


def test_a_device_counted_in_round_5_may_join_again_in_round_8():
    causes = [decide(READY, 5, number, TOKENIZER, POLICY) for number in (5, 6, 7, 8)]
    assert causes == [Cause.REPORTED_RECENTLY] * 3 + [None]


def test_the_device_is_told_about_its_model_before_its_conditions():
    assert decide(check_in(tokenizer="0" * 64, charging=False, examples=0), 1, 1, TOKENIZER, POLICY) is Cause.WRONG_MODEL


def test_a_device_cannot_be_allowed_twice_in_one_round():
    with pytest.raises(ConfigError, match="min_separation"):
        Policy(min_separation=0)
