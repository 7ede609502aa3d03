"""How often a staged release is stopped: one as good as the one before, and one that is not.

python -m benchmarks.rollout

Made-up fleets score both releases on the same words, round after round; each round is a look. Their
devices differ by one point (a standard deviation) in what they gain.
"""

import argparse

import numpy as np

from server.release_scores import Figures
from server.rollout import Standing, judge

LOOKS = 20
RIGHT, APART = 0.17, 0.02  # shares of words: that both have right, and that one of them has


def scored(rng: np.random.Generator, devices: int, gain: float) -> Figures:
    """What devices of a round add up to, whose release gains so much over the one before."""
    words = rng.integers(200, 401, size=devices)
    pace = rng.normal(gain, 0.01, size=devices)
    both = rng.binomial(words, RIGHT)
    new, old = (
        both + rng.binomial(words, np.clip(APART + sign * pace / 2, 0, 1)) for sign in (1, -1)
    )
    gained = new - old
    return Figures(
        devices=devices,
        targets=int(words.sum()),
        top1=int(new.sum()),
        before_top1=int(old.sum()),
        words_squared=int((words**2).sum()),
        gain_squared=int((gained**2).sum()),
        gain_words=int((gained * words).sum()),
    )


def stopped_at(rng: np.random.Generator, devices: int, gain: float) -> int | None:
    """The round that stops a release, None if none of LOOKS does."""
    total = Figures()
    for look in range(LOOKS):
        total += scored(rng, devices, gain)
        if judge({(2, 1): total}, 2, devices).standing is Standing.WORSE:
            return look + 1
    return None


def main() -> None:
    """Print what the head of this file says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fleets", type=int, default=1500, help="of each kind")
    asked = parser.parse_args()
    rng = np.random.default_rng(0)
    print(f"gain, points | devices a round | stopped at the first look | in {LOOKS} looks")
    for gain in (0.0, -0.005, -0.01):
        for devices in (3, 20, 50):
            ends = [stopped_at(rng, devices, gain) for _ in range(asked.fleets)]
            first, ever = (sum(map(test, ends)) / len(ends) for test in (_is_first, _is_any))
            print(f"{100 * gain:+.1f} | {devices} | {100 * first:.0f} % | {100 * ever:.0f} %")


def _is_first(end: int | None) -> bool:
    return end == 1


def _is_any(end: int | None) -> bool:
    return end is not None


if __name__ == "__main__":
    main()
