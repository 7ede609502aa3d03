from dataclasses import replace

import numpy as np
import pytest

from device_runtime.limits import OwnLimits
from device_runtime.terms import Aggregation
from device_runtime.typing_log import HELD_ONE_IN
from fedboard import fleet_text
from fleet import begin, tables
from fleet.measured import held_back, measured
from fleet.population import Lives, PopulationSettings
from fleet.settings import FleetSettings, Training
from fleet.tables import EVERYBODY, NEVER, TOOK_PART
from server.eligibility import Policy
from server.rounds import Rules
from server.task import TaskSettings


@pytest.fixture(scope="module")
def fleet(tiny_bundle, trusted, tiny_corpus, tmp_path_factory):
    """A fleet of twelve devices that has trained for two rounds."""
    settings = FleetSettings(
        seed=4,
        step_s=5,
        population=PopulationSettings(lives=Lives.ALWAYS, devices=12, first_messages=30),
        training=Training(str(tiny_bundle.path), tuple(trusted)),
        task=TaskSettings(
            rules=Rules(report_goal=3, selection_s=300.0, check_ins_per_s=10.0, rounds=2),
            policy=Policy(min_separation=1, min_examples=1),
            aggregation=Aggregation.PLAIN,
        ),
        limits=OwnLimits(min_separation=1, least_messages=5, least_words=5),
    )
    folder = tmp_path_factory.mktemp("fleet")
    fleet_text.of_corpus(tiny_corpus, tiny_bundle, 1000).save(folder / begin.TYPED)
    lived = begin.begin(settings, folder)
    lived.run(86_400)
    yield lived
    lived.close()


def test_checkpoints_are_scored_as_time_goes_by_and_on_those_who_never_took_part(fleet):
    it = tables.lived(fleet)
    scored = measured(it, fleet.servers.coordinator.blobs.get)
    of_all = [each for each in scored if each.who == EVERYBODY]
    assert [each.round for each in of_all] == [0, *(each.round for each in it.rounds)][:3]
    assert len({each.scores.targets for each in of_all}) == 1
    assert len({each.scores.loss for each in of_all}) == 3
    heard, never = (next(each for each in scored if each.who == who) for who in (TOOK_PART, NEVER))
    assert heard.round == never.round == of_all[-1].round
    assert heard.devices + never.devices <= 12
    assert heard.scores.targets + never.scores.targets <= of_all[-1].scores.targets


def test_only_messages_that_nobody_trains_on_are_scored(fleet):
    shared = fleet.shared
    (device,) = held_back(shared, np.array([0]), 0.0)
    assert len(device) == int(shared.population.first_messages[0]) // HELD_ONE_IN


def test_whoever_types_on_a_device_that_took_part_is_not_among_those_who_never_did(fleet):
    same = replace(fleet.shared.population, user=np.zeros(12, np.int32))
    it = replace(tables.lived(fleet), shared=replace(fleet.shared, population=same))
    (never,) = (
        each for each in measured(it, fleet.servers.coordinator.blobs.get) if each.who == NEVER
    )
    assert never.devices == never.scores.targets == 0


def test_a_stand_in_is_not_measured(fleet):
    it = tables.lived(fleet)
    stand_in = replace(it, settings=replace(it.settings, training=Training()))
    assert measured(stand_in, lambda sha: b"") == ()
