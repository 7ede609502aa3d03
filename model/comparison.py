"""Two systems compared user by user: what one gains over the other, and how sure that is.

Both score the same targets, and the bootstrap draws the same users for both, so that what makes a
user easy or hard cancels out.
"""

from dataclasses import dataclass

import numpy as np

from device_runtime.metrics import MACRO_TARGETS
from model.measures import Evaluation


@dataclass(frozen=True)
class Gain:
    """What one measure gains from one system to another, as a difference of shares, -1..1.

    Users with fewer than MACRO_TARGETS targets count in the first two numbers only.
    """

    change: float  # over all targets
    interval: tuple[float, float]  # 95 % over users, the same ones drawn for both systems
    gained: int  # users, by more than a point
    lost: int  # likewise
    same: int  # users within a point
    # mean, p10, p50, p90 of the users' own differences; None without such users
    by_user: tuple[float, float, float, float] | None


@dataclass(frozen=True)
class Comparison:
    """One system minus another on the same users and targets."""

    users: int  # with MACRO_TARGETS targets or more
    top1: Gain
    top3: Gain
    keystroke_saving: Gain


def compare(left: Evaluation, right: Evaluation, rng: np.random.Generator) -> Comparison:
    """Left minus right in the three measures people compare; rng draws the bootstrap.

    Raises ValueError if they did not score the same targets.
    """
    gains = {
        which: _gain(left, right, which, rng) for which in ("top1", "top3", "keystroke_saving")
    }
    return Comparison(
        users=sum(counts.targets >= MACRO_TARGETS for counts in left.users.values()), **gains
    )


def _gain(left: Evaluation, right: Evaluation, which: str, rng: np.random.Generator) -> Gain:
    change, low, high = difference(left, right, which, rng)
    gains, wholes = _gains(left, right, which)
    enough = np.array([counts.targets >= MACRO_TARGETS for counts in left.users.values()])
    gains, wholes = gains[enough], wholes[enough]
    # in whole numbers: a share of 0.01 is not exact
    gained, lost = (int(np.count_nonzero(100 * way > wholes)) for way in (gains, -gains))
    own = gains / wholes
    by_user = None
    if len(own):
        p10, p50, p90 = map(float, np.percentile(own, [10, 50, 90]))
        by_user = (float(own.mean()), p10, p50, p90)
    return Gain(change, (low, high), gained, lost, len(own) - gained - lost, by_user)


def difference(
    left: Evaluation, right: Evaluation, which: str, rng: np.random.Generator, draws: int = 1000
) -> tuple[float, float, float]:
    """Left minus right over all targets, and its 95 % interval: the same users drawn for both.

    which is a recall (`top1` or `top3`) or `keystroke_saving`; draws are of the
    bootstrap. Raises ValueError if they did not score the same targets.
    """
    gains, wholes = _gains(left, right, which)
    users = len(gains)
    drawn = rng.multinomial(users, np.full(users, 1 / users), draws)  # [draws, users]
    low, high = np.percentile((drawn @ gains) / (drawn @ wholes), [2.5, 97.5])
    return float(gains.sum() / wholes.sum()), float(low), float(high)


def _gains(left: Evaluation, right: Evaluation, which: str) -> tuple[np.ndarray, np.ndarray]:
    """Of each user, how much more left has than right, and what it is a share of: int [users] both.

    That is hits of targets, or spared keys of letters.
    """
    scored = [
        {user: (counts.targets, counts.letters) for user, counts in each.users.items()}
        for each in (left, right)
    ]
    if scored[0] != scored[1]:
        raise ValueError("two evaluations are compared on the same users and targets only")
    pairs = [(counts, right.users[user]) for user, counts in left.users.items()]
    if which == "keystroke_saving":
        return np.array([other.keys - own.keys for own, other in pairs]), np.array(
            [own.letters for own, _ in pairs]
        )
    return np.array(
        [getattr(own, which) - getattr(other, which) for own, other in pairs]
    ), np.array([own.targets for own, _ in pairs])
