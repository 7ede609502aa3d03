"""What MODEL_CARD.md says of a bundle's words."""

import pytest

from conversion.card import Card, text
from device_runtime.bundle import Lineage
from model.network import SIZES

OWN = Card("tiny", SIZES["tiny"], 40, Lineage("mine", 1, "0" * 64), "yes", {}, {})


@pytest.mark.parametrize(
    ("language", "line"),
    [
        ("", "language: und"),
        ("de", "language: de"),
        ("pt-BR", "language: pt-BR"),
        ("en+de", "language: [en, de]"),
    ],
)
def test_languages_are_said_as_model_hubs_read_them(language, line):
    card = Card(OWN.network, OWN.size, 40, OWN.lineage, "yes", {}, {}, language=language)
    assert text(card).splitlines()[1] == line


def test_the_text_rules_that_words_were_found_by_are_said():
    assert "uses most; text rules 1.\n" in text(OWN)
    card = Card(OWN.network, OWN.size, 40, OWN.lineage, "yes", {}, {}, text_rules=2)
    assert "uses most; text rules 2.\n" in text(card)
