import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conversion import export, gate, int8, metadata, parity
from conversion.package import Parts, package
from conversion.scoring import bundle_engine
from device_runtime import bundle
from device_runtime.errors import BundleError
from device_runtime.examples import batches, rows
from device_runtime.home import DeviceConfig, Home
from device_runtime.interpreter import Graph
from device_runtime.keyboard import Keyboard, accept
from device_runtime.predictor import Predictor
from device_runtime.text import BOS, tokenise
from device_runtime.weights import Checkpoint, as_sent, digest, to_bytes
from device_runtime.wire import Plan
from model import network, training
from model.corpus import Utterance
from model.evaluation import evaluate, network_engine
from model.pieces import Decoder
from model.vocabulary import build_unigram
from tests.four_languages import SENTENCES

GOLDEN = Path(__file__).parent / "golden"
INT8 = 9  # TensorType in TFLite's schema
SUBJECTS = ("i", "you", "we", "they")
VERBS = ("will see", "like", "want to call", "do not know", "can hear")


@pytest.fixture(scope="module")
def golden_bundle():
    """The bundle of this tiny world as it was when the predicting graph had dynamic shapes."""
    key = (GOLDEN / "bundle.pub").read_text().strip()
    return bundle.open_verified(GOLDEN / "bundle.zip", frozenset({key}))


@pytest.fixture(scope="module")
def fifty(tiny_rows, tiny_plan):
    return [
        batch
        for batch, _ in zip(
            batches(tiny_rows, tiny_plan.batch_size, 9, np.random.default_rng(0)),
            range(50),
            strict=False,
        )
    ]


def test_train_graph_follows_gradient_tape_for_fifty_steps(
    tiny_bundle, tiny_checkpoint, fifty, tiny_plan
):
    weights_apart, loss_apart = parity.training_difference(
        tiny_bundle.train_graph, tiny_checkpoint.weights, fifty, tiny_plan
    )
    assert len(fifty) == 50
    assert weights_apart < 1e-4
    assert loss_apart < 1e-4


def test_fifty_steps_move_the_weights_so_that_parity_means_something(
    tiny_bundle, tiny_checkpoint, fifty
):
    graph, weights = Graph(tiny_bundle.train_graph), tiny_checkpoint.weights
    for batch in fifty:
        result = graph.run("train", rows=batch, learning_rate=np.float32(0.3), **weights)
        weights = {name: result[name] for name in weights}
    assert all(
        np.abs(weights[name] - before).max() > 0.01
        for name, before in tiny_checkpoint.weights.items()
    )


def test_parity_sees_a_wrong_gradient(monkeypatch, tiny_checkpoint, tiny_plan, fifty):
    right = training.loss_and_gradients

    def wrong(*arguments, **options):
        loss, count, gradients = right(*arguments, **options)
        return loss, count, {**gradients, "projection": gradients["projection"] * 1.01}

    monkeypatch.setattr(training, "loss_and_gradients", wrong)
    graph = export.train_graph(tiny_checkpoint.weights, tiny_plan)
    apart = parity.training_difference(graph, tiny_checkpoint.weights, fifty, tiny_plan)
    assert gate.Gate(50, *apart, int8.Int8(100, 1.0, 0.0, 0.0, 0.1), 1000, 0.1).problems


def test_loss_is_the_same_in_numpy_and_in_the_graph(tiny_bundle, tiny_checkpoint, fifty):
    graph = Graph(tiny_bundle.train_graph)
    for batch in fifty[:5]:
        results = graph.run("evaluate", rows=batch, **tiny_checkpoint.weights)
        assert results["loss"] == pytest.approx(
            network.mean_loss(tiny_checkpoint.weights, batch), abs=1e-5
        )
        assert results["targets"] == np.count_nonzero(batch[:, 1:])


def test_a_batch_of_padding_has_loss_zero_and_moves_nothing(
    tiny_bundle, tiny_checkpoint, tiny_plan
):
    empty = np.zeros((tiny_plan.batch_size, tiny_plan.length + 1), np.int32)
    result = Graph(tiny_bundle.train_graph).run(
        "train", rows=empty, learning_rate=np.float32(1), **tiny_checkpoint.weights
    )
    assert result["loss"] == 0
    assert all((result[name] == before).all() for name, before in tiny_checkpoint.weights.items())


def test_step_of_the_train_graph_predicts_like_the_network(tiny_bundle, tiny_checkpoint):
    weights, ids = tiny_checkpoint.weights, [BOS, 14, 15, 20]
    exact = network.log_probs(weights, network.forward(weights, np.array([ids]))[0])
    graph, hidden, cell = (
        Graph(tiny_bundle.train_graph),
        np.zeros((1, 16), np.float32),
        np.zeros((1, 24), np.float32),
    )
    for token, expected in zip(ids, exact, strict=True):
        result = graph.run(
            "step", token=np.array([token], np.int32), hidden=hidden, cell=cell, **weights
        )
        hidden, cell = result["hidden"], result["cell"]
        np.testing.assert_allclose(result["log_probs"][0], expected, atol=1e-5)


