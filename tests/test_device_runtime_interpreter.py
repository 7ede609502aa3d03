"""The bundle's files in both interpreters: which one runs, and that both say the same."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from device_runtime import interpreter
from device_runtime.errors import RunError
from device_runtime.interpreter import LOADERS, Graph, Runtime, chosen, installed

ROOT = Path(__file__).parents[1]
LITERT, TFLITE = Runtime("ai-edge-litert", "2.3.0"), Runtime("tflite-runtime", "2.14.0")
both = pytest.mark.skipif(len(installed()) < 2, reason="needs both interpreters: make setup")


@pytest.fixture(scope="module")
def rows(tiny_rows, tiny_plan):
    return tiny_rows[: tiny_plan.batch_size]


def test_the_faster_interpreter_runs_wherever_it_is_installed(monkeypatch):
    monkeypatch.delenv(interpreter.CHOICE, raising=False)
    assert [runtime.name for runtime in installed()] == [
        name for name in LOADERS if name in {runtime.name for runtime in installed()}
    ]
    assert chosen(runtimes=[LITERT, TFLITE]) == LITERT
    assert chosen(runtimes=[TFLITE]) == TFLITE


def test_the_environment_names_another_and_an_argument_goes_before_it(monkeypatch):
    monkeypatch.setenv(interpreter.CHOICE, "tflite-runtime")
    assert chosen(runtimes=[LITERT, TFLITE]) == TFLITE
    assert chosen("ai-edge-litert", [LITERT, TFLITE]) == LITERT


def test_one_that_is_not_installed_is_said_with_what_there_is(monkeypatch):
    monkeypatch.delenv(interpreter.CHOICE, raising=False)
    with pytest.raises(RunError, match=r"expected ai-edge-litert, found tflite-runtime 2\.14\.0; "):
        chosen("ai-edge-litert", [TFLITE])
    with pytest.raises(RunError, match="expected ai-edge-litert or tflite-runtime, found none"):
        chosen(runtimes=[])


@pytest.mark.parametrize(
    ("python", "named", "told"),
    [
        ((3, 11), None, "fedboard[device]"),
        ((3, 14), None, "fedboard[device]"),
        ((3, 11), "tflite-runtime", "fedboard[device]"),
        ((3, 12), "tflite-runtime", "name ai-edge-litert or tflite-runtime, or unset"),
        ((3, 12), "ai-edge-litert", "fedboard[litert]"),
        ((3, 11), "onnx", "name ai-edge-litert or tflite-runtime, or unset"),
    ],
)
def test_the_extra_that_brings_a_missing_one_on_this_python_is_named(
    monkeypatch, python, named, told
):
    monkeypatch.delenv(interpreter.CHOICE, raising=False)
    monkeypatch.setattr(interpreter.sys, "version_info", python)
    with pytest.raises(RunError) as refused:
        chosen(named, [])
    assert told in str(refused.value)


def test_one_that_cannot_be_imported_is_said_in_one_line(monkeypatch):
    def broken():
        raise ImportError("numpy.core.multiarray failed to import")

    monkeypatch.setitem(LOADERS, "tflite-runtime", broken)
    with pytest.raises(RunError, match=r"tflite-runtime 0\.0 cannot be imported with NumPy") as one:
        interpreter.load(Runtime("tflite-runtime", "0.0"))
    assert str(one.value).endswith("pip install 'fedboard[litert]'")


def test_the_environment_variable_reaches_a_process_and_the_graph_says_what_it_runs_on(
    tiny_bundle, trusted
):
    program = (
        "import sys\nfrom pathlib import Path\nfrom device_runtime.bundle import open_verified\n"
        "from device_runtime.interpreter import Graph\n"
        "bundle = open_verified(Path(sys.argv[1]), frozenset(sys.argv[2:]))\n"
        "print(Graph(bundle.predict_graph).runtime)"
    )
    for runtime in installed():
        done = subprocess.run(
            [sys.executable, "-c", program, str(tiny_bundle.path), *trusted],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, interpreter.CHOICE: runtime.name},
        )
        assert done.stdout.strip() == str(runtime), done.stderr


@both
def test_both_interpreters_train_alike(tiny_bundle, rows):
    weights = tiny_bundle.checkpoint.weights
    one, other = (
        Graph(tiny_bundle.train_graph, interpreter=name).run(
            "train", rows=rows, learning_rate=np.float32(0.3), **weights
        )
        for name in LOADERS
    )
    np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-5)
    np.testing.assert_allclose(one["embedding"], other["embedding"], atol=1e-5)


@both
def test_both_interpreters_predict_alike_for_two_texts_side_by_side(tiny_bundle):
    token, answers = np.array([1, 14], np.int32), []
    for name in LOADERS:
        graph = Graph(tiny_bundle.predict_graph, interpreter=name)
        answers.append(graph.step("predict", graph.start(rows=2), token=token))
    (one, after_one), (other, after_other) = answers
    assert one["log_probs"].shape == (2, len(tiny_bundle.vocabulary))
    # int8 kernels differ in how they round activations
    np.testing.assert_allclose(one["log_probs"], other["log_probs"], atol=0.02)
    np.testing.assert_allclose(after_one["hidden"], after_other["hidden"], atol=0.02)


def test_the_state_before_the_first_token_is_zeros_of_what_a_signature_takes_and_gives_back(
    tiny_bundle,
):
    size = tiny_bundle.manifest
    for graph, signature in (("predict", "predict"), ("train", "step")):
        state = Graph(getattr(tiny_bundle, f"{graph}_graph")).start(signature, rows=3)
        shapes = {name: array.shape for name, array in state.items()}
        assert shapes == {"hidden": (3, size.embedding), "cell": (3, size.units)}
        assert not any(array.any() for array in state.values())


def test_a_step_gives_the_state_apart_from_the_rest(tiny_bundle):
    graph = Graph(tiny_bundle.predict_graph)
    results, state = graph.step("predict", graph.start(), token=np.array([1], np.int32))
    assert set(results) == {"log_probs", "top_ids", "top_log_probs"}
    assert all(array.any() for array in state.values())


def test_a_graph_turns_away_every_other_thread(tiny_bundle):
    graph, raised = Graph(tiny_bundle.predict_graph), []

    def use():
        try:
            graph.step("predict", graph.start(), token=np.array([1], np.int32))
        except RuntimeError as error:
            raised.append(str(error))

    other = threading.Thread(target=use)
    other.start()
    other.join()
    assert "belongs to the thread it was made in" in raised[0]


def test_the_first_run_of_a_process_writes_nothing_and_hides_nothing(tiny_bundle):
    script = f"""
