"""A release made of a template and new weights, measured and signed without TensorFlow."""

from dataclasses import replace

import numpy as np
import pytest

from conversion import gate, release, sampled
from conversion.int8 import Int8
from conversion.release import Clock, Corpus, Fleet, Measured, Parts, Text
from device_runtime import bundle, patch, weights
from device_runtime.errors import BundleError
from device_runtime.text import BOS, EOS, FIRST_WORD, PAD
from device_runtime.weights import Checkpoint

PASSING = gate.Gate(50, 1e-6, 1e-6, Int8(20_000, 0.99, 0.001, 0.05, 0.05), 1_460_000, 0.3)
ALIKE = Corpus(100, 20_000, 0.05, (-0.15, 0.25))
MEASURED = Measured(PASSING, 0.5, 1e-4, ALIKE, None)


@pytest.fixture(scope="module")
def learnt(tiny_checkpoint):
    """The tiny checkpoint some rounds later."""
    rng = np.random.default_rng(1)
    moved = {
        name: array + rng.normal(0, 0.02, array.shape).astype(np.float32)
        for name, array in tiny_checkpoint.weights.items()
    }
    return Checkpoint(moved, 3, "0" * 64, tiny_checkpoint.tokenizer)


@pytest.fixture(scope="module")
def parts(tiny_bundle, learnt):
    line = bundle.Lineage(
        "tiny", 3, weights.digest(weights.to_bytes(learnt)), task="night", rounds=3, participants=9
    )
    return Parts(tiny_bundle, learnt, line, 8, served=tiny_bundle)


@pytest.fixture(scope="module")
def text(tiny_rows, tiny_corpus):
    return Text(tiny_rows[:300], "tiny", tiny_corpus.validation)


def packaged(path, parts, text, key, **options):
    content = release.patched(parts.template, parts.checkpoint)
    measured = release.measure(parts, content, text, None, Clock())
    release.package(path, parts, content, measured, key, ("Measured on toys.",), **options)
    return bundle.open_verified(path, frozenset({parts.template.signer}))


def test_a_release_has_the_template_s_graphs_and_the_checkpoint_s_weights(
    tmp_path, parts, text, signing_key, learnt
):
    new, old = packaged(tmp_path / "new", parts, text, signing_key), parts.template
    same = {bundle.TRAIN, bundle.TOKENIZER, bundle.PLAN, bundle.BLOCKED}
    assert {name for name in new.content if new.content[name] == old.content.get(name)} == same
    assert new.manifest.graph == old.manifest.graph
    assert new.manifest.constants == old.manifest.constants
    half = weights.as_sent(learnt.weights)
    assert weights.norm(weights.subtract(new.checkpoint.weights, half)) == 0
    assert (new.checkpoint.round, new.checkpoint.parent) == (3, "0" * 64)
    stands_for = patch.weights_in(new.predict_graph, new.manifest.constants, new.manifest.arrays)
    for name, array in half.items():
        most = np.abs(array).max() / 127 / 2 * 1.001 + 1e-9
        assert np.abs(stands_for[name] - array).max() <= most


def test_its_manifest_and_card_say_where_it_comes_from(tmp_path, parts, text, signing_key):
    new = packaged(tmp_path / "new", parts, text, signing_key)
    assert (new.manifest.release, new.manifest.lineage) == (8, parts.lineage)
    gate_before, gate_now = parts.template.manifest.gate, new.manifest.gate
    for name in release.OF_GRAPH:
        assert gate_now[name] == gate_before[name]
    assert gate_now["patch_codes_apart"] <= release.CODES_APART
    assert gate_now["served_words"] > 0
    said = new.content[bundle.CARD].decode()
    assert "Task: night, 3 rounds committed on devices with 9 updates counted in them." in said
    assert "Measured on toys." in said
    assert "; text rules 1.\n" in said


def test_the_same_inputs_give_the_same_bytes(tmp_path, parts, text, signing_key):
    one, two = (packaged(tmp_path / name, parts, text, signing_key) for name in ("one", "two"))
    assert (one.content, one.encoded, one.signature) == (two.content, two.encoded, two.signature)


