"""Training in TensorFlow: the loss, its gradients by hand, and one local SGD step.

TFF and TFLite run this one definition.

The backward pass is written out because it is what plain TFLite can run: unrolled over time,
built-in operations only, no one-hot matrix. It is also faster there than automatic differentiation.
Parity with `tf.GradientTape` is held by a test. Matrices are [out, in], so that a product with a
transposed right side becomes TFLite's fully connected operation, the fastest for a few rows. For
many rows tflite-runtime is faster where nothing is transposed (on x86 another library multiplies),
so the large products turn their matrix first. It subtracts slowly where shapes differ: no `1 - x`
below. Rows are laid out time-major.
"""

import math

import tensorflow as tf

Tensors = dict[str, tf.Tensor]


def loss_and_gradients(
    weights: Tensors, rows: tf.Tensor, length: int, compact: bool = False
) -> tuple[tf.Tensor, tf.Tensor, Tensors]:
    """Mean cross-entropy of the targets in rows, their number, and the gradients of the mean.

    rows is int32 [batch, length + 1]: inputs and targets shifted by one; padding (0) is masked out.
    Without any target the loss is 0. `compact` scores real tokens only, which saves the share of
    padding; it needs shapes known at run time, so exported graphs go without.
    """
    outputs, states = _forward(weights, rows, length)
    table, kernel = weights["embedding"], weights["recurrent_kernel"]
    d = table.shape[1]
    inputs, targets, hidden = states["inputs"], _time_major(rows[:, 1:], length), outputs
    if compact:
        real = tf.where(tf.not_equal(targets, 0))  # [real tokens, 1]
        targets, hidden = tf.gather_nd(targets, real), tf.gather_nd(outputs, real)
    mask = tf.cast(tf.not_equal(targets, 0), tf.float32)  # [time * batch]
    count = tf.reduce_sum(mask)
    weight = mask / tf.maximum(count, 1.0)

    # [time * batch (or real tokens), vocabulary]
    logits = tf.matmul(hidden, _transposed(table)) + weights["output_bias"]
    softmax = tf.nn.softmax(logits)
    target_rows, target_bias = tf.gather(table, targets), tf.gather(weights["output_bias"], targets)
    target_logits = tf.reduce_sum(hidden * target_rows, axis=1) + target_bias
    losses = _log_total(logits, softmax) - target_logits
    loss = tf.reduce_sum(losses * weight)

    column = tf.expand_dims(weight, 1)
    d_hidden = (tf.matmul(softmax, table) - target_rows) * column
    d_table = tf.matmul(softmax, hidden * column, transpose_a=True)
    d_output_bias = tf.squeeze(tf.matmul(column, softmax, transpose_a=True), 0)
    d_output_bias += tf.scatter_nd(tf.expand_dims(targets, 1), -weight, table.shape[:1])

    if compact:
        d_hidden = tf.scatter_nd(real, d_hidden, tf.shape(outputs, out_type=tf.int64))
    zeros = tf.zeros_like(states["first_cell"])
    d_next_hidden, d_next_cell = tf.zeros_like(states["first_hidden"]), zeros
    d_gates, d_projected = [], []
    for time, d_output in reversed(list(enumerate(tf.split(d_hidden, length, axis=0)))):
        step = states["steps"][time]
        d_h = d_output + d_next_hidden  # [batch, embedding]
        d_m = tf.matmul(d_h, weights["projection"])  # [batch, units]
        d_cell = d_next_cell + d_m * (step["o"] - step["output"] * step["tanh_cell"])
        d_i = d_cell * step["i"]
        d_z = tf.concat(  # [batch, 3 * units]
            [
                d_cell * (step["g"] - step["previous_cell"]) * (step["i"] - step["i"] * step["i"]),
                d_m * (step["output"] - step["output"] * step["o"]),
                d_i - d_i * step["g"] * step["g"],
            ],
            axis=1,
        )
        d_next_cell = d_cell - d_i
        d_next_hidden = tf.matmul(d_z, kernel)
        d_gates.append(d_z)
        d_projected.append(d_h)
    d_gate = tf.concat(d_gates[::-1], axis=0)  # [time * batch, 3 * units]
    d_h = tf.concat(d_projected[::-1], axis=0)
    d_x = tf.matmul(d_gate, weights["input_kernel"]) * math.sqrt(d)
    previous_hidden = tf.concat(
        [states["first_hidden"], *(step["hidden"] for step in states["steps"][:-1])], axis=0
    )
    # [time * batch, units]
    cell_outputs = tf.concat([step["output"] for step in states["steps"]], axis=0)
    sparse = tf.scatter_nd(  # duplicates are summed
        tf.expand_dims(tf.concat([inputs, targets], axis=0), 1),
        tf.concat([d_x, -hidden * column], axis=0),
        table.shape,
    )
    gradients = {
        "cell_bias": tf.reduce_sum(d_gate, axis=0),
        "embedding": d_table + sparse,
        "input_kernel": tf.matmul(d_gate, states["x"], transpose_a=True),
        "output_bias": d_output_bias,
        "projection": tf.matmul(d_h, cell_outputs, transpose_a=True),
        "recurrent_kernel": tf.matmul(d_gate, previous_hidden, transpose_a=True),
    }
    return loss, count, gradients


