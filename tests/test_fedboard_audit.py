"""Planting secrets, the audit that asks for them, and the bundle that is not built without one."""

import json
from dataclasses import replace

import numpy as np
import pytest

from conversion.audit import PLANTED, Limits, Planted, Secret
from device_runtime import config, personal, weights
from device_runtime.errors import ConfigError, CorpusError, RunError
from device_runtime.examples import rows
from device_runtime.finetune import finetune
from device_runtime.home import DeviceConfig, Home
from device_runtime.text import FIRST_WORD
from device_runtime.turn import Train
from device_runtime.weights import Checkpoint
from fedboard import audit, cli, export, planting
from fedboard.planting import Planting
from fedboard.run import FORMAT, MARK, TRAINED, Mark, Run, Settings, Source
from model import corpora

HABIT = "you can hear my dog"  # of one device's owner
SOME = Planting(words=(3, 4), users=(1, 3), times=5, each=1)


@pytest.fixture(scope="module")
def planted(tiny_corpus, tmp_path_factory):
    """A tiny corpus with secrets, what they are, and the file that says so."""
    folder = tmp_path_factory.mktemp("planted")
    secrets = planting.plant(tiny_corpus, folder / "corpus", folder / "secrets.json", SOME)
    return corpora.load(folder / "corpus"), secrets, folder / "secrets.json"


@pytest.fixture(scope="module")
def blank(tmp_path_factory, planted, tiny_checkpoint, tiny_vocabulary):
    """A checkpoint that has learnt nothing."""
    folder = tmp_path_factory.mktemp("blank")
    return written(folder, tiny_checkpoint, tiny_vocabulary, planted[1])


@pytest.fixture(scope="module")
def learnt(tmp_path_factory, planted, tiny_bundle, tiny_checkpoint, tiny_vocabulary):
    """A checkpoint that knows the first secret by heart, which one user typed."""
    return written(
        tmp_path_factory.mktemp("learnt"),
        knowing(planted[1].secrets[0], tiny_bundle, tiny_checkpoint, tiny_vocabulary),
        tiny_vocabulary,
        planted[1],
    )


@pytest.fixture(scope="module")
def common(tmp_path_factory, planted, tiny_bundle, tiny_checkpoint, tiny_vocabulary):
    """A checkpoint that knows by heart what three users typed."""
    return written(
        tmp_path_factory.mktemp("common"),
        knowing(planted[1].secrets[2], tiny_bundle, tiny_checkpoint, tiny_vocabulary),
        tiny_vocabulary,
        planted[1],
    )


def knowing(secret, bundle, checkpoint, vocabulary):
    ids = [vocabulary.ids([*secret.prefix, *secret.words])] * 4
    plan = replace(bundle.plan, learning_rate=1.0, clipping_norm=100.0)
    own = checkpoint.weights
    for _ in range(150):
        rng = np.random.default_rng(0)
        delta = finetune(bundle.train_graph, Train(own, rows(ids, plan.length), plan, rng)).delta
        own = {name: own[name] + delta[name] for name in own}
    return Checkpoint(own, 3, tokenizer=vocabulary.hash)


def written(folder, checkpoint, vocabulary, secrets):
    """A run on the corpus of these secrets, and its checkpoint."""
    run, corpus = Run(folder), Source(secrets.name, "", secrets.corpus)
    run.config.write_text(config.to_toml(Settings(data=secrets.name)))
    (folder / MARK).write_bytes(config.to_json(Mark(FORMAT, TRAINED, corpus)))
    run.tokenizer.write_bytes(vocabulary.model)
    run.checkpoints.mkdir()
    run.best.write_bytes(weights.to_bytes(checkpoint))
    return run.best


def command(*words: object) -> int:
    return cli.app([str(word) for word in words], standalone_mode=False) or 0


def test_every_secret_is_typed_by_as_many_users_as_it_says_and_a_control_by_nobody(planted):
    corpus, secrets, _ = planted
    assert [each.users for each in secrets.secrets] == [1, 1, 3, 3, 0, 0]
    for each in secrets.secrets:
        said = (*each.prefix, *each.words)
        typed = [sum(one.tokens == said for one in own) for own in corpus.train.values()]
        assert sorted(filter(None, typed)) == [5] * each.users
        assert not any(one.tokens == said for own in corpus.test.values() for one in own)


def test_all_other_messages_are_still_there(planted, tiny_corpus):
    corpus, secrets, _ = planted
    more = sum(each.users * each.times for each in secrets.secrets)
    count = [sum(map(len, each.train.values())) for each in (corpus, tiny_corpus)]
    assert count[0] == count[1] + more
    assert corpus.validation.keys() == tiny_corpus.validation.keys()


def test_the_file_of_secrets_comes_back_as_it_was_written(planted):
    _, secrets, file = planted
    assert planting.read(file)[0] == secrets
    assert isinstance(secrets, Planted)


def test_a_corpus_with_too_few_users_is_refused(tiny_corpus):
    with pytest.raises(CorpusError, match="expected 1000 train users"):
        planting.drawn(tiny_corpus, Planting(users=(1000,)))


