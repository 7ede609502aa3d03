import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device_runtime import bundle, interpreter, patch, weights
from device_runtime.errors import BundleError, CheckpointError
from device_runtime.patch import Constant
from device_runtime.predictor import Predictor

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def copy(tiny_bundle, tmp_path_factory):
    return shutil.copytree(tiny_bundle.path, tmp_path_factory.mktemp("copy") / "bundle")


def test_a_whole_bundle_opens_and_knows_where_it_came_from(tiny_bundle, tiny_vocabulary, tiny_plan):
    assert tiny_bundle.manifest.lineage.corpus == "tiny"
    assert tiny_bundle.vocabulary.hash == tiny_vocabulary.hash
    assert tiny_bundle.plan == tiny_plan
    assert {path.name for path in tiny_bundle.path.iterdir()} == {
        *bundle.FILES,
        bundle.BLOCKED,
        bundle.MANIFEST,
        bundle.SIGNATURE,
    }


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from((*bundle.FILES, bundle.MANIFEST, bundle.SIGNATURE)),
    place=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
def test_one_flipped_bit_anywhere_is_refused(copy, trusted, name, place, bit):
    path = copy / name
    whole = path.read_bytes()
    i = int(place * len(whole))
    if name == bundle.SIGNATURE and whole[i : i + 1] in b"\n":
        return  # a line end may be another white space
    try:
        path.write_bytes(whole[:i] + bytes([whole[i] ^ (1 << bit)]) + whole[i + 1 :])
        with pytest.raises(BundleError):
            bundle.open_verified(copy, trusted)
    finally:
        path.write_bytes(whole)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from((*bundle.FILES, bundle.MANIFEST)), keep=st.floats(0, 1, exclude_max=True)
)
def test_a_file_cut_anywhere_is_refused_before_it_is_opened(copy, trusted, name, keep):
    path = copy / name
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[: int(keep * len(whole))])
        with pytest.raises(BundleError):
            bundle.open_verified(copy, trusted)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", (*bundle.FILES, bundle.MANIFEST, bundle.SIGNATURE))
def test_a_missing_file_is_named(copy, trusted, name):
    whole = (copy / name).read_bytes()
    (copy / name).unlink()
    try:
        with pytest.raises(BundleError, match=name):
            bundle.open_verified(copy, trusted)
    finally:
        (copy / name).write_bytes(whole)


def test_a_bundle_of_a_stranger_is_refused(tiny_bundle):
    with pytest.raises(BundleError, match="not trusted"):
        bundle.open_verified(tiny_bundle.path, frozenset({"ab" * 32}))


def test_a_signed_vocabulary_of_another_size_is_refused(
    tmp_path, tiny_bundle, tiny_corpus, signing_key, trusted
):
    from model import corpus, vocabulary

    other = vocabulary.build(corpus.token_lists(tiny_corpus.train), 10)
    content = {**tiny_bundle.content, bundle.TOKENIZER: other.model}
    manifest = bundle.Manifest(
        **{**tiny_bundle.manifest.__dict__, "files": bundle.describe(content)}
    )
    bundle.write(tmp_path / "mixed", manifest, content, signing_key)
    with pytest.raises(
        BundleError,
        match=f"scores {len(tiny_bundle.vocabulary)} ids but the vocabulary has {len(other)}",
    ):
        bundle.open_verified(tmp_path / "mixed", trusted)


def rewritten(folder, opened, key, **changes):
    """A bundle with another manifest, signed by its maker."""
    bundle.write(folder, replace(opened.manifest, **changes), opened.content, key)
    return folder


def test_an_unknown_format_is_refused_by_its_number_whatever_else_it_holds(
    tmp_path, tiny_bundle, signing_key, trusted
):
    with pytest.raises(BundleError, match="expected format 2 or 3, found 4"):
        bundle.open_verified(
            rewritten(tmp_path / "next", tiny_bundle, signing_key, format=4), trusted
        )


