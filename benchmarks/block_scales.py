"""Block scales: updates as format 2 encoded them, simulated in TFF to compare others with.

Clip -> rotate by a round's own signs -> round at random, each block in a range of its own; clipped
again as the server did, and one inverse rotation of the weighted mean.
"""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from device_runtime import quantize
from model.aggregators import clip, hadamard, rounding_seed


@dataclass(frozen=True)
class BlockScales(tff.aggregators.WeightedAggregationFactory):
    """The weighted mean. State: rounds done, so that each has a rotation of its own."""

    clipping_norm: float  # largest L2 norm of a delta
    bits: int  # of one value of the upload
    seed: int

    def create(
        self, value_type: tff.Type, weight_type: tff.Type
    ) -> tff.templates.AggregationProcess:
        """value_type: float32 tensors, as a tuple in order of their names or a dict by name;
        weight_type: a scalar.
        """
        like = tff.types.type_to_tf_tensor_specs(value_type)
        dimension = sum(spec.shape.num_elements() for spec in tf.nest.flatten(like))

        @tff.tensorflow.computation(np.int32)
        def draw_signs(done):
            return signs(self.seed, done + 1, dimension)

        @tff.tensorflow.computation(
            value_type, weight_type, draw_signs.type_signature.result, np.int32
        )
        def encode_at_client(delta, weight, signs, done):
            arrays = tf.nest.flatten(delta)  # sorts a dict by its names
            vector = tf.concat([tf.reshape(array, [-1]) for array in arrays], axis=0)
            weight = tf.cast(weight, tf.float32)
            clipped, _ = clip(vector, self.clipping_norm)
            draw = rounding_seed(self.seed, done + 1, vector)
            # clip again, as the server does: rounding to few bits raises the norm
            values, _ = clip(encode(clipped, signs, self.bits, draw), self.clipping_norm)
            return OrderedDict(values=weight * values, weight=weight)

        @tff.tensorflow.computation(
            encode_at_client.type_signature.result, draw_signs.type_signature.result
        )
        def mean_at_server(total, signs):
            vector = unrotate(
                tf.math.divide_no_nan(total["values"], total["weight"]), signs, dimension
            )
            sizes = [spec.shape.num_elements() for spec in tf.nest.flatten(like)]
            arrays = [
                tf.reshape(part, spec.shape)
                for part, spec in zip(tf.split(vector, sizes), tf.nest.flatten(like), strict=True)
            ]
            return tf.nest.pack_sequence_as(like, arrays)

        @tff.tensorflow.computation(np.int32)
        def one_more(done):
            return done + 1

        @tff.federated_computation()
        def start():
            return tff.federated_value(0, tff.SERVER)

        @tff.federated_computation(
            start.type_signature.result,
            tff.FederatedType(value_type, tff.CLIENTS),
            tff.FederatedType(weight_type, tff.CLIENTS),
        )
        def next_round(done, delta, weight):
            signs_at_server = tff.federated_map(draw_signs, done)  # once a round, not once a client
            sent = tff.federated_broadcast(signs_at_server), tff.federated_broadcast(done)
            total = tff.federated_sum(tff.federated_map(encode_at_client, (delta, weight, *sent)))
            mean = tff.federated_map(mean_at_server, (total, signs_at_server))
            return tff.templates.MeasuredProcessOutput(
                tff.federated_map(one_more, done), mean, tff.federated_value((), tff.SERVER)
            )

        return tff.templates.AggregationProcess(start, next_round)


def signs(seed: int, number: tf.Tensor, dimension: int) -> tf.Tensor:
    """The signs of a round's rotation, 1 and -1: int8 [padded(dimension)].

    They are those `quantize.rotate` draws by the seed `number << 64 | seed`, whose halves are the
    key of Philox. Source: Philox4x64-10 of Salmon et al. 2011, "Parallel random numbers: as easy as
    1, 2, 3"; each byte of its stream gives one sign.
    """
    size = quantize.padded(dimension)
    counter = tf.cast(tf.range(1, size // 32 + 1), tf.uint64)  # a block is 4 words of 8 bytes
    words = [counter, *[tf.zeros_like(counter)] * 3]
    keys = [_uint64(seed), tf.cast(number, tf.uint64)]
    for _ in range(10):
        (high_0, low_0), (high_1, low_1) = (
            _multiply(words[0], 0xD2E7470EE14C6C93),
            _multiply(words[2], 0xCA5A826395121157),
        )
        words = [high_1 ^ words[1] ^ keys[0], low_1, high_0 ^ words[3] ^ keys[1], low_0]
        keys = [keys[0] + _uint64(0x9E3779B97F4A7C15), keys[1] + _uint64(0xBB67AE8584CAA73B)]
    stream = tf.reshape(tf.bitcast(tf.stack(words, axis=1), tf.uint8), [size])
    return 1 - 2 * tf.cast(tf.bitwise.right_shift(stream, tf.constant(7, tf.uint8)), tf.int8)


def rotate(vector: tf.Tensor, signs: tf.Tensor) -> tf.Tensor:
    """`quantize.rotate`: float32 [n] -> float32 [padded(n)]."""
    padding = quantize.padded(vector.shape[0]) - vector.shape[0]
    return hadamard(tf.pad(vector, [[0, padding]]) * tf.cast(signs, tf.float32))


def unrotate(vector: tf.Tensor, signs: tf.Tensor, dimension: int) -> tf.Tensor:
    """`quantize.unrotate`: float32 [padded(dimension)] -> float32 [dimension]."""
    return (hadamard(vector) * tf.cast(signs, tf.float32))[:dimension]


def encode(vector: tf.Tensor, signs: tf.Tensor, bits: int, seed: tf.Tensor) -> tf.Tensor:
    """`update.encode` and `update.dequantize` in one: float32 [n] -> float32 [padded(n)].

    vector is clipped; what comes out are the rotated values the server reads. seed: int64 [2], of
    the rounding.
    """
    rotated = tf.reshape(tf.cast(rotate(vector, signs), tf.float64), [-1, quantize.BLOCK])
    low, levels = tf.reduce_min(rotated, axis=1, keepdims=True), 2**bits - 1
    span = tf.reduce_max(rotated, axis=1, keepdims=True) - low
    step = tf.cast(tf.cast(span / levels, tf.float32), tf.float64)  # it travels as float32
    draw = tf.random.stateless_uniform(rotated.shape, seed, alg="philox")
    codes = tf.floor(tf.math.divide_no_nan(rotated - low, step) + tf.cast(draw, tf.float64))
    return tf.cast(tf.reshape(low + step * tf.minimum(codes, levels), [-1]), tf.float32)


def _multiply(words: tf.Tensor, factor: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Upper and lower 64 bits of the products, uint64 [n] each."""
    mask, half = _uint64(2**32 - 1), _uint64(32)
    upper, lower = tf.bitwise.right_shift(words, half), words & mask
    low, high, shift = _uint64(factor & 0xFFFFFFFF), _uint64(factor >> 32), tf.bitwise.right_shift
    middle = upper * low + shift(lower * low, half)  # cannot overflow
    carry = lower * high + (middle & mask)
    return upper * high + shift(middle, half) + shift(carry, half), words * _uint64(factor)


def _uint64(number: int) -> tf.Tensor:
    return tf.constant(number, tf.uint64)
