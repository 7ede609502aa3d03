"""Aggregators: how TFF brings the cohort's deltas together.

The plain mean, the mean of updates encoded as devices encode them, or a private mean.

`Encoded` repeats `device_runtime.quantize` in TensorFlow operations: clip -> rotate -> round at
random to b bits, and as on the server the clip of what that is read as, and one inverse rotation of
the weighted mean. The rotation is
the device's own, sign for sign; the rounding draws other random numbers of the same distribution.
Every draw follows from the seed, the round and the client's own delta, so a resumed run repeats bit
for bit.
"""

import functools
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from device_runtime import quantize
from device_runtime.errors import ConfigError
from device_runtime.update import encoded_bytes
from device_runtime.wire import Plan
from model.recipe import require_adaptable

_SIDE = math.isqrt(quantize.BLOCK)
_PAIR = np.array([[1, 1], [1, -1]], np.float32)
_HADAMARD = functools.reduce(np.kron, [_PAIR] * int(math.log2(_SIDE)))  # [64, 64]


@dataclass(frozen=True)
class Averaging:
    """What a recipe says of how deltas become a mean."""

    encoded: bool  # whether they go through the device's encoding; a private mean never does
    bits: int  # the plan's, of one encoded value
    clipping_norm: float  # the plan's, of an encoded delta
    mechanism: str  # of privacy; `none` for none
    noise_multiplier: float
    privacy_clipping_norm: float  # the mechanism's
    clients_per_round: int
    seed: int


def build(
    averaging: Averaging, shapes: Sequence[Sequence[int]]
) -> tuple[tff.aggregators.AggregationFactory, bool]:
    """The aggregator a recipe asks for, and whether it weighs clients.

    shapes are those of the weights in order of their names, the order in which clients hand over
    their deltas, as a tuple. Raises ConfigError for values no device or mechanism takes.
    """
    if averaging.mechanism != "none":
        return private(
            averaging.mechanism,
            averaging.noise_multiplier,
            averaging.privacy_clipping_norm,
            averaging.clients_per_round,
            shapes,
            averaging.seed,
        ), False
    if averaging.encoded:
        return Encoded(averaging.clipping_norm, averaging.bits, averaging.seed), True
    # with nobody's weight left, a mean of 0
    return tff.aggregators.MeanFactory(no_nan_division=True), True


def private(
    mechanism: str,
    noise_multiplier: float,
    clipping_norm: float,
    clients_per_round: int,
    shapes: Sequence[Sequence[int]],
    seed: int,
) -> tff.aggregators.UnweightedAggregationFactory:
    """The mean of clipped deltas with noise.

    Every client counts once and the denominator is `clients_per_round`, however many there were.

    The noise on the sum has the standard deviation noise_multiplier x clipping norm: `gaussian`:
    anew in every round, at a fixed norm. McMahan et al. 2018, arXiv:1710.06963.
    `gaussian-adaptive`: the norm starts at `clipping_norm` and follows the median norm of the
    deltas, itself measured with noise; the noise on the deltas is raised so that both together
    spend what noise_multiplier says. Andrew et al. 2021, arXiv:1905.03871. `tree`: on every node of
    a binary tree over the rounds, without restarts; a round's noise is what its prefix sum adds to
    the one before (DP-FTRL). Kairouz et al. 2021, arXiv:2103.00039. Only the tree's noise follows
    from the seed; Gaussian noise differs from run to run. Raises ConfigError for an unknown
    mechanism or for noise that the adaptive norm cannot be measured under.
    """
    factory = tff.aggregators.DifferentiallyPrivateFactory
    noise, clients, norm = float(noise_multiplier), float(clients_per_round), float(clipping_norm)
    if mechanism == "gaussian":
        return factory.gaussian_fixed(noise, clients, norm)
    if mechanism == "gaussian-adaptive":
        require_adaptable(noise_multiplier, clients_per_round)
        return factory.gaussian_adaptive(noise, clients, initial_l2_norm_clip=norm)
    if mechanism == "tree":
        return factory.tree_aggregation(
            noise, clients, norm, tuple(tf.TensorSpec(shape) for shape in shapes), noise_seed=seed
        )
    raise ConfigError(
        "privacy.mechanism",
        f"expected gaussian, gaussian-adaptive or tree, found {mechanism!r}",
        "choose one of them",
    )


