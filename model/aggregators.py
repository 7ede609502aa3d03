"""Aggregators: how TFF brings the cohort's deltas together.

The plain mean, the mean of updates encoded as devices encode them, or a mean with noise.

`Encoded` repeats `device_runtime.encoding` in TensorFlow operations: clip -> permute -> rotate ->
keep -> round at random in one range; codes are added up as whole numbers, noise is added in whole
codes, and the sum becomes a mean delta once a round. Permutation, rotation and range are the
device's own; the rounding draws other random numbers of the same distribution. `noised` repeats
`device_runtime.strategy.advance`. Every draw follows from the seed, the round and the client's own
delta, so a resumed run repeats bit for bit: what is drawn here protects nobody. Masks are not
simulated: what they add, the sum loses.
"""

import functools
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from device_runtime import encoding, packing, quantize, strategy
from device_runtime.noise import Mechanism, Noise
from device_runtime.terms import ROOM
from device_runtime.update import encoded_bytes, sealed_bytes
from device_runtime.wire import Plan
from model.recipe import ADAPTIVE, require_adaptable

_SIDE = math.isqrt(quantize.BLOCK)
_PAIR = np.array([[1, 1], [1, -1]], np.float32)
_HADAMARD = functools.reduce(np.kron, [_PAIR] * int(math.log2(_SIDE)))  # [64, 64]
_NOISE = 1 << 40  # folded into a seed: what noise draws is nothing that rounding draws

Draw = Callable[[int], tf.Tensor]  # a number -> independent standard normals, float32 [values]


@dataclass(frozen=True)
class Averaging:
    """What a recipe says of how deltas become a mean."""

    encoded: bool  # whether they go through the device's encoding
    bits: int  # the plan's, of one encoded value
    clipping_norm: float  # of a delta: the plan's if it is encoded, else the mechanism's
    mechanism: str  # of privacy; `none` for none
    noise: Noise | None  # of a mechanism with a fixed norm
    noise_multiplier: float  # the mechanism's
    clients_per_round: int
    seed: int
    compression: int = 1  # of an encoded delta
    report_goal: int = 0  # that the clients of a round stand for; 0: they are as many

    @property
    def scale(self) -> float:
        """By what the noise of a sum is multiplied, for the sum of so few to stand for one of as
        many as the report goal: on the mean it then is as wide as theirs.
        """
        return self.clients_per_round / (self.report_goal or self.clients_per_round)


def build(averaging: Averaging) -> tuple[tff.aggregators.AggregationFactory, bool]:
    """The aggregator a recipe asks for, and whether it weighs clients.

    Raises ConfigError for values no device or mechanism takes.
    """
    clients, seed = averaging.clients_per_round, averaging.seed
    if averaging.mechanism == ADAPTIVE:
        return adaptive(averaging.noise_multiplier, averaging.clipping_norm, clients), False
    if averaging.encoded:
        return Encoded(
            averaging.clipping_norm,
            averaging.bits,
            seed,
            clients,
            averaging.compression,
            averaging.noise,
            averaging.scale,
        ), True
    if averaging.noise is not None:
        norm = averaging.clipping_norm
        return Private(norm, seed, clients, averaging.noise, averaging.scale), False
    # with nobody's weight left, a mean of 0
    return tff.aggregators.MeanFactory(no_nan_division=True), True


def adaptive(
    noise_multiplier: float, clipping_norm: float, clients: int
) -> tff.aggregators.UnweightedAggregationFactory:
    """The mean of deltas clipped at a norm that starts at `clipping_norm` and follows their median,
    itself measured with noise; the noise on the deltas is raised so that both together spend what
    noise_multiplier says. Independent noise, which differs from run to run.

    Every client counts once and the denominator is `clients`, however many there were. Andrew et
    al. 2021, arXiv:1905.03871. Raises ConfigError for noise that the norm cannot be measured under.
    """
    require_adaptable(noise_multiplier, clients)
    return tff.aggregators.DifferentiallyPrivateFactory.gaussian_adaptive(
        float(noise_multiplier), float(clients), initial_l2_norm_clip=float(clipping_norm)
    )


def noised(
    noise: Noise, step: tf.Tensor, arrays: tf.Tensor, draw: Draw
) -> tuple[tf.Tensor, tf.Tensor]:
    """`strategy.advance`: the noise of the next sum, float32 [values], and the buffers after it.

    step is how many sums there were, arrays are float32 [buffers, values].
    """
    if noise.mechanism is Mechanism.TREE:
        return _noised_tree(noise, step, arrays, draw)
    made = draw(0)
    if not noise.decays:
        return made, arrays
    scales, decays = (tf.constant(each, tf.float32) for each in (noise.scales, noise.decays))
    made -= tf.linalg.matvec(arrays, scales, transpose_a=True)
    return made, decays[:, None] * arrays + made


