"""Rounds whose devices open their sums together, step by step, at the coordinator."""

import numpy as np
import pytest

from device_runtime import chain, encoding, weights
from device_runtime.secagg_wire import Advertised, Consent, Revealed, Shares
from device_runtime.wire import Phase
from tests import toy_server
from tests.toy_secagg_steps import DEVICES, LIES, TRUTH, Report, assigned, codes, new, play


def mean_of(members) -> np.ndarray:
    """What the round must have come to: the mean of what these devices encoded."""
    by = chain.terms_of(members[0].work).encoding
    total = sum(codes(each.number, by).astype(np.int64) for each in members)
    return encoding.mean(total, len(members), by)


def moved(coordinator, report) -> np.ndarray:
    """How far a round has moved the weights."""
    after = toy_server.stored(coordinator, report.checkpoint).weights
    before = toy_server.stored(coordinator, report.base).weights
    return weights.flatten(weights.subtract(after, before))


@pytest.mark.parametrize("peers", [LIES, TRUTH], ids=["the server may lie", "it tells no lies"])
def test_a_round_of_all_its_devices_comes_to_the_mean_of_what_they_encoded(tmp_path, peers):
    coordinator = new(tmp_path, peers=peers)
    members = assigned(coordinator)
    play(coordinator, members, [1.0])
    report = coordinator.reports(0.0).rounds[0]
    assert (report.phase, report.counted, report.reason) == (Phase.COMMITTED, DEVICES, "")
    np.testing.assert_allclose(moved(coordinator, report), mean_of(members), atol=1e-6)
    assert all(each.is_done for each in members)


@pytest.mark.parametrize("step", [Advertised, Shares, Report, Consent, Revealed])
def test_devices_that_leave_before_a_step_are_left_out_of_the_sum_or_made_good(tmp_path, step):
    coordinator = new(tmp_path)
    members = assigned(coordinator)
    for each in members[:2]:
        each.leaves = step
    play(coordinator, members, [1.0])
    report = coordinator.reports(0.0).rounds[0]
    counted = members if step in (Consent, Revealed) else members[2:]
    assert (report.phase, report.reason) == (Phase.COMMITTED, "")
    assert report.counted == len(counted)
    assert report.dropped == ({} if counted is members else {"timed_out": 2})
    np.testing.assert_allclose(moved(coordinator, report), mean_of(counted), atol=1e-6)
