"""Local training of one client as TFF simulates it: the step of `training.py` without padding.

Rows of a batch come longest first, so the rows still running at a time step are the first ones, and
real tokens lie packed one time step after the other (as in cuDNN's packed sequences). No product,
softmax or cell is computed for padding. Embedding, output bias and a column of ones live in one
table [vocabulary, embedding + 2] while a client trains, so that one product gives every logit
already shifted by its target's, and one product every gradient of the table; gradients come out
scaled by the learning rate, so a step is one subtraction. Everything stands in one graph without
functions: TensorFlow prepares functions anew on each call, which costs more than a client's
training. `training.py` is the definition, and a test holds the two together.
"""

import math

import tensorflow as tf

from device_runtime.text import OOV
from model.recipe import Client

Tensors = dict[str, tf.Tensor]
PLAIN = Client()  # SGD, without momentum, a pull or dropout
# a target is the best guess if no other id is likelier by more than what float32 rounds away
TIED = 1.0001


def pack(weights: Tensors) -> Tensors:
    """Weights as packed training keeps them, with one `table` of embedding, bias and ones.

    table is float32 [vocabulary, embedding + 2].
    """
    table = tf.concat(
        [
            weights["embedding"],
            weights["output_bias"][:, None],
            tf.ones_like(weights["output_bias"])[:, None],
        ],
        axis=1,
    )
    return {
        name: array for name, array in weights.items() if name not in ("embedding", "output_bias")
    } | {"table": table}


def unpack(packed: Tensors) -> Tensors:
    """The inverse of `pack`."""
    table, d = packed["table"], packed["projection"].shape[0]
    return {name: array for name, array in packed.items() if name != "table"} | {
        "embedding": table[:, :d],
        "output_bias": table[:, d],
    }


