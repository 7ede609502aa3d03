"""Toy fleets: forty devices with a stand-in, and a few that train for real on the tiny corpus."""

import numpy as np

from device_runtime import weights
from device_runtime.limits import OwnLimits
from device_runtime.terms import Aggregation
from device_runtime.wire import Plan
from fedboard import fleet_text
from fleet import begin
from fleet.population import Lives, PopulationSettings
from fleet.settings import FleetSettings, Training
from server.eligibility import Policy
from server.rounds import Rules
from server.task import TaskSettings

TASK = TaskSettings(
    Plan(batch_size=8, length=10, max_rows=64),
    rules=Rules(report_goal=5, selection_s=300.0, check_ins_per_s=10.0, rounds=3),
    policy=Policy(min_separation=1),
    seed=3,
    aggregation=Aggregation.PLAIN,
)
# forty phones that are always ready, whose training is a stand-in
SETTINGS = FleetSettings(
    seed=4,
    days=1,
    step_s=5,
    population=PopulationSettings(lives=Lives.ALWAYS, devices=40),
    task=TASK,
)
RULES = Rules(report_goal=3, selection_s=300.0, check_ins_per_s=10.0, rounds=2)


def learning(bundle, trusted):
    """Its settings."""
    return FleetSettings(
        seed=4,
        days=1,
        step_s=5,
        population=PopulationSettings(devices=12, first_messages=30),
        training=Training(str(bundle.path), tuple(trusted)),
        task=TaskSettings(
            rules=RULES,
            policy=Policy(min_separation=1, min_examples=1),
            seed=3,
            aggregation=Aggregation.PLAIN,
        ),
        limits=OwnLimits(min_separation=1, least_messages=5, least_words=5),
    )


def lived(settings, folder, bundle, corpus):
    """The checkpoint that a fleet ends with, and the rows of its turns."""
    folder.mkdir()
    fleet_text.of_corpus(corpus, bundle, 1000).save(folder / begin.TYPED)
    fleet = begin.begin(settings, folder)
    fleet.run(86_400)
    server = fleet.servers.coordinator
    checkpoint = weights.from_bytes(server.blobs.get(server.checkpoint().sha))
    ended = np.concatenate(fleet.state.ended)
    fleet.close()
    return checkpoint, ended