def test_a_bundle_for_a_later_runtime_is_refused_and_says_which(
    tmp_path, tiny_bundle, signing_key, trusted, monkeypatch
):
    tflite = [interpreter.Runtime("tflite-runtime", "2.14.0")]
    monkeypatch.setattr(interpreter, "installed", lambda: tflite)
    monkeypatch.setenv(interpreter.CHOICE, "tflite-runtime")
    with pytest.raises(BundleError, match=r"needs tflite-runtime 99\.1 or later, found 2\.14\.0"):
        bundle.open_verified(
            rewritten(tmp_path / "later", tiny_bundle, signing_key, minimum_runtime="99.1"), trusted
        )
    assert bundle.open_verified(
        rewritten(tmp_path / "older", tiny_bundle, signing_key, minimum_runtime="2.9"), trusted
    )
    with pytest.raises(BundleError, match=r"expected a version such as 2\.14\.0"):
        bundle.open_verified(
            rewritten(tmp_path / "odd", tiny_bundle, signing_key, minimum_runtime="new"), trusted
        )


def test_a_file_no_bundle_has_is_refused(tmp_path, tiny_bundle, signing_key, trusted):
    files = {**tiny_bundle.manifest.files, "../../escape": tiny_bundle.manifest.files[bundle.PLAN]}
    with pytest.raises(BundleError, match="which no bundle of format 3 has"):
        bundle.open_verified(
            rewritten(tmp_path / "extra", tiny_bundle, signing_key, files=files), trusted
        )


def test_offensive_words_are_shipped_as_blocked_and_never_suggested(tiny_bundle):
    assert "shit" in tiny_bundle.blocked
    assert (
        not {suggestion.token for suggestion in Predictor(tiny_bundle).suggest("", "s", 50)}
        & tiny_bundle.blocked
    )


def test_two_bundles_differ_in_what_was_changed(tmp_path, tiny_bundle, signing_key, trusted):
    other = bundle.open_verified(
        rewritten(tmp_path / "other", tiny_bundle, signing_key, release=9), trusted
    )
    change = bundle.difference(tiny_bundle, other)
    assert change.fields == {"release": ("0", "9")}
    assert (
        change.files,
        change.words_added,
        change.words_removed,
        change.weights,
        change.weights_changed,
    ) == ({}, (), (), 0, 0)


def test_weights_that_moved_are_measured(tiny_bundle, tiny_checkpoint):
    moved = {
        **tiny_checkpoint.weights,
        "output_bias": tiny_checkpoint.weights["output_bias"] + np.float32(1),
    }
    checkpoint = weights.to_bytes(replace(tiny_checkpoint, weights=moved), np.float16)
    other = bundle.Bundle(
        tiny_bundle.path,
        tiny_bundle.manifest,
        {**tiny_bundle.content, bundle.CHECKPOINT: checkpoint},
    )
    change = bundle.difference(tiny_bundle, other)
    assert change.weights == pytest.approx(np.sqrt(len(tiny_bundle.vocabulary)), rel=1e-2)
    assert list(change.files) == [bundle.CHECKPOINT]


def lean_copy(opened, folder):
    """What a device has of a release that came as a difference."""
    shutil.copytree(opened.path, folder)
    (folder / bundle.CHECKPOINT).unlink()
    return folder


def test_a_lean_bundle_opens_where_it_is_asked_for_and_nowhere_else(tmp_path, tiny_bundle, trusted):
    folder = lean_copy(tiny_bundle, tmp_path / "lean")
    with pytest.raises(BundleError, match=r"checkpoint.safetensors: cannot be read"):
        bundle.open_verified(folder, trusted)
    lean = bundle.open_verified(folder, trusted, lean=True)
    assert (lean.is_lean, tiny_bundle.is_lean) == (True, False)
    assert lean.predict_graph == tiny_bundle.predict_graph
    whole = bundle.open_verified(tiny_bundle.path, trusted, lean=True)
    assert not whole.is_lean


def test_weights_of_a_lean_bundle_are_those_of_its_codes_and_of_a_whole_one_its_checkpoint_s(
    tmp_path, tiny_bundle, trusted
):
    lean = bundle.open_verified(lean_copy(tiny_bundle, tmp_path / "lean"), trusted, lean=True)
    constants = tiny_bundle.manifest.constants
    for name, exact in tiny_bundle.checkpoint.weights.items():
        np.testing.assert_array_equal(tiny_bundle.weights[name], exact)
        step = 0.0
        if constants[name].type == patch.INT8:
            scale = patch.scale_of(tiny_bundle.predict_graph, constants[name])
            step = float(scale) / constants[name].factor
        assert np.abs(lean.weights[name] - exact).max() <= 0.501 * step
        assert lean.weights[name].shape == exact.shape
    with pytest.raises(CheckpointError, match="not there: this release came as a difference"):
        _ = lean.checkpoint