def train(
    weights: Tensors,
    batches: tf.Tensor,
    learning_rate: tf.Tensor,
    client: Client = PLAIN,
    seed: tf.Tensor | None = None,
) -> tuple[Tensors, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Local SGD over batches: the weights after it, the sum of losses (nats), targets and hits.

    A hit is a target that was the network's best guess, in the step that learns from it: of all
    ids, and a word outside the vocabulary never is.

    batches is int32 [steps, batch, length + 1]; the numbers of targets and hits are floats. Each
    batch's rows must come longest first. Of the client its momentum (heavy-ball), its proximal
    pull (FedProx's mu, towards the first weights) and its dropout count; dropout needs a seed,
    int32 [2].
    """
    start = pack(weights)
    names = sorted(start)
    moving = bool(client.momentum)

    def step(i, losses, targets, hits, *arrays):
        now = dict(zip(names, arrays[: len(names)], strict=True))
        seeds = None if seed is None or not client.dropout else tf.stack([seed[0], seed[1] + i])
        loss, count, best, change = changes(now, batches[i], learning_rate, client.dropout, seeds)
        if client.proximal:
            change = {
                name: change[name] + learning_rate * client.proximal * (now[name] - start[name])
                for name in names
            }
        if moving:
            change = {
                name: client.momentum * velocity + change[name]
                for name, velocity in zip(names, arrays[len(names) :], strict=True)
            }
        after = [now[name] - change[name] for name in names]
        return (
            i + 1,
            losses + loss * count,
            targets + count,
            hits + best,
            *after,
            *([change[name] for name in names] if moving else []),
        )

    velocities = [tf.zeros_like(start[name]) for name in names] if moving else []
    loop = (0, 0.0, 0.0, 0.0, *(start[name] for name in names), *velocities)
    _, losses, targets, hits, *arrays = tf.while_loop(
        lambda i, *_: i < tf.shape(batches)[0], step, loop, parallel_iterations=1
    )
    return unpack(dict(zip(names, arrays[: len(names)], strict=True))), losses, targets, hits


def changes(
    packed: Tensors,
    rows: tf.Tensor,
    scale: tf.Tensor | float,
    dropout: float = 0.0,
    seed: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, Tensors]:
    """Mean cross-entropy of a batch's targets, their number, hits, and `scale` times its gradients.

    rows is int32 [batch, length + 1], longest first.
    """
    table, recurrent, projection = packed["table"], packed["recurrent_kernel"], packed["projection"]
    d, units = projection.shape
    length = rows.shape[1] - 1
    columns = tf.transpose(rows)  # time-major: [length + 1, batch]
    real = tf.not_equal(columns[1:], 0)
    # [length], rows with a target at each time step
    running = tf.reduce_sum(tf.cast(real, tf.int32), axis=1)
    at = tf.squeeze(tf.where(tf.reshape(real, [-1])), 1)
    # [tokens] each
    inputs, targets = (
        tf.gather(tf.reshape(part, [-1]), at) for part in (columns[:-1], columns[1:])
    )
    count = tf.cast(tf.shape(targets)[0], tf.float32)
    per_target = scale / tf.maximum(count, 1.0)
    at_step = tf.unstack(running, length)

    def by_step(values: tf.Tensor) -> list[tf.Tensor]:
        return tf.split(values, running, axis=0, num=length)

    # forward
    x = tf.gather(table, inputs)[:, :d] * math.sqrt(d)
    kept_in, kept_out = (
        (_kept(tf.shape(x), dropout, seed, part) for part in (0, 1)) if dropout else (None, None)
    )
    if dropout:
        x = x * kept_in
    gates = by_step(tf.matmul(x, packed["input_kernel"], transpose_b=True) + packed["cell_bias"])
    recurrent_transposed, projection_transposed = tf.transpose(recurrent), tf.transpose(projection)
    hidden, cell = tf.zeros([at_step[0], d]), tf.zeros([at_step[0], units])
    steps = []
    for time in range(length):
        n = at_step[time]
        before, cell_before = (hidden[:n], cell[:n]) if time else (hidden, cell)
        gate = gates[time] + tf.matmul(before, recurrent_transposed) if time else gates[time]
        i, o, g = tf.split(gate, 3, axis=1)
        i, o, g = tf.sigmoid(i), tf.sigmoid(o), tf.tanh(g)
        cell = cell_before + i * (g - cell_before)
        tanh_cell = tf.tanh(cell)
        output = o * tanh_cell
        hidden = tf.matmul(output, projection_transposed)
        steps.append((i, o, g, cell_before, tanh_cell, output, before, hidden))
    i, o, g, cell_before, tanh_cell, outputs, before, states = (
        tf.concat(parts, axis=0) for parts in zip(*steps, strict=True)
    )

    # loss: exponentials of logit minus the target's logit, from one product with the table
    read = states * kept_out if dropout else states
    ones = tf.ones_like(read[:, :1])
    target_rows = tf.gather(table, targets)
    target_logits = tf.reduce_sum(
        tf.concat([read, ones], axis=1) * target_rows[:, : d + 1], axis=1, keepdims=True
    )
    # [tokens, vocabulary]
    ratios = tf.exp(
        tf.matmul(tf.concat([read, ones, -target_logits], axis=1), table, transpose_b=True)
    )
    totals = tf.reduce_sum(ratios, axis=1, keepdims=True)
    loss = tf.reduce_sum(tf.math.log(totals)) / tf.maximum(count, 1.0)
    is_best = (tf.reduce_max(ratios, axis=1) <= TIED) & tf.not_equal(targets, OOV)

    # backward: softmax = ratios / totals, and the target's own share is taken off by hand
    share = per_target / totals  # [tokens, 1]
    d_read = tf.matmul(ratios, table)[:, :d] * share - target_rows[:, :d] * per_target
    nothing = tf.zeros_like(ones)
    d_table = tf.matmul(ratios, tf.concat([read * share, share, nothing], axis=1), transpose_a=True)
    d_states = d_read * kept_out if dropout else d_read
    forget = 1.0 - i
    to_gates = by_step(
        tf.concat(
            [(g - cell_before) * i * forget, tanh_cell * o * (1.0 - o), i * (1.0 - g * g)], axis=1
        )
    )
    to_cell, keep, d_states = (
        by_step(o * (1.0 - tanh_cell * tanh_cell)),
        by_step(forget),
        by_step(d_states),
    )
    d_hidden, d_cell, after = tf.zeros([0, d]), tf.zeros([0, units]), 0
    d_gates, d_projected = [], []
    for time in reversed(range(length)):
        # rows that end here get nothing from the next time step
        longer = [[0, at_step[time] - after], [0, 0]]
        d_h = d_states[time] + tf.pad(d_hidden, longer)
        d_output = tf.matmul(d_h, projection)
        d_c = tf.pad(d_cell, longer) + d_output * to_cell[time]
        d_gate = tf.concat([d_c, d_output, d_c], axis=1) * to_gates[time]
        d_cell = d_c * keep[time]
        d_hidden = tf.matmul(d_gate, recurrent) if time else d_hidden
        after = at_step[time]
        d_gates.append(d_gate)
        d_projected.append(d_h)
    d_gate, d_h = tf.concat(d_gates[::-1], axis=0), tf.concat(d_projected[::-1], axis=0)
    d_x = tf.matmul(d_gate, packed["input_kernel"]) * math.sqrt(d)
    if dropout:
        d_x = d_x * kept_in
    from_inputs = tf.concat([d_x, nothing, nothing], axis=1)
    from_targets = tf.concat([-per_target * read, -per_target * ones, nothing], axis=1)
    return (
        loss,
        count,
        tf.reduce_sum(tf.cast(is_best, tf.float32)),
        {
            "cell_bias": tf.reduce_sum(d_gate, axis=0),
            "input_kernel": tf.matmul(d_gate, x, transpose_a=True),
            "projection": tf.matmul(d_h, outputs, transpose_a=True),
            "recurrent_kernel": tf.matmul(d_gate, before, transpose_a=True),
            "table": tf.tensor_scatter_nd_add(
                d_table,
                tf.concat([inputs, targets], axis=0)[:, None],
                tf.concat([from_inputs, from_targets], axis=0),
            ),
        },
    )


def _kept(shape: tf.Tensor, dropout: float, seed: tf.Tensor, part: int) -> tf.Tensor:
    """Inverted dropout: 0 for a dropped value, 1 / (1 - dropout) for a kept one."""
    drawn = tf.random.stateless_uniform(shape, tf.stack([seed[0] * 2 + part, seed[1]]))
    return tf.cast(drawn >= dropout, tf.float32) / (1.0 - dropout)
