"""What a .tflite says of itself, read by flatbuffers' own accessors and by Python's zipfile."""

import io
import zipfile
from dataclasses import replace

import flatbuffers
import numpy as np
import pytest
from flatbuffers.number_types import Int8Flags
from flatbuffers.table import Table
from tensorflow.lite.python import schema_py_generated as schema

from conversion import metadata
from device_runtime.errors import BundleError
from device_runtime.interpreter import LOADERS, Graph, installed

INTERPRETERS = [runtime.name for runtime in installed() if runtime.name in LOADERS]
# fields of TFLite Metadata's tables, by their numbers in metadata_schema.fbs
MODEL = {"name": 0, "description": 1, "subgraph_metadata": 3, "min_parser_version": 7}
GRAPH = {"name": 0, "description": 1, "input_tensor_metadata": 2, "output_tensor_metadata": 3}
TENSOR = {"name": 0, "description": 1, "dimension_names": 2, "associated_files": 6}
FILE = {"name": 0, "type": 2}


class Read:
    """A table of a flatbuffer by its fields' names."""

    def __init__(self, buffer, place, fields):
        self.table, self.fields = Table(buffer, place), fields

    def place(self, name):
        return self.table.Offset(4 + 2 * self.fields[name])

    def text(self, name):
        return self.table.String(self.table.Pos + self.place(name)).decode()

    def number(self, name):
        return self.table.Get(Int8Flags, self.table.Pos + self.place(name))

    def members(self, name):
        if not (place := self.place(name)):
            return []
        start = self.table.Vector(place)
        return [start + 4 * each for each in range(self.table.VectorLen(place))]

    def texts(self, name):
        return [self.table.String(place).decode() for place in self.members(name)]

    def tables(self, name, fields):
        places = (self.table.Indirect(place) for place in self.members(name))
        return [Read(self.table.Bytes, place, fields) for place in places]


def said(file):
    """The root of a file's ModelMetadata."""
    model = schema.ModelT.InitFromPackedBuf(bytearray(file), 0)
    [entry] = [each for each in model.metadata if each.name == b"TFLITE_METADATA"]
    data = bytearray(bytes(model.buffers[entry.buffer].data))
    assert data[4:8] == b"M001"
    root = flatbuffers.encode.Get(flatbuffers.packer.uoffset, data, 0)
    return Read(data, root, MODEL)


def ends(graph):
    """Inputs and outputs of a graph as its metadata names them."""
    return tuple(
        [each.text("name") for each in graph.tables(f"{side}_tensor_metadata", TENSOR)]
        for side in ("input", "output")
    )


def signatures(file):
    """Inputs and outputs of each graph, in its order, by the names that its signature has."""
    model = schema.ModelT.InitFromPackedBuf(bytearray(file), 0)
    names = {}
    for each in model.signatureDefs:
        graph = model.subgraphs[each.subgraphIndex]
        names[each.signatureKey.decode()] = tuple(
            [{one.tensorIndex: one.name.decode() for one in side}[place] for place in places]
            for places, side in ((graph.inputs, each.inputs), (graph.outputs, each.outputs))
        )
    return names


@pytest.fixture(scope="module")
def words(tiny_vocabulary):
    return tiny_vocabulary.tokens


@pytest.fixture(scope="module")
def predict(tiny_bundle, words):
    return metadata.add(tiny_bundle.predict_graph, metadata.predict(words))


@pytest.fixture(scope="module")
def train(tiny_bundle):
    return metadata.add(tiny_bundle.train_graph, metadata.train())


def test_each_graph_names_what_it_takes_and_gives_in_the_order_of_its_tensors(predict, train):
    for file, count in ((predict, 1), (train, 3)):
        graphs = said(file).tables("subgraph_metadata", GRAPH)
        assert {graph.text("name"): ends(graph) for graph in graphs} == signatures(file)
        assert len(graphs) == count
        assert all(graph.text("description") for graph in graphs)


def test_every_tensor_is_described_and_has_a_name_for_each_of_its_dimensions(predict, train):
    for file in (predict, train):
        model = schema.ModelT.InitFromPackedBuf(bytearray(file), 0)
        for graph, told in zip(
            model.subgraphs, said(file).tables("subgraph_metadata", GRAPH), strict=True
        ):
            described = [
                each
                for side in ("input", "output")
                for each in told.tables(f"{side}_tensor_metadata", TENSOR)
            ]
            for place, each in zip([*graph.inputs, *graph.outputs], described, strict=True):
                shape = graph.tensors[place].shape
                assert each.text("description")
                assert len(each.texts("dimension_names")) == (0 if shape is None else len(shape))


