"""Aggregators: how TFF brings the cohort's deltas together. The plain mean, the mean of updates encoded as devices encode them, or a private mean.

`Encoded` repeats `device_runtime.quantize` in TensorFlow operations: clip -> rotate -> round at random to b bits, and as on the server one inverse
rotation of the weighted mean. It draws other random numbers than the device, of the same distribution. Every draw follows from the seed, the round
and the client's own delta, so a resumed run repeats bit for bit.
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

_SIDE = math.isqrt(quantize.BLOCK)
_HADAMARD = functools.reduce(np.kron, [np.array([[1, 1], [1, -1]], np.float32)] * int(math.log2(_SIDE)))  # [64, 64]


def build(
    *,
    encoded: bool,
    bits: int,
    clipping_norm: float,
    seed: int,
    mechanism: str,
    noise_multiplier: float,
    privacy_clipping_norm: float,
    clients_per_round: int,
    shapes: Sequence[Sequence[int]],
) -> tuple[tff.aggregators.AggregationFactory, bool]:
    """The aggregator a recipe asks for, and whether it weighs clients.

    bits and clipping_norm are the plan's, used when the updates are encoded; the other norm is the private mechanism's, `none` for no mechanism.
    shapes are those of the weights in order of their names, the order in which clients hand over their deltas, as a tuple.
    Raises ConfigError for values no device or mechanism takes, or when both encoding and privacy are wanted.
    """
    if mechanism != "none":
        if encoded:
            # rounding can raise a norm over the clip the noise is measured by; the guarantee would be another one than stated
            raise ConfigError("encoded", f"encoded updates have no privacy guarantee, found mechanism {mechanism!r}", "choose one of the two")
        return private(mechanism, noise_multiplier, privacy_clipping_norm, clients_per_round, shapes, seed), False
    if encoded:
        return Encoded(clipping_norm, bits, seed), True
    return tff.aggregators.MeanFactory(no_nan_division=True), True  # nobody's weight left: a mean of 0


def private(
    mechanism: str, noise_multiplier: float, clipping_norm: float, clients_per_round: int, shapes: Sequence[Sequence[int]], seed: int
) -> tff.aggregators.UnweightedAggregationFactory:
    """The mean of clipped deltas with noise; every client counts once and the denominator is `clients_per_round`, however many there were.

    The noise on the sum has the standard deviation noise_multiplier x clipping norm:
    `gaussian`: anew in every round, at a fixed norm. McMahan et al. 2018, arXiv:1710.06963.
    `gaussian-adaptive`: the norm starts at `clipping_norm` and follows the median norm of the deltas, itself measured with noise; the noise on
    the deltas is raised so that both together spend what noise_multiplier says. Andrew et al. 2021, arXiv:1905.03871.
    `tree`: on every node of a binary tree over the rounds, without restarts; a round's noise is what its prefix sum adds to the one before
    (DP-FTRL). Kairouz et al. 2021, arXiv:2103.00039.
    Only the tree's noise follows from the seed; Gaussian noise differs from run to run.
    Raises ConfigError for an unknown mechanism or for noise that the adaptive norm cannot be measured under.
    """
    factory = tff.aggregators.DifferentiallyPrivateFactory
    noise, clients, norm = float(noise_multiplier), float(clients_per_round), float(clipping_norm)
    if mechanism == "gaussian":
        return factory.gaussian_fixed(noise, clients, norm)
    if mechanism == "gaussian-adaptive":
        if noise >= clients / 10:  # the noise on the count of clipped clients is clients / 20, and half of that is what the deltas' can make up for
            raise ConfigError(
                "privacy.noise_multiplier",
                f"an adaptive norm needs less than a tenth of the {clients_per_round} clients of a round, found {noise_multiplier}",
                "lower it, take more clients, or use the mechanism `gaussian`",
            )
        return factory.gaussian_adaptive(noise, clients, initial_l2_norm_clip=norm)
    if mechanism == "tree":
        return factory.tree_aggregation(noise, clients, norm, tuple(tf.TensorSpec(shape) for shape in shapes), noise_seed=seed)
    raise ConfigError("privacy.mechanism", f"expected gaussian, gaussian-adaptive or tree, found {mechanism!r}", "choose one of them")


@dataclass(frozen=True)
class Encoded(tff.aggregators.WeightedAggregationFactory):
    """The weighted mean of deltas that went through the device's encoding. State: rounds done, so that each has a rotation of its own.

    Measures over the clients that count (weight above 0): the share that was clipped, the mean norm before it, and the bytes one upload takes.
    Two clients with the very same delta round alike. A cohort whose weights add up to 0 has a mean of 0.
    """

    clipping_norm: float  # largest L2 norm of a delta
    bits: int  # of one value of the upload
    seed: int

    def __post_init__(self):
        if not 1 <= self.bits <= 16:
            raise ConfigError("plan.bits", f"expected 1 to 16, found {self.bits}", "correct it")
        if not 0 < self.clipping_norm < math.inf:
            raise ConfigError("plan.clipping_norm", f"expected a positive number, found {self.clipping_norm}", "correct it")

    def create(self, value_type: tff.Type, weight_type: tff.Type) -> tff.templates.AggregationProcess:
        """value_type: a tuple of float32 tensors, in order of their names; weight_type: a scalar."""
        shapes = [tuple(kind.shape) for kind in value_type]
        sizes = [math.prod(shape) for shape in shapes]
        dimension = sum(sizes)
        upload = quantize.encoded_bytes(dimension, self.bits)

        @tff.tensorflow.computation(np.int32, value_type, weight_type)
        def encode(done, delta, weight):
            vector = tf.concat([tf.reshape(array, [-1]) for array in tf.nest.flatten(delta)], axis=0)
            norm = tf.norm(vector)
            clipped = vector * tf.minimum(1.0, self.clipping_norm / tf.maximum(norm, 1e-30))
            rotated = rotate(clipped, self._round_seed(done))
            own = tf.reduce_sum(tf.bitcast(vector, tf.int32))  # the client's draws follow from its delta: no two alike, a repeated one is
            values = round_at_random(rotated, self.bits, tf.stack([self.seed * 2 + 1, own + done]))
            counts = tf.cast(weight > 0, tf.float32)
            return (
                values * weight,
                weight,
                OrderedDict(clients=counts, clipped=counts * tf.cast(norm > self.clipping_norm, tf.float32), norms=counts * norm),
            )

        @tff.tensorflow.computation(np.int32, encode.type_signature.result[0], weight_type)
        def decode(done, total, weight):
            mean = unrotate(tf.math.divide_no_nan(total, weight), self._round_seed(done), dimension)
            arrays = [tf.reshape(part, shape) for part, shape in zip(tf.split(mean, sizes), shapes, strict=True)]
            return tuple(arrays)

        @tff.tensorflow.computation(encode.type_signature.result[2])
        def measure(sums):
            clients = sums["clients"]
            return OrderedDict(
                clipped=tf.math.divide_no_nan(sums["clipped"], clients),
                norm=tf.math.divide_no_nan(sums["norms"], clients),
                upload_bytes=tf.constant(upload, tf.int64),
            )

        @tff.tensorflow.computation(np.int32)
        def one_more(done):
            return done + 1

        @tff.federated_computation
        def initialize():
            return tff.federated_value(0, tff.SERVER)

        @tff.federated_computation(
            tff.FederatedType(np.int32, tff.SERVER), tff.FederatedType(value_type, tff.CLIENTS), tff.FederatedType(weight_type, tff.CLIENTS)
        )
        def next_fn(done, value, weight):
            encoded, weights, measured = tff.federated_map(encode, (tff.federated_broadcast(done), value, weight))
            mean = tff.federated_map(decode, (done, tff.federated_sum(encoded), tff.federated_sum(weights)))
            measurements = tff.federated_map(measure, tff.federated_sum(measured))
            return tff.templates.MeasuredProcessOutput(tff.federated_map(one_more, done), mean, measurements)

        return tff.templates.AggregationProcess(initialize, next_fn)

    def _round_seed(self, done: tf.Tensor) -> tf.Tensor:
        return tf.stack([self.seed * 2, done])


def rotate(vector: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Randomised Hadamard rotation by blocks: float32 [n] -> float32 [padded(n)]. Keeps the L2 norm. seed is int32 [2]."""
    size = quantize.padded(vector.shape[0])
    return _hadamard(tf.pad(vector, [[0, size - vector.shape[0]]]) * _signs(seed, size))


