"""Peer: FedJAX on a current JAX, FedAvg by its jit backend, one jitted step a batch.

Batches are padded so that nothing compiles twice.
"""

import jax

if not hasattr(jax, "tree_map"):  # JAX has dropped it, FedJAX 0.0.17 still calls it
    jax.tree_map = jax.tree_util.tree_map

import fedjax
import jax.numpy as jnp
import numpy as np
from fedjax.algorithms.fed_avg import create_train_for_each_client

from benchmarks.peers import common


def loss(weights, batch, _):
    """Mean cross-entropy of the targets of batch["rows"], int32 [batch, length + 1]."""
    columns = batch["rows"].T
    targets, real = columns[1:], columns[1:] != 0
    width, units = weights["projection"].shape
    x = weights["embedding"][columns[:-1]] * np.sqrt(width).astype(np.float32)
    gates = x @ weights["input_kernel"].T + weights["cell_bias"]  # [length, batch, 3 * units]

    def step(carry, gate):
        hidden, cell = carry
        i, o, g = jnp.split(gate + hidden @ weights["recurrent_kernel"].T, 3, axis=-1)
        cell += jax.nn.sigmoid(i) * (jnp.tanh(g) - cell)
        hidden = (jax.nn.sigmoid(o) * jnp.tanh(cell)) @ weights["projection"].T
        return (hidden, cell), hidden

    rows = columns.shape[1]
    _, hidden = jax.lax.scan(step, (jnp.zeros((rows, width)), jnp.zeros((rows, units))), gates)
    logits = hidden @ weights["embedding"].T + weights["output_bias"]
    losses = (
        jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    )
    return jnp.sum(losses * real) / jnp.maximum(jnp.sum(real), 1)


def main() -> None:
    """Do the work, and write when rounds ended and what came out."""
    asked = common.arguments()
    work, marks = common.read(asked.work), common.Marks()
    weights = {name: jnp.asarray(array) for name, array in work.weights.items()}
    train = create_train_for_each_client(jax.grad(loss), fedjax.optimizers.sgd(work.learning_rate))
    server = fedjax.optimizers.sgd(1.0)
    state = server.init(weights)
    key = jax.random.PRNGKey(work.seed)  # nothing is random, but a client wants one
    marks.mark()
    for number in range(work.rounds):
        cohort = [fedjax.ClientDataset({"rows": rows}) for rows in work.round(number)]
        clients = [
            (i, data.padded_batch(batch_size=work.batch_size), key) for i, data in enumerate(cohort)
        ]
        delta = fedjax.tree_util.tree_mean(
            (delta, float(len(cohort[i]))) for i, delta in train(weights, clients)
        )
        state, weights = server.apply(delta, state, weights)
        jax.block_until_ready(weights)
        marks.mark()
    common.finish(
        asked.result,
        marks,
        ["fedjax", "jax"],
        {name: np.asarray(array) for name, array in weights.items()},
    )


if __name__ == "__main__":
    main()
