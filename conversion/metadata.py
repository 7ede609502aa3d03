"""Metadata: what a .tflite says of itself: names, shapes and labels that any TFLite tool reads.

TFLite Metadata is a second flatbuffer, a `ModelMetadata`, in the file's entry TFLITE_METADATA, and
a zip of the files it names (here the words that ids stand for), appended to the end of the file.
All of it follows from the graph and the vocabulary, never from the weights: so whoever patches new
weights into a file keeps it as it is.
Source: tensorflow/tflite-support, metadata_schema.fbs, version 1.1.0, whose fields are numbered in
the order they stand there.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import flatbuffers
import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from conversion.gate import PREDICT_BYTES
from device_runtime.errors import BundleError

LABELS = "labels.txt"
AXIS_LABELS, VALUE_LABELS = 2, 3  # AssociatedFileType: what the lines of LABELS stand for
ENTRY = "TFLITE_METADATA"
CONVERTER = "CONVERSION_METADATA"  # of the converter for itself; no reader needs it
MODEL, METADATA = b"TFL3", b"M001"  # file identifiers
PARSER = "1.0.0"  # the oldest parser that knows all that is written here
STORED, DEFLATED = 0, 8  # methods of a zip
DAY = 33  # 1980-01-01, the first a zip can name
ALIGNMENT = 16  # bytes; interpreters map the buffers into memory and compute with them there
LICENSE = "Apache-2.0"


@dataclass(frozen=True)
class Tensor:
    """What a signature takes or gives under one name."""

    description: str
    axes: tuple[str, ...]  # a name for each dimension
    labels: int = 0  # what the labels stand for; 0: none


@dataclass(frozen=True)
class About:
    """What is to be said of a file."""

    name: str
    description: str
    signatures: dict[str, str]  # what each does
    tensors: dict[str, Tensor]  # by the name that signatures call it
    labels: tuple[str, ...] = field(default=(), repr=False)  # the words of all ids, in their order


HIDDEN = Tensor(
    "what the network remembers of the text: zeros before its first token", ("text", "embedding")
)
CELL = Tensor("the LSTM's cells: zeros before the first token of a text", ("text", "unit"))
TOKEN = Tensor("id of the text's next token; a text starts with id 1", ("text",))
LOG_PROBS = Tensor("log-probability of each id as the next token", ("text", "id"), AXIS_LABELS)
LOSS = Tensor("mean over the targets, in nats", ())
TARGETS = Tensor("ids of rows that are predicted: all but the first of a row and padding", ())
ROWS = Tensor(
    "ids of tokens, 0 is padding: all but the last are read, all but the first predicted",
    ("row", "position"),
)
WEIGHTS = {
    "cell_bias": Tensor("input gate, output gate, candidate", ("gate",)),
    "embedding": Tensor(
        "of each id: read times the square root of its width, and scored with", ("id", "embedding")
    ),
    "input_kernel": Tensor("from the token's embedding to the gates", ("gate", "embedding")),
    "output_bias": Tensor("of each id's score", ("id",)),
    "projection": Tensor("from the cells to the hidden state", ("embedding", "unit")),
    "recurrent_kernel": Tensor("from the hidden state to the gates", ("gate", "embedding")),
}


def predict(words: Sequence[str]) -> About:
    """Of `predict.tflite`; `words` are the texts of all ids."""
    return About(
        "Fedboard next word",
        "What follows in a text, token by token: a CIFG-LSTM in int8.",
        {"predict": "One token further: state and token in, next words and state out."},
        {
            "token": TOKEN,
            "hidden": HIDDEN,
            "cell": CELL,
            "log_probs": LOG_PROBS,
            "top_ids": Tensor("the likeliest words, best first", ("text", "rank"), VALUE_LABELS),
            "top_log_probs": Tensor("their log-probabilities", ("text", "rank")),
        },
        tuple(words),
    )


def train() -> About:
    """Of `train.tflite`."""
    return About(
        "Fedboard fine-tuning",
        "Trains and scores the weights it is given; holds none.",
        {
            "train": "One step of SGD: weights in, weights out.",
            "evaluate": "The loss of some rows.",
            "step": "One token further: state, token and weights in, scores and state out.",
        },
        {
            "rows": ROWS,
            "learning_rate": Tensor("of the step", ()),
            "loss": LOSS,
            "targets": TARGETS,
            "token": TOKEN,
            "hidden": HIDDEN,
            "cell": CELL,
            "log_probs": Tensor(LOG_PROBS.description, LOG_PROBS.axes),
            **WEIGHTS,
        },
    )


def add(file: bytes, about: About, most: int = PREDICT_BYTES) -> bytes:
    """The file with its metadata, and without what no reader needs. It computes the same.

    The labels are stored as they are, which every reader takes, where the file stays within `most`
    bytes with them. Else they are deflated, which some readers of TFLite Metadata refuse, and left
    out where that is too much as well. Raises BundleError where `about` does not fit the graph.
    """
    graph = _graph(file, about)
    if not about.labels:
        return graph
    text = "".join(f"{label}\n" for label in about.labels).encode()
    for method in (STORED, DEFLATED):
        archive = _packed(len(graph), text, method)
        if len(graph) + len(archive) <= most:
            return graph + archive
    return _graph(file, replace(about, labels=()))


def _graph(file: bytes, about: About) -> bytes:
    """The flatbuffer alone, packed anew with what is said of it."""
    model = schema.ModelT.InitFromPackedBuf(bytearray(file), 0)
    said = schema.BufferT()
    said.data = np.frombuffer(_described(model, about), np.uint8)
    _strip(model)
    entry = schema.MetadataT()
    entry.name, entry.buffer = ENTRY, len(model.buffers)
    model.buffers.append(said)
    model.metadata.append(entry)
    builder = _Builder(len(file))
    builder.Finish(model.Pack(builder), MODEL)
    return bytes(builder.Output())


class _Builder(flatbuffers.Builder):
    """Keeps buffers aligned, and writes equal shapes and lists of tensors once.

    Bytes and floats are never shared: constants of equal values are still patched apart.
    """

    def __init__(self, size: int):
        super().__init__(size)
        self._lists: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        if x.dtype == np.uint8:
            return self._bytes(x)
        if x.dtype.kind != "i":
            return super().CreateNumpyVector(x)
        key = (x.dtype.str, x.tobytes())
        if key not in self._lists:
            self._lists[key] = super().CreateNumpyVector(x)
        return self._lists[key]

    def _bytes(self, x: np.ndarray) -> int:
        self.StartVector(1, x.size, ALIGNMENT)
        self.head -= x.size
        self.Bytes[self.head : self.head + x.size] = x.tobytes()
        self.vectorNumElems = x.size
        return self.EndVector()


def _strip(model: Any) -> None:
    """Take away the names of tensors inside, quantisation that says nothing, empty buffers but one,
    and the converter's notes.
    """
    model.metadata = [
        entry for entry in model.metadata or () if _text(entry.name) not in (CONVERTER, ENTRY)
    ]
    kept = [model.buffers[0]]  # by convention the empty one
    places: dict[int, int] = {}

    def moved(place: int) -> int:
        data = model.buffers[place].data
        if data is None or not len(data):
            return 0
        if place not in places:
            places[place] = len(kept)
            kept.append(model.buffers[place])
        return places[place]

    for graph in model.subgraphs:
        ends = {*graph.inputs, *graph.outputs}
        for place, tensor in enumerate(graph.tensors):
            tensor.buffer = moved(tensor.buffer)
            if place not in ends:
                tensor.name = None
            if tensor.quantization is not None and tensor.quantization.scale is None:
                tensor.quantization = None
    for entry in model.metadata:
        entry.buffer = moved(entry.buffer)
    model.buffers = kept


def _packed(offset: int, text: bytes, method: int) -> bytes:
    """A zip with LABELS alone, to stand at `offset` of the file, from whose start it counts.

    Source: APPNOTE.TXT of PKWARE, 4.3.7, 4.3.12 and 4.3.16.
    """
    name, data = LABELS.encode(), text if method == STORED else _deflated(text)
    common = (20, 0, method, 0, DAY, zlib.crc32(text), len(data), len(text), len(name), 0)
    local = struct.pack("<4s5H3I2H", b"PK\3\4", *common) + name
    listed = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, *common, 0, 0, 0, 0, offset) + name
    place = offset + len(local) + len(data)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(listed), place, 0)
    return local + data + listed + end


def _deflated(text: bytes) -> bytes:
    """The shortest of what zlib makes with more and less memory, which decides on its blocks."""
    tries = []
    for memory in range(1, 10):
        compressor = zlib.compressobj(9, zlib.DEFLATED, -15, memory)
        tries.append(compressor.compress(text) + compressor.flush())
    return min(tries, key=len)


def _described(model: Any, about: About) -> bytes:
    """The `ModelMetadata` of a graph."""
    names = {definition.subgraphIndex: definition for definition in model.signatureDefs or ()}
    if any("\n" in label for label in about.labels):
        raise _misfit(about, "a label with a line end", "one line for each id")
    builder = flatbuffers.Builder(4096)
    graphs = []
    for place, graph in enumerate(model.subgraphs):
        signature = names.get(place)
        key = "none" if signature is None else _text(signature.signatureKey)
        if signature is None or key not in about.signatures:
            raise _misfit(about, f"a signature {key!r}", ", ".join(sorted(about.signatures)))
        ends = [
            _vector(
                builder,
                [
                    _tensor(builder, about, name, graph.tensors[tensor])
                    for tensor, name in _named(about, tensors, side)
                ],
            )
            for tensors, side in (
                (graph.inputs, signature.inputs),
                (graph.outputs, signature.outputs),
            )
        ]
        title = builder.CreateSharedString(key)
        described = builder.CreateSharedString(about.signatures[key])
        graphs.append(_table(builder, title, described, *ends))
    fields = (about.name, about.description)
    name, description = map(builder.CreateSharedString, fields)
    licence, parser = map(builder.CreateSharedString, (LICENSE, PARSER))
    listed = _vector(builder, graphs)
    root = _table(builder, name, description, 0, listed, 0, licence, 0, parser)
    builder.Finish(root, METADATA)
    return bytes(builder.Output())


def _named(about: About, tensors: Sequence[int], side: Sequence[Any]) -> list[tuple[int, str]]:
    """The tensors of one end of a graph, in its order, each with its name in the signature."""
    names = {each.tensorIndex: _text(each.name) for each in side}
    if missing := [place for place in tensors if place not in names]:
        raise _misfit(about, f"tensor {missing[0]} without a name", "one in the signature")
    return [(place, names[place]) for place in tensors]


def _tensor(builder: Any, about: About, name: str, tensor: Any) -> int:
    shape = [] if tensor.shape is None else list(tensor.shape)
    described = about.tensors.get(name)
    if described is None:
        raise _misfit(about, f"a tensor {name!r}", ", ".join(sorted(about.tensors)))
    if len(shape) != len(described.axes):
        raise _misfit(about, f"{name} of shape {shape}", f"{len(described.axes)} dimensions")
    files = 0
    if described.labels and about.labels:
        if described.labels == AXIS_LABELS and shape[-1] != len(about.labels):
            raise _misfit(about, f"{len(about.labels)} labels for {name}", f"{shape[-1]}")
        files = _vector(builder, [_labels(builder, described.labels)])
    axes = _vector(builder, [builder.CreateSharedString(axis) for axis in described.axes])
    title, words = map(builder.CreateSharedString, (name, described.description))
    return _table(builder, title, words, axes, 0, 0, 0, files)


def _labels(builder: Any, kind: int) -> int:
    name = builder.CreateSharedString(LABELS)
    builder.StartObject(4)
    builder.PrependUOffsetTRelativeSlot(0, name, 0)
    builder.PrependInt8Slot(2, kind, 0)
    return int(builder.EndObject())


def _table(builder: Any, *fields: int) -> int:
    """A table whose fields, in the schema's order, are offsets; 0 leaves one out."""
    builder.StartObject(len(fields))
    for slot, offset in enumerate(fields):
        builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
    return int(builder.EndObject())


def _vector(builder: Any, offsets: list[int]) -> int:
    """A vector of tables or strings; 0, which a table leaves out, if it is empty."""
    if not offsets:
        return 0
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _misfit(about: About, there: str, expected: str) -> BundleError:
    return BundleError(
        f"metadata of {about.name!r}",
        f"found {there}, expected {expected}",
        "describe in conversion/metadata.py what conversion/export.py makes",
    )
