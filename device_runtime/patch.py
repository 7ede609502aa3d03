"""Patch: the `predict.tflite` of new weights is the old file with its constants quantised anew.

A round changes weights and never the graph. So whoever holds one file and other weights of the
same shapes makes the other file, byte for byte the one that the converter would make, and needs no
TensorFlow for it.

    weights, float32 -> times the constant's factor -> scale = largest magnitude / 127
                                                       codes = value / scale, rounded
                     -> the bytes of the constant, and those of its scale, in a copy of the file

The arithmetic is that of the TensorFlow Lite converter's dynamic-range quantisation, one symmetric
scale a tensor: division in float64, halves rounded away from zero, the scale kept as float32.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from device_runtime import bounds
from device_runtime.bounds import Each, OneOf, Within
from device_runtime.errors import BundleError
from device_runtime.weights import Weights, digest

_PLACE = Within(0, 2**31 - 1)
INT8, FLOAT32 = "int8", "float32"
LARGEST = 127  # magnitude of a code
LEAST_RANGE = 5e-7  # of the values of a tensor: the converter's, which so has no scale of zero
CHUNK = 1 << 16  # values worked on at a time: what is copied of them stays in a core's own cache
OTHER_GRAPH = "install the whole bundle of that release"
_WIDTH = {INT8: 1, FLOAT32: 4}
_SCALE = struct.Struct("<f")


@dataclass(frozen=True)
class Constant:
    """Where one array of the checkpoint stands in the file, and how. Raises ConfigError for a
    number out of its bounds.
    """

    type: Annotated[str, OneOf((INT8, FLOAT32))]
    offset: Annotated[int, _PLACE]  # of its first byte
    values: Annotated[int, _PLACE]
    scale_offset: Annotated[int, _PLACE] = 0  # of the float32 scale, of int8 alone
    factor: Annotated[float, Within(1e-6, 1e6)] = 1.0  # the array is multiplied by it first
    # where else the file says this scale: of a tensor that takes its codes as they are
    scale_copies: Annotated[tuple[int, ...], Each(_PLACE, 8)] = ()

    def __post_init__(self) -> None:
        bounds.check(self, "constant")

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """The bytes of the file that are its own: from, up to (not included)."""
        own = (self.offset, self.offset + self.values * _WIDTH[self.type])
        return (own, *((at, at + _SCALE.size) for at in self.scales))

    @property
    def scales(self) -> tuple[int, ...]:
        """The first bytes of every place that holds its scale; none of a float32 array."""
        return (self.scale_offset, *self.scale_copies) if self.type == INT8 else ()


Constants = Mapping[str, Constant]  # by the name of the checkpoint's array


def predict(template: bytes, constants: Constants, weights: Weights) -> bytes:
    """The file of these weights: float32 arrays, by name, of the shapes that the template's graph
    was made for.

    Raises BundleError, naming the array, for weights that do not fit the constants or are not
    finite, and for constants that do not fit the file.
    """
    require_fit(template, constants)
    require_counts(constants, {name: array.size for name, array in weights.items()})
    file = bytearray(template)
    for name, constant in constants.items():
        _write(file, name, constant, weights[name])
    return bytes(file)


def weights_in(file: bytes, constants: Constants, shapes: Mapping[str, tuple[int, ...]]) -> Weights:
    """The weights that a file stands for: what its codes and scales come to, float32 of `shapes`.

    Each is within half a scale of the one it was quantised from. Raises BundleError as `predict`,
    and for a file whose values are not finite.
    """
    require_fit(file, constants)
    require_counts(constants, {name: math.prod(shape) for name, shape in shapes.items()})
    weights = {}
    for name, shape in sorted(shapes.items()):
        weights[name] = values_of(file, constants[name]).reshape(shape)
        if not np.isfinite(weights[name]).all():
            raise BundleError(f"constant {name}", "its values are not finite", OTHER_GRAPH)
    return weights


def values_of(file: bytes, constant: Constant) -> NDArray[np.float32]:
    """The values of one array as the graph uses them, without its factor: float32 [values]."""
    if constant.type == FLOAT32:
        values = np.frombuffer(file, "<f4", constant.values, constant.offset).astype(np.float32)
    else:
        values = codes_of(file, constant) * scale_of(file, constant)
    return values if constant.factor == 1.0 else values / np.float32(constant.factor)


def codes_of(file: bytes, constant: Constant) -> NDArray[np.int8]:
    """The codes of an int8 array: int8 [values], not to be written to."""
    return np.frombuffer(file, np.int8, constant.values, constant.offset)


def scale_of(file: bytes, constant: Constant) -> np.float32:
    """What one step of an int8 array's codes stands for, its factor not taken out. Raises
    BundleError for one that is no positive number, or that the file says in two ways.
    """
    said = {file[at : at + _SCALE.size] for at in constant.scales}
    scale = np.float32(_SCALE.unpack_from(file, constant.scale_offset)[0])
    if len(said) != 1 or not 0 < scale < np.inf:
        raise BundleError(
            f"scale at byte {constant.scale_offset}", "is not one positive number", OTHER_GRAPH
        )
    return scale


def rounding(file: bytes, constants: Constants) -> float:
    """How far, in L2 norm, the weights that a file stands for can be from those it was quantised
    from: half a step for each value.
    """
    apart = 0.0
    for constant in constants.values():
        if constant.type == INT8:
            half = float(scale_of(file, constant)) / (2 * constant.factor)
            apart += constant.values * half * half
    return float(np.sqrt(apart))


def graph_hash(file: bytes, constants: Constants) -> str:
    """SHA-256 of the file with all constants and scales zero: files of which it is the same can be
    patched into each other. Raises BundleError for constants that do not fit the file.
    """
    require_fit(file, constants)
    blank = bytearray(file)
    for constant in constants.values():
        for start, end in constant.places:
            blank[start:end] = bytes(end - start)
    return digest(blank)


def require_fit(file: bytes, constants: Constants) -> None:
    """Raises BundleError for a constant that is not wholly in the file, or shares bytes with
    another.
    """
    places = sorted(
        (start, end, name) for name, each in constants.items() for start, end in each.places
    )
    before, whose = 0, ""
    for start, end, name in places:
        if end > len(file):
            raise BundleError(
                f"constant {name}",
                f"expected within the {len(file)} bytes of the file, found up to byte {end}",
                OTHER_GRAPH,
            )
        if start < before:
            raise BundleError(
                f"constant {name}", f"shares bytes of the file with {whose}", OTHER_GRAPH
            )
        before, whose = end, name


def scale_for(largest: float) -> float:
    """What one step of the codes stands for if this is the largest magnitude of the values."""
    return max(largest, LEAST_RANGE) / LARGEST


def quantised(values: NDArray[Any], scale: float) -> NDArray[np.int8]:
    """Codes of float32 values: int8 of the same shape.

    >>> quantised(np.float32([1.0, 0.5, -0.25, 0.0]), scale_for(1.0)).tolist()
    [127, 64, -32, 0]
    """
    steps = values.astype(np.float64) / scale
    whole = np.trunc(steps + np.copysign(0.5, steps))
    codes: NDArray[np.int8] = np.clip(whole, -LARGEST, LARGEST).astype(np.int8)
    return codes


def _write(file: bytearray, name: str, constant: Constant, array: NDArray[Any]) -> None:
    flat, factor = np.ascontiguousarray(array, np.float32).reshape(-1), np.float32(constant.factor)
    largest = np.float32(0)
    for part in _parts(flat):
        with np.errstate(over="ignore"):
            largest = max(largest, np.abs(part).max() * factor)
        if not np.isfinite(part).all() or not np.isfinite(largest):
            raise BundleError(
                f"constant {name}", "its values are not finite", "use another checkpoint"
            )
    width, at, scale = _WIDTH[constant.type], constant.offset, scale_for(float(largest))
    for part in _parts(flat):
        scaled = part if constant.factor == 1.0 else part * factor
        data = scaled.astype("<f4") if constant.type == FLOAT32 else quantised(scaled, scale)
        file[at : at + width * len(part)] = data.tobytes()
        at += width * len(part)
    for at in constant.scales:
        _SCALE.pack_into(file, at, scale)


def _parts(flat: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (flat[start : start + CHUNK] for start in range(0, len(flat), CHUNK))


def require_counts(constants: Constants, sizes: Mapping[str, int]) -> None:
    """Raises BundleError unless arrays and constants are the same, each of as many values."""
    for name in sorted({*constants, *sizes}):
        expected = constants[name].values if name in constants else None
        if sizes.get(name) != expected:
            raise BundleError(
                f"constant {name}",
                f"expected {_count(expected)}, found {_count(sizes.get(name))}",
                OTHER_GRAPH,
            )


def _count(values: int | None) -> str:
    return "no such array" if values is None else f"{values:,} values"