def unrotate(vector: tf.Tensor, seed: tf.Tensor, dimension: int) -> tf.Tensor:
    """The inverse of `rotate`: float32 [padded(dimension)] -> float32 [dimension]."""
    return (_hadamard(vector) * _signs(seed, vector.shape[0]))[:dimension]


def round_at_random(vector: tf.Tensor, bits: int, seed: tf.Tensor) -> tf.Tensor:
    """Each value rounded to one of 2 ** bits evenly spaced ones between the smallest and the largest, without bias. seed is int32 [2].

    Twin of `device_runtime.quantize.quantize` and `values`. A constant vector stays as it is.
    """
    low, high = tf.reduce_min(vector), tf.reduce_max(vector)
    step = (high - low) / (2**bits - 1)
    position = tf.math.divide_no_nan(vector - low, step)
    codes = tf.clip_by_value(tf.floor(position + tf.random.stateless_uniform(tf.shape(vector), seed)), 0.0, 2.0**bits - 1)
    return low + step * codes


def _signs(seed: tf.Tensor, count: int) -> tf.Tensor:
    return tf.cast(1 - 2 * tf.random.stateless_uniform([count], seed, 0, 2, tf.int32), tf.float32)


def _hadamard(vector: tf.Tensor) -> tf.Tensor:
    """Orthonormal Walsh-Hadamard transform of each block; its own inverse. A block of 64 x 64 is transformed along both sides: two products."""
    square = tf.reshape(vector, [-1, _SIDE, _SIDE])
    hadamard = tf.constant(_HADAMARD)
    turned = tf.tensordot(tf.tensordot(square, hadamard, [[2], [0]]), hadamard, [[1], [0]])  # [blocks, column, row]
    return tf.reshape(tf.transpose(turned, [0, 2, 1]), [-1]) / math.sqrt(quantize.BLOCK)
