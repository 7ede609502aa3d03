"""Suggestions: a bundle and what was typed -> the likeliest words with probabilities."""

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

from device_runtime.bundle import Bundle
from device_runtime.interpreter import Graph
from device_runtime.metrics import STRIP, top_words
from device_runtime.text import normalise


@dataclass(frozen=True)
class Suggestion:
    word: str
    probability: float  # of this word next; with a prefix, among the words that start so


class Predictor:
    """Remembers the network's state after the last context, so that typing on costs one step a word. One per thread."""

    def __init__(self, bundle: Bundle):
        """Raises VocabularyError for a bundle of pieces, which this cannot join to words."""
        bundle.vocabulary.require_words("the strip of a device")
        self.vocabulary = bundle.vocabulary
        self._graph = Graph(bundle.predict_graph)
        self._widths = bundle.manifest.embedding, bundle.manifest.units
        self._ids: list[int] = []
        self._state = self.start(1)
        self._log_probs = np.empty(0, np.float32)

    def start(self, rows: int) -> dict[str, np.ndarray]:
        """The state before the first token, for `rows` texts at once."""
        embedding, units = self._widths
        return {"hidden": np.zeros((rows, embedding), np.float32), "cell": np.zeros((rows, units), np.float32)}

    def step(self, tokens: np.ndarray, state: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """One token further: int32 [rows] -> log-probabilities of the next, float32 [rows, vocabulary], and the state after it."""
        result = self._graph.run("predict", token=tokens, **state)
        return result["log_probs"], {"hidden": result["hidden"], "cell": result["cell"]}

    def suggest(self, context: str, prefix: str = "", k: int = STRIP) -> list[Suggestion]:
        """The k likeliest words after `context`, best first; only those that start with `prefix`, if given. Punctuation is never suggested."""
        log_probs = self._after(self.vocabulary.encode(context))
        if not prefix:
            best = top_words(log_probs[None], k)[0]
            return [Suggestion(self.vocabulary.tokens[i], float(np.exp(log_probs[i]))) for i in best]
        prefix = normalise(prefix)
        words, ids = self.vocabulary.alphabetical
        start, end = bisect_left(words, prefix), bisect_left(words, prefix + "\uffff")
        found = log_probs[ids[start:end]]
        total = np.exp(found).sum()
        return [Suggestion(words[start + i], float(np.exp(found[i]) / total)) for i in np.argsort(-found, kind="stable")[:k]]

    def _after(self, ids: list[int]) -> np.ndarray:
        """Log-probabilities after a context, float32 [vocabulary]; reuses the state if the context only grew."""
        if self._ids != ids[: len(self._ids)]:
            self._ids, self._state = [], self.start(1)
        for token in ids[len(self._ids) :]:
            log_probs, self._state = self.step(np.array([token], np.int32), self._state)
            self._log_probs = log_probs[0]
        self._ids = ids
        return self._log_probs
