"""How long a network takes for three suggestions, one context at a time.

Words are read off one softmax, pieces joined to words by beam search.

taskset -c 0 python benchmarks/suggestion_latency.py runs/words runs/unigram-8k
"""

import argparse
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np

from device_runtime import weights
from device_runtime.errors import FedboardError
from device_runtime.text import BOS, FIRST_WORD, Vocabulary
from fedboard.run import checkpoint_of, vocabulary_of
from model import corpora, corpus, network
from model.pieces import Decoder

LENGTH = 12  # tokens of a context, at most


def contexts(users: corpus.Users, count: int) -> list[tuple[str, ...]]:
    """What stands before the last token of the newest utterances of the first users."""
    newest = (utterance for own in users.values() for utterance in own[-5:])
    return [utterance.tokens[-1 - LENGTH : -1] for utterance in islice(newest, count)]


def suggest(
    arrays: weights.Weights, vocabulary: Vocabulary
) -> Callable[[tuple[str, ...]], list[str]]:
    """A function from a context to its three likeliest words."""
    if vocabulary.of_pieces:
        decoder = Decoder(arrays, vocabulary)
        return lambda context: [word for word, _ in decoder.best([context])[0]]

    def strip(context: tuple[str, ...]) -> list[str]:
        ids = np.array([[BOS, *vocabulary.ids(context)]], np.int32)
        hidden = network.forward(arrays, ids)[0, -1:]
        scores = network.log_probs(arrays, hidden)[0, FIRST_WORD:]
        return [vocabulary.tokens[FIRST_WORD + i] for i in np.argsort(-scores)[:3]]

    return strip


def main() -> None:
    """Measure, and print what the head of this file says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="runs or checkpoints")
    parser.add_argument("--contexts", type=int, default=300)
    parser.add_argument("--data", default="chitchat")
    asked = parser.parse_args()
    sample = contexts(corpora.load(asked.data).test, asked.contexts)
    print(f"{'run':<28} {'parameters':>10} {'pieces a word':>13} {'median ms':>9} {'95 % ms':>8}")
    for path in map(checkpoint_of, asked.runs):
        read, vocabulary = weights.read(path).weights, vocabulary_of(path)
        answer = suggest(read, vocabulary)
        for context in sample[:20]:
            answer(context)
        seconds = []
        for context in sample:
            began = time.perf_counter()
            answer(context)
            seconds.append(time.perf_counter() - began)
        pieces = sum(len(vocabulary.ids(context)) for context in sample) / sum(map(len, sample))
        median, most = (1000 * np.quantile(seconds, share) for share in (0.5, 0.95))
        print(
            f"{path.parent.parent!s:<28} {network.parameters(read):>10,} {pieces:>13.2f} "
            f"{median:>9.2f} {most:>8.2f}",
            flush=True,
        )


if __name__ == "__main__":
    try:
        main()
    except FedboardError as error:
        sys.exit(str(error))