def test_the_words_of_all_ids_are_a_file_that_scores_and_ids_are_read_by(predict, words):
    [graph] = said(predict).tables("subgraph_metadata", GRAPH)
    labelled = {
        each.text("name"): [
            (file.text("name"), file.number("type"))
            for file in each.tables("associated_files", FILE)
        ]
        for each in graph.tables("output_tensor_metadata", TENSOR)
    }
    assert labelled == {
        "log_probs": [("labels.txt", 2)],  # TENSOR_AXIS_LABELS
        "top_ids": [("labels.txt", 3)],  # TENSOR_VALUE_LABELS
        "top_log_probs": [],
        "hidden": [],
        "cell": [],
    }
    with zipfile.ZipFile(io.BytesIO(predict)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["labels.txt"]
        assert archive.read("labels.txt").decode().split("\n") == [*words, ""]


def test_labels_are_stored_where_the_file_may_be_that_long_else_deflated_else_left_out(
    tiny_bundle, predict, words
):
    about = metadata.predict([f"{word}{'a' * 40}" for word in words])
    stored = metadata.add(tiny_bundle.predict_graph, about)
    deflated = metadata.add(tiny_bundle.predict_graph, about, most=len(stored) - 1)
    without = metadata.add(tiny_bundle.predict_graph, about, most=len(deflated) - 1)
    for file, method in ((stored, zipfile.ZIP_STORED), (deflated, zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(io.BytesIO(file)) as archive:
            assert archive.getinfo("labels.txt").compress_type == method
            assert archive.read("labels.txt").decode().split("\n") == [*about.labels, ""]
    assert len(without) < len(deflated) < len(stored)
    assert not zipfile.is_zipfile(io.BytesIO(without))
    [graph] = said(without).tables("subgraph_metadata", GRAPH)
    outputs = graph.tables("output_tensor_metadata", TENSOR)
    assert not any(each.members("associated_files") for each in outputs)


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_a_file_computes_the_same_to_the_last_bit(
    tiny_bundle, tiny_checkpoint, tiny_rows, predict, train, interpreter
):
    before, after = (Graph(file, 1, interpreter) for file in (tiny_bundle.predict_graph, predict))
    states = [before.start(), after.start()]
    for token in tiny_rows[:6].reshape(-1, 1):
        told, states[0] = before.step("predict", states[0], token=token)
        tells, states[1] = after.step("predict", states[1], token=token)
        for one, other in ((told, tells), tuple(states)):
            assert {name: array.tobytes() for name, array in one.items()} == {
                name: array.tobytes() for name, array in other.items()
            }
    rows = {"rows": tiny_rows[:4], "learning_rate": np.float32(0.3)}
    moved = [
        Graph(file, 1, interpreter).run("train", **rows, **tiny_checkpoint.weights)
        for file in (tiny_bundle.train_graph, train)
    ]
    assert all((moved[0][name] == moved[1][name]).all() for name in moved[0])


def test_every_buffer_stands_where_an_interpreter_can_compute_with_it(predict, train):
    for file in (predict, train):
        model = schema.Model.GetRootAs(file, 0)
        places = [
            model.Buffers(each)._tab.Vector(4)
            for each in range(model.BuffersLength())
            if not model.Buffers(each).DataIsNone()
        ]
        assert len(places) > 3
        assert [place % 16 for place in places] == [0] * len(places)


def test_it_is_the_same_whenever_it_is_added_and_added_again(tiny_bundle, predict, words):
    about = metadata.predict(words)
    assert metadata.add(tiny_bundle.predict_graph, about) == predict
    assert metadata.add(predict, about) == predict


def test_it_follows_from_graph_and_words_and_not_from_the_weights(predict, words):
    model = schema.ModelT.InitFromPackedBuf(bytearray(predict), 0)
    largest = max(model.buffers, key=lambda each: 0 if each.data is None else len(each.data))
    codes = bytes(largest.data)
    other = predict.replace(codes, bytes(len(codes)))  # a checkpoint of zeros
    assert metadata.add(other, metadata.predict(words)) == other


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"labels": ("one", "two")}, "2 labels for log_probs, expected 38"),
        ({"labels": ("a\nb",) * 38}, "a label with a line end"),
        ({"signatures": {}}, "a signature 'predict'"),
        ({"tensors": {}}, "a tensor 'cell'"),
        (
            {"tensors": {"cell": metadata.Tensor("cells", ("text",))}},
            r"cell of shape \[1, 24\], expected 1 dimensions",
        ),
    ],
)
def test_what_does_not_fit_the_graph_is_refused_by_name(tiny_bundle, words, changes, problem):
    about = replace(metadata.predict(words), **changes)
    with pytest.raises(BundleError, match=problem):
        metadata.add(tiny_bundle.predict_graph, about)