import os
from pathlib import Path
import numpy as np
from device_runtime import interpreter
graph = interpreter.Graph(Path({str(tiny_bundle.path / "predict.tflite")!r}).read_bytes())
graph.step("predict", graph.start(), token=np.array([1], np.int32))
with interpreter._without(b"noise\\n"):
    os.write(2, b"noise\\na warning\\n")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "a warning\n")


def test_the_first_runs_of_several_threads_leave_standard_error_as_it_was(tiny_bundle):
    script = f"""
import os, threading
from pathlib import Path
import numpy as np
from device_runtime import interpreter
data = Path({str(tiny_bundle.path / "predict.tflite")!r}).read_bytes()
gate = threading.Barrier(8)
def work():
    graph = interpreter.Graph(data)
    gate.wait()
    graph.step("predict", graph.start(), token=np.array([1], np.int32))
threads = [threading.Thread(target=work) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
os.write(2, b"still here\\n")
"""
    environment = {name: value for name, value in os.environ.items() if name != interpreter.CHOICE}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "still here\n")


def test_a_process_without_standard_error_still_runs_its_graphs(tiny_bundle):
    script = f"""
import os
from pathlib import Path
import numpy as np
from device_runtime import interpreter
os.close(2)
graph = interpreter.Graph(Path({str(tiny_bundle.path / "predict.tflite")!r}).read_bytes())
results, _ = graph.step("predict", graph.start(), token=np.array([1], np.int32))
print(sorted(results))
"""
    environment = {name: value for name, value in os.environ.items() if name != interpreter.CHOICE}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    assert "log_probs" in done.stdout