def test_a_release_can_be_the_next_one_s_template(tmp_path, parts, text, signing_key, learnt):
    """What was measured against the release before is not taken over to the one after."""
    first = packaged(tmp_path / "first", parts, text, signing_key)
    nobody = Text(text.rows, "tiny")
    second = packaged(
        tmp_path / "second", replace(parts, template=first, release=9), nobody, signing_key
    )
    assert not [name for name in second.manifest.gate if name.startswith(release.PASSING)]
    assert second.content[bundle.PREDICT] == first.content[bundle.PREDICT]


def test_weights_in_other_places_do_not_pass(parts, text):
    """The two kernels have one shape: exchanged, each code fits its constant and no word does."""
    content = release.patched(parts.template, parts.checkpoint)
    constants = dict(parts.template.manifest.constants)
    constants["input_kernel"], constants["recurrent_kernel"] = (
        replace(constants["recurrent_kernel"], factor=constants["input_kernel"].factor),
        replace(constants["input_kernel"], factor=constants["recurrent_kernel"].factor),
    )
    wrong = patch.predict(
        content[bundle.PREDICT], constants, weights.as_sent(parts.checkpoint.weights)
    )
    measured = release.measure(parts, {**content, bundle.PREDICT: wrong}, text, None, Clock())
    assert [problem for problem in measured.problems if "scales from its code" in problem]


def test_a_graph_that_does_not_say_what_its_weights_do_does_not_pass(parts, text):
    """The codes are right where the manifest says they are, but the graph is another's."""
    content = release.patched(parts.template, parts.checkpoint)
    manifest = parts.template.manifest
    swapped = {
        **manifest.constants,
        "input_kernel": manifest.constants["recurrent_kernel"],
        "recurrent_kernel": manifest.constants["input_kernel"],
    }
    other = replace(parts.template, manifest=replace(manifest, constants=swapped))
    half = weights.as_sent(parts.checkpoint.weights)
    wrong = {**content, bundle.PREDICT: patch.predict(content[bundle.PREDICT], swapped, half)}
    measured = release.measure(replace(parts, template=other), wrong, text, None, Clock())
    assert measured.codes_apart <= release.CODES_APART
    assert [problem for problem in measured.problems if "the network differ by" in problem]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"constants": None, "graph": None, "format": 2}, "a bundle of format 2 does not say"),
        ({"shapes": "0" * 64}, "its graphs are of another size than the checkpoint"),
        ({"tokenizer": "0" * 64}, "expected the checkpoint's vocabulary"),
        ({"gate": {}}, "was signed without the figure parity_steps"),
    ],
)
def test_a_template_that_cannot_be_patched_is_refused_by_name(parts, changes, said):
    manifest = replace(parts.template.manifest, **changes)
    with pytest.raises(BundleError, match=said) as refused:
        release.patched(replace(parts.template, manifest=manifest), parts.checkpoint)
    assert "fedboard export" in str(refused.value)


def test_weights_that_float16_cannot_hold_are_refused(parts):
    broken = {**parts.checkpoint.weights}
    broken["projection"] = broken["projection"] * np.float32(1e9)
    with pytest.raises(BundleError, match="projection: its values are not finite"):
        release.patched(parts.template, replace(parts.checkpoint, weights=broken))


# no worse than the release served


def test_a_release_that_is_surely_worse_is_refused():
    """0.25 points fewer, and all of the interval below nothing."""
    assert Corpus(100, 20_000, -0.25, (-0.4, -0.1)).problem.endswith("expected none beyond chance")


def test_a_loss_within_the_tolerance_that_may_be_chance_passes():
    assert Corpus(100, 20_000, -0.25, (-0.55, 0.05)).problem == ""


def test_a_loss_above_the_tolerance_is_refused_where_chance_does_not_explain_it():
    """A half interval of 0.34 is a standard error of 0.173: 1.645 of them are 0.285, so that the
    tolerance counts; the interval reaches above nothing.
    """
    assert Corpus(100, 20_000, -0.33, (-0.67, 0.01)).allowed == release.TOLERANCE
    assert Corpus(100, 20_000, -0.33, (-0.67, 0.01)).problem.endswith("expected at most 0.30")


def test_few_words_refuse_nothing_by_chance_and_say_what_they_could_not_see():
    """A half interval of 1.96 is a standard error of 1: a loss of 1.645 is chance, and one of 3.29
    would have been refused in 95 of 100 comparisons.
    """
    few = Corpus(5, 300, -1.0, (-2.96, 0.96))
    assert few.problem == ""
    assert few.error == pytest.approx(1.0)
    assert few.seen == pytest.approx(3.29)


