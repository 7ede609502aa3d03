"""Export: weights -> `train.tflite`, which takes weights, and `predict.tflite`, which holds them.

The one that predicts holds them as dynamic-range int8. Every shape in both is static.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from conversion import constants
from device_runtime import patch
from device_runtime.errors import BundleError
from device_runtime.metrics import STRIP
from device_runtime.text import FIRST_WORD
from device_runtime.weights import Weights, as_sent
from device_runtime.wire import Plan
from model import training
from model.network import size_of


@dataclass(frozen=True)
class Patchable:
    """A `predict.tflite` that `patch.predict` makes those of other weights of."""

    file: bytes
    constants: dict[str, patch.Constant]


def train_graph(weights: Weights, plan: Plan) -> bytes:
    """The functions a device fine-tunes with, built-in operations only; no weights in the file, so
    it serves every round.

    train(rows, learning_rate, weights...) -> new weights..., loss, targets;  evaluate(rows,
    weights...) -> loss, targets; step(token, hidden, cell, weights...) -> log_probs, hidden, cell.
    rows is int32 [plan.batch_size, plan.length + 1], token int32 [1], all else float32; loss is
    the mean in nats, targets how many it is of.
    """
    size = size_of(weights)
    arrays = {
        name: tf.TensorSpec(array.shape, tf.float32, name=name)
        for name, array in sorted(weights.items())
    }
    rows = tf.TensorSpec([plan.batch_size, plan.length + 1], tf.int32, name="rows")

    class Functions(tf.Module):
        @tf.function
        def train(self, rows: tf.Tensor, learning_rate: tf.Tensor, **weights: tf.Tensor) -> dict:
            local, loss, targets = training.sgd_step(weights, rows, learning_rate, plan.length)
            return {**local, "loss": loss, "targets": targets}

        @tf.function
        def evaluate(self, rows: tf.Tensor, **weights: tf.Tensor) -> dict:
            loss, targets = training.loss_only(weights, rows, plan.length)
            return {"loss": loss, "targets": targets}

        @tf.function
        def step(
            self, token: tf.Tensor, hidden: tf.Tensor, cell: tf.Tensor, **weights: tf.Tensor
        ) -> dict:
            logits, hidden, cell = training.step(weights, token, hidden, cell)
            return {"log_probs": tf.nn.log_softmax(logits), "hidden": hidden, "cell": cell}

    module = Functions()
    return _convert(
        module,
        {
            "train": module.train.get_concrete_function(
                rows=rows,
                learning_rate=tf.TensorSpec([], tf.float32, name="learning_rate"),
                **arrays,
            ),
            "evaluate": module.evaluate.get_concrete_function(rows=rows, **arrays),
            "step": module.step.get_concrete_function(
                token=tf.TensorSpec([1], tf.int32, name="token"),
                hidden=tf.TensorSpec([1, size.embedding], tf.float32, name="hidden"),
                cell=tf.TensorSpec([1, size.units], tf.float32, name="cell"),
                **arrays,
            ),
        },
    )


def predict_graph(weights: Weights, quantized: bool = True) -> bytes:
    """predict(token, hidden, cell) -> log_probs, top_ids, top_log_probs, hidden, cell.

    token is int32 [1], hidden float32 [1, embedding], cell float32 [1, units], log_probs float32
    [1, vocabulary]; top_ids, int32 [1, STRIP], are the likeliest words (never punctuation), best
    first. Shapes are static, which runtimes that compile a graph need; no operation fixes the
    number of texts, so an interpreter that resizes its inputs runs several side by side. Matrices
    are int8 with one scale each unless `quantized` is False, which exists to measure what int8
    costs.
    """
    size = size_of(weights)
    constants = {name: tf.constant(array) for name, array in weights.items()}

    class Functions(tf.Module):
        @tf.function
        def predict(self, token: tf.Tensor, hidden: tf.Tensor, cell: tf.Tensor) -> dict:
            logits, hidden, cell = training.step(constants, token, hidden, cell)
            log_probs = tf.nn.log_softmax(logits)
            top_log_probs, top_ids = tf.math.top_k(log_probs[:, FIRST_WORD:], STRIP)
            return {
                "log_probs": log_probs,
                "top_ids": top_ids + FIRST_WORD,
                "top_log_probs": top_log_probs,
                "hidden": hidden,
                "cell": cell,
            }

    module = Functions()
    function = module.predict.get_concrete_function(
        token=tf.TensorSpec([1], tf.int32, name="token"),
        hidden=tf.TensorSpec([1, size.embedding], tf.float32, name="hidden"),
        cell=tf.TensorSpec([1, size.units], tf.float32, name="cell"),
    )
    return _convert(module, {"predict": function}, quantized)


def patchable(weights: Weights, finish: Callable[[bytes], bytes] = bytes) -> Patchable:
    """The `predict_graph` of weights, and where in it they stand. `finish` is what else is done to
    a file: it must follow from the graph alone, whatever the weights are.

    The graph is exported with drawn weights, and these are patched into it: so it is the same for
    all weights of one size, of which the converter would fold zeros and keep equal arrays once.
    Raises BundleError if a patch is not byte for byte what the converter makes.
    """
    first, second = (_drawn(weights, seed) for seed in range(2))
    template, expected = (finish(predict_graph(each)) for each in (first, second))
    places = constants.located(template, first)
    if patch.predict(template, places, second) != expected:
        raise BundleError(
            "predict.tflite",
            "patched with other weights it is not the file the converter makes of them",
            constants.REPORT,
        )
    return Patchable(patch.predict(template, places, weights), places)


def _drawn(like: Weights, seed: int) -> Weights:
    """Weights of the same shapes, of which no two values need be equal, as devices get them."""
    rng = np.random.default_rng(seed)
    return as_sent({name: rng.normal(size=array.shape) for name, array in sorted(like.items())})


def _convert(module: tf.Module, signatures: dict[str, Any], quantized: bool = False) -> bytes:
    """The TFLite file of a module's concrete functions, by signature, of built-in operations."""
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=signatures)
        converter = tf.lite.TFLiteConverter.from_saved_model(
            folder, signature_keys=sorted(signatures)
        )
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if quantized:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        return converter.convert()
