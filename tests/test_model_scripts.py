"""Scripts without spaces are noticed, and whoever imports them is told what to do."""

import json
from dataclasses import replace

import pytest

from device_runtime.errors import RunError
from device_runtime.text import tokenise
from fedboard.run import Settings
from fedboard.train import new_vocabulary
from model import corpora, imported
from model.scripts import MOST, SOME, advice, letters, share_spaceless
from tests.four_languages import SENTENCES


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        ("", (0, 0)),
        ("see you at 5 :)", (0, 8)),
        ("我想吃饭。", (4, 4)),
        ("我想吃 pizza", (3, 8)),
        ("привет, как дела?", (0, 13)),
        ("안녕하세요", (0, 5)),
        ("नमस्ते", (0, 6)),
        ("กินข้าว", (7, 7)),
    ],
)
def test_letters_of_runs_are_counted_among_all(text, counted):
    assert letters(tokenise(text)) == counted
    assert share_spaceless(tokenise(text)) == (counted[0] / counted[1] if counted[1] else 0)


def test_nothing_is_said_of_a_few_words_and_the_way_out_of_more():
    assert advice(0) is None
    assert advice(SOME / 2) is None
    for share in (SOME, MOST, 1.0):
        assert "--tokenizer unigram" in advice(share)
        assert f"{share:.0%}" in advice(share)


def imported_from(texts, folder):
    file = folder / "chat.jsonl"
    rows = [{"user": f"u{i % 40}", "text": text} for i, text in enumerate(texts)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return imported.import_file(file, folder / "corpus")


def test_an_import_says_what_to_do_and_training_refuses_whole_words_by_name(tmp_path):
    report = imported_from(SENTENCES[:450], tmp_path)
    assert [note for note in report.notes if "--tokenizer unigram" in note]
    corpus, settings = corpora.load(tmp_path / "corpus"), Settings()
    with pytest.raises(RunError, match=r"--tokenizer: expected unigram.*100%.*--tokenizer unigram"):
        new_vocabulary(settings, corpus)
    recipe = replace(settings.recipe, tokenizer="unigram", vocabulary=300)
    assert new_vocabulary(replace(settings, recipe=recipe), corpus).of_pieces


def test_an_import_of_scripts_with_spaces_says_nothing_of_them(tmp_path):
    report = imported_from(SENTENCES[450:], tmp_path)
    assert report.notes == ()
    assert len(new_vocabulary(Settings(), corpora.load(tmp_path / "corpus"))) > 10
