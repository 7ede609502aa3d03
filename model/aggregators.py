"""Aggregators: how TFF brings the cohort's deltas together.

The plain mean, the mean of updates encoded as devices encode them, or a private mean.

`Encoded` repeats `device_runtime.encoding` in TensorFlow operations: clip -> permute -> rotate ->
round at random in one range; codes are added up as whole numbers, and the sum becomes a mean delta
once a round. Permutation, rotation and range are the device's own; the rounding draws other random
numbers of the same distribution. Every draw follows from the seed, the round and the client's own
delta, so a resumed run repeats bit for bit. Masks are not simulated: what they add, the sum loses.
"""

import functools
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from device_runtime import encoding, packing, quantize
from device_runtime.errors import ConfigError
from device_runtime.update import encoded_bytes, sealed_bytes
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
        clients = averaging.clients_per_round
        return Encoded(averaging.clipping_norm, averaging.bits, averaging.seed, clients), True
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
    """The mean of deltas that went through the device's encoding.

    Every client whose weight is above 0 counts once, as devices do. State: rounds done, so that no
    two round alike.

    Measures over the clients that count: the share that was clipped, the mean norm before it, and
    the bytes one upload takes in the open, and sealed for a sum of `clients`. Two clients with the
    very same delta round alike. A cohort of nobody has a mean of 0.
    """

    clipping_norm: float  # largest L2 norm of a delta
    bits: int  # of one value of the upload
    seed: int
    clients: int  # of a round, at most

    def __post_init__(self):
        Plan(bits=self.bits, clipping_norm=self.clipping_norm)  # which holds their bounds

    def create(
        self, value_type: tff.Type, weight_type: tff.Type
    ) -> tff.templates.AggregationProcess:
        """value_type: float32 tensors, as a tuple in order of their names or a dict by name;
        weight_type: a scalar.
        """
        like = tff.types.type_to_tf_tensor_specs(value_type)
        sizes = [spec.shape.num_elements() for spec in tf.nest.flatten(like)]
        by = encoding.Encoding(sum(sizes), self.bits, self.clipping_norm, self.seed)
        codes_type = whole(by, self.clients)
        masked = packing.layout(by.values, by.largest, self.clients)

        @tff.tensorflow.computation
        def public_signs():
            return tf.constant(signs(by))

        @tff.tensorflow.computation(
            value_type, weight_type, public_signs.type_signature.result, np.int32
        )
        def encode_at_client(delta, weight, signs, done):
            arrays = tf.nest.flatten(delta)  # sorts a dict by its names
            vector = tf.concat([tf.reshape(array, [-1]) for array in arrays], axis=0)
            clipped, norm = clip(vector, self.clipping_norm)
            draw = rounding_seed(self.seed, done + 1, vector)
            counts = weight > 0
            share = tf.cast(counts, tf.float32)
            return OrderedDict(
                codes=tf.cast(counts, codes_type)
                * tf.cast(encode(clipped, signs, by, draw), codes_type),
                clients=tf.cast(counts, tf.int32),
                clipped=share * tf.cast(norm > self.clipping_norm, tf.float32),
                norm=share * tf.cast(norm, tf.float32),
            )

        @tff.tensorflow.computation(
            encode_at_client.type_signature.result, public_signs.type_signature.result
        )
        def mean_at_server(total, signs):
            vector = mean(total["codes"], total["clients"], signs, by)
            arrays = [
                tf.reshape(part, spec.shape)
                for part, spec in zip(tf.split(vector, sizes), tf.nest.flatten(like), strict=True)
            ]
            clients = tf.cast(total["clients"], tf.float32)
            measured = OrderedDict(
                clipped=tf.math.divide_no_nan(total["clipped"], clients),
                norm=tf.math.divide_no_nan(total["norm"], clients),
                upload_bytes=tf.constant(encoded_bytes(by.dimension, self.bits), tf.int64),
                masked_bytes=tf.constant(sealed_bytes(masked), tf.int64),
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
            signs_at_server = tff.federated_eval(public_signs, tff.SERVER)
            sent = tff.federated_broadcast(signs_at_server), tff.federated_broadcast(done)
            total = tff.federated_sum(tff.federated_map(encode_at_client, (delta, weight, *sent)))
            mean, measured = tff.federated_map(mean_at_server, (total, signs_at_server))
            return tff.templates.MeasuredProcessOutput(
                tff.federated_map(one_more, done), mean, measured
            )

        return tff.templates.AggregationProcess(start, next_round)


def whole(by: encoding.Encoding, clients: int) -> tf.DType:
    """Whole numbers in which the codes of so many clients add up and never wrap around."""
    return tf.int32 if by.largest * clients < 2**31 else tf.int64


def signs(by: encoding.Encoding) -> np.ndarray:
    """The signs of a run's rotation, 1 and -1: int8 [values]. They are what rotating back makes of
    a spike at the head of each block.
    """
    spikes = np.zeros(by.values, np.float32)
    spikes[:: quantize.BLOCK] = math.sqrt(quantize.BLOCK)
    return quantize.unrotate(spikes, by.seed, by.values).astype(np.int8)


def clip(vector: tf.Tensor, clipping_norm: float) -> tuple[tf.Tensor, tf.Tensor]:
    """float32 [n], scaled down to at most `clipping_norm`, and its L2 norm before, float64."""
    norm = tf.norm(tf.cast(vector, tf.float64))
    return vector * tf.cast(clipping_norm / tf.maximum(norm, clipping_norm), tf.float32), norm


def encode(
    vector: tf.Tensor, signs: tf.Tensor, by: encoding.Encoding, seed: tf.Tensor
) -> tf.Tensor:
    """`encoding.encode` of what is clipped: float32 [dimension] -> codes, int32 [values].

    seed: int64 [2], of the rounding.
    """
    permuted = tf.gather(vector, _steps(by.dimension, by.stride))
    padded = tf.pad(permuted, [[0, by.values - by.dimension]])
    rotated = hadamard(padded * tf.cast(signs, tf.float32))
    most = tf.constant(by.bound * by.clipping_norm, tf.float64)

    def draw(number):
        """Shorter each time after some; of zeros any draw is within the bound."""
        shorter = tf.pow(0.9, tf.cast(tf.maximum(0, number - encoding.MOST_DRAWS + 1), tf.float32))
        factor = tf.where(number < 2 * encoding.MOST_DRAWS, shorter / by.step, 0.0)
        position = tf.clip_by_value(rotated * factor + by.largest / 2, 0.0, by.largest)
        uniform = tf.random.stateless_uniform(
            [by.values], tf.random.fold_in(seed, tf.cast(number, tf.int64)), alg="philox"
        )
        below = tf.floor(position)
        return tf.cast(below, tf.int32) + tf.cast(uniform < position - below, tf.int32)

    def is_over(_, codes):
        return tf.norm(tf.cast(codes, tf.float64) * by.step - by.half) > most

    drawn = tf.constant(1), draw(tf.constant(0))
    _, codes = tf.while_loop(is_over, lambda number, _: (number + 1, draw(number)), drawn)
    return codes


def mean(total: tf.Tensor, count: tf.Tensor, signs: tf.Tensor, by: encoding.Encoding) -> tf.Tensor:
    """`encoding.mean`: a sum of so many codes, [values] -> float32 [dimension]; of none, zeros."""
    share = tf.math.divide_no_nan(tf.constant(by.step, tf.float64), tf.cast(count, tf.float64))
    values = tf.cast(total, tf.float64) * share - tf.where(
        count > 0, tf.constant(by.half, tf.float64), 0
    )
    permuted = (hadamard(tf.cast(values, tf.float32)) * tf.cast(signs, tf.float32))[: by.dimension]
    return tf.gather(permuted, _steps(by.dimension, pow(by.stride, -1, by.dimension)))


def rounding_seed(seed: int, number: tf.Tensor, delta: tf.Tensor) -> tf.Tensor:
    """int64 [2] from the run's seed, the round and the bits of the client's delta, float32 [n].

    Who else trains, and in what order, changes nothing.
    """
    fingerprint = tf.reduce_sum(tf.bitcast(delta, tf.int32))  # wraps around
    return tf.random.fold_in(
        tf.stack([tf.constant(seed, tf.int64), tf.cast(number, tf.int64)]),
        tf.cast(fingerprint, tf.int64),
    )


def hadamard(vector: tf.Tensor) -> tf.Tensor:
    """Orthonormal Walsh-Hadamard transform of each block.

    The matrix of 4096 is the Kronecker product of two of 64: two fast matrix products.
    """
    blocks = tf.reshape(vector, [-1, _SIDE, _SIDE])
    return tf.reshape(tf.matmul(_HADAMARD, tf.matmul(blocks, _HADAMARD)) / _SIDE, [-1])


def _steps(count: int, stride: int) -> tf.Tensor:
    """Multiples of the stride, modulo the count: int64 [count]."""
    return tf.range(count, dtype=tf.int64) * stride % count
