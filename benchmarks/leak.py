"""Leak: which typed words can be read out of what each side holds of one update.

    python -m benchmarks.leak [BUNDLE] --people 20 --messages 50

Real people's messages, the bundle's graph, the device's training, encoding, mask and seal. A reader
who knows the weights that a device began with guesses the words it trained on; he is told how many
different ones there are, which is generous. Words that one trained on have a larger output bias and
a changed embedding row afterwards, so each word is ranked by both. Every view is read alike:

    plain 8, 4 bits    the codes of one update, as a server of a plain task holds them
    server             the masked words of one update, taken for codes, and taken modulo their range
    server, twice      the difference of two masked updates
    helper             the mask that the seal of one update opens to, taken for codes
    noise x 1          the codes of one update with the noise of a sum, of that multiplier: what is
                       left for somebody who knows every other update of the sum
    sum                the mean of all, which the server is meant to see: read for the words that
                       any of them typed, and for those that one of them alone typed; and the same
                       with noise on the sum, independent Gaussian, as of the first round

The area is that under the curve of true over false words: 0.5 says nothing, 1 says all. Chance is
the same reading of the same views, held against another person's words: what people have in common
is no leak of one.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from device_runtime import encoding, masking, packing, quantize, weights
from device_runtime.bundle import Bundle
from device_runtime.encoding import Encoding
from device_runtime.errors import FedboardError
from device_runtime.examples import rows
from device_runtime.finetune import finetune
from device_runtime.masking import Bound
from device_runtime.text import FIRST_WORD
from device_runtime.turn import Train
from device_runtime.weights import Weights
from fedboard import console
from fedboard.run import open_bundle
from model import corpora

COMMON = 1000  # the first ids of a vocabulary are its commonest words
EXPOSED, HIDDEN, INK = "#b3261e", "#0b7a75", "#1f2328"
NORM = 0.5  # what a task clips to that names none
MULTIPLIERS = (0.001, 0.01, 0.1, 1.0, 4.0)  # of noise


@dataclass(frozen=True)
class Person:
    """What a device trained on, and what came of it."""

    delta: Weights
    words: NDArray[np.int64]  # distinct word ids


@dataclass(frozen=True)
class Read:
    """How much of one person's words a view gave away."""

    right: int  # of as many guesses as there are words
    words: int
    rare_right: int  # among the words beyond the COMMON commonest
    rare: int
    area: float  # under the curve of true over false words


def people(bundle: Bundle, count: int, messages: int, seed: int) -> Iterator[Person]:
    """Train users with so many messages, trained as their devices would."""
    corpus = corpora.load("chitchat")
    enough = [name for name, own in corpus.train.items() if len(own) >= messages]
    rng = np.random.default_rng(seed)
    for name in rng.choice(enough, count, replace=False):
        ids = [bundle.vocabulary.ids(each.tokens) for each in corpus.train[name][-messages:]]
        own = rows(ids, bundle.plan.length)[-bundle.plan.max_rows :]
        action = Train(bundle.checkpoint.weights, own, bundle.plan, np.random.default_rng(seed))
        delta = finetune(bundle.train_graph, action).delta
        words = np.unique(own[:, 1:])
        yield Person(delta, words[words >= FIRST_WORD])


def read(delta: NDArray[Any], person: Person, shapes: Mapping[str, tuple[int, ...]]) -> Read:
    """Guess a person's words from a delta, float [dimension], as flattened as devices flatten."""
    score = scores(delta, shapes)
    is_typed = np.zeros(len(score), bool)
    is_typed[person.words - FIRST_WORD] = True
    guessed = np.argsort(-score, kind="stable")[: is_typed.sum()]
    is_rare = np.arange(len(score)) >= COMMON
    rank = np.argsort(np.argsort(score, kind="stable"), kind="stable") + 1
    yes, no = int(is_typed.sum()), int((~is_typed).sum())
    area = (rank[is_typed].sum() - yes * (yes + 1) / 2) / (yes * no)
    right = is_typed[guessed]
    return Read(
        int(right.sum()),
        yes,
        int((right & is_rare[guessed]).sum()),
        int((is_typed & is_rare).sum()),
        float(area),
    )


