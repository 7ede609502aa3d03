"""The ids of a sentence do not depend on the version of SentencePiece.

A network trained with one must be read with another. tests/golden/ids.json was written with 0.2.0.
"""

import json
from pathlib import Path

import pytest

from device_runtime.text import Vocabulary, tokenise
from fedboard.run import REFERENCE

GOLDEN = Path(__file__).parent / "golden"
IDS = json.loads((GOLDEN / "ids.json").read_text())
MODELS = {"words": REFERENCE / "tokenizer.model", "pieces": GOLDEN / "pieces.model"}


@pytest.mark.parametrize("kind", MODELS)
def test_each_sentence_has_the_ids_it_had(kind):
    vocabulary = Vocabulary.read(MODELS[kind])
    assert vocabulary.of_pieces == (kind == "pieces")
    assert {text: vocabulary.encode(text) for text in IDS[kind]} == IDS[kind]


def test_the_golden_pieces_spell_some_words_with_several():
    ids = [i for sentence in IDS["pieces"].values() for i in sentence]
    assert len(ids) > sum(len(tokenise(text)) + 1 for text in IDS["pieces"])
