"""A task and its simulation: the same noise, clip and budget on both sides, by their own code."""

import numpy as np
import pytest

from device_runtime import accountant
from device_runtime.accountant import Participation
from device_runtime.noise import Mechanism
from device_runtime.terms import Aggregation, Terms
from device_runtime.wire import Plan
from model import cohorts
from model.recipe import Client, Privacy, Recipe
from server import budget


def recipe(mechanism: str, restart: int = 0) -> Recipe:
    buffers = ((0.9,), (0.4,)) if mechanism == "blt" else ((), ())
    return Recipe(
        rounds=24,
        cohort=3,
        min_separation=4,
        encoded=True,
        compression=2,
        plan=Plan(bits=4, clipping_norm=0.5),
        client=Client(weighting="uniform"),
        privacy=Privacy(
            mechanism,
            20.0,
            epsilon=0.8,
            report_goal=1000,
            restart=restart,
            decays=buffers[0],
            scales=buffers[1],
        ),
    )


def terms(of: Recipe) -> Terms:
    """Those of a task with the recipe's numbers."""
    goal = of.privacy.report_goal
    return Terms(
        *(Aggregation.HELPER, of.plan.bits, of.plan.clipping_norm, 5000, "0" * 64, of.seed),
        *(goal, goal, of.separation),
        helper="1" * 64,
        noise=of.noise,
        compression=of.compression,
    )


MECHANISMS = [("blt", 0), ("tree", 0), ("tree", 7), ("gaussian", 0)]


@pytest.mark.parametrize(("mechanism", "restart"), MECHANISMS)
def test_a_server_and_a_simulation_count_the_same_budget_round_by_round(mechanism, restart):
    """The server writes down who was in each sum; the simulation asks its sampler."""
    of = recipe(mechanism, restart)
    sampler = cohorts.start(14, of.cohort, of.separation, accounted=True)
    happened, sums = Participation(), {client: [] for client in range(14)}
    for number in range(1, of.rounds + 1):
        chosen, sampler = cohorts.draw(sampler, of.cohort, of.sampling, of.separation, of.seed)
        for client in chosen.tolist():
            sums[client].append(number)
        own = [sums[client] for client in chosen.tolist()]
        gaps = [each[-1] - each[-2] for each in own if len(each) > 1]
        happened = budget.recorded(happened, False, max(map(len, own)), min(gaps, default=None))
        server = budget.standing(terms(of).noise, budget.Spending(happened)).account
        simulated = accountant.account(of.noise, sampler.happened)
        assert simulated == server
    assert simulated.epsilon > 0


def test_a_simulation_ends_before_the_budget_that_ends_the_task():
    """What the next round would spend is known to the simulation, and at worst to the server: so
    the server stops no later.
    """
    of = recipe("blt")
    sampler, ended = cohorts.start(14, of.cohort, of.separation, accounted=True), []
    for number in range(1, of.rounds + 1):
        spending = budget.Spending(sampler.happened)
        if budget.why_over(of.noise, spending, of.separation):
            ended.append(("task", number))
        _, sampler = cohorts.draw(sampler, of.cohort, of.sampling, of.separation, of.seed)
        if accountant.account(of.noise, sampler.happened).epsilon > of.privacy.epsilon:
            ended.append(("simulation", number))
    first = {who: min(at for each, at in ended if each == who) for who, _ in ended}
    assert 1 < first["task"] <= first["simulation"] < of.rounds


def test_clip_noise_and_participation_are_those_of_the_task():
    of = recipe("blt")
    agreed = terms(of)
    assert agreed.noise.mechanism is Mechanism.BLT
    assert agreed.noise.participations == 6  # of 24 rounds, each fourth
    assert agreed.min_separation == of.separation
    # stddev of a Gaussian, as a share of what the longest update can be
    longest = agreed.encoding.bound * of.plan.clipping_norm / agreed.encoding.step
    assert agreed.deviation == pytest.approx(of.privacy.noise_multiplier * longest)
    assert np.isfinite(agreed.layout.bytes)