def scores(delta: NDArray[Any], shapes: Mapping[str, tuple[int, ...]]) -> NDArray[Any]:
    """How much each word of the vocabulary looks typed, from FIRST_WORD on."""
    parts, start = {}, 0
    for name in sorted(shapes):
        size = int(np.prod(shapes[name]))
        parts[name] = delta[start : start + size].reshape(shapes[name])
        start += size
    bias, row = parts["output_bias"], np.linalg.norm(parts["embedding"], axis=1)
    words: NDArray[Any] = (_standard(bias) + _standard(row))[FIRST_WORD:]
    return words


def views(
    everybody: list[Person], dimension: int, seed: int
) -> Iterator[tuple[str, list[NDArray[Any]]]]:
    """What each side holds of every person's update, read as a delta: float [dimension] each."""
    rng = np.random.default_rng(seed)
    exact = [weights.flatten(quantize.clip(person.delta, NORM)) for person in everybody]
    yield "no encoding", exact
    coded: list[NDArray[Any]] = []
    for bits in (8, 4):
        by = Encoding(dimension, bits, NORM, seed)
        coded = [encoding.encode(person.delta, by, rng) for person in everybody]
        yield f"plain, {bits} bits", [encoding.mean(codes, 1, by) for codes in coded]
    for multiplier in MULTIPLIERS:
        noised = (codes + noise(multiplier, by, rng) for codes in coded)
        yield f"noise x {multiplier:g}", [encoding.mean(total, 1, by) for total in noised]
    layout = packing.layout(by.values, by.largest, max(100, len(everybody)))
    seeds = [os.urandom(masking.SEED_BYTES) for _ in coded]
    words = [masking.masked(codes, each, layout) for codes, each in zip(coded, seeds, strict=True)]

    def as_codes(of: NDArray[np.uint64], modulo: int = 0) -> NDArray[Any]:
        numbers = packing.unpack(of, layout).astype(np.int64)
        numbers = numbers % modulo if modulo else numbers
        # around the middle of what they can be, as codes are
        return encoding.mean(numbers - numbers.mean() + by.largest / 2, 1, by)

    yield "server", [as_codes(each) for each in words]
    yield "server, modulo the codes", [as_codes(each, by.largest + 1) for each in words]
    rolled = words[1:] + words[:1]
    yield (
        "server, two updates",
        [
            as_codes(packing.subtract(one, other, layout))
            for one, other in zip(words, rolled, strict=True)
        ],
    )
    yield "helper", [as_codes(masking.mask(each, layout)) for each in _opened(seeds)]


def noise(multiplier: float, by: Encoding, rng: np.random.Generator) -> NDArray[np.int64]:
    """Whole codes of independent Gaussian noise, as it is added to a sum of updates: [values]."""
    deviation = multiplier * by.bound * by.clipping_norm / by.step
    return np.rint(rng.normal(0.0, deviation, by.values)).astype(np.int64)


@dataclass(frozen=True)
class Mean:
    """The mean of everybody's 4-bit updates, with noise on their sum."""

    multiplier: float  # 0: none
    delta: NDArray[Any]  # float [dimension]
    words: NDArray[np.int64]  # that any of them typed, distinct ids
    alone: NDArray[np.int64]  # that one of them alone typed


def means(everybody: list[Person], dimension: int, seed: int) -> Iterator[Mean]:
    """The same sum with more and more noise."""
    by, rng = Encoding(dimension, 4, NORM, seed), np.random.default_rng(seed)
    total = np.sum([encoding.encode(each.delta, by, rng).astype(np.int64) for each in everybody], 0)
    every = np.concatenate([each.words for each in everybody])
    words, typed_by = np.unique(every, return_counts=True)
    for multiplier in (0.0, *MULTIPLIERS):
        noised = total + noise(multiplier, by, rng)
        mean = encoding.mean(noised, len(everybody), by)
        yield Mean(multiplier, mean, words, words[typed_by == 1])


def _opened(seeds: list[bytes]) -> Iterator[bytes]:
    """Each seed as the helper gets it: out of its seal."""
    private = X25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw().hex()
    about = Bound("0" * 32, "0" * 32, 1, "0" * 64, "0" * 64, public)
    for each in seeds:
        opened = masking.open_seal(masking.seal(each, about, os.urandom), about, private)
        assert opened == each
        yield opened


