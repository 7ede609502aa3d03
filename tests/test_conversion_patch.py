"""The patch and TensorFlow's converter, held together byte for byte."""

import numpy as np
import pytest

from conversion import constants, export, metadata, package
from conversion.package import Parts
from device_runtime import bundle, patch
from device_runtime.errors import BundleError
from device_runtime.interpreter import Graph
from device_runtime.weights import Checkpoint, as_sent
from model import network

WORDS = {"tiny": 38, "small": 1004, "gboard": 10_004}


def drawn(size, words, rng, draw):
    """Weights of a size, each array by draw(rng, shape)."""
    embedding, units = network.SIZES[size].embedding, network.SIZES[size].units
    shapes = {
        "cell_bias": (3 * units,),
        "embedding": (words, embedding),
        "input_kernel": (3 * units, embedding),
        "output_bias": (words,),
        "projection": (embedding, units),
        "recurrent_kernel": (3 * units, embedding),
    }
    return as_sent({name: draw(rng, shape).astype(np.float32) for name, shape in shapes.items()})


def normal(rng, shape):
    return rng.normal(size=shape) * rng.uniform(0.01, 3)


def ties(rng, shape):
    """The largest is 127 steps, and half of the others lie halfway between two of them."""
    halves = rng.integers(-253, 254, shape) / 2
    halves.reshape(-1)[rng.integers(halves.size)] = 127
    return halves / 128


def near_ties(rng, shape):
    """Neighbours of what lies halfway, where the scale is no round number."""
    largest = float(np.float16(rng.uniform(0.1, 3)))
    halves = (rng.integers(-126, 126, shape) + 0.5) * largest / 127
    halves.reshape(-1)[rng.integers(halves.size)] = -largest
    return halves


def outlier(rng, shape):
    array = rng.normal(size=shape)
    array.reshape(-1)[rng.integers(array.size)] = rng.normal() * 6000
    return array


def least(rng, shape):
    """Of the smallest magnitudes that float16 has: below where the converter's scale ends."""
    return rng.integers(-9, 10, shape) * 2.0**-24


def greatest(rng, shape):
    return rng.uniform(-65_504, 65_504, shape)


def one_sided(rng, shape):
    return -np.abs(rng.normal(size=shape))


@pytest.fixture(scope="module")
def exported():
    """A patchable file of each size, whose weights have nothing to do with those of the tests."""
    rng = np.random.default_rng(11)
    return {
        size: export.patchable(drawn(size, words, rng, normal)) for size, words in WORDS.items()
    }


@pytest.mark.parametrize(
    ("size", "draw"),
    [
        *(
            ("tiny", draw)
            for draw in (normal, ties, near_ties, outlier, least, greatest, one_sided)
        ),
        *(("small", draw) for draw in (normal, ties, near_ties, outlier, greatest)),
        *(("gboard", draw) for draw in (normal, near_ties)),
    ],
)
def test_a_patched_file_is_the_converter_s_byte_for_byte(exported, size, draw):
    weights = drawn(size, WORDS[size], np.random.default_rng(5), draw)
    template = exported[size]
    assert patch.predict(template.file, template.constants, weights) == export.predict_graph(
        weights
    )


def test_weights_that_were_trained_are_patched_as_the_converter_quantises_them(
    tiny_bundle, tiny_rows, tiny_plan
):
    graph, weights = Graph(tiny_bundle.train_graph), tiny_bundle.weights
    about = metadata.predict(tiny_bundle.vocabulary.tokens)
    for start in range(0, 200, tiny_plan.batch_size):
        rows = tiny_rows[start : start + tiny_plan.batch_size]
        result = graph.run("train", rows=rows, learning_rate=np.float32(0.3), **weights)
        weights = {name: result[name] for name in weights}
        if start % 40 == 0:
            devices = as_sent(weights)
            patched = patch.predict(
                tiny_bundle.predict_graph, tiny_bundle.manifest.constants, devices
            )
            assert patched == metadata.add(export.predict_graph(devices), about)
            assert patched != tiny_bundle.predict_graph


