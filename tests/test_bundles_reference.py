"""The bundle in the repository: whoever clones it has a keyboard before any training."""

import hashlib
import subprocess
import sys

from ai_edge_litert import schema_py_generated as schema

from device_runtime import bundle
from device_runtime.predictor import Predictor
from fedboard.run import REFERENCE, open_bundle

# SHA-256 of the four matrices, in the order of their names, as the run left them
INT8_WEIGHTS = "f78cb3f5d99ddb6f2707e5eb79813b4d3e0d803c733609dfbc09a600f9e1dbad"


def test_it_is_whole_and_signed_with_the_key_beside_it_and_knows_where_it_comes_from():
    opened = open_bundle(None, None)
    assert (opened.manifest.network, opened.manifest.lineage.corpus, opened.manifest.release) == (
        "gboard",
        "chitchat",
        451,
    )
    assert opened.manifest.gate["int8_top1_points_lost"] <= 0.2
    assert opened.checkpoint.round == 450


def test_its_graph_holds_the_int8_weights_of_the_run_and_no_shape_that_moves():
    graph = open_bundle(None, None).predict_graph
    model = schema.ModelT.InitFromPackedBuf(bytearray(graph), 0)
    tensors = model.subgraphs[0].tensors
    assert [tensor.name for tensor in tensors if tensor.shapeSignature is not None] == []
    weights = {
        tensor.name.decode(): bytes(model.buffers[tensor.buffer].data)
        for tensor in tensors
        if tensor.type == schema.TensorType.INT8 and model.buffers[tensor.buffer].data is not None
    }
    assert sum(map(len, weights.values())) == 2 * 2010 * 96 + 96 * 670 + 10013 * 96
    joined = b"".join(data for _, data in sorted(weights.items()))
    assert hashlib.sha256(joined).hexdigest() == INT8_WEIGHTS


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
