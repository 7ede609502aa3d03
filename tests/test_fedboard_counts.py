"""Words that enough people typed, from a public list to a vocabulary, by the commands."""

import json

import pytest
from typer.testing import CliRunner

from conversion import card
from device_runtime import chain, counts, protection, text
from device_runtime.bundle import Lineage
from device_runtime.errors import ConfigError, RunError, VocabularyError
from device_runtime.wire import Assignment
from fedboard import word_lists
from fedboard.cli import app
from fedboard.run import Run, Settings
from fedboard.train import new_vocabulary
from fedboard.word_lists import noise_once, people_of, read_tsv, to_tsv
from model import imported, vocabulary
from model.corpus import Corpus, Utterance
from model.recipe import Recipe
from server import endpoint
from server.contract import TOKEN as VARIABLE
from server.contract import CountsReport
from server.rounds import Rules
from tests.test_server_endpoint import TOKEN, Device, running
from tests.toy_releases import MAKER
from tests.toy_server import new

REPORT = CountsReport(
    "words", "ab" * 32, 5, 30, 3, 2, 0.0, 2.0, counts={"you": 9, "are": 5, "how": 2}
)


def typed(*messages: str) -> list[Utterance]:
    return [Utterance(each, tuple(text.tokenise(each))) for each in messages]


def corpus(**train: list[Utterance]) -> Corpus:
    return Corpus("toy", "cd" * 32, train, {}, {})


# one person says zebracorn over and over; two say hello, each once
TOY = corpus(
    ann=typed(*["zebracorn zebracorn"] * 50, "hello you"),
    ben=typed("hello you", "how are you"),
    cleo=typed("how are you"),
)


def test_a_word_counts_once_a_person_however_often_it_was_typed():
    people = people_of(TOY.train)
    assert people == {"zebracorn": 1, "hello": 2, "you": 3, "how": 2, "are": 2}


def test_a_word_of_one_person_is_in_no_vocabulary_of_two_though_it_is_typed_most():
    by_use = new_vocabulary(Settings(), TOY)
    assert by_use.id("zebracorn") == text.FIRST_WORD
    by_person = new_vocabulary(Settings(recipe=Recipe(least_people=2)), TOY)
    assert by_person.tokens[text.FIRST_WORD :] == ["you", "are", "hello", "how"]
    assert by_person.id("zebracorn") == text.OOV
    # and so the strip can never offer it: it shows words of the vocabulary alone
    assert "zebracorn" not in by_person.tokens


def test_the_bias_says_how_many_people_typed_a_word_and_not_how_often():
    words = new_vocabulary(Settings(recipe=Recipe(least_people=2)), TOY)
    scores = dict(zip(words.tokens, words.log_unigram, strict=True))
    assert scores["hello"] == scores["how"] < scores["you"]


def test_a_count_that_noise_made_negative_is_taken_for_one():
    words = vocabulary.of_people([("you", 5), ("are", -3)])
    ones = vocabulary.of_people([("you", 5), ("are", 1)])
    assert words.model == ones.model


def test_where_no_word_is_left_there_is_no_vocabulary():
    with pytest.raises(VocabularyError, match="no word was typed by so many people"):
        new_vocabulary(Settings(recipe=Recipe(least_people=9)), TOY)


def test_pieces_are_learnt_from_all_text_and_so_are_refused_where_people_are_counted():
    with pytest.raises(ConfigError, match="expected words where people are counted"):
        Settings(recipe=Recipe(least_people=2, tokenizer="unigram"))


def test_counts_go_through_a_file_unchanged(tmp_path):
    path = tmp_path / "counts.tsv"
    path.write_bytes(to_tsv(REPORT))
    kept = read_tsv(path)
    assert kept.counts == (("you", 9), ("are", 5), ("how", 2))
    assert (kept.about.people, kept.about.least_people) == (30, 2)
    words = new_vocabulary(Settings(words=str(path)), TOY)
    assert words.tokens[text.FIRST_WORD :] == ["you", "are", "how"]
    more = new_vocabulary(Settings(words=str(path), recipe=Recipe(least_people=5)), TOY)
    assert more.tokens[text.FIRST_WORD :] == ["you", "are"]
    with pytest.raises(RunError, match="expected at least the 2 of the counts, found 1"):
        new_vocabulary(Settings(words=str(path), recipe=Recipe(least_people=1)), TOY)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"you\t9\n",
        b"# fedboard counts {}\nyou\t9\n",
        to_tsv(REPORT) + b"you\t3\n",
        to_tsv(REPORT) + b"two words\t3\n",
        to_tsv(REPORT) + b"cat\tmany\n",
        b"\xff\xfe",
    ],
)
def test_a_file_that_holds_no_counts_is_refused(tmp_path, content):
    path = tmp_path / "counts.tsv"
    path.write_bytes(content)
    with pytest.raises(RunError, match=str(path)):
        read_tsv(path)