def loss_only(weights: Tensors, rows: tf.Tensor, length: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The loss and count of `loss_and_gradients`, without gradients."""
    hidden, _ = _forward(weights, rows, length)
    targets = _time_major(rows[:, 1:], length)
    mask = tf.cast(tf.not_equal(targets, 0), tf.float32)
    count = tf.reduce_sum(mask)
    logits = tf.matmul(hidden, _transposed(weights["embedding"])) + weights["output_bias"]
    totals = _log_total(logits, tf.nn.softmax(logits))
    target_logits = tf.reduce_sum(
        hidden * tf.gather(weights["embedding"], targets), axis=1
    ) + tf.gather(weights["output_bias"], targets)
    return tf.reduce_sum((totals - target_logits) * mask) / tf.maximum(count, 1.0), count


def sgd_step(
    weights: Tensors, rows: tf.Tensor, learning_rate: tf.Tensor, length: int
) -> tuple[Tensors, tf.Tensor, tf.Tensor]:
    """One local step: new weights, the loss before it, and the number of targets.

    rows is int32 [batch, length + 1], as in `loss_and_gradients`.
    """
    loss, count, gradients = loss_and_gradients(weights, rows, length)
    return {name: weights[name] - learning_rate * gradients[name] for name in weights}, loss, count


def step(
    weights: Tensors, token: tf.Tensor, hidden: tf.Tensor, cell: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """One token further: logits [n, vocabulary], hidden [n, embedding] and cell [n, units] after
    token, int32 [n].
    """
    d = weights["embedding"].shape[1]
    x = tf.gather(weights["embedding"], token) * math.sqrt(d)
    gates = tf.matmul(x, weights["input_kernel"], transpose_b=True) + weights["cell_bias"]
    cell, parts = _cell(weights, gates, hidden, cell)
    return (
        tf.matmul(parts["hidden"], weights["embedding"], transpose_b=True) + weights["output_bias"],
        parts["hidden"],
        cell,
    )


def _time_major(ids: tf.Tensor, length: int) -> tf.Tensor:
    """int32 [batch, length] -> [length * batch]."""
    return tf.reshape(tf.transpose(ids[:, :length]), [-1])


def _forward(weights: Tensors, rows: tf.Tensor, length: int) -> tuple[tf.Tensor, dict]:
    """Hidden states [time * batch, embedding] and what the backward pass needs again."""
    inputs = _time_major(rows[:, :-1], length)
    d = weights["embedding"].shape[1]
    x = tf.gather(weights["embedding"], inputs) * math.sqrt(d)
    # one product for all time steps
    gates = tf.matmul(x, _transposed(weights["input_kernel"])) + weights["cell_bias"]
    per_step = tf.split(gates, length, axis=0)
    hidden = first_hidden = tf.zeros_like(tf.split(x, length, axis=0)[0])
    cell = first_cell = tf.zeros_like(tf.split(per_step[0], 3, axis=1)[0])
    steps = []
    for gate in per_step:
        cell, parts = _cell(weights, gate, hidden, cell)
        hidden = parts["hidden"]
        steps.append(parts)
    outputs = tf.concat([parts["hidden"] for parts in steps], axis=0)
    return outputs, {
        "inputs": inputs,
        "x": x,
        "steps": steps,
        "first_hidden": first_hidden,
        "first_cell": first_cell,
    }


def _cell(
    weights: Tensors, gates: tf.Tensor, hidden: tf.Tensor, cell: tf.Tensor
) -> tuple[tf.Tensor, dict]:
    """One CIFG cell: c' = c + i (g - c), h' = P (o tanh c')."""
    i, o, g = tf.split(
        gates + tf.matmul(hidden, weights["recurrent_kernel"], transpose_b=True), 3, axis=1
    )
    i, o, g = tf.sigmoid(i), tf.sigmoid(o), tf.tanh(g)
    after = cell + i * (g - cell)
    tanh_cell = tf.tanh(after)
    output = o * tanh_cell  # [batch, units]
    projected = tf.matmul(output, weights["projection"], transpose_b=True)
    return after, {
        "i": i,
        "o": o,
        "g": g,
        "previous_cell": cell,
        "tanh_cell": tanh_cell,
        "output": output,
        "hidden": projected,
    }


def _transposed(matrix: tf.Tensor) -> tf.Tensor:
    """[rows, columns] -> [columns, rows].

    Over three axes, or the converter would make it part of the product again.
    """
    rows, columns = matrix.shape
    return tf.reshape(
        tf.transpose(tf.reshape(matrix, [rows, 1, columns]), [2, 1, 0]), [columns, rows]
    )


def _log_total(logits: tf.Tensor, softmax: tf.Tensor) -> tf.Tensor:
    """Logarithm of the sum of exponentials of each row, read off the likeliest: [n, vocabulary]
    twice -> [n].
    """
    return tf.reduce_max(logits, axis=1) - tf.math.log(tf.reduce_max(softmax, axis=1))