def _noised_tree(
    noise: Noise, step: tf.Tensor, arrays: tf.Tensor, draw: Draw
) -> tuple[tf.Tensor, tf.Tensor]:
    """The same of a tree, whose buffers hold of each height the tree that is not part of a higher
    one.
    """
    step %= min(noise.restart or noise.rounds, noise.rounds)
    arrays = tf.where(step == 0, tf.zeros_like(arrays), arrays)
    estimate, before = draw(0), tf.zeros_like(arrays[0])
    height, is_completed = tf.zeros_like(step), tf.constant(True)  # the next height's tree
    for each in range(arrays.shape[0] - 1):
        is_completed &= tf.bitwise.right_shift(step, each) % 2 == 1
        own = strategy.variance(each + 1)
        joined = own * draw(each + 1) + (1 - own) * (arrays[each] + estimate)
        estimate = tf.where(is_completed, joined, estimate)
        before += tf.where(is_completed, arrays[each], 0.0)
        height += tf.cast(is_completed, step.dtype)
    heights = tf.range(arrays.shape[0], dtype=step.dtype)[:, None]
    kept = tf.where(heights > height, arrays, 0.0)
    return estimate - before, tf.where(heights == height, estimate, kept)


def buffers(noise: Noise, values: int) -> np.ndarray:
    """What `noised` starts with: float32 [buffers, values]."""
    return strategy.begin(noise, values).arrays


def normals(seed: int, done: tf.Tensor, values: int) -> Draw:
    """Where a round's noise comes from: a stream of the run's seed and the round."""
    of_round = tf.random.fold_in(
        tf.stack([tf.constant(seed, tf.int64), tf.cast(done, tf.int64)]),
        tf.constant(_NOISE, tf.int64),
    )

    def draw(number: int) -> tf.Tensor:
        own = tf.random.fold_in(of_round, tf.constant(number, tf.int64))
        return tf.random.stateless_normal([values], own, alg="philox")

    return draw


@dataclass(frozen=True)
class Private(tff.aggregators.UnweightedAggregationFactory):
    """The mean of clipped deltas with noise on their sum, as floats.

    Every client counts once and the denominator is `clients`, however many there were. Each
    independent Gaussian has the standard deviation multiplier x clipping norm x `scale`. State:
    rounds done, and the noise's buffers.

    Measures over the clients: the share that was clipped, and the mean norm before it.
    """

    clipping_norm: float  # largest L2 norm of a delta
    seed: int
    clients: int  # of a round
    noise: Noise
    scale: float = 1.0

    def create(self, value_type: tff.Type) -> tff.templates.AggregationProcess:
        """value_type: float32 tensors, as a tuple in order of their names or a dict by name."""
        like = tff.types.type_to_tf_tensor_specs(value_type)
        sizes = [spec.shape.num_elements() for spec in tf.nest.flatten(like)]
        deviation = self.noise.multiplier * self.clipping_norm * self.scale

        @tff.tensorflow.computation(value_type)
        def clip_at_client(delta):
            clipped, norm = clip(_vector(delta), self.clipping_norm)
            return OrderedDict(
                delta=clipped,
                clients=1.0,
                clipped=tf.cast(norm > self.clipping_norm, tf.float32),
                norm=tf.cast(norm, tf.float32),
            )

        @tff.tensorflow.computation
        def start_at_server():
            return OrderedDict(done=0, buffers=tf.constant(buffers(self.noise, sum(sizes))))

        @tff.tensorflow.computation(
            start_at_server.type_signature.result, clip_at_client.type_signature.result
        )
        def mean_at_server(state, total):
            draw = normals(self.seed, state["done"], sum(sizes))
            made, after = noised(self.noise, state["done"], state["buffers"], draw)
            mean = (total["delta"] + deviation * made) / self.clients
            measured = OrderedDict(
                clipped=tf.math.divide_no_nan(total["clipped"], total["clients"]),
                norm=tf.math.divide_no_nan(total["norm"], total["clients"]),
            )
            state = OrderedDict(done=state["done"] + 1, buffers=after)
            return state, _arrays(mean, sizes, like), measured

        @tff.federated_computation()
        def start():
            return tff.federated_eval(start_at_server, tff.SERVER)

        @tff.federated_computation(
            start.type_signature.result, tff.FederatedType(value_type, tff.CLIENTS)
        )
        def next_round(state, delta):
            total = tff.federated_sum(tff.federated_map(clip_at_client, delta))
            return tff.templates.MeasuredProcessOutput(
                *tff.federated_map(mean_at_server, (state, total))
            )

        return tff.templates.AggregationProcess(start, next_round)


