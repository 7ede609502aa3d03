"""Patch: the `predict.tflite` of new weights is the old file with its constants quantised anew.

A round changes weights and never the graph. So whoever holds one file and other weights of the
same shapes makes the other file, byte for byte the one that the converter would make, and needs no
TensorFlow for it.
"""

from dataclasses import dataclass
from typing import Annotated

from device_runtime.bounds import OneOf, Within

_PLACE = Within(0, 2**31 - 1)
INT8, FLOAT32 = "int8", "float32"


@dataclass(frozen=True)
class Constant:
    """Where one array of the checkpoint stands in the file, and how."""

    type: Annotated[str, OneOf((INT8, FLOAT32))]
    offset: Annotated[int, _PLACE]  # of its first byte
    values: Annotated[int, _PLACE]
    scale_offset: Annotated[int, _PLACE] = 0  # of the float32 scale, of int8 alone
    factor: Annotated[float, Within(1e-6, 1e6)] = 1.0  # the array is multiplied by it first
