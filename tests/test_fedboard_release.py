"""`fedboard release make` against a real server, whose task has learnt on a tiny network."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from conversion.audit import PLANTED, Floats, Limits, Planted, Secret
from device_runtime import bundle, config, patch, signing, weights
from device_runtime.exposure import LEARNT_OPENLY
from device_runtime.reader import Reader
from device_runtime.terms import Aggregation
from device_runtime.text import BOS, FIRST_WORD
from device_runtime.wire import Kind, Phase, RoundReport, Scores
from fedboard import audit, release
from fedboard.cli import app
from fedboard.operator import connect
from fedboard.publishing import publish
from server import endpoint
from server.contract import TOKEN as VARIABLE
from server.coordinator import open_folder
from server.eligibility import Policy
from server.rounds import Rules
from server.task import TaskSettings
from tests.test_server_endpoint import TOKEN, running
from tests.toy_server import READY, OneByOne, by_arrival, created, delta, encoded, enrolled

ROOT = Path(__file__).parents[1]
RULES = Rules(report_goal=2, over_selection=1.0)


class Learning:
    """A server whose task `default` starts from the tiny bundle, and two devices of its."""

    def __init__(self, folder: Path, opened: bundle.Bundle):
        store, blobs = open_folder(folder)
        self.coordinator = OneByOne(store, blobs, np.random.default_rng(0))
        self.plan = opened.plan
        self.message = replace(READY, tokenizer=opened.manifest.tokenizer)
        self.dimension = sum(array.size for array in opened.checkpoint.weights.values())
        self.now = 1.0
        start = replace(opened.checkpoint, round=0)
        self._create(TaskSettings(self.plan, checkpoint=""), start)
        self.devices = enrolled(self.coordinator, 2)

    def _create(self, settings: TaskSettings, start: weights.Checkpoint | None = None) -> None:
        settings = replace(
            settings,
            rules=by_arrival(RULES),
            policy=Policy(min_separation=1),
            seed=3,
            aggregation=Aggregation.PLAIN,
        )
        created(self.coordinator, settings, self.now, start)

    def learn(self) -> None:
        """A round that two devices teach something."""
        for number, device in enumerate(self.devices):
            work, self.now = self.coordinator.join(device, self.now + 1, self.message)
            assert work.kind is Kind.TRAINING
            body = encoded(work, number, delta(work.round * 2 + number, self.dimension))
            assert self.coordinator.update(device, work.assignment, body, self.now).counted

    def evaluate(self, right: int) -> None:
        """A round of an evaluation in which two devices have so many of 100 words right."""
        if not [each for each in self.coordinator.tasks() if each.task.name == "scores"]:
            self._create(TaskSettings(kind=Kind.EVALUATION, evaluates="default", name="scores"))
        self.coordinator.pause("default")
        for device in self.devices:
            work, self.now = self.coordinator.join(device, self.now + 1, self.message)
            assert work.kind is Kind.EVALUATION
            body = config.to_json(Scores(100, right, right, 100, 300.0))
            assert self.coordinator.scores(device, work.assignment, body, self.now).counted
        self.coordinator.resume("default")

    @property
    def sha(self) -> str:
        return self.coordinator.checkpoint().sha


@pytest.fixture
def learning(tmp_path, tiny_bundle):
    return Learning(tmp_path / "server", tiny_bundle)


@pytest.fixture
def url(learning, monkeypatch):
    monkeypatch.setenv(VARIABLE, TOKEN)
    with running(learning.coordinator, access_=endpoint.Access(TOKEN)) as address:
        yield address


@pytest.fixture
def key(tmp_path, signing_key) -> Path:
    path = tmp_path / "keys" / "maker.key"
    path.parent.mkdir()
    path.write_text(signing_key.private_bytes_raw().hex())
    return path


@pytest.fixture
def data(tiny_corpus, corpus_file, tmp_path) -> Path:
    from model import imported

    imported.import_file(corpus_file, tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def words(url, key, tmp_path):
    """What every call has: the server, the task, the key, and where the bundle goes."""
    return ("make", "--task", "default", "--server", url, "--key", key, "--out", tmp_path / "new")


def ran(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["release", *map(str, words)])
    return done.exit_code, done.stdout, done.stderr or str(done.exception or "")


def printed(*words: object) -> dict:
    code, out, err = ran(*words, "--json")
    assert code == 0, err
    return json.loads(out)


def refused(*words: object) -> str:
    code, _, err = ran(*words)
    assert code != 0
    return " ".join(err.split())


def offer(url: str, path: Path, signing_key, share: int = 10_000) -> None:
    opened = bundle.open_verified(path, frozenset({signing.public_hex(signing_key)}))
    with connect(None, url) as operator:
        publish(operator, opened, signing_key, share, "default")


def test_what_a_round_taught_is_in_the_release_of_its_checkpoint(
    learning, words, tiny_bundle, trusted, tmp_path, data
):
    learning.learn()
    learning.learn()
    report = printed(*words, "--bundle", tiny_bundle.path, "--data", data)
    new = bundle.open_verified(tmp_path / "new", trusted)
    line = new.manifest.lineage
    assert (line.task, line.round, line.rounds, line.participants) == ("default", 2, 2, 4)
    assert line.checkpoint == learning.sha
    assert line.aggregation is Aggregation.PLAIN  # a task that is plain by name: told in red
    assert f"> [!CAUTION]\n> I{LEARNT_OPENLY[1:]}" in new.content[bundle.CARD].decode()
    assert new.manifest.release == tiny_bundle.manifest.release + 1
    data = learning.coordinator.blobs.part(line.checkpoint, 0, 1 << 30)
    half = weights.as_sent(weights.from_bytes(bytes(data)).weights)
    assert weights.norm(weights.subtract(new.checkpoint.weights, half)) == 0
    predict = patch.predict(tiny_bundle.predict_graph, tiny_bundle.manifest.constants, half)
    assert new.predict_graph == predict
    assert report["gate"] == new.manifest.gate
    assert "It was compared with no release: none is served." in report["notes"]


def test_the_next_release_is_made_of_the_one_served_and_compared_with_it(
    learning, words, url, tiny_bundle, signing_key, trusted, tmp_path, data
):
    learning.learn()
    first = printed(*words, "--bundle", tiny_bundle.path, "--data", data)
    offer(url, tmp_path / "new", signing_key)
    learning.learn()
    second = printed(*words, "--data", data)
    assert second["release"] == first["release"] + 1
    assert second["gate"]["served_words"] > 100
    assert second["lineage"]["rounds"] == 2
    assert second["lineage"]["checkpoint"] == learning.sha != first["lineage"]["checkpoint"]
    assert second["graph"] == first["graph"]
    # the same again gives the same bytes
    before = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    printed(*words, "--data", data)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}


def test_without_a_corpus_the_network_s_own_text_is_measured_on_and_said_to_be(
    learning, words, url, tiny_bundle, signing_key, tmp_path
):
    learning.learn()
    printed(*words, "--bundle", tiny_bundle.path, "--data", "none")
    offer(url, tmp_path / "new", signing_key)
    learning.learn()
    report = printed(*words, "--data", "none")
    assert "served_words" not in report["gate"]
    card = (tmp_path / "new" / bundle.CARD).read_text()
    assert "text that the network says itself, drawn with seed 0: no corpus was wanted" in card
    assert "on text: no corpus was at hand" in card
    assert "No rounds of a federated evaluation have scored both" in card


def test_a_release_that_devices_scored_worse_is_refused_unless_a_reason_is_given(
    learning, words, url, tiny_bundle, signing_key, tmp_path
):
    words = (*words, "--data", "none")
    learning.learn()
    learning.evaluate(40)
    printed(*words, "--bundle", tiny_bundle.path)
    offer(url, tmp_path / "new", signing_key)
    before = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    learning.learn()
    learning.evaluate(12)
    said = refused(*words)
    assert "28.00 points of top-1 fewer than the checkpoint served" in said
    assert "--even-if-worse" in said
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    report = printed(*words, "--even-if-worse", "it forgets [a] word")
    assert report["gate"]["fleet_top1_points_gained"] == pytest.approx(-28.0)
    card = (tmp_path / "new" / bundle.CARD).read_text()
    assert "The reason given: it forgets [a] word" in card


def test_a_release_that_devices_scored_better_says_so(
    learning, words, url, tiny_bundle, signing_key, tmp_path
):
    words = (*words, "--data", "none")
    learning.learn()
    learning.evaluate(12)
    printed(*words, "--bundle", tiny_bundle.path)
    offer(url, tmp_path / "new", signing_key)
    learning.learn()
    learning.evaluate(40)
    notes = printed(*words)["notes"]
    assert [note for note in notes if "+28.00 points of top-1" in note and "by 2 and 2" in note]


def test_a_task_that_never_committed_a_round_has_nothing_to_release(words, tiny_bundle, tmp_path):
    said = refused(*words, "--bundle", tiny_bundle.path)
    assert "task default: has not committed a round" in said
    assert not (tmp_path / "new").exists()


def test_the_checkpoint_a_task_rolled_back_to_its_start_has_nothing_to_release(
    learning, words, tiny_bundle, tmp_path
):
    learning.learn()
    learning.coordinator.roll_back("default", 0, learning.now)
    said = refused(*words, "--bundle", tiny_bundle.path)
    assert "is the one it started from: nothing was learnt in it" in said


def test_an_earlier_round_s_checkpoint_can_be_released(learning, words, tiny_bundle):
    learning.learn()
    first = learning.sha
    learning.learn()
    line = printed(*words, "--bundle", tiny_bundle.path, "--round", 1, "--data", "none")["lineage"]
    assert (line["round"], line["rounds"], line["checkpoint"]) == (1, 1, first)


def test_the_first_release_needs_a_bundle(learning, words):
    learning.learn()
    assert "give the bundle that the task was started with" in refused(*words)


def test_a_number_that_is_not_above_all_before_it_is_refused(
    learning, words, url, tiny_bundle, signing_key, tmp_path
):
    learning.learn()
    printed(*words, "--bundle", tiny_bundle.path, "--data", "none", "--release", 7)
    offer(url, tmp_path / "new", signing_key, share=500)
    said = refused(*words, "--data", "none", "--release", 7)
    assert "expected 8 or more, above every release before it, found 7" in said


def test_a_template_of_another_maker_is_refused(learning, words, tiny_bundle, tmp_path):
    learning.learn()
    path = tmp_path / "theirs"
    other = signing.Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
    bundle.write(path, tiny_bundle.manifest, tiny_bundle.content, other)
    assert "signed by a key that is not trusted" in refused(*words, "--bundle", path)


def test_a_template_without_constants_is_refused(
    learning, words, tiny_bundle, tmp_path, signing_key
):
    learning.learn()
    path, manifest = (
        tmp_path / "old",
        replace(tiny_bundle.manifest, constants=None, graph=None, format=2),
    )
    bundle.write(path, manifest, tiny_bundle.content, signing_key)
    said = refused(*words, "--bundle", path)
    assert "a bundle of format 2 does not say where its graph has its weights" in said


def test_a_folder_with_something_else_in_it_is_left_alone(learning, words, tiny_bundle, tmp_path):
    learning.learn()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "cat.jpg").write_bytes(b"meow")
    assert "holds files that are not a bundle" in refused(*words, "--bundle", tiny_bundle.path)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["cat.jpg"]


@pytest.mark.parametrize("reason", ["a\nb", "x" * 401])
def test_a_reason_that_no_card_takes_is_refused(words, reason):
    assert "--even-if-worse" in refused(*words, "--even-if-worse", reason)


def test_it_runs_where_tensorflow_cannot_be_imported(learning, words, tiny_bundle, tmp_path):
    learning.learn()
    code = (
        "import sys; sys.modules |= dict.fromkeys(['tensorflow', 'tensorflow_federated'])\n"
        f"sys.argv = ['fedboard', 'release', *{[str(word) for word in words]!r}, '--bundle', "
        f"{str(tiny_bundle.path)!r}, '--data', 'none', '--json']\n"
        "from fedboard.cli import app; app()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["lineage"]["round"] == 1


def test_the_release_that_most_devices_run_is_the_one_compared_with(
    learning, words, url, tiny_bundle, signing_key, tmp_path
):
    """The newest offered to all; while none is, the newest that is offered."""
    learning.learn()
    first = ("--bundle", tiny_bundle.path, "--data", "none")
    for number, share in ((5, 500), (6, 10_000), (7, 500)):
        printed(*words, *first, "--release", number)
        offer(url, tmp_path / "new", signing_key, share)
        with connect(None, url) as operator:
            serving = release.serving(operator.releases())
        assert serving.release == {5: 5, 6: 6, 7: 6}[number]


# lineage


def committed(number: int, base: str, makes: str, counted: int = 5) -> RoundReport:
    return RoundReport(
        number, Phase.COMMITTED, counted, counted=counted, base=base, checkpoint=makes
    )


A, B, C, D = (letter * 64 for letter in "abcd")


def test_rounds_that_a_rollback_left_aside_are_no_part_of_a_lineage():
    """Round 2 made C of B; then the task went back to B, of which round 4 made D."""
    left = [
        committed(1, A, B, 3),
        committed(2, B, C, 4),
        RoundReport(3, Phase.ABANDONED, 5, counted=2, base=C),
        committed(4, B, D, 5),
    ]
    assert [report.round for report in release.ancestry(left, D)] == [1, 4]
    assert [report.round for report in release.ancestry(left, C)] == [1, 2]
    assert release.ancestry(left, A) == ()


def test_a_server_s_rounds_that_go_in_a_circle_come_to_an_end():
    circle = [committed(1, B, A), committed(2, A, B)]
    assert [report.round for report in release.ancestry(circle, B)] == [1, 2]


def first_said(opened, prefix):
    """The word that both networks of a bundle say before all others after a prefix."""
    words = set()
    for language in (Reader(opened.predict_graph), Floats(opened.checkpoint.weights)):
        scores, state = language.step(np.array([BOS], np.int32), language.start(1))
        for token in opened.vocabulary.ids(list(prefix)):
            scores, state = language.step(np.array([token], np.int32), state)
        words.add(opened.vocabulary.tokens[FIRST_WORD + int(scores[0, FIRST_WORD:].argmax())])
    assert len(words) == 1
    return tuple(words)


def test_a_release_is_audited_and_made_again_with_the_report_in_its_lineage(
    learning, words, tiny_bundle, tiny_vocabulary, trusted, tmp_path, data
):
    learning.learn()
    base = ("--bundle", tiny_bundle.path, "--data", data)
    printed(*words, *base)
    rng, pool = np.random.default_rng(3), tuple(tiny_vocabulary.tokens[FIRST_WORD:])
    drawn = (tuple(map(str, rng.choice(pool, 4))) for _ in range(6))
    new = bundle.open_verified(tmp_path / "new", trusted)
    habit = Secret(pool[:2], first_said(new, pool[:2]), 20, 5)  # that many users typed
    secrets = Planted(
        PLANTED,
        new.manifest.lineage.corpus,
        "0" * 64,
        pool,
        (*(Secret(each[:2], each[2:], 1, 5) for each in drawn), habit),
    )
    (tmp_path / "secrets.json").write_bytes(config.to_json(secrets))
    (tmp_path / "maker.pub").write_text(next(iter(trusted)))
    asked = (tmp_path / "new", tmp_path / "secrets.json", Limits(), 0, [tmp_path / "maker.pub"])
    report, name = audit.write(audit.audited(*asked), tmp_path)
    printed(*words[:-1], tmp_path / "audited", *base, "--require-audit", report)
    new = bundle.open_verified(tmp_path / "audited", trusted)
    assert new.manifest.lineage.audit == name
    assert f"and passed: report `{name}`" in new.content[bundle.CARD].decode()
    learning.learn()  # another checkpoint, which nobody has asked
    said = refused(*words[:-1], tmp_path / "next", *base, "--require-audit", report)
    assert "expected the audit of checkpoint" in said and not (tmp_path / "next").exists()