def test_a_lean_bundle_is_nothing_to_hand_on(tmp_path, tiny_bundle, trusted):
    lean = bundle.open_verified(lean_copy(tiny_bundle, tmp_path / "lean"), trusted, lean=True)
    with pytest.raises(BundleError, match="use the bundle of its maker"):
        bundle.write_zip(lean, tmp_path / "lean.zip")
    assert not (tmp_path / "lean.zip").exists()
    change = bundle.difference(tiny_bundle, lean)
    assert list(change.files) == [bundle.CHECKPOINT]
    assert 0 < change.weights <= patch.rounding(lean.predict_graph, lean.manifest.constants)


def test_a_file_that_is_altered_is_refused_in_a_lean_bundle_too(tmp_path, tiny_bundle, trusted):
    folder = lean_copy(tiny_bundle, tmp_path / "lean")
    (folder / bundle.CHECKPOINT).write_bytes(b"another")
    with pytest.raises(BundleError, match=r"checkpoint.safetensors: expected [0-9]+ bytes, found"):
        bundle.open_verified(folder, trusted, lean=True)


def test_a_bundle_of_format_2_opens_and_is_never_lean(tmp_path, trusted, signing_key):
    """It does not say where its constants are."""
    maker = frozenset({(GOLDEN / "bundle.pub").read_text().strip()})
    old = bundle.open_verified(GOLDEN / "bundle.zip", maker, lean=True)
    assert (old.manifest.format, old.manifest.constants) == (2, None)
    assert old.weights.keys() == old.checkpoint.weights.keys()
    bundle.write(tmp_path / "old", old.manifest, old.content, signing_key)
    assert bundle.open_verified(tmp_path / "old", trusted).encoded == old.encoded
    (tmp_path / "old" / bundle.CHECKPOINT).unlink()
    with pytest.raises(BundleError, match=r"the manifest does not say where predict.tflite has"):
        bundle.open_verified(tmp_path / "old", trusted, lean=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cell_bias": Constant("float32", 1 << 20, 72)}, "cell_bias: expected within the"),
        ({"cell_bias": Constant("float32", 0, 71)}, "cell_bias: expected 71 values, found 72"),
        ({"gate": Constant("float32", 0, 1)}, "gate: expected 1 values, found no such array"),
        ({"cell_bias": Constant("float32", 0, 72)}, r"predict.tflite is not of the graph"),
        (
            {"cell_bias": Constant("int8", 1000, 72, 1071)},
            "constant cell_bias: shares bytes of the file with",
        ),
    ],
)
def test_constants_that_cannot_be_so_are_refused_though_they_were_signed(
    tmp_path, tiny_bundle, signing_key, trusted, change, said
):
    constants = {**tiny_bundle.manifest.constants, **change}
    with pytest.raises(BundleError, match=said):
        bundle.open_verified(
            rewritten(tmp_path / "odd", tiny_bundle, signing_key, constants=constants), trusted
        )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"constants": None}, "expected both constants and graph, or neither"),
        ({"graph": None}, "expected both constants and graph, or neither"),
        ({"graph": "0" * 64}, r"predict.tflite is not of the graph that it names"),
        ({"units": 1 << 40}, "its shapes are not those of its network"),
        ({"embedding": -1}, "its shapes are not those of its network"),
    ],
)
def test_a_manifest_that_contradicts_itself_on_its_graph_is_refused(
    tmp_path, tiny_bundle, signing_key, trusted, changes, said
):
    with pytest.raises(BundleError, match=said):
        bundle.open_verified(
            rewritten(tmp_path / "odd", tiny_bundle, signing_key, **changes), trusted
        )


def test_a_manifest_that_says_nothing_of_its_graph_is_one_that_cannot_be_patched(
    tmp_path, tiny_bundle, signing_key, trusted
):
    rewritten(tmp_path / "plain", tiny_bundle, signing_key, constants=None, graph=None)
    plain = bundle.open_verified(tmp_path / "plain", trusted)
    assert plain.manifest.constants is None
