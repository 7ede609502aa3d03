"""The TFLite interpreter behind one class. tflite-runtime if it is there, ai-edge-litert (the
`litert` extra) otherwise.

A truncated graph crashes tflite-runtime, so only bytes whose SHA-256 was checked may come here
(`bundle.py` does that). An interpreter is not safe to share: one per thread, and any other is
turned away.
"""

import threading

import numpy as np

try:
    from tflite_runtime.interpreter import Interpreter
except ImportError:  # the same interface, about twice as fast
    from ai_edge_litert.interpreter import Interpreter


class Graph:
    """Named pure functions of one TFLite file."""

    def __init__(self, verified: bytes, threads: int = 1):
        self._thread = threading.get_ident()
        self._interpreter = Interpreter(model_content=verified, num_threads=threads)
        self.signatures: dict[str, dict[str, list[str]]] = self._interpreter.get_signature_list()
        self._runners = {
            name: self._interpreter.get_signature_runner(name) for name in self.signatures
        }

    def run(self, signature: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Call one signature. The results are copies, so the next call cannot change them. Raises
        RuntimeError in any other thread.
        """
        if threading.get_ident() != self._thread:
            raise RuntimeError(
                "a graph belongs to the thread it was made in: two at once crash the process"
            )
        return self._runners[signature](**inputs)

    def input_shape(self, signature: str, name: str) -> tuple[int, ...]:
        """Shape as declared; -1 where any size goes."""
        return tuple(
            int(n) for n in self._runners[signature].get_input_details()[name]["shape_signature"]
        )
