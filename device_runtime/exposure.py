"""Exposure: who can see an update under a task's terms, in sentences for people.

The same words on the phone, the operator's page and the model card.
"""

from dataclasses import dataclass

from device_runtime.agreement import Pins
from device_runtime.terms import Aggregation, Terms

FEW = 100  # reports: a sum of fewer says much of each
SHOWN = 16  # digits of a key


@dataclass(frozen=True)
class Sentence:
    """What is to be known, and whether it is to be shown in red."""

    text: str
    warns: bool = False


PLAIN = "the server sees each update by itself, and what was typed can be read out of it"
HELPED, SHARED = (
    "its devices take part only where updates are masked and a helper takes the masks off sums",
    "its devices take part only where updates are masked and they themselves take the masks off "
    "sums",
)
OPEN = "who sees its devices' updates is what the signed terms of a task say"


def sentences(terms: Terms) -> list[Sentence]:
    """Who can see what, the most important first."""
    if terms.aggregation is Aggregation.PLAIN:
        return [Sentence(PLAIN, warns=True)]
    return [*_openers(terms), _least(terms.fewest)]


def of_pins(pins: Pins) -> Sentence:
    """Where a bundle's devices take part at all."""
    if pins.helper is not None:
        return Sentence(HELPED.replace("a helper", f"the helper {pins.helper[:SHOWN]}"))
    match pins.aggregation:
        case None:
            return Sentence(OPEN)
        case Aggregation.PLAIN:
            return Sentence(f"its devices take part only where {PLAIN}", warns=True)
        case Aggregation.HELPER:
            return Sentence(HELPED)
        case Aggregation.SECAGG:
            return Sentence(SHARED)


def _openers(terms: Terms) -> list[Sentence]:
    if terms.aggregation is Aggregation.SECAGG:
        lies = "even if it lies to them" if terms.semi_malicious else "as long as it tells no lies"
        return [
            Sentence(
                "each update is masked, and the devices of a round take the masks off its sum "
                f"together; the server sees no single one {lies}, unless more than "
                f"{terms.adversarial:.0%} of the devices are its own"
            )
        ]
    masked = (
        f"each update is masked, and the helper {terms.helper[:SHOWN]} takes the masks off sums"
    )
    if terms.is_beside:
        return [
            Sentence(f"{masked}; it is run beside the server"),
            Sentence("whoever runs both can see updates", warns=True),
        ]
    return [
        Sentence(f"{masked}; neither it nor the server can see a single one, the two together can")
    ]


def _least(fewest: int) -> Sentence:
    if fewest < FEW:
        reports = "1 report" if fewest == 1 else f"{fewest:,} reports"
        return Sentence(f"a sum of {reports} is opened: so few hide each other little", warns=True)
    return Sentence(f"no sum of fewer than {fewest:,} reports is opened")
