"""The bundle in the repository: whoever clones it has a keyboard before any training."""

import io
import subprocess
import sys
import zipfile

from ai_edge_litert import schema_py_generated as schema

from device_runtime import bundle, patch
from device_runtime.predictor import Predictor
from fedboard.run import REFERENCE, open_bundle

# SHA-256 of the weights that the run left, as devices get them
CHECKPOINT = "6934c926c1b74bc4310398f9ba564242093848b73652406c3762db4f8246fc79"


def test_it_is_whole_and_signed_with_the_key_beside_it_and_knows_where_it_comes_from():
    opened = open_bundle(None, None)
    assert (opened.manifest.network, opened.manifest.lineage.corpus, opened.manifest.release) == (
        "gboard",
        "chitchat",
        550,
    )
    assert opened.manifest.gate["int8_top1_points_lost"] <= 0.2
    assert opened.checkpoint.round == 550


def test_its_graph_holds_the_weights_of_the_run_and_no_shape_that_moves():
    opened = open_bundle(None, None)
    assert opened.manifest.files[bundle.CHECKPOINT].sha256 == CHECKPOINT
    constants, graph = opened.manifest.constants, opened.predict_graph
    assert patch.predict(graph, constants, opened.checkpoint.weights) == graph
    assert patch.graph_hash(graph, constants) == opened.manifest.graph
    int8 = [each.values for each in constants.values() if each.type == patch.INT8]
    assert sum(int8) == 2 * 2010 * 96 + 96 * 670 + 10013 * 96
    model = schema.ModelT.InitFromPackedBuf(bytearray(graph), 0)
    tensors = model.subgraphs[0].tensors
    assert [tensor.name for tensor in tensors if tensor.shapeSignature is not None] == []


def test_any_zip_reader_takes_the_words_of_its_ids_out_of_its_graph():
    opened = open_bundle(None, None)
    with zipfile.ZipFile(io.BytesIO(opened.predict_graph)) as archive:
        words = archive.read("labels.txt").decode().splitlines()
    assert words == opened.vocabulary.tokens


def test_what_a_phone_downloads_first_is_under_four_and_a_half_megabytes():
    sizes = [(REFERENCE / name).stat().st_size for name in (bundle.PREDICT, bundle.CHECKPOINT)]
    assert sizes[0] <= 1_500_000
    assert sum(sizes) < 4_500_000


def test_it_suggests_sensibly():
    predictor = Predictor(open_bundle(None, None))
    assert "are" in [suggestion.word for suggestion in predictor.suggest("how")]
    assert "you" in [suggestion.word for suggestion in predictor.suggest("how are")]
    assert predictor.suggest("good", "mor")[0].word == "morning"


def test_predict_uses_it_when_no_bundle_is_named(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "fedboard.cli", "predict"],
        input="how are \n",
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0
    assert "you" in done.stdout.splitlines()[-1]
