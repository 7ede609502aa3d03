"""The model card: what MODEL_CARD.md says of a bundle, with the front matter model hubs read."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from device_runtime import exposure
from device_runtime.agreement import Pins
from device_runtime.bundle import Lineage
from device_runtime.exposure import Sentence
from device_runtime.shown import rounded_up
from model.network import NetworkSize

PUBLIC = ("chitchat", "stackoverflow", "shakespeare")  # corpora whose text anybody can read


@dataclass(frozen=True)
class Card:
    """All that a card is written from: equal ones give equal text."""

    network: str  # size by name
    size: NetworkSize
    vocabulary: int  # ids
    lineage: Lineage
    device_limits: str  # whether it was trained within a device's own limits
    gate: Mapping[str, float]  # figures measured before signing
    files: Mapping[str, bytes]  # of the bundle, without the card
    notes: tuple[str, ...] = ()  # sentences on what was measured and what was not
    pins: Pins = field(default_factory=Pins)
    language: str = ""  # BCP 47, several with a `+` between them; empty: nobody said
    text_rules: int = 1  # that its words were found by


def text(card: Card) -> str:
    """MODEL_CARD.md."""
    lineage = card.lineage
    files = "".join(f"| `{file}` | {len(data):,} |\n" for file, data in sorted(card.files.items()))
    figures = "".join(f"| {key} | {figure(value)} |\n" for key, value in sorted(card.gate.items()))
    notes = "".join(f"\n{note}\n" for note in card.notes)
    return f"""---
language: {_languages(card.language)}
license: apache-2.0
library_name: tflite
pipeline_tag: text-generation
tags: [next-word-prediction, federated-learning, on-device, keyboard]
datasets: [{lineage.corpus}]
---
# Next-word model `{card.network}`

CIFG-LSTM ({card.size.units} units, embedding {card.size.embedding}, {card.vocabulary:,} ids), \
trained by federated averaging.
Corpus: {lineage.corpus}. Round: {lineage.round}. Checkpoint: `{lineage.checkpoint}`. \
Privacy: {lineage.privacy}.
Vocabulary: {words(lineage)}; text rules {card.text_rules}.
{_task(lineage)}Within the limits of a device: {card.device_limits}.
{_audited(lineage)}{_seen(card)}

| file | bytes |
|---|---|
{files}
| measured before signing | |
|---|---|
{figures}{notes}
Intended use: suggestions on a keyboard. It repeats what its corpus taught it, \
including what is rude or wrong.
"""


def _languages(language: str) -> str:
    """As model hubs read it: one tag, a list, or `und` where nobody said."""
    tags = language.split("+") if language else ["und"]
    return tags[0] if len(tags) == 1 else f"[{', '.join(tags)}]"


def words(lineage: Lineage) -> str:
    """Where the words come from, which whoever has the model can read, and how often they are used.

    >>> words(Lineage("chitchat", 1, "0" * 64))
    'the words that its corpus, which is public text, uses most'
    """
    if lineage.words is not None:
        return lineage.words
    public = ", which is public text," if lineage.corpus in PUBLIC else ""
    return f"the words that its corpus{public} uses most"


def figure(value: float) -> str:
    """Whole numbers in full, others to three digits.

    >>> figure(1234.0), figure(0.012345)
    ('1,234', '0.0123')
    """
    return f"{value:,.0f}" if value == int(value) else f"{value:.3g}"


def _seen(card: Card) -> str:
    """Who has seen updates, and who may: what warns is an alert, which hubs show in red."""
    return "".join(map(_alert, exposure.of_bundle(card.lineage.aggregation, card.pins)))


def _alert(sentence: Sentence) -> str:
    text = f"{sentence.text[0].upper()}{sentence.text[1:]}."
    return f"\n> [!CAUTION]\n> {text}\n" if sentence.warns else f"\n{text}\n"


def _audited(lineage: Lineage) -> str:
    """Whether somebody asked the network for secrets."""
    if lineage.audit is None:
        return ""
    return f"Audited for secrets of single users, and passed: report `{lineage.audit}`.\n"


def _task(lineage: Lineage) -> str:
    if lineage.task is None:
        return ""
    said = (
        f"Task: {lineage.task}, {lineage.rounds:,} rounds committed on devices with "
        f"{lineage.participants:,} updates counted in them.\n"
    )
    if lineage.epsilon is None or lineage.delta is None:
        return said
    return (
        f"{said}All that one device did in that task is kept to differential privacy of epsilon "
        f"{rounded_up(lineage.epsilon)} at delta {lineage.delta:g} (beside a device that sends "
        "zeros; how many take part is public).\n"
    )
