"""Peer: TFF as its guides show it.

A Keras model through `from_keras_model`, `build_weighted_fed_avg`, tf.data clients, the local C++
runtime.
"""

import math
import os
import signal

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from benchmarks.peers import common

GATES = ("input_kernel", "recurrent_kernel", "cell_bias")
NAMES = ("embedding", *GATES, "projection", "output_bias")  # in the order Keras lists them
TRANSPOSED = ("input_kernel", "recurrent_kernel", "projection")  # Keras has the other side first


class Cifg(tf.keras.layers.Layer):
    """A cell for `tf.keras.layers.RNN`: input and forget gate coupled, recurrent projection."""

    def __init__(self, units: int, width: int):
        super().__init__()
        self.units, self.width = units, width
        self.state_size, self.output_size = [width, units], width

    def build(self, shape):
        """Keras's hook: the cell's weights."""
        self.input_kernel = self.add_weight("input_kernel", (shape[-1], 3 * self.units))
        self.recurrent_kernel = self.add_weight("recurrent_kernel", (self.width, 3 * self.units))
        self.cell_bias = self.add_weight("cell_bias", (3 * self.units,))
        self.projection = self.add_weight("projection", (self.units, self.width))

    def call(self, x, states):
        """One time step: float32 [batch, width] and the states -> hidden, and the states after."""
        hidden, cell = states
        i, o, g = tf.split(
            tf.matmul(x, self.input_kernel)
            + tf.matmul(hidden, self.recurrent_kernel)
            + self.cell_bias,
            3,
            axis=1,
        )
        cell = cell + tf.sigmoid(i) * (tf.tanh(g) - cell)
        hidden = tf.matmul(tf.sigmoid(o) * tf.tanh(cell), self.projection)
        return hidden, [hidden, cell]


class Tied(tf.keras.layers.Layer):
    """Logits from the embedding's own table."""

    def __init__(self, embedding: tf.keras.layers.Embedding):
        super().__init__()
        self.embedding = embedding

    def build(self, shape):
        """Keras's hook: the bias."""
        self.output_bias = self.add_weight("output_bias", (self.embedding.input_dim,))

    def call(self, hidden):
        """float32 [batch, time, width] -> [batch, time, vocabulary]."""
        return tf.matmul(hidden, self.embedding.embeddings, transpose_b=True) + self.output_bias


class TokenMean(tf.keras.losses.Loss):
    """Mean cross-entropy over real tokens."""

    def call(self, targets, logits):
        """Ids [batch, time] and logits [batch, time, vocabulary] -> a scalar."""
        real = tf.cast(tf.not_equal(targets, 0), tf.float32)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(targets, tf.int32), logits)
        return tf.reduce_sum(losses * real) / tf.maximum(tf.reduce_sum(real), 1.0)


def learning_process(work: common.Work) -> tff.learning.templates.LearningProcess:
    """Federated averaging of the Keras model, weighted by rows as TFF does by default."""
    vocabulary, width = work.weights["embedding"].shape
    units, length = work.weights["projection"].shape[1], work.rows.shape[1] - 1

    def model() -> tff.learning.models.VariableModel:
        ids = tf.keras.Input([length], dtype=tf.int32)
        embedding = tf.keras.layers.Embedding(vocabulary, width)
        hidden = tf.keras.layers.RNN(Cifg(units, width), return_sequences=True)(
            tf.keras.layers.Rescaling(math.sqrt(width))(embedding(ids))
        )
        spec = tf.TensorSpec([None, length], tf.int32)
        return tff.learning.models.from_keras_model(
            tf.keras.Model(ids, Tied(embedding)(hidden)), loss=TokenMean(), input_spec=(spec, spec)
        )

    optimizers = tff.learning.optimizers
    return tff.learning.algorithms.build_weighted_fed_avg(
        model, optimizers.build_sgdm(work.learning_rate), optimizers.build_sgdm(1.0)
    )


def main() -> None:
    """Do the work, and write when rounds ended and what came out."""
    asked = common.arguments()
    work, marks = common.read(asked.work), common.Marks()
    tff.backends.native.set_sync_local_cpp_execution_context(max_concurrent_computation_calls=1)

    def turned(name: str, array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array.T) if name in TRANSPOSED else array

    marks.mark()
    process = learning_process(work)
    start = tff.learning.models.ModelWeights(
        [turned(name, work.weights[name]) for name in NAMES], []
    )
    state = process.set_model_weights(process.initialize(), start)
    for number in range(work.rounds):
        data = [
            tf.data.Dataset.from_tensor_slices((rows[:, :-1], rows[:, 1:])).batch(work.batch_size)
            for rows in work.round(number)
        ]
        state = process.next(state, data).state
        marks.mark()
    trained = zip(NAMES, process.get_model_weights(state).trainable, strict=True)
    packages = ["tensorflow-federated", "tensorflow"]
    common.finish(
        asked.result,
        marks,
        packages,
        {name: turned(name, np.asarray(array)) for name, array in trained},
    )
    for pid in common.tree(os.getpid())[1:]:  # TFF leaves its worker running
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
