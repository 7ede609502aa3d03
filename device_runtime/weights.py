"""Weights: a flat dict of named float32 arrays, and the checkpoint file (safetensors) of them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from device_runtime.errors import CheckpointError

Weights = dict[str, NDArray[Any]]
SAVE_AGAIN = "use a checkpoint written by `fedboard train` or by the server"


@dataclass(frozen=True)
class Checkpoint:
    """Weights and the round that made them."""

    weights: Weights
    round: int = 0
    parent: str = ""  # SHA-256 of the checkpoint this round started from
    tokenizer: str = ""  # SHA-256 of the vocabulary the rows of the embedding belong to


def to_bytes(checkpoint: Checkpoint, dtype: type = np.float32) -> bytes:
    """The checkpoint as a safetensors file; float16 is how it travels to devices. Equal checkpoints
    have equal bytes.
    """
    arrays: Weights = {
        name: np.ascontiguousarray(array, dtype)
        for name, array in sorted(checkpoint.weights.items())
    }
    meta = {
        "round": checkpoint.round,
        "parent": checkpoint.parent,
        "tokenizer": checkpoint.tokenizer,
    }
    return safetensors.numpy.save(arrays, {"fedboard": json.dumps(meta, sort_keys=True)})


def from_bytes(data: bytes, where: object = "checkpoint") -> Checkpoint:
    """Read a checkpoint; float16 arrays come back as float32.

    Raises CheckpointError for a damaged file, a file of other origin, arrays of other types, or a
    value that is not finite.
    """
    try:
        arrays = safetensors.numpy.load(data)
        header = json.loads(
            data[8 : 8 + int.from_bytes(data[:8], "little")], object_pairs_hook=_table
        )
        meta = json.loads(header["__metadata__"]["fedboard"], object_pairs_hook=_table)
        round, parent, tokenizer = meta["round"], meta["parent"], meta["tokenizer"]
        if (type(round), type(parent), type(tokenizer)) != (
            int,
            str,
            str,
        ) or not 0 <= round < 1 << 32:
            raise ValueError("metadata of other types")
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            where, f"not a Fedboard checkpoint ({type(error).__name__})", SAVE_AGAIN
        ) from None
    for name, array in arrays.items():
        if array.dtype not in (np.float32, np.float16):
            raise CheckpointError(
                where, f"{name} is of type {array.dtype}, expected float32 or float16", SAVE_AGAIN
            )
    weights = {name: array.astype(np.float32) for name, array in sorted(arrays.items())}
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise CheckpointError(where, f"{name} has values that are not finite", SAVE_AGAIN)
    return Checkpoint(weights, round, parent, tokenizer)


def read(path: Path) -> Checkpoint:
    """The checkpoint in a file. Raises CheckpointError for one that cannot be read."""
    try:
        return from_bytes(Path(path).read_bytes(), path)
    except OSError as error:
        raise CheckpointError(path, f"cannot be read ({error.strerror})", SAVE_AGAIN) from None


def _table(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):  # another reader might take the other one
        raise ValueError("a name is there twice")
    return table


def digest(data: bytes | bytearray) -> str:
    """SHA-256 in hexadecimal: the name of a blob."""
    return hashlib.sha256(data).hexdigest()


def as_sent(weights: Weights) -> Weights:
    """The weights as devices get them: float32 arrays of values that float16 has.

    >>> as_sent({"a": np.array([0.1], np.float32)})["a"].tolist()
    [0.0999755859375]
    """
    with np.errstate(over="ignore"):  # whoever reads them refuses what is not finite
        return {
            name: array.astype(np.float16).astype(np.float32) for name, array in weights.items()
        }


def values_hash(weights: Weights) -> str:
    """SHA-256 of the arrays alone, as they travel: the same whatever a checkpoint says besides."""
    return digest(to_bytes(Checkpoint(weights), np.float16))


def shapes_hash(weights: Weights) -> str:
    """SHA-256 of the names and shapes: two sides that agree on it can add each other's vectors."""
    return hash_of_shapes({name: array.shape for name, array in weights.items()})


def hash_of_shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """`shapes_hash` of arrays of these shapes."""
    return digest(
        json.dumps([[name, list(shape)] for name, shape in sorted(shapes.items())]).encode()
    )


def shapes_in(data: bytes, where: object = "checkpoint") -> str:
    """`shapes_hash` of a checkpoint file, from its header alone: no array is read.

    Raises CheckpointError for a file without such a header.
    """
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        shapes = [
            [name, entry["shape"]]
            for name, entry in sorted(header.items())
            if name != "__metadata__"
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            where, f"not a Fedboard checkpoint ({type(error).__name__})", SAVE_AGAIN
        ) from None
    return digest(json.dumps(shapes).encode())


def subtract(left: Weights, right: Weights) -> Weights:
    """Left minus right, array by array: float32, of the shapes they share."""
    return {name: left[name] - right[name] for name in left}


def norm(weights: Weights) -> float:
    """L2 norm of all arrays together."""
    return float(
        np.sqrt(sum(np.square(array, dtype=np.float64).sum() for array in weights.values()))
    )


def flatten(weights: Weights) -> NDArray[Any]:
    """All values as one vector, float32 [values of all arrays], arrays in order of their names.

    >>> flatten({"b": np.zeros(2, np.float32), "a": np.ones((1, 1), np.float32)}).tolist()
    [1.0, 0.0, 0.0]
    """
    vector: NDArray[Any] = np.concatenate([weights[name].reshape(-1) for name in sorted(weights)])
    return vector.astype(np.float32, copy=False)


def unflatten(vector: NDArray[Any], like: Weights) -> Weights:
    """The inverse of `flatten`: float [values of `like`] -> its names and shapes, float32.

    Raises ValueError for a vector of another length.

    >>> unflatten(np.arange(3), {"b": np.zeros(2), "a": np.zeros((1, 1))})["b"].tolist()
    [1.0, 2.0]
    """
    expected = sum(array.size for array in like.values())
    if vector.shape != (expected,):
        raise ValueError(f"expected {expected} values, found shape {vector.shape}")
    result, start = {}, 0
    for name in sorted(like):
        size = like[name].size
        result[name] = vector[start : start + size].reshape(like[name].shape).astype(np.float32)
        start += size
    return result