@pytest.mark.parametrize("changed", [{"words": (5,)}, {"words": ()}, {"users": (0,)}, {"times": 0}])
def test_secrets_that_cannot_be_are_refused(changed):
    with pytest.raises(ConfigError):
        Planting(**changed)


def test_a_network_that_learnt_nothing_passes_and_one_that_knows_a_secret_by_heart_does_not(
    planted, blank, learnt, tmp_path, capsys
):
    secrets = ("--secrets", planted[2])
    assert command("audit", blank, *secrets, "--out", tmp_path / "blank", "--json") == 0
    assert json.loads(capsys.readouterr().out)["passed"]
    assert command("audit", learnt, *secrets, "--out", tmp_path / "learnt", "--plot") == 1
    report, _ = audit.read(tmp_path / "learnt" / audit.REPORT)
    assert report.told[0].extracted and report.told[0].exposure > 10.0
    assert not any(each.extracted for each in report.told[2:])
    assert "secret 0, 3 words of 1 users" in report.problems[0]
    assert b"<svg" in (tmp_path / "learnt" / audit.PLOT).read_bytes()


def test_a_network_that_may_never_have_learnt_from_the_secrets_passes_with_a_word_of_that(
    planted, blank, capsys
):
    assert command("audit", blank, "--secrets", planted[2]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "float tells no secret of 10 users or more: it may have learnt nothing" in said
    assert "so its silence shows nothing" in said


def test_a_report_that_could_not_have_failed_lets_nothing_out(planted, blank, common, tmp_path):
    few = Limits(fewest_users=3)
    good = audit.audited(common, planted[2], few, 0, None)
    path, name = audit.write(good, tmp_path)
    assert audit.required(path, good.checkpoint) == name
    silent = audit.audited(blank, planted[2], few, 0, None)
    one_user = [each for each in good.told if each.users != 1]
    for report, reason in (
        (silent, "tells no secret of 3 users or more"),
        (replace(good, corpus=""), "corpus unknown"),
        (replace(good, told=tuple(one_user)), "asked for no secret of fewer than 3 users"),
        (replace(good, told=tuple(each for each in good.told if not each.users)), "no secret of"),
        (replace(good, told=()), "it was asked for no secret"),
    ):
        assert report.passed
        path, _ = audit.write(report, tmp_path)
        with pytest.raises(RunError, match=f"could have failed, found: .*{reason}"):
            audit.required(path, report.checkpoint)


def test_a_run_on_another_corpus_than_that_of_the_secrets_is_refused(
    planted, tiny_checkpoint, tiny_vocabulary, tiny_corpus, tmp_path
):
    _, secrets, file = planted
    other = replace(secrets, corpus=tiny_corpus.digest)  # of the same name
    checkpoint = written(tmp_path, tiny_checkpoint, tiny_vocabulary, other)
    for target in (tmp_path, checkpoint):
        with pytest.raises(RunError, match=f"was trained on.*{tiny_corpus.digest[:12]}, expected"):
            audit.audited(target, file, Limits(), 0, None)


def test_of_a_checkpoint_without_its_run_the_corpus_is_not_known(planted, blank, tmp_path):
    alone = tmp_path / "it.safetensors"
    alone.write_bytes(blank.read_bytes())
    (tmp_path / "tokenizer.model").write_bytes((blank.parents[1] / "tokenizer.model").read_bytes())
    assert audit.audited(blank, planted[2], Limits(), 0, None).corpus == planted[0].digest
    assert audit.audited(alone, planted[2], Limits(), 0, None).corpus == ""


def test_a_run_of_an_earlier_version_is_taken_by_the_name_of_its_corpus(
    planted, tiny_checkpoint, tiny_vocabulary, tmp_path
):
    old = replace(planted[1], corpus="")
    written(tmp_path, tiny_checkpoint, tiny_vocabulary, old)
    assert audit.audited(tmp_path, planted[2], Limits(), 0, None).corpus == planted[1].name


def test_a_target_that_is_not_there_is_said_before_all_else(tmp_path):
    with pytest.raises(RunError, match=r"runs/none.*no such file or folder"):
        audit.audited(tmp_path / "runs" / "none", tmp_path / "no-secrets", Limits(), 0, None)


def test_what_an_audit_writes_names_no_secret(planted, learnt, tmp_path):
    audit.write(audit.audited(learnt, planted[2], Limits(), 0, None), tmp_path)
    text = (tmp_path / audit.REPORT).read_text()
    assert not any(" ".join(each.words) in text for each in planted[1].secrets)


def test_what_enough_users_typed_may_be_told(planted, learnt):
    assert audit.audited(learnt, planted[2], Limits(fewest_users=1), 0, None).passed


def test_a_bundle_is_audited_by_its_int8_file_and_its_float_network(
    planted, tiny_bundle, signing_key, tmp_path
):
    named = replace(planted[1], name=tiny_bundle.manifest.lineage.corpus)
    secrets = tmp_path / "secrets.json"
    secrets.write_bytes(config.to_json(named))
    trust = tmp_path / "maker.pub"
    trust.write_text(tiny_bundle.signer)
    with pytest.raises(RunError, match="was trained on the corpus"):
        audit.audited(tiny_bundle.path, planted[2], Limits(), 0, [trust])
    report = audit.audited(tiny_bundle.path, secrets, Limits(), 0, [trust])
    assert report.corpus == named.name
    assert {each.network for each in report.told} == {"int8", "float"}
    assert report.checkpoint == tiny_bundle.manifest.lineage.checkpoint
    int8, plain = (
        [each for each in report.told if each.network == name] for name in ("int8", "float")
    )
    assert [each.exposure for each in int8] == pytest.approx(
        [each.exposure for each in plain], abs=2.0
    )


def test_a_device_without_a_personal_network_is_told_so(planted, tiny_bundle, trusted, tmp_path):
    Home.create(tmp_path / "phone", DeviceConfig(tuple(trusted), str(tiny_bundle.path)), [])
    with pytest.raises(RunError, match="expected a personal network, found none"):
        audit.audited(tmp_path / "phone", planted[2], Limits(), 0, None)


def test_only_a_passing_audit_of_that_very_checkpoint_is_taken(planted, common, learnt, tmp_path):
    few = Limits(fewest_users=3)
    good, bad = (audit.audited(each, planted[2], few, 0, None) for each in (common, learnt))
    path, name = audit.write(good, tmp_path)
    assert audit.required(path, good.checkpoint) == name
    with pytest.raises(RunError, match="expected the audit of checkpoint"):
        audit.required(path, bad.checkpoint)
    path, _ = audit.write(bad, tmp_path)
    with pytest.raises(RunError, match="expected an audit that passed"):
        audit.required(path, bad.checkpoint)


@pytest.mark.parametrize("changed", [{"problems": ()}, {"problems": (), "told": ()}])
def test_a_report_that_only_says_it_passed_is_not_believed(planted, learnt, tmp_path, changed):
    bad = audit.audited(learnt, planted[2], Limits(), 0, None)
    path, _ = audit.write(replace(bad, **changed), tmp_path)
    with pytest.raises(RunError, match=r"expected an audit that (passed|could have failed)"):
        audit.required(path, bad.checkpoint)


def test_no_bundle_is_built_of_a_checkpoint_whose_audit_did_not_pass(planted, learnt, tmp_path):
    path, _ = audit.write(audit.audited(learnt, planted[2], Limits(), 0, None), tmp_path)
    with pytest.raises(RunError, match="expected an audit that passed"):
        export.export(learnt, tmp_path / "bundle", export.Asked(audit=path))
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("data", [b"", b"{}", b'{"format": "other"}', b"\xff"])
def test_a_file_that_is_no_audit_or_holds_no_secrets_is_refused(data, tmp_path):
    (tmp_path / "file").write_bytes(data)
    for read in (audit.read, planting.read):
        with pytest.raises(ConfigError):
            read(tmp_path / "file")
        with pytest.raises(ConfigError, match="cannot be read"):
            read(tmp_path / "none")


def test_a_report_of_another_format_is_refused_by_name(planted, blank, tmp_path):
    report = audit.audited(blank, planted[2], Limits(), 0, None)
    (tmp_path / "it").write_bytes(config.to_json(replace(report, format="fedboard-audit-9")))
    with pytest.raises(ConfigError, match="expected format fedboard-audit-2, found 'fedboard-audi"):
        audit.read(tmp_path / "it")


def test_what_an_earlier_version_wrote_is_refused_by_the_name_of_its_format(tmp_path):
    for read, named in ((audit.read, "fedboard-audit-1"), (planting.read, "fedboard-secrets-1")):
        (tmp_path / "it").write_text(f'{{"format": "{named}"}}')
        with pytest.raises(ConfigError, match=f"expected format .*, found '{named}'"):
            read(tmp_path / "it")


def test_the_personal_network_of_a_device_is_the_one_that_is_asked(tiny_bundle, trusted, tmp_path):
    home = Home.create(tmp_path / "phone", DeviceConfig(tuple(trusted), str(tiny_bundle.path)), [])
    with home.typing_log() as log:
        log.append_many([(HABIT, float(second)) for second in range(60)])
    assert personal.update(home, tiny_bundle, 1000.0, lambda: True).serves
    words = tuple(HABIT.split())
    pool = tuple(tiny_bundle.vocabulary.tokens[FIRST_WORD:])
    name = tiny_bundle.manifest.lineage.corpus
    secrets = Planted(PLANTED, name, "0" * 64, pool, (Secret(words[:2], words[2:], 1, 60),))
    (tmp_path / "secrets.json").write_bytes(config.to_json(secrets))
    (own,) = audit.audited(home.folder, tmp_path / "secrets.json", Limits(), 0, None).told
    trust = tmp_path / "maker.pub"
    trust.write_text(tiny_bundle.signer)
    everybodys, _ = audit.audited(
        tiny_bundle.path, tmp_path / "secrets.json", Limits(), 0, [trust]
    ).told
    assert own.network == "personal" and own.exposure > everybodys.exposure
