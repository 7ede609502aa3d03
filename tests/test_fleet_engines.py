from dataclasses import replace

import numpy as np
import pytest

from device_runtime import local, weights
from device_runtime.errors import BundleError, ConfigError, RunError
from device_runtime.home import DeviceConfig, Home
from device_runtime.limits import OwnLimits
from device_runtime.terms import Aggregation
from fedboard import fleet_text
from fleet import begin, turns
from fleet.population import PopulationSettings
from fleet.settings import FleetSettings, Training
from fleet.typed import Typed
from server.eligibility import Policy
from server.rounds import Rules
from server.task import TaskSettings


@pytest.fixture
def settings(tiny_bundle, trusted):
    return FleetSettings(
        seed=4,
        days=1,
        step_s=5,
        population=PopulationSettings(devices=12, first_messages=30),
        training=Training(str(tiny_bundle.path), tuple(trusted)),
        task=TaskSettings(
            rules=Rules(report_goal=3, selection_s=300.0, check_ins_per_s=10.0, rounds=2),
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
    fleet.servers.close()
    return checkpoint, ended


def test_devices_of_a_signed_bundle_learn_what_is_typed_on_them(
    settings, tmp_path, tiny_bundle, tiny_corpus
):
    checkpoint, ended = lived(settings, tmp_path / "fleet", tiny_bundle, tiny_corpus)
    assert checkpoint.round == 2
    counted = ended[ended["status"] == turns.STATUSES.index(turns.Status.COUNTED)]
    assert (counted["loss_after"] < counted["loss_before"]).all()
    assert weights.norm(weights.subtract(checkpoint.weights, tiny_bundle.weights)) > 0.1


def test_a_bundle_that_no_trusted_key_signed_is_refused(settings, tmp_path):
    strange = replace(settings, training=replace(settings.training, trusted=("0" * 64,)))
    with pytest.raises(BundleError, match="signed"):
        begin.begin(strange, tmp_path / "fleet")


def test_training_that_is_not_real_needs_a_plan(settings, tmp_path):
    with pytest.raises(ConfigError, match=r"task\.plan"):
        begin.begin(replace(settings, training=Training()), tmp_path / "fleet")


# what is typed


def test_a_user_types_on_a_device_of_a_fleet_the_rows_that_a_phone_makes_of_it(
    tmp_path, tiny_bundle, tiny_corpus, trusted
):
    typed = fleet_text.of_corpus(tiny_corpus, tiny_bundle, 1000)
    name = list(tiny_corpus.train)[3]
    messages = [(each.text, float(i)) for i, each in enumerate(tiny_corpus.train[name])]
    config = DeviceConfig(bundle=str(tiny_bundle.path), trusted=tuple(trusted))
    home = Home.create(tmp_path / "phone", config, messages)
    with home.typing_log() as log:
        used, rows = local.newest_rows(log, tiny_bundle.vocabulary, tiny_bundle.plan, 16)
    records, same = typed.newest(3, len(messages), frozenset(), 16)
    assert (records, same.tolist()) == (used, rows.tolist())


def test_what_was_typed_is_the_same_when_it_is_read_from_the_disk(
    tmp_path, tiny_bundle, tiny_corpus
):
    typed = fleet_text.of_corpus(tiny_corpus, tiny_bundle, 5)
    typed.save(tmp_path / "typed")
    again = Typed.load(tmp_path / "typed")
    assert again.digest == typed.digest
    assert again.newest(2, 9, frozenset({3}), 4)[0] == typed.newest(2, 9, frozenset({3}), 4)[0]


def cut(folder):
    (folder / "rows.npy").write_bytes((folder / "rows.npy").read_bytes()[:-8])


def shortened(folder):
    np.save(folder / "message.npy", np.load(folder / "message.npy")[:-1])


@pytest.mark.parametrize("spoil", [cut, shortened])
def test_what_was_typed_and_has_been_spoiled_is_refused(spoil, tmp_path, tiny_bundle, tiny_corpus):
    fleet_text.of_corpus(tiny_corpus, tiny_bundle, 5).save(tmp_path / "typed")
    spoil(tmp_path / "typed")
    with pytest.raises(RunError, match="begin the fleet anew"):
        Typed.load(tmp_path / "typed")