def test_a_true_loss_as_large_as_is_said_is_refused_in_95_of_100_comparisons():
    rng, error = np.random.default_rng(0), 0.25
    seen = Corpus(100, 20_000, 0.0, (-1.96 * error, 1.96 * error)).seen

    def refused(true: float) -> float:
        points = rng.normal(true, error, 4000)
        tries = (
            Corpus(100, 20_000, each, (each - 1.96 * error, each + 1.96 * error)) for each in points
        )
        return float(np.mean([bool(each.problem) for each in tries]))

    assert refused(-seen) == pytest.approx(0.95, abs=0.02)
    assert refused(0.0) <= 0.06


def test_what_devices_reported_refuses_only_what_is_worse():
    assert Fleet((40, 50), -1.0, 0.8, worse=False).problem == ""
    said = "1.00 points of top-1 fewer than the checkpoint served, by what 50 and 40 devices"
    assert said in Fleet((40, 50), -1.0, 0.3, worse=True).problem


def test_a_release_does_not_differ_from_itself(parts, text, tiny_checkpoint):
    itself = replace(parts, checkpoint=replace(tiny_checkpoint))
    content = release.patched(itself.template, itself.checkpoint)
    assert content[bundle.PREDICT] == itself.template.predict_graph
    measured = release.measure(itself, content, text, None, Clock())
    assert (measured.corpus.points, measured.corpus.interval) == (0.0, (0.0, 0.0))
    assert measured.worse == []


WORSE = replace(MEASURED, corpus=Corpus(100, 20_000, -2.0, (-2.5, -1.5)))


def test_a_worse_release_is_written_with_a_reason_only(tmp_path, parts, signing_key):
    content = release.patched(parts.template, parts.checkpoint)
    with pytest.raises(BundleError, match="give a reason with --even-if-worse"):
        release.package(tmp_path / "new", parts, content, WORSE, signing_key, ())
    assert list(tmp_path.iterdir()) == []
    release.package(tmp_path / "new", parts, content, WORSE, signing_key, (), "it forgets a word")
    assert (tmp_path / "new" / bundle.MANIFEST).is_file()


@pytest.mark.parametrize(
    "broken",
    [
        replace(MEASURED, codes_apart=0.6),
        replace(MEASURED, graph_nats=float("nan")),
        replace(MEASURED, gate=replace(PASSING, predict_bytes=1_500_001)),
    ],
    ids=["codes", "graph", "size"],
)
def test_no_reason_lets_a_wrong_file_pass(tmp_path, parts, signing_key, broken):
    content = release.patched(parts.template, parts.checkpoint)
    with pytest.raises(BundleError, match="not signed"):
        release.package(tmp_path / "new", parts, content, broken, signing_key, (), "please")
    assert list(tmp_path.iterdir()) == []


# text that the network says itself


def test_sampled_text_is_rows_as_examples_are(tiny_checkpoint):
    drawn = sampled.rows(tiny_checkpoint.weights, 200, 8, np.random.default_rng(0))
    assert drawn.shape == (200, 9)
    assert (drawn[:, 0] == BOS).all()
    assert (drawn[:, 1] >= FIRST_WORD).all()
    for row in drawn:
        ends = np.flatnonzero(row == EOS)
        assert (row[ends[0] + 1 :] == PAD).all() if len(ends) else (row != PAD).all()
    again = sampled.rows(tiny_checkpoint.weights, 200, 8, np.random.default_rng(0))
    assert (drawn == again).all()


def test_sampled_words_come_as_often_as_the_network_says(tiny_checkpoint):
    """Of a network whose output bias is all it looks at, the first words are drawn by that bias."""
    silent = {name: np.zeros_like(array) for name, array in tiny_checkpoint.weights.items()}
    silent["output_bias"][[FIRST_WORD, FIRST_WORD + 1]] = np.log(3.0 * 1e6), np.log(1e6)
    drawn = sampled.rows(silent, 20_000, 1, np.random.default_rng(0))[:, 1]
    assert np.mean(drawn == FIRST_WORD) == pytest.approx(0.75, abs=0.01)