def test_graphs_hold_built_in_operations_only_and_the_same_inputs_give_the_same_bytes(
    tiny_bundle, tiny_checkpoint, tiny_plan
):
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils

    custom = schema.BuiltinOperator.CUSTOM
    for graph in (tiny_bundle.train_graph, tiny_bundle.predict_graph):
        codes = [
            code.builtinCode
            for code in flatbuffer_utils.convert_bytearray_to_object(bytearray(graph)).operatorCodes
        ]
        assert custom not in codes
    train = export.train_graph(tiny_checkpoint.weights, tiny_plan)
    predict = export.predict_graph(as_sent(tiny_checkpoint.weights))
    words = tiny_bundle.vocabulary.tokens
    assert metadata.add(train, metadata.train()) == tiny_bundle.train_graph
    assert metadata.add(predict, metadata.predict(words)) == tiny_bundle.predict_graph


def parsed(graph):
    """The only subgraph of `predict.tflite`, and its buffers."""
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(graph))
    return model.subgraphs[0], model.buffers


def constants(graph):
    """What `predict.tflite` holds as weights: type, shape, scales and bytes of each, sorted."""
    subgraph, buffers = parsed(graph)
    computed = {place for operator in subgraph.operators for place in operator.outputs}
    return sorted(
        (
            tensor.type,
            tuple(tensor.shape),
            tuple([] if tensor.quantization.scale is None else tensor.quantization.scale),
            bytes(buffers[tensor.buffer].data),
        )
        for place, tensor in enumerate(subgraph.tensors)
        if place not in {*computed, *subgraph.inputs}
    )


def test_every_shape_of_the_predicting_graph_is_static(tiny_bundle, golden_bundle):
    dynamic, _ = parsed(golden_bundle.predict_graph)
    assert any(tensor.shapeSignature is not None for tensor in dynamic.tensors)
    static, _ = parsed(tiny_bundle.predict_graph)
    assert [tensor.name for tensor in static.tensors if tensor.shapeSignature is not None] == []


def test_a_static_graph_holds_the_bytes_of_weights_a_dynamic_one_held(
    tiny_checkpoint, golden_bundle
):
    assert golden_bundle.manifest.lineage.checkpoint == digest(to_bytes(tiny_checkpoint))
    static = export.predict_graph(tiny_checkpoint.weights)  # in those days of float32
    before, after = constants(golden_bundle.predict_graph), constants(static)
    assert before == after
    assert sum(len(data) for kind, *_, data in after if kind == INT8) > 2000


def test_a_static_graph_suggests_the_top_three_a_dynamic_one_did(
    tiny_bundle, tiny_checkpoint, golden_bundle
):
    static = export.predict_graph(tiny_checkpoint.weights)
    contexts = [f"{subject} {verb}" for subject in SUBJECTS for verb in VERBS]
    before, after = (
        [Predictor(each).suggest(context) for context in contexts]
        for each in (
            golden_bundle,
            replace(tiny_bundle, content={**tiny_bundle.content, bundle.PREDICT: static}),
        )
    )
    assert before == after
    assert len({suggestions[0].word for suggestions in after}) > 1


def test_a_static_graph_takes_texts_side_by_side(tiny_bundle):
    graph, tokens = Graph(tiny_bundle.predict_graph), np.array([BOS, 14, 20, 21, 22], np.int32)
    together, _ = graph.step("predict", graph.start(rows=5), token=tokens)
    apart = [graph.step("predict", graph.start(), token=token[None])[0] for token in tokens]
    for name, array in together.items():
        np.testing.assert_allclose(
            array, np.concatenate([each[name] for each in apart]), rtol=0, atol=1e-5
        )


def test_a_runtime_that_compiles_graphs_runs_the_static_one(tiny_bundle):
    from ai_edge_litert.compiled_model import CompiledModel

    graph, shapes = Graph(tiny_bundle.predict_graph), tiny_bundle.manifest
    inputs = {**graph.start(), "token": np.array([14], np.int32)}
    model = CompiledModel.from_buffer(tiny_bundle.predict_graph)
    sent = {name: model.create_input_buffer_by_name("predict", name) for name in inputs}
    names = graph.signatures["predict"]["outputs"]
    received = {name: model.create_output_buffer_by_name("predict", name) for name in names}
    for name, buffer in sent.items():
        buffer.write(inputs[name])
    model.run_by_name("predict", sent, received)
    expected = graph.run("predict", **inputs)
    log_probs = received["log_probs"].read(shapes.vocabulary, np.float32)
    np.testing.assert_allclose(log_probs, expected["log_probs"][0], atol=0.02)
    assert received["top_ids"].read(3, np.int32).tolist() == expected["top_ids"][0].tolist()


