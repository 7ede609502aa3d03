"""The bundle's files in both interpreters: tflite-runtime, and ai-edge-litert with the very same
bytes.
"""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from device_runtime.interpreter import Graph

PROGRAM = """
import sys
sys.modules["tflite_runtime"] = None  # as on a phone that has only ai-edge-litert
import numpy as np
from device_runtime import interpreter
from device_runtime.bundle import open_verified
from pathlib import Path

assert interpreter.Interpreter.__module__.startswith("ai_edge_litert")
bundle = open_verified(Path(sys.argv[1]), frozenset(sys.argv[2:3]))
train, predict = interpreter.Graph(bundle.train_graph), interpreter.Graph(bundle.predict_graph)
inputs = dict(np.load(sys.argv[3]))
rows = inputs.pop("rows")
found = train.run("train", rows=rows, learning_rate=np.float32(0.3), **bundle.checkpoint.weights)
said = predict.run("predict", **inputs)
arrays = {"loss": found["loss"], "embedding": found["embedding"]}
np.savez(sys.argv[4], log_probs=said["log_probs"], hidden=said["hidden"], **arrays)
"""


@pytest.fixture(scope="module")
def inputs(tiny_bundle, tiny_rows, tiny_plan):
    widths = tiny_bundle.manifest
    state = {
        "hidden": np.zeros((2, widths.embedding), np.float32),
        "cell": np.zeros((2, widths.units), np.float32),
    }
    return {
        "rows": tiny_rows[: tiny_plan.batch_size],
        "token": np.array([1, 14], np.int32),
        **state,
    }


def test_ai_edge_litert_loads_the_same_files_and_computes_the_same(
    tiny_bundle, trusted, inputs, tmp_path
):
    np.savez(tmp_path / "in.npz", **inputs)
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        tiny_bundle.path,
        next(iter(trusted)),
        tmp_path / "in.npz",
        tmp_path / "out.npz",
    ]
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 0, done.stderr
    theirs = np.load(tmp_path / "out.npz")
    rows = inputs.pop("rows")
    trained = Graph(tiny_bundle.train_graph).run(
        "train", rows=rows, learning_rate=np.float32(0.3), **tiny_bundle.checkpoint.weights
    )
    said = Graph(tiny_bundle.predict_graph).run("predict", **inputs)
    np.testing.assert_allclose(theirs["loss"], trained["loss"], rtol=1e-5)
    np.testing.assert_allclose(theirs["embedding"], trained["embedding"], atol=1e-5)
    np.testing.assert_allclose(
        theirs["log_probs"], said["log_probs"], atol=0.02
    )  # int8 kernels differ in how they round activations
    np.testing.assert_allclose(theirs["hidden"], said["hidden"], atol=0.02)


def test_a_graph_turns_away_every_other_thread(tiny_bundle, inputs):
    graph, raised = Graph(tiny_bundle.predict_graph), []

    def use():
        try:
            graph.run(
                "predict", **{name: array for name, array in inputs.items() if name != "rows"}
            )
        except RuntimeError as error:
            raised.append(str(error))

    other = threading.Thread(target=use)
    other.start()
    other.join()
    assert "belongs to the thread it was made in" in raised[0]
