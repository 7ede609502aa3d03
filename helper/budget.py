"""Budget: what a task's sums have spent of its devices' privacy, and whether one more may be given.

    the ledger: how many sums, who was in which -> one more -> account -> within the task's budget?

Goes by the helper's own numbers of sums, whatever the leader says of rounds. What it counts as a
sum is an answer that was given: whether the leader opened it nobody else knows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from device_runtime import accountant, signing
from device_runtime.accountant import Participation
from device_runtime.helper_wire import HelperProblem, Named, Noised, Refusal
from device_runtime.noise import Noise
from device_runtime.shown import rounded_up
from helper.answers import MOST_TOLD, History


@dataclass(frozen=True)
class Spent:
    """What has happened in a task whose sums carry noise, and what that has spent."""

    # rounds whose sums were the first after each beginning of the noise
    began: tuple[int, ...] = ()
    happened: Participation = field(default_factory=Participation)
    rho: float = 0.0
    epsilon: float = 0.0  # at the delta of the task's noise

    @property
    def told(self) -> Noised:
        """The same as the leader is told of it."""
        return Noised(self.began, self.happened.sums, self.rho, self.epsilon)


def after(
    spent: Spent, named: Named, noise: Noise, history: History, begins_anew: bool
) -> Spent | HelperProblem:
    """What will have been spent with the sum of these reports, or why it is not given.
    `begins_anew`: its noise can have nothing to do with that of the sums before.
    """
    sums = spent.happened.sums
    if sums >= noise.rounds:
        return _no(f"all {noise.rounds} sums of the task have been given")
    keys = [each.public_key for each in named.reports]
    enough = [key for key in keys if history.counted.get(key, 0) >= noise.participations]
    if enough:
        return _no(
            f"{len(enough)} devices have been in {noise.participations} sums, the most of one",
            enough,
        )
    happened = _with(spent.happened, keys, history, begins_anew)
    account = accountant.account(noise, happened)
    if not account.epsilon <= noise.epsilon:
        apart = happened.separation
        return _no(
            f"with this sum, number {happened.sums}, epsilon would be "
            f"{rounded_up(account.epsilon)} at delta {noise.delta:g}, and the budget is "
            f"{noise.epsilon:g} (a device was in {happened.participations} sums at most"
            + (f", {apart} numbers of sums from one to its next at least)" if apart else ")")
        )
    began = (*spent.began, named.round) if begins_anew else spent.began
    return Spent(began, happened, account.rho, account.epsilon)


def _with(
    happened: Participation, keys: Sequence[str], history: History, begins_anew: bool
) -> Participation:
    """What will have happened with a sum of these devices."""
    number = happened.sums + 1
    blocks = happened.blocks
    gaps = [number - last for key in keys if (last := history.last_sum.get(key, 0))]
    if happened.separation is not None:
        gaps.append(happened.separation)
    most = max(history.counted.get(key, 0) + 1 for key in keys)
    return replace(
        happened,
        blocks=(*blocks, 1) if begins_anew else (*blocks[:-1], blocks[-1] + 1),
        separation=min(gaps, default=None),
        participations=max(happened.participations, most),
    )


def _no(detail: str, keys: Sequence[str] = ()) -> HelperProblem:
    devices = sorted(map(signing.name_of, keys))
    return HelperProblem(Refusal.OVER_BUDGET, detail, tuple(devices[:MOST_TOLD]))
