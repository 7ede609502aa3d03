"""Spent: what a run's rounds have spent of its clients' privacy, and how that is said.

Nothing here is more than the run's own files say: `config.toml` which noise there was, and
`metrics.csv` what it had spent after the last round.
"""

import csv
import io
from dataclasses import dataclass, fields
from typing import Any

from device_runtime.bundle import NO_PRIVACY
from device_runtime.errors import RunError
from device_runtime.shown import rounded_up
from fedboard.run import Run, Settings
from model.recipe import ADAPTIVE, Recipe


@dataclass(frozen=True)
class Spent:
    """What all rounds of a run together have spent, and by which participation."""

    round: int  # the last one
    rho: float  # of zero-concentrated differential privacy
    epsilon: float  # at the recipe's delta
    separation: int  # of two rounds of one client at least, as a difference; 0: nobody was in two
    participations: int  # rounds of the client that was in most


def of(run: Run) -> Spent | None:
    """What the last line of a run's metrics says; None where there was no noise, or an earlier
    version that counted nothing. Raises RunError for a file that is no metrics.csv.
    """
    try:
        text = run.metrics.read_text()
        whole = text[: text.rfind("\n") + 1]  # whoever was killed while it wrote left half a line
        rows = list(csv.DictReader(io.StringIO(whole, newline="")))
        if not rows or not rows[-1].get("epsilon"):
            return None
        last = {name: float(rows[-1][name]) for name in (field.name for field in fields(Spent))}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise RunError(
            run.metrics, f"cannot be used ({error})", "resume the run, which mends it"
        ) from None
    counts = {name: int(last[name]) for name in ("round", "separation", "participations")}
    values: dict[str, Any] = {**last, **counts}
    return Spent(**values)


def stands_for(recipe: Recipe) -> int:
    """The report goal that a cohort stood for; 0 where it stood for itself."""
    goal = recipe.privacy.report_goal
    return goal if goal > recipe.cohort else 0


def privacy_of(settings: Settings | None, spent: Spent | None = None) -> str:
    """What a bundle's lineage says of privacy: what is known of the run, and no more."""
    if settings is None:
        return "unknown: the checkpoint came without its run"
    if settings.central:
        return "none: trained with all text in one place"
    recipe = settings.recipe
    privacy = recipe.privacy
    if privacy.mechanism == "none":
        return NO_PRIVACY
    noise = f"{privacy.mechanism} noise of multiplier {privacy.noise_multiplier:g} was added"
    if spent is None:
        return f"{noise} in training, but nothing accounts for what was spent"
    said = f"{noise} to the sum of each round: {sentence(recipe, spent)}"
    if settings.init:
        said += "; what training started from is not in this account"
    return said + "; nor are the vocabulary and the counts of its words" * (not settings.init)


def sentence(recipe: Recipe, spent: Spent) -> str:
    """What was spent, by which participation, and of whom it is a guarantee: never of a cohort that
    stood for a larger report goal.
    """
    said = (
        f"epsilon {rounded_up(spent.epsilon)} at delta {recipe.privacy.delta:g} (rho "
        f"{spent.rho:.4g}) over {spent.round:,} rounds, no client in more than "
        f"{spent.participations:,}"
    )
    if spent.separation:
        said += (
            f", its next {spent.separation:,} rounds later at least ({spent.separation - 1:,} "
            "rounds between)"
        )
    if goal := stands_for(recipe):
        said += (
            f", as a fleet of {goal:,} reports a round would have spent it; {recipe.cohort:,} "
            f"clients stood for it, with the noise scaled by {recipe.cohort:,} / {goal:,}: this is "
            "no guarantee for them"
        )
    elif recipe.privacy.mechanism != ADAPTIVE:
        said += "; whoever knows the seed of the simulation can take its noise off"
    return said


def in_progress(recipe: Recipe, epsilon: float) -> str:
    """The same in a few words.

    >>> in_progress(Recipe(), 1.234)
    'epsilon 1.24'
    """
    budget = f" of {recipe.privacy.epsilon:g}" if recipe.privacy.epsilon else ""
    goal = stands_for(recipe)
    of_fleet = f" (for {goal:,} reports a round)" if goal else ""
    return f"epsilon {rounded_up(epsilon)}{budget}{of_fleet}"
