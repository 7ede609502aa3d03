"""Fields: who is one person, what is text, and who and what is left out by name."""

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.fields import Left, Message, Reader, is_bot, joined, person
from model.records import Damage, Record


def message(user="ann", text="hello", time=None, **options):
    return Reader(**options).message(Record(1, user, text, time))


@pytest.mark.parametrize(
    "user",
    [1, 1.0, "1", " 1 ", "1.0", "1.00", Decimal("1.00"), Decimal(1), np.int64(1), np.float32(1)],
)
def test_an_id_is_one_person_in_every_format(user):
    assert person(user) == ("1", "")


@pytest.mark.parametrize("name", ["007", "1.50", "v1.0", "1e3", "01.0", "+1", "1,0"])
def test_a_name_that_looks_like_a_number_is_a_name(name):
    assert person(name) == (name, "")


def test_a_name_is_one_however_it_is_composed_and_marked():
    assert (
        person("Jose\u0301") == person("Jos\u00e9") == person(" \u200eJos\u00e9\u202c") != ("", "")
    )


@pytest.mark.parametrize("user", [None, "", "  ", True, False, float("nan"), "NULL", "\\N", "NaN"])
def test_nobody_is_nobody(user):
    assert message(user=user) == Left(1, "no user")


@pytest.mark.parametrize("user", [[1], {}, float("inf"), 2.0**60, 10**200, Decimal("1e999999")])
def test_what_is_no_id_is_damage_rather_than_somebody(user):
    assert isinstance(message(user=user), Damage)


@given(st.integers(-(2**52), 2**52))
def test_every_whole_number_is_the_same_person_as_a_float_and_as_text(number):
    assert person(number) == person(float(number)) == person(str(number)) == person(f"{number}.0")


@pytest.mark.parametrize(
    "name", ["AutoModerator", "RemindMeBot", "quiz_bot", "carl-bot", "dependabot[bot]", "News Bot"]
)
def test_a_platforms_bots_are_left_out(name):
    assert message(user=name) == Left(1, "bot")


@pytest.mark.parametrize("name", ["Talbot", "Abbot", "robot", "bottle", "Botho", "TALBOT"])
def test_people_are_no_bots(name):
    assert not is_bot(name)


@pytest.mark.parametrize("name", ["[deleted]", "[removed]", "Deleted Account", "Deleted User#0000"])
def test_a_deleted_account_is_nobody(name):
    assert message(user=name, text="[removed]") == Left(1, "deleted account")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[removed]", "deleted message"),
        ("This message was deleted", "deleted message"),
        ("[ Removed by Reddit ]", "deleted message"),
        ("<Media omitted>", "media without text"),
        ("\u200eimage omitted", "media without text"),
        ("Messages and calls are end-to-end encrypted. Tap to learn more.", "system line"),
        (None, "no text"),
        (" \n", "no text"),
        (7, "no text"),
        ([], "no text"),
    ],
)
def test_what_nobody_typed_is_left_out_by_name(text, reason):
    assert message(text=text) == Left(1, reason)


@pytest.mark.parametrize("text", ["[deleted] was my favourite", "removed", "image omitted here"])
def test_what_only_begins_so_is_kept(text):
    assert message(text=text) == Message("ann", text, None)


@pytest.mark.parametrize("text", [{"a": 1}, [1], ["a", None], "\ud800"])
def test_what_is_no_text_is_damage(text):
    assert isinstance(message(text=text), Damage)


@given(st.lists(st.text() | st.fixed_dictionaries({"type": st.just("bold"), "text": st.text()})))
def test_runs_are_joined(runs):
    assert joined(runs) == "".join(run if isinstance(run, str) else run["text"] for run in runs)


MAIL = """\
Message-ID: <1.JavaMail@thyme>
Date: Mon, 14 May 2001 16:39:00 -0700 (PDT)
From: ann@example.com
To: bob@example.com,
\teve@example.com
Subject: Re: lunch
X-Folder: \\Ann\\Sent

Here is what I said: no.
From: the start.
"""


def test_mail_headers_are_cut_off_and_counted():
    reader = Reader()
    body = "Here is what I said: no.\nFrom: the start.\n"
    assert reader.message(Record(1, "ann", MAIL)) == Message("ann", body, None)
    assert reader.headers == 1
    for text in ("From: me to you", "Note: buy milk\nDate: tomorrow", "Date: tomorrow\nnot today"):
        assert reader.message(Record(1, "ann", text)) == Message("ann", text, None)
    assert reader.message(Record(1, "ann", "From: a\nTo: b\n\n")) == Left(1, "no text")
    assert reader.headers == 2


def test_times_are_counted_by_how_they_were_read():
    reader = Reader()
    for time in (1, 2, 1_600_000_000_000, "NaT", "2021-03-01"):
        assert isinstance(reader.message(Record(1, "ann", "hi", time)), Message)
    assert reader.times == {"seconds": 2, "milliseconds": 1, "": 1, "dates": 1}
    damage = reader.message(Record(1, "ann", "hi", "my secret 31.12."))
    assert damage.reason == "unreadable timestamp"
    assert "secret" not in str(damage)


@pytest.mark.parametrize("user", ["1.23457E+18", "1.2345678901234568e+18", "1E+16"])
def test_an_id_that_a_spreadsheet_rounded_is_nobody_rather_than_many_people(user):
    with pytest.raises(ValueError, match="lost digits of an id"):
        person(user)


def test_what_is_wrong_with_bytes_is_said_without_the_bytes():
    with pytest.raises(ValueError, match=r"^bytes that are not UTF-8$"):
        person(b"secret\xff")


def test_a_list_of_things_to_do_is_no_mail_header():
    reader, text = Reader(), "to-do: buy milk\npick-up: five\n"
    assert reader.message(Record(1, "a", text)) == ("a", text, None)
    assert reader.headers == 0


def test_what_slack_says_is_nobodys_message():
    joins = Record(1, "a", "<@U024BE7LH|ann> has joined the channel")
    assert Reader().message(joins) == (1, "system line")
    assert person("USLACKBOT")[1] == "bot"
    told = "<@U024BE7LH> has joined the channel, look"
    assert Reader().message(Record(1, "a", told)) == ("a", told, None)
