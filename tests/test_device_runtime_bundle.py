import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device_runtime import bundle, interpreter, weights
from device_runtime.errors import BundleError
from device_runtime.predictor import Predictor


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
        not {suggestion.word for suggestion in Predictor(tiny_bundle).suggest("", "s", 50)}
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
