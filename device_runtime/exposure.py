"""Exposure: who can see an update under a task's terms, in sentences for people.

The same words on the phone, the operator's page and the model card.
"""

from dataclasses import dataclass

from device_runtime.agreement import Pins
from device_runtime.terms import Aggregation, Terms, who_sees, why_exposed

SHOWN = 16  # digits of a key


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


def sentences(terms: Terms) -> list[Sentence]:
    """Who can see what under the terms of a task, and what of it should worry."""
    worry = why_exposed(terms)
    return [Sentence(who_sees(terms)), *([Sentence(worry, warns=True)] if worry else [])]


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
    return [*warned, of_pins(pins)]


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