@dataclass(frozen=True)
class Encoded(tff.aggregators.WeightedAggregationFactory):
    """The weighted mean of deltas that went through the device's encoding.

    State: rounds done, so that each has a rotation of its own.

    Measures over the clients that count (weight above 0): the share that was clipped, the mean norm
    before it, and the bytes one upload takes. Two clients with the very same delta round alike. A
    cohort whose weights add up to 0 has a mean of 0.
    """

    clipping_norm: float  # largest L2 norm of a delta
    bits: int  # of one value of the upload
    seed: int

    def __post_init__(self):
        Plan(bits=self.bits, clipping_norm=self.clipping_norm)  # which holds their bounds

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
            clipped, norm = clip(vector, self.clipping_norm)
            counts = tf.cast(weight > 0, tf.float32)
            draw = rounding_seed(self.seed, done + 1, vector)
            # clip again, as the server does: rounding to few bits raises the norm
            values, _ = clip(encode(clipped, signs, self.bits, draw), self.clipping_norm)
            return OrderedDict(
                values=weight * values,
                weight=weight,
                clients=counts,
                clipped=counts * tf.cast(norm > self.clipping_norm, tf.float32),
                norm=counts * tf.cast(norm, tf.float32),
            )

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
            measured = OrderedDict(
                clipped=tf.math.divide_no_nan(total["clipped"], total["clients"]),
                norm=tf.math.divide_no_nan(total["norm"], total["clients"]),
                upload_bytes=tf.constant(encoded_bytes(dimension, self.bits), tf.int64),
            )
            return tf.nest.pack_sequence_as(like, arrays), measured

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
            mean, measured = tff.federated_map(mean_at_server, (total, signs_at_server))
            return tff.templates.MeasuredProcessOutput(
                tff.federated_map(one_more, done), mean, measured
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


def clip(vector: tf.Tensor, clipping_norm: float) -> tuple[tf.Tensor, tf.Tensor]:
    """float32 [n], scaled down to at most `clipping_norm`, and its L2 norm before, float64."""
    norm = tf.norm(tf.cast(vector, tf.float64))
    return vector * tf.cast(clipping_norm / tf.maximum(norm, clipping_norm), tf.float32), norm


def rotate(vector: tf.Tensor, signs: tf.Tensor) -> tf.Tensor:
    """`quantize.rotate`: float32 [n] -> float32 [padded(n)]."""
    padding = quantize.padded(vector.shape[0]) - vector.shape[0]
    return _hadamard(tf.pad(vector, [[0, padding]]) * tf.cast(signs, tf.float32))


def unrotate(vector: tf.Tensor, signs: tf.Tensor, dimension: int) -> tf.Tensor:
    """`quantize.unrotate`: float32 [padded(dimension)] -> float32 [dimension]."""
    return (_hadamard(vector) * tf.cast(signs, tf.float32))[:dimension]


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


def rounding_seed(seed: int, number: tf.Tensor, delta: tf.Tensor) -> tf.Tensor:
    """int64 [2] from the run's seed, the round and the bits of the client's delta, float32 [n].

    Who else trains, and in what order, changes nothing.
    """
    fingerprint = tf.reduce_sum(tf.bitcast(delta, tf.int32))  # wraps around
    return tf.random.fold_in(
        tf.stack([tf.constant(seed, tf.int64), tf.cast(number, tf.int64)]),
        tf.cast(fingerprint, tf.int64),
    )


def _hadamard(vector: tf.Tensor) -> tf.Tensor:
    """Orthonormal Walsh-Hadamard transform of each block.

    The matrix of 4096 is the Kronecker product of two of 64: two fast matrix products.
    """
    blocks = tf.reshape(vector, [-1, _SIDE, _SIDE])
    return tf.reshape(tf.matmul(_HADAMARD, tf.matmul(blocks, _HADAMARD)) / _SIDE, [-1])


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