def _standard(values: NDArray[Any]) -> NDArray[Any]:
    spread = float(values.std())
    return (values - values.mean()) / spread if spread else values * 0.0


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="which typed words each side can read")
    parser.add_argument("bundle", nargs="?", type=Path, default=Path("bundles/reference"))
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--messages", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="bars of the shares, as a picture")
    asked = parser.parse_args()
    try:
        bundle = open_bundle(asked.bundle, None)
    except FedboardError as error:
        sys.exit(str(error))
    everybody = list(people(bundle, asked.people, asked.messages, asked.seed))
    shapes = {name: array.shape for name, array in bundle.checkpoint.weights.items()}
    dimension = sum(int(np.prod(shape)) for shape in shapes.values())
    table, shares = [], {}
    for name, deltas in views(everybody, dimension, asked.seed):
        own = [read(*each, shapes) for each in zip(deltas, everybody, strict=True)]
        others = everybody[1:] + everybody[:1]
        chance = [read(*each, shapes) for each in zip(deltas, others, strict=True)]
        shares[name] = _share(own), _share(chance)
        gain = np.array([one.area - other.area for one, other in zip(own, chance, strict=True)])
        error = 1.96 * gain.std(ddof=1) / np.sqrt(len(gain))
        table.append(
            [
                name,
                _right(own),
                _right(chance),
                f"{sum(one.rare_right for one in own):,} of {sum(one.rare for one in own):,}",
                f"{sum(one.rare_right for one in chance):,}",
                f"{gain.mean():+.3f} ±{error:.3f}",
            ]
        )
    console.table(
        f"{asked.people} people, {asked.messages} messages each: words guessed right",
        ["view", "words", "chance", "rare words", "chance", "area over chance"],
        table,
    )
    console.table(
        f"the mean of all {asked.people}: words guessed right of those that any of them typed",
        ["noise multiplier", "words", "rare words", "of one person alone", "by chance", "area"],
        [_of_mean(mean, shapes) for mean in means(everybody, dimension, asked.seed)],
    )

    if asked.plot:
        draw(shares, asked.plot)


def _of_mean(mean: Mean, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    every = read(mean.delta, Person({}, mean.words), shapes)
    score = scores(mean.delta, shapes)
    guessed = np.argsort(-score, kind="stable")[: every.words] + FIRST_WORD
    alone = int(np.isin(mean.alone, guessed).sum())
    return [
        f"{mean.multiplier:g}" if mean.multiplier else "none",
        _right([every]),
        f"{every.rare_right:,} of {every.rare:,}",
        f"{alone:,} of {len(mean.alone):,} ({alone / len(mean.alone):.1%})",
        f"{every.words / len(score):.1%}",
        f"{every.area:.3f}",
    ]


def draw(shares: dict[str, tuple[float, float]], out: Path) -> None:
    """A bar for what each view gives away, and a mark where chance lies."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [name for name in shares if name != "no encoding" and "noise" not in name]
    names = shown[::-1]
    figure, axis = pyplot.subplots(figsize=(7.2, 2.4), dpi=150, layout="constrained")
    own, chance = ([100 * shares[name][i] for name in names] for i in (0, 1))
    colours = [EXPOSED if "plain" in name else HIDDEN for name in names]
    axis.barh(names, own, color=colours, height=0.62)
    axis.plot(chance, names, "|", color=INK, markersize=14, label="by chance")
    for place, value in enumerate(own):
        axis.text(value + 1.5, place, f"{value:.0f} %", va="center", color=INK, fontsize=9)
    axis.set_xlim(0, 108)
    axis.set_xlabel("words of one update that are guessed right, %", color=INK)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    figure.savefig(out)


def _right(each: list[Read]) -> str:
    right, words = sum(one.right for one in each), sum(one.words for one in each)
    return f"{right:,} of {words:,} ({right / words:.1%})"


def _share(each: list[Read]) -> float:
    return sum(one.right for one in each) / sum(one.words for one in each)


if __name__ == "__main__":
    main()