def test_the_noise_of_a_task_that_counts_has_the_budget_of_its_one_sum():
    noise = noise_once(2.0, 1e-6, 5)
    # rho 1 / (2 x 2 squared): multiplier 2 is epsilon 2.2 or so at 1e-6
    assert 2.0 < noise.epsilon < 2.6 and noise.participations == 1 and noise.rounds == 5
    assert noise_once(0.0, 1e-6, 5) is None


def test_card_and_lineage_say_where_words_come_from(tmp_path):
    public, own = Lineage("chitchat", 1, "0" * 64), Lineage("mine", 1, "0" * 64)
    assert card.words(public) == "the words that its corpus, which is public text, uses most"
    assert card.words(own) == "the words that its corpus uses most"
    run = Run(tmp_path)
    assert word_lists.of_run(run, Settings()) is None
    by_person = Settings(recipe=Recipe(least_people=3))
    assert word_lists.of_run(run, by_person) == "words of its corpus that at least 3 people typed"
    run.counts.write_bytes(to_tsv(REPORT))
    said = word_lists.of_run(run, Settings(words="counts.tsv"))
    assert said == (
        "words of a public list that at least 2 people typed, by private sums without noise"
    )


def test_a_public_list_is_made_of_the_words_that_enough_users_of_a_corpus_typed(
    tmp_path, corpus_file
):
    data, out = tmp_path / "chat", tmp_path / "words.txt"
    imported.import_file(corpus_file, data)
    words = ["data", "words", str(data), "--least-people", "20"]
    done = CliRunner().invoke(app, [*words, "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    words = counts.read_list(out.read_bytes())
    assert json.loads(done.stdout)["words"] == len(words) > 10
    assert "the" in words and list(words) == sorted(words)


def test_an_operator_asks_which_words_of_a_list_were_typed_and_trains_on_the_answer(
    tmp_path, monkeypatch
):
    monkeypatch.setenv(VARIABLE, TOKEN)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "maker.key").write_text(MAKER.private_bytes_raw().hex())
    (tmp_path / "words.txt").write_bytes(counts.to_list(["are", "how", "rare", "you"]))
    (tmp_path / "server.toml").write_text(
        "[rules]\nreport_goal = 2\nover_selection = 1.0\nselection_s = 0\n"
    )
    coordinator = new(tmp_path / "server", Rules(report_goal=2))
    with running(coordinator, access_=endpoint.Access(TOKEN)) as url:
        to = ["--server", url, "--json"]
        asked = ["task", "count-words", "asks", "--words", "words.txt", "--least-people", "2"]
        asked += ["--aggregation", "plain", "--config", "server.toml", "--key", "maker.key"]
        made = said(*asked, *to)
        assert (made["kind"], made["goal"], made["signer"] != "") == ("counts", 2, True)
        coordinator.pause("default")
        for number, words in enumerate(["how are you", "you rare"]):
            device = Device(url, number)
            work = device.check_in()
            assert isinstance(work, Assignment), work
            marks = counts.marks([words], ("are", "how", "rare", "you"))
            about = protection.addressed(work, chain.terms_of(work))
            body = protection.protected(marks, 1, about, device.key, bytes)
            path = f"/v1/assignments/{work.assignment}/update"
            assert device.send("PUT", path, body).json()["counted"]
        told = said("task", "counts", "asks", "--out", "counts.tsv", *to)
        assert (told["counts"], told["people"], told["epsilon"]) == ({"you": 2}, 2, None)
    words = new_vocabulary(Settings(words="counts.tsv"), TOY)
    assert words.tokens[text.FIRST_WORD :] == ["you"]


def said(*words: str) -> dict:
    """What a command that succeeds prints as JSON."""
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.stderr or str(done.exception)
    return json.loads(done.stdout)
