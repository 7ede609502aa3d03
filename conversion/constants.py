"""Constants: where a checkpoint's arrays stand in a `predict.tflite`, read out of the file.

An array is told from the others by its values, so whoever asks exports weights that no two arrays
share: the converter keeps equal ones once.
"""

import struct
from dataclasses import dataclass, replace

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from device_runtime import patch
from device_runtime.errors import BundleError
from device_runtime.patch import FLOAT32, INT8, Constant
from device_runtime.weights import Weights
from model.network import size_of

# fields of the tables `Buffer` and `QuantizationParameters`, as flatbuffers counts them. Source:
# tensorflow/lite/schema/schema.fbs, v3a
_DATA, _SCALE = 4, 8
_TYPES = {schema.TensorType.INT8: INT8, schema.TensorType.FLOAT32: FLOAT32}
REPORT = "report it with the version of TensorFlow"


@dataclass(frozen=True)
class _Stored:
    """A constant of the file."""

    type: str
    data: bytes
    start: int  # its first byte
    scale: bytes = b""  # empty of one that has none
    places: tuple[int, ...] = ()  # that say this scale: its own first


def located(file: bytes, weights: Weights) -> dict[str, Constant]:
    """Where each of the weights that `file` was exported from stands in it.

    Raises BundleError, naming the array, for one that is nowhere in the file, or in two places.
    """
    stored = _stored(file)
    width = np.float32(np.sqrt(size_of(weights).embedding))
    return {
        name: _among(stored, name, array.astype(np.float32, copy=False), width)
        for name, array in sorted(weights.items())
    }


def _stored(file: bytes) -> list[_Stored]:
    """Every constant of int8 or float32."""
    model = schema.Model.GetRootAsModel(file, 0)
    tensors = [
        graph.Tensors(at)
        for graph in map(model.Subgraphs, range(model.SubgraphsLength()))
        for at in range(graph.TensorsLength())
    ]
    scales = [_scale_at(tensor) for tensor in tensors]
    constants = []
    for tensor, place in zip(tensors, scales, strict=True):
        table = model.Buffers(tensor.Buffer())._tab
        field = table.Offset(_DATA)
        if not field or tensor.Type() not in _TYPES:
            continue
        start, size = table.Vector(field), table.VectorLen(field)
        constant = _Stored(_TYPES[tensor.Type()], file[start : start + size], start)
        if place is not None:
            scale = file[place : place + 4]
            # a tensor that takes codes out of this one says its scale once more
            copies = {at for at in scales if at is not None and file[at : at + 4] == scale}
            places = (place, *sorted(copies - {place}))
            constant = replace(constant, scale=scale, places=places)
        constants.append(constant)
    return constants


def _scale_at(tensor: schema.Tensor) -> int | None:
    """The place of a tensor's scale in the file, if it has one for all of its values."""
    quantization = tensor.Quantization()
    field = 0 if quantization is None else quantization._tab.Offset(_SCALE)
    if not field or quantization._tab.VectorLen(field) != 1:
        return None
    place: int = quantization._tab.Vector(field)
    return place


def _among(stored: list[_Stored], name: str, array: np.ndarray, width: np.float32) -> Constant:
    """The only one of the file's constants that holds this array, as it is or times `width`."""
    matches = []
    for factor in (np.float32(1), width):
        scaled = (array * factor).reshape(-1)
        scale = patch.scale_for(float(np.abs(scaled).max(initial=0)))
        codes, said = patch.quantised(scaled, scale).tobytes(), struct.pack("<f", scale)
        for each in stored:
            if (each.type, each.data, each.scale) == (INT8, codes, said):
                own, *copies = each.places
                matches.append(
                    Constant(INT8, each.start, array.size, own, float(factor), tuple(copies))
                )
            elif (each.type, each.data) == (FLOAT32, scaled.astype("<f4").tobytes()):
                matches.append(Constant(FLOAT32, each.start, array.size, factor=float(factor)))
    if len(matches) != 1:
        raise BundleError(
            f"predict.tflite: {name}",
            f"expected as one constant of the file, found {len(matches)}",
            REPORT,
        )
    return matches[0]
