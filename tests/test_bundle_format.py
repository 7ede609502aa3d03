"""docs/bundle-format.md held to files: whoever writes another reader is tested against the same.

The golden files were written by `package`, `weights.to_bytes`, `codes.encode` and
`signing.sign_text`; the key of the bundle was thrown away.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime import bundle, chain, codes, config, patch, releases, signing, weights
from device_runtime.interpreter import Graph, installed
from device_runtime.weights import digest

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
IDS = (1, 14, 15, 20)
MAKER, ROUND = bytes(range(32)), bytes(range(32, 64))  # private keys of signed.json


@pytest.fixture(scope="module")
def golden():
    return opened(GOLDEN / "tiny-3.zip", GOLDEN / "tiny-3.pub")


@pytest.fixture(scope="module")
def patched(golden):
    checkpoint = weights.from_bytes((GOLDEN / "tiny-3-next.safetensors").read_bytes(), "next")
    return patch.predict(golden.predict_graph, golden.manifest.constants, checkpoint.weights)


@pytest.fixture(scope="module")
def signed():
    table = json.loads((GOLDEN / "signed.json").read_text())
    return {
        purpose: config.from_table(signing.Signed, each, purpose) for purpose, each in table.items()
    }


def opened(path, key):
    return bundle.open_verified(path, frozenset({key.read_text().strip()}))


def vector(name):
    """A value of the table of test vectors, in its row's words."""
    page = (ROOT / "docs" / "bundle-format.md").read_text()
    [row] = [line for line in page.splitlines() if line.startswith(f"| {name} |")]
    return row.split("|")[2].strip().strip("`")


def numbers(name):
    return [float(each) for each in vector(name).split()]


def test_the_golden_bundle_opens_and_is_the_one_of_the_vectors(golden):
    assert golden.manifest.format == 3
    assert digest(golden.encoded) == vector("SHA-256 of `manifest.json` in `tiny-3.zip`")
    assert digest(golden.predict_graph) == vector("SHA-256 of its `predict.tflite`")
    assert golden.manifest.graph == vector("its `graph`")
    assert patch.graph_hash(golden.predict_graph, golden.manifest.constants) == vector(
        "its `graph`"
    )


@pytest.mark.parametrize("runtime", installed(), ids=str)
def test_the_golden_graph_predicts_what_the_vectors_say_before_and_after_a_patch(
    golden, patched, runtime
):
    before, after = (after_ids(file, runtime.name) for file in (golden.predict_graph, patched))
    assert before["top_ids"][0].tolist() == numbers("`top_ids` after the ids 1, 14, 15, 20")
    close(before["top_log_probs"][0], "`top_log_probs` there")
    close(before["log_probs"][0, :5], "`log_probs` of the ids 0 to 4 there")
    assert after["top_ids"][0].tolist() == numbers("patched: `top_ids` after the ids 1, 14, 15, 20")
    close(after["top_log_probs"][0], "patched: `top_log_probs` there")


def after_ids(file, runtime):
    graph = Graph(file, 1, runtime)
    state = graph.start()
    for token in IDS:
        results, state = graph.step("predict", state, token=np.array([token], np.int32))
    return results


def close(values, name):
    np.testing.assert_allclose(values, numbers(name), rtol=0, atol=1e-3)


def test_patched_with_the_next_checkpoint_it_is_the_file_of_the_vectors(patched):
    next_checkpoint = (GOLDEN / "tiny-3-next.safetensors").read_bytes()
    assert digest(next_checkpoint) == vector("SHA-256 of `tiny-3-next.safetensors`")
    assert digest(patched) == vector("SHA-256 of `predict.tflite` patched with it")


def test_the_golden_difference_makes_the_same_file(golden, patched):
    difference = (GOLDEN / "tiny-3-next.fbcd").read_bytes()
    name = "SHA-256 of `tiny-3-next.fbcd`, which makes the same file"
    assert digest(difference) == vector(name)
    expected = vector("SHA-256 of `predict.tflite` patched with it")
    constants = golden.manifest.constants
    assert codes.apply(golden.predict_graph, difference, constants, expected) == patched


def test_the_reference_graph_is_what_its_own_checkpoint_patches():
    """There the embedding is int8, and its scale stands in the file twice."""
    reference = opened(ROOT / "bundles" / "reference", ROOT / "bundles" / "reference.pub")
    constants, other = reference.manifest.constants, reference.checkpoint.weights
    zeros = {name: np.zeros_like(array) for name, array in other.items()}
    blank = patch.predict(reference.predict_graph, constants, zeros)
    again = patch.predict(blank, constants, other)
    name = (
        "SHA-256 of `bundles/reference/predict.tflite`, and of it patched with its own checkpoint"
    )
    assert (len(constants["embedding"].scale_copies), digest(again)) == (1, vector(name))


def test_signed_texts_are_signed_for_their_purpose_as_the_vectors_say(signed):
    names = {"release": "statement", "certificate": "certificate", "link": "link"}
    for purpose, name in names.items():
        key = Ed25519PrivateKey.from_private_bytes(ROUND if purpose == "link" else MAKER)
        each = signed[purpose]
        assert signing.sign_text(key, purpose, each.text.encode()) == each
        assert each.signature == vector(f"signature of the {name}")
        trusted = frozenset({each.signer})
        assert signing.text_of(each, purpose, trusted) == each.text.encode()
        others = names.keys() - {purpose}
        assert [signing.text_of(each, other, trusted) for other in others] == [None, None]


def test_what_was_signed_reads_as_the_page_says(golden, signed):
    kinds = {
        "release": releases.Statement,
        "certificate": chain.Certificate,
        "link": chain.Link,
    }
    read = {
        purpose: config.from_json(kind, signed[purpose].text.encode(), purpose)
        for purpose, kind in kinds.items()
    }
    statement, certificate, link = read["release"], read["certificate"], read["link"]
    assert statement.manifest == digest(golden.encoded)
    assert certificate.plan == golden.manifest.files[bundle.PLAN].sha256
    assert link.certificate == digest(signed["certificate"].text.encode())
    assert certificate.round_key == signed["link"].signer
    assert link.checkpoint == vector("SHA-256 of `tiny-3-next.safetensors`")
    assert link.parent == golden.manifest.files[bundle.CHECKPOINT].sha256
    page = (ROOT / "docs" / "bundle-format.md").read_text()
    for record in read.values():
        assert [name for name in vars(record) if f"`{name}`" not in page] == []


def test_a_device_is_offered_a_release_from_the_share_on_that_the_vectors_say(golden):
    name = "least share at which a device with the secret 00 01 ... 1f is offered `tiny-3.zip`"
    least = int(vector(name))
    manifest = digest(golden.encoded)
    offered = [
        releases.is_offered(releases.Statement(3, manifest, "default", share, 1), bytes(range(32)))
        for share in (least - 1, least)
    ]
    assert offered == [False, True]
