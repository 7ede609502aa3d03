"""Exposure: who can see an update under a task's terms and its noise, in sentences for people.

The same words on the phone, the operator's page and the model card.
"""

from dataclasses import dataclass

from device_runtime import spent
from device_runtime.agreement import Pins
from device_runtime.noise import Mechanism
from device_runtime.terms import Aggregation, Terms, who_sees, why_exposed

SHOWN = 16  # digits of a key
WIDE = 10.0  # epsilon of a budget from which on it is told in red
# mechanisms by the names people find them under
NOISES = {
    Mechanism.GAUSSIAN: "independent Gaussian",
    Mechanism.TREE: "tree-correlated",
    Mechanism.BLT: "BLT-correlated",
}


@dataclass(frozen=True)
class Sentence:
    """What is to be known, and whether it is to be shown in red."""

    text: str
    warns: bool = False


SERVER = "the server"  # by itself
HELPED, SHARED = (
    "its devices take part only where updates are masked and a helper takes the masks off sums",
    "its devices take part only where updates are masked and they themselves take the masks off "
    "sums",
)
LEARNT_OPENLY = "it was learnt where the server sees the update of every device"
OPENLY = "its devices take part only where the server sees the update of every device"
OPEN = "who sees its devices' updates is what the signed terms of a task say"
NOISED = "its devices take part only where noise is added to every sum"
UNNOISED = "no noise is added: a sum still shows what one person alone typed"


def sentences(terms: Terms) -> list[Sentence]:
    """Who can see what under the terms of a task, and what of it should worry."""
    worry = why_exposed(terms)
    warned = [Sentence(worry, warns=True)] if worry else []
    return [Sentence(who_sees(terms)), *warned, *of_noise(terms)]


def of_noise(terms: Terms) -> list[Sentence]:
    """What noise a task adds to the sums of updates, for which budget; in red where there is none,
    or the budget is too wide to say much.
    """
    noise = terms.noise
    if noise is None or not spent.is_added(noise):
        return [Sentence(UNNOISED, warns=True)]
    by = "the helper" if terms.aggregation is Aggregation.HELPER else "the server, which sees it,"
    told = Sentence(
        f"{NOISES[noise.mechanism]} noise of multiplier {noise.multiplier:g} is added to each sum "
        f"by {by} for a budget of epsilon {noise.epsilon:g} at delta {noise.delta:g}, at most "
        f"{noise.participations:,} sums a device; nobody can see whether it is"
    )
    if noise.epsilon <= WIDE:
        return [told]
    wide = f"a budget of epsilon {noise.epsilon:g} is wide: beyond {WIDE:g} it promises little"
    return [told, Sentence(wide, warns=True)]


def in_short(terms: Terms) -> str:
    """Who can see a single update, as it goes on after "by itself it can be seen by ".

    A ledger keeps it with each report that left.
    """
    if terms.aggregation is Aggregation.PLAIN:
        return SERVER
    if terms.aggregation is Aggregation.SECAGG:
        return f"the server with more than {terms.adversarial:.0%} of the devices"
    helper = f"helper {terms.helper[:SHOWN]}"
    return (
        f"whoever runs the server and {helper} beside it"
        if terms.is_beside
        else (f"the server and {helper} together")
    )


def of_bundle(learnt: Aggregation | None, pins: Pins) -> list[Sentence]:
    """Who has seen the updates that a bundle was learnt from, where that should worry, and where
    its devices take part.
    """
    warned = [Sentence(LEARNT_OPENLY, warns=True)] if learnt is Aggregation.PLAIN else []
    return [*warned, of_pins(pins), *_of_budget(pins)]


def _of_budget(pins: Pins) -> list[Sentence]:
    """What noise a bundle's devices ask for; nothing where that is left to the terms of a task."""
    if pins.epsilon is not None:
        budget = f", for a budget of at most epsilon {pins.epsilon:g} at delta {pins.delta:g}"
        return [Sentence(NOISED + budget, warns=pins.epsilon > WIDE)]
    return [Sentence(NOISED)] if pins.noise else []


def of_pins(pins: Pins) -> Sentence:
    """Where a bundle's devices take part at all."""
    if pins.helper is not None:
        return Sentence(HELPED.replace("a helper", f"the helper {pins.helper[:SHOWN]}"))
    match pins.aggregation:
        case None:
            return Sentence(OPEN)
        case Aggregation.PLAIN:
            return Sentence(OPENLY, warns=True)
        case Aggregation.HELPER:
            return Sentence(HELPED)
        case Aggregation.SECAGG:
            return Sentence(SHARED)