@dataclass(frozen=True)
class Encoded(tff.aggregators.WeightedAggregationFactory):
    """The mean of deltas that went through the device's encoding, with noise if there is any.

    Every client whose weight is above 0 counts once, as devices do. With noise the denominator is
    `clients`, however many there were, and each independent Gaussian is `Terms.deviation` x `scale`
    wide. State: rounds done, so that no two round alike; and the noise's buffers.

    Measures over the clients that count: the share that was clipped, the mean norm before it, and
    the bytes one upload takes in the open, and sealed for a sum of `clients`. Two clients with the
    very same delta round alike. A cohort of nobody has a mean of 0.
    """

    clipping_norm: float  # largest L2 norm of a delta
    bits: int  # of one value of the upload
    seed: int
    clients: int  # of a round, at most
    compression: int = 1  # of the encoding
    noise: Noise | None = None  # added to each sum, in whole codes
    scale: float = 1.0  # of the noise
    fresh: bool = False  # whether each round rotates by signs of its own

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
        by = encoding.Encoding(
            sum(sizes), self.bits, self.clipping_norm, self.seed, self.compression
        )
        padded = quantize.padded(by.dimension)
        full = 0.0 if self.noise is None else deviation_of(self.noise, by)
        deviation = full * self.scale
        codes_type = whole(by, self.clients, room(self.noise, deviation))
        goal = round(self.clients / self.scale)
        masked = packing.layout(by.values, by.largest, goal, room(self.noise, full))

        @tff.tensorflow.computation(np.int32)
        def public_signs(done):
            if not self.fresh:
                return tf.constant(signs(by))
            own = tf.stack([tf.constant(self.seed, tf.int64), tf.cast(done, tf.int64)])
            return 1 - 2 * tf.cast(
                tf.random.stateless_uniform([padded], own, 0, 2, tf.int32, alg="philox"), tf.int8
            )

        @tff.tensorflow.computation(
            value_type, weight_type, public_signs.type_signature.result, np.int32
        )
        def encode_at_client(delta, weight, signs, done):
            vector = _vector(delta)
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

        @tff.tensorflow.computation
        def start_at_server():
            if self.noise is None:
                return 0
            return OrderedDict(done=0, buffers=tf.constant(buffers(self.noise, by.values)))

        state_type = start_at_server.type_signature.result

        @tff.tensorflow.computation(state_type)
        def rounds_done(state):
            return state if self.noise is None else state["done"]

        @tff.tensorflow.computation(
            state_type,
            encode_at_client.type_signature.result,
            public_signs.type_signature.result,
        )
        def mean_at_server(state, total, signs):
            codes, over = total["codes"], total["clients"]
            if self.noise is None:
                after = state + 1
            else:
                draw = normals(self.seed, state["done"], by.values)
                made, arrays = noised(self.noise, state["done"], state["buffers"], draw)
                codes += whole_codes(made, deviation, codes_type)
                over = tf.constant(self.clients)
                after = OrderedDict(done=state["done"] + 1, buffers=arrays)
            vector = mean(codes, total["clients"], signs, by, over)
            clients = tf.cast(total["clients"], tf.float32)
            measured = OrderedDict(
                clipped=tf.math.divide_no_nan(total["clipped"], clients),
                norm=tf.math.divide_no_nan(total["norm"], clients),
                upload_bytes=tf.constant(encoded_bytes(by.values, self.bits), tf.int64),
                masked_bytes=tf.constant(sealed_bytes(masked), tf.int64),
            )
            return after, _arrays(vector, sizes, like), measured

        @tff.federated_computation()
        def start():
            return tff.federated_eval(start_at_server, tff.SERVER)

        @tff.federated_computation(
            start.type_signature.result,
            tff.FederatedType(value_type, tff.CLIENTS),
            tff.FederatedType(weight_type, tff.CLIENTS),
        )
        def next_round(state, delta, weight):
            done = tff.federated_map(rounds_done, state)
            signs_at_server = tff.federated_map(public_signs, done)
            sent = tff.federated_broadcast(signs_at_server), tff.federated_broadcast(done)
            total = tff.federated_sum(tff.federated_map(encode_at_client, (delta, weight, *sent)))
            return tff.templates.MeasuredProcessOutput(
                *tff.federated_map(mean_at_server, (state, total, signs_at_server))
            )

        return tff.templates.AggregationProcess(start, next_round)