def test_shipped_int8_graph_scores_close_to_the_float_network(tiny_bundle, tiny_checkpoint):
    sequences = [[BOS, 14, 15], [BOS], [BOS, 20, 21, 22, 23]]
    exact = np.concatenate(list(network_engine(tiny_checkpoint.weights)(sequences)))
    shipped = np.concatenate(list(bundle_engine(tiny_bundle)(sequences)))
    assert shipped.shape == exact.shape == (9, len(tiny_bundle.vocabulary))
    np.testing.assert_allclose(shipped, exact, atol=0.1)
    np.testing.assert_allclose(np.exp(shipped).sum(axis=1), 1, atol=1e-3)


def test_packaging_twice_gives_the_same_files_which_are_those_every_test_uses(
    tmp_path, tiny_bundle, tiny_checkpoint, tiny_vocabulary, tiny_rows, signing_key, tiny_plan
):
    """Where this fails because the export changed, keep the new bundle: `bundle.write_zip` of what
    is packaged here, signed with a key that is then thrown away, and its public half.
    """
    parts = Parts(tiny_checkpoint, tiny_vocabulary, tiny_plan, "tiny")
    for name in ("once", "again"):
        package(tmp_path / name, parts, tiny_rows, signing_key, steps=5)
    once, again = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("once", "again")
    )
    assert once == again
    measured = {bundle.CARD, bundle.MANIFEST, bundle.SIGNATURE}  # rounding differs by machine
    assert {name: data for name, data in once.items() if name not in measured} == {
        name: data for name, data in tiny_bundle.content.items() if name not in measured
    }


def test_a_vocabulary_of_another_run_is_refused_and_nothing_is_written(
    tmp_path, tiny_checkpoint, tiny_vocabulary, tiny_rows, signing_key, tiny_plan
):
    foreign = Checkpoint(tiny_checkpoint.weights, tokenizer="0" * 64)
    with pytest.raises(BundleError, match="package both from one run"):
        package(
            tmp_path / "bundle",
            Parts(foreign, tiny_vocabulary, tiny_plan, "tiny"),
            tiny_rows,
            signing_key,
        )
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_a_bundle_is_never_replaced(tmp_path, tiny_bundle, signing_key):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"meow")
    with pytest.raises(BundleError, match="holds files that are not a bundle"):
        bundle.write(tmp_path / "photos", tiny_bundle.manifest, tiny_bundle.content, signing_key)
    assert [p.name for p in tmp_path.rglob("*")] == ["photos", "cat.jpg"]


def test_writing_over_a_bundle_leaves_one_whole_bundle(tmp_path, tiny_bundle, signing_key, trusted):
    shutil.copytree(tiny_bundle.path, tmp_path / "bundle")
    bundle.write(tmp_path / "bundle", tiny_bundle.manifest, tiny_bundle.content, signing_key)
    assert bundle.open_verified(tmp_path / "bundle", trusted).manifest == tiny_bundle.manifest
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_network_of_pieces_in_four_languages_is_packaged_scored_and_typed_with(
    tmp_path, signing_key, trusted
):
    tokens = [tokenise(text) for text in SENTENCES]
    pieces = build_unigram(tokens, 200)
    plan = Plan(16, 12, 1, 1.0, max_rows=64, clipping_norm=5.0, bits=8)
    spelled = rows([pieces.ids(each) for each in tokens], plan.length)
    arrays = network.initial_weights(network.SIZES["tiny"], pieces, np.random.default_rng(0))
    train = Graph(export.train_graph(arrays, plan))
    for batch in batches(spelled, plan.batch_size, 6, np.random.default_rng(1)):
        rate = np.float32(plan.learning_rate)
        result = train.run("train", rows=batch, learning_rate=rate, **arrays)
        arrays = {name: result[name] for name in arrays}
    checkpoint = Checkpoint(arrays, tokenizer=pieces.hash)
    package(
        tmp_path / "bundle", Parts(checkpoint, pieces, plan, "four"), spelled, signing_key, steps=2
    )
    opened = bundle.open_verified(tmp_path / "bundle", trusted)
    assert opened.vocabulary.of_pieces

    users = {"ann": tuple(Utterance(text, tuple(tokenise(text))) for text in SENTENCES[::40])}
    shipped, exact = (
        evaluate(engine, users, pieces).total
        for engine in (bundle_engine(opened), Decoder(arrays, pieces))
    )
    assert shipped.targets == exact.targets > 0
    assert shipped.nll == pytest.approx(exact.nll, rel=0.05)

    home = Home.create(
        tmp_path / "home", DeviceConfig(trusted=tuple(trusted), bundle=str(opened.path))
    )
    with Keyboard(home, opened) as keyboard:
        for typed in ("我们今", "私はご", "ฉันอยากกิ"):
            offered = [each.word for each in keyboard.suggest(typed)]
            assert offered
            assert all(accept(typed, word).startswith(typed) for word in offered)
        assert keyboard.suggest("i w")[0].word == "want"
        assert "own words are not learned" in keyboard.notice()
        assert keyboard.notice() is None
        keyboard.send("我们今天想吃饭")
    with home.typing_log() as log:
        assert log.read(5) == ["我们今天想吃饭"]
