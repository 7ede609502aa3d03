"""The quality gate: what is measured before a bundle is signed, and the limits it must keep. A
bundle that breaks one is not signed.

Every figure but one goes into the manifest. The time of a step does not, since the same inputs must
give the same bytes: there the limit stands alone, which says that it was kept.
"""

import time
from dataclasses import dataclass

import numpy as np

from conversion import int8
from device_runtime.interpreter import Graph
from device_runtime.weights import Weights

WEIGHTS_APART = 1e-4  # largest difference of any weight from GradientTape's after the steps
LOSS_APART = 1e-4  # nats, in any step
TOP1_LOST = 0.2  # points of top-1 recall int8 may cost
# standard errors: more than TOP1_LOST is refused when 95 % sure, so few positions refuse nothing by
# chance
SURE = 1.645
EXTRA_NATS = 0.02  # int8's loss above that of float
PREDICT_BYTES = 1_500_000
STEP_MS = 5.0  # median of one step on the machine that packages
STEPS_TIMED = 200


@dataclass(frozen=True)
class Gate:
    """The figures. `manifest` is what is signed, `problems` why it may not be."""

    steps: int  # of SGD, in both worlds
    weights_apart: float
    loss_apart: float
    int8: int8.Int8
    predict_bytes: int
    step_ms: float  # median

    @property
    def manifest(self) -> dict[str, float]:
        """The figures that are signed, by name."""
        return {
            "parity_steps": float(self.steps),
            "parity_weights": self.weights_apart,
            "parity_loss": self.loss_apart,
            "int8_positions": float(self.int8.positions),
            "int8_same_best_word": self.int8.same_best,
            "int8_top1_points_lost": self.int8.top1_lost,
            "int8_extra_nats": self.int8.nats,
            "predict_bytes": float(self.predict_bytes),
            "step_ms_at_most": STEP_MS,
        }

    @property
    def problems(self) -> list[str]:
        """What is out of bounds, in words; empty if the bundle may be signed. A figure that is not
        a number breaks its limit.
        """
        lost = self.int8.top1_lost - SURE * self.int8.top1_error
        apart = (
            f"weights differ by {self.weights_apart:.1e} from TensorFlow's after {self.steps} steps"
        )
        loses = (
            f"int8 loses {self.int8.top1_lost:.2f} points of top-1 on {self.int8.positions:,} words"
        )
        # figure, limit, the figure in words, the limit in words
        limits = [
            (self.weights_apart, WEIGHTS_APART, apart, "1e-04"),
            (
                self.loss_apart,
                LOSS_APART,
                f"losses differ by {self.loss_apart:.1e} nats from TensorFlow's",
                "1e-04",
            ),
            (lost, TOP1_LOST, loses, f"{TOP1_LOST}"),
            (
                self.int8.nats,
                EXTRA_NATS,
                f"int8 costs {self.int8.nats:.3f} nats a word",
                f"{EXTRA_NATS}",
            ),
            (
                self.predict_bytes,
                PREDICT_BYTES,
                f"predict.tflite has {self.predict_bytes:,} bytes",
                f"{PREDICT_BYTES:,}",
            ),
            (self.step_ms, STEP_MS, f"a step takes {self.step_ms:.1f} ms", f"{STEP_MS:.0f} ms"),
        ]
        return [
            f"{words}, expected at most {limit}"
            for figure, most, words, limit in limits
            if not figure <= most
        ]


def measure(
    steps: int, apart: tuple[float, float], predict: bytes, weights: Weights, examples: np.ndarray
) -> Gate:
    """Measure the graph that predicts; of the one that trains, how far its weights and losses were
    `apart` after so many steps comes from `parity`, once for all rounds.

    examples, int32 [n, length + 1], are rows of real text.
    """
    difference = int8.difference(predict, weights, examples)
    return Gate(steps, *apart, difference, len(predict), median_step_ms(predict, examples))


def median_step_ms(predict: bytes, examples: np.ndarray) -> float:
    """Milliseconds of one step of one text, by the first tokens of examples (int32 [n, length])."""
    graph, seconds = Graph(predict), []
    state = graph.start()
    for token in np.resize(examples[:, 0], STEPS_TIMED).astype(np.int32):
        began = time.perf_counter()
        _, state = graph.step("predict", state, token=token[None])
        seconds.append(time.perf_counter() - began)
    return 1000 * float(np.median(seconds))