def deviation_of(noise: Noise, by: encoding.Encoding) -> float:
    """`Terms.deviation`: the standard deviation of one independent Gaussian, in codes."""
    return noise.multiplier * by.bound * by.clipping_norm / by.step


def room(noise: Noise | None, deviation: float) -> int:
    """`Terms.room`: codes of noise, to either side, that a masked sum has room for."""
    return 0 if noise is None else math.ceil(ROOM * deviation * strategy.row_norm(noise))


def whole_codes(made: tf.Tensor, deviation: float, codes_type: tf.DType) -> tf.Tensor:
    """`server.noising.noise`: the noise of a sum in whole codes."""
    return tf.cast(tf.round(tf.cast(made, tf.float64) * deviation), codes_type)


def _vector(delta) -> tf.Tensor:
    """All values of a delta, float32 [dimension], in the order of its arrays' names."""
    arrays = tf.nest.flatten(delta)  # sorts a dict by its names
    return tf.concat([tf.reshape(array, [-1]) for array in arrays], axis=0)


def _arrays(vector: tf.Tensor, sizes: Sequence[int], like):
    """The inverse of `_vector`: arrays of these sizes, with the shapes and structure of `like`."""
    parts = zip(tf.split(vector, sizes), tf.nest.flatten(like), strict=True)
    arrays = [tf.reshape(part, spec.shape) for part, spec in parts]
    return tf.nest.pack_sequence_as(like, arrays)


def whole(by: encoding.Encoding, clients: int, room: int = 0) -> tf.DType:
    """Whole numbers in which the codes of so many clients add up, with so many codes of noise to
    either side, and never wrap around.
    """
    return tf.int32 if by.largest * clients + room < 2**31 else tf.int64


def signs(by: encoding.Encoding) -> np.ndarray:
    """The signs of a run's rotation, 1 and -1: int8 [padded dimension]. They are what rotating back
    makes of a spike at the head of each block.
    """
    padded = quantize.padded(by.dimension)
    spikes = np.zeros(padded, np.float32)
    spikes[:: quantize.BLOCK] = math.sqrt(quantize.BLOCK)
    return quantize.unrotate(spikes, by.seed, padded).astype(np.int8)


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
    padded = tf.pad(permuted, [[0, quantize.padded(by.dimension) - by.dimension]])
    rotated = kept(hadamard(padded * tf.cast(signs, tf.float32)), by)
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


def mean(
    total: tf.Tensor,
    count: tf.Tensor,
    signs: tf.Tensor,
    by: encoding.Encoding,
    over: tf.Tensor | None = None,
) -> tf.Tensor:
    """`encoding.mean`: a sum of so many codes, [values] -> float32 [dimension]; of none, zeros."""
    count = tf.cast(count, tf.float64)
    over = count if over is None else tf.cast(over, tf.float64)
    values = tf.cast(total, tf.float64) * by.step - count * by.half
    values = spread(tf.math.divide_no_nan(values, over), by)
    permuted = (hadamard(tf.cast(values, tf.float32)) * tf.cast(signs, tf.float32))[: by.dimension]
    return tf.gather(permuted, _steps(by.dimension, pow(by.stride, -1, by.dimension)))


def kept(rotated: tf.Tensor, by: encoding.Encoding) -> tf.Tensor:
    """What of a rotated delta travels, as `encoding` has it: float32 [values]."""
    if by.compression == 1:
        return rotated
    blocks = tf.reshape(rotated, [-1, quantize.BLOCK])[:, : quantize.BLOCK // by.compression]
    return clip(tf.reshape(blocks, [-1]) * math.sqrt(by.compression), by.clipping_norm)[0]


def spread(values: tf.Tensor, by: encoding.Encoding) -> tf.Tensor:
    """What travelled where it was in a rotated delta, as `encoding` has it."""
    if by.compression == 1:
        return values
    size = quantize.BLOCK // by.compression
    blocks = tf.reshape(values, [-1, size]) / math.sqrt(by.compression)
    return tf.reshape(tf.pad(blocks, [[0, 0], [0, quantize.BLOCK - size]]), [-1])


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