def test_patching_the_same_weights_changes_no_byte(exported):
    for size, words in WORDS.items():
        weights = drawn(size, words, np.random.default_rng(11), normal)
        once = patch.predict(exported[size].file, exported[size].constants, weights)
        assert patch.predict(once, exported[size].constants, weights) == once


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_zeros_and_equal_arrays_neither_fold_nor_share_and_can_be_patched_later(exported, size):
    """The converter keeps equal arrays once, and a file of those could never be patched."""
    rng, words = np.random.default_rng(5), WORDS[size]
    degenerate = drawn(size, words, rng, lambda rng, shape: np.zeros(shape))
    folded = export.predict_graph(degenerate)
    with pytest.raises(BundleError, match=r"predict.tflite: .*: expected as one constant of"):
        constants.located(folded, degenerate)
    template = export.patchable(degenerate)
    assert template.constants == exported[size].constants
    assert not any(
        array.any()
        for array in patch.weights_in(
            template.file,
            template.constants,
            {name: array.shape for name, array in degenerate.items()},
        ).values()
    )
    later = drawn(size, words, rng, normal)
    assert patch.predict(template.file, template.constants, later) == export.predict_graph(later)
    step, _ = Graph(template.file).step(
        "predict", Graph(template.file).start(), token=np.array([1], np.int32)
    )
    np.testing.assert_allclose(step["log_probs"], -np.log(words), rtol=1e-5)


def test_graphs_of_one_size_have_one_hash_whatever_their_weights_and_other_sizes_another(exported):
    hashes = {patch.graph_hash(each.file, each.constants) for each in exported.values()}
    assert len(hashes) == len(WORDS)
    again = export.patchable(drawn("tiny", WORDS["tiny"], np.random.default_rng(12), normal))
    assert patch.graph_hash(again.file, again.constants) in hashes


def test_an_export_that_a_patch_does_not_follow_is_refused(monkeypatch, tiny_checkpoint):
    right = patch.quantised
    monkeypatch.setattr(patch, "quantised", lambda values, scale: right(values, scale) // 2 * 2)
    with pytest.raises(BundleError, match=r"predict.tflite: \w+: expected as one constant"):
        export.patchable(tiny_checkpoint.weights)


def test_what_else_is_done_to_a_file_may_not_follow_from_its_weights(tiny_checkpoint):
    finished = export.patchable(tiny_checkpoint.weights, lambda file: file + b"made by")
    assert finished.file.endswith(b"made by")
    with pytest.raises(BundleError, match="it is not the file the converter makes of them"):
        export.patchable(tiny_checkpoint.weights, lambda file: file + file[2000:2001])


def test_a_package_holds_the_float16_weights_in_both_files_and_says_where(
    tmp_path, tiny_vocabulary, tiny_plan, tiny_rows, signing_key, trusted
):
    """Weights which float16 does not have would give other codes: thirds and a little."""
    rng = np.random.default_rng(2)
    weights = network.initial_weights(network.SIZES["tiny"], tiny_vocabulary, rng)
    weights |= {"projection": weights["projection"] / 3 + np.float32(1e-4)}
    checkpoint = Checkpoint(weights, tokenizer=tiny_vocabulary.hash)
    package.package(
        tmp_path / "bundle",
        Parts(checkpoint, tiny_vocabulary, tiny_plan, "tiny"),
        tiny_rows,
        signing_key,
        steps=2,
    )
    opened = bundle.open_verified(tmp_path / "bundle", trusted)
    manifest, sent = opened.manifest, as_sent(weights)
    assert opened.checkpoint.weights["projection"].tolist() == sent["projection"].tolist()
    about = metadata.predict(tiny_vocabulary.tokens)
    assert opened.predict_graph == metadata.add(export.predict_graph(sent), about)
    assert patch.predict(opened.predict_graph, manifest.constants, sent) == opened.predict_graph
    assert manifest.graph == patch.graph_hash(opened.predict_graph, manifest.constants)
    assert manifest.format == 3
    (tmp_path / "bundle" / bundle.CHECKPOINT).unlink()
    lean = bundle.open_verified(tmp_path / "bundle", trusted, lean=True)
    apart = np.concatenate([(lean.weights[name] - sent[name]).reshape(-1) for name in sent])
    assert 0 < np.linalg.norm(apart) <= patch.rounding(lean.predict_graph, manifest.constants)
