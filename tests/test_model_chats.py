"""Chats: what people said in WhatsApp and Telegram, and what the messengers said."""

import json
import os
import threading
from datetime import UTC, datetime

import pytest

from device_runtime.errors import CorpusError
from model.chats import date_order
from model.fields import Left
from model.formats import Choice, Note, records, suffix
from model.records import Damage, Record
from model.sources import listed

IOS = """\
[31/12/2023, 10:15:30] Family: \u200eMessages and calls are end-to-end encrypted.
\u200e[31/12/2023, 10:15:31] Ann: \u200eimage omitted
[31/12/2023, 10:16:00] Ann: hello: you
and more

[31/12/2023, 10:17:00] Bob: yes \u200e<This message was edited>
[31/12/2023, 10:18:00] Bob: \u200eThis message was deleted.
[31/12/2023, 22:19:00] \u202aAnn\u202c: [1/2] done
""".replace("\n", "\r\n")
ANDROID = """\
12/31/23, 10:15\u202fAM - Messages and calls are end-to-end encrypted. No one outside can read them.
12/31/23, 10:15\u202fAM - Ann created group "a: b"
12/31/23, 10:16\u202fAM - Ann: hello: you
and more
12/31/23, 10:17\u202fAM - Bob: yes <This message was edited>
12/31/23, 10:18\u202fAM - Bob: This message was deleted
12/31/23, 10:18\u202fAM - Bob: <Media omitted>
12/31/23, 10:18\u202fAM - Bob: IMG-20231231-WA0001.jpg (file attached)
look here
12/31/23, 10:18\u202fAM - Bob added Eve
12/31/23, 10:19\u202fPM - Ann: [1/2] done
"""


def read(folder, name, text):
    (folder / name).write_text(text, newline="")
    (source,) = listed([folder / name], suffix)
    return list(records(source, Choice(), lambda read: None))


def said(rows):
    return [(row.user, row.text) for row in rows if isinstance(row, Record)]


def reasons(rows):
    return [row.reason for row in rows if isinstance(row, Left | Damage)]


def notes(rows):
    return [row.text for row in rows if isinstance(row, Note)]


def test_a_chat_of_an_iphone_is_read(tmp_path):
    rows = read(tmp_path, "_chat.txt", IOS)
    assert said(rows) == [("Ann", "hello: you\nand more"), ("Bob", "yes"), ("Ann", "[1/2] done")]
    assert reasons(rows) == ["system line", "media without text", "deleted message"]
    assert [row.time for row in rows if isinstance(row, Record)][2] == datetime(
        2023, 12, 31, 22, 19, tzinfo=UTC
    )
    assert notes(rows) == ["dates read as day, month, year: no month is above 12"]
    assert [row.line for row in rows if isinstance(row, Record)] == [3, 6, 8]


def test_a_chat_of_an_android_is_read(tmp_path):
    rows = read(tmp_path, "WhatsApp Chat with Ann.txt", ANDROID)
    assert said(rows) == [
        ("Ann", "hello: you\nand more"),
        ("Bob", "yes"),
        ("Bob", "look here"),
        ("Ann", "[1/2] done"),
    ]
    assert reasons(rows) == [
        "system line",
        "system line",
        "deleted message",
        "media without text",
        "system line",
    ]
    assert rows[-1].time == datetime(2023, 12, 31, 22, 19, tzinfo=UTC)


@pytest.mark.parametrize(
    ("opening", "moment"),
    [
        ("31.12.23, 22:15 - ", datetime(2023, 12, 31, 22, 15)),
        ("2023-12-31, 22:15 - ", datetime(2023, 12, 31, 22, 15)),
        ("31/12/2023 22:15 - ", datetime(2023, 12, 31, 22, 15)),
        ("31/12/2023, 10:15 p. m. - ", datetime(2023, 12, 31, 22, 15)),
        ("[12/31/23, 12:15:09 AM] ", datetime(2023, 12, 31, 0, 15, 9)),
        ("[2023/12/31 22:15:09] ", datetime(2023, 12, 31, 22, 15, 9)),
        ("[31.12.23, 22:15:09] ", datetime(2023, 12, 31, 22, 15, 9)),
        ("1/2/24, 9:05 - ", datetime(2024, 2, 1, 9, 5)),
    ],
)
def test_dates_are_read_as_each_country_writes_them(tmp_path, opening, moment):
    rows = read(tmp_path, "_chat.txt", f"{opening}Ann: hello\n")
    assert rows[1:] == [Record(1, "Ann", "hello", moment.replace(tzinfo=UTC))]


@pytest.mark.parametrize(
    ("days", "order"),
    [
        (["1/2/24", "2/2/24", "13/2/24"], "dmy"),
        (["1/2/24", "2/13/24"], "mdy"),
        (["1/30/24", "2/1/24"], "mdy"),
        (["1/11/24", "1/12/24", "2/1/24"], "mdy"),  # as days they would run back
        (["11/1/24", "12/1/24", "1/2/24"], "dmy"),
        (["1/2/24", "2/3/24"], "dmy"),  # either: the day is first
        (["2024/1/2"], "ymd"),
    ],
)
def test_the_order_of_a_date_follows_from_all_of_them(days, order):
    assert date_order(f"{day}, 10:00 - Ann: hi\n" for day in days).format == order


def test_a_pipe_is_no_less_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=(ANDROID,))
    (source,) = listed([tmp_path / "pipe"], suffix)
    writer.start()
    rows = list(records(source, Choice(), lambda read: None))
    writer.join()
    assert len(said(rows)) == 4


MESSAGES = [
    {"id": 1, "type": "service", "action": "create_group", "text": ""},
    {"id": 2, "type": "message", "date": "2021-03-01T10:00:00", "date_unixtime": "1614592800",
     "from": "Ann", "from_id": "user1",
     "text": ["hello ", {"type": "bold", "text": "you"}]},
    {"id": 3, "type": "message", "from": "Ann", "from_id": "user1", "text": "",
     "media_type": "sticker"},
    {"id": 4, "type": "message", "from": "Old", "date": "2021-03-01T10:00:00", "text": "hi"},
    {"id": 5, "type": "message", "from": "Quiz Bot", "from_id": "user9", "text": "next"},
    {"id": 6, "type": "message", "from": "Ann", "from_id": "user1", "via_bot": "@gif", "text": "x"},
    {"id": 7, "type": "message", "from": "Deleted Account", "from_id": "user8", "text": "x"},
]  # fmt: skip
CHAT = {"name": "We", "type": "private_group", "id": 7, "messages": MESSAGES}
EXPORT = {
    "about": "Here is {the} data",
    "contacts": {"list": [{"first_name": "Bob"}]},
    "chats": {"about": "chats", "list": [CHAT, {"name": None, "messages": []}, CHAT]},
    "left_chats": {"list": []},
}


@pytest.mark.parametrize("indent", [1, None])
@pytest.mark.parametrize(("export", "times"), [(CHAT, 1), (EXPORT, 2)])
def test_one_chat_and_a_whole_export_of_telegram_are_read(tmp_path, indent, export, times):
    rows = read(tmp_path, "result.json", json.dumps(export, indent=indent))
    texts = [(row.user, row.text, row.time) for row in rows if isinstance(row, Record)]
    assert texts == times * [
        ("user1", ["hello ", {"type": "bold", "text": "you"}], "1614592800"),
        ("Old", "hi", "2021-03-01T10:00:00"),
    ]
    assert reasons(rows) == times * [
        "system line",
        "media without text",
        "bot",
        "bot",
        "deleted account",
    ]


def test_an_export_of_somebody_elses_is_refused(tmp_path):
    with pytest.raises(CorpusError, match="expected a message of Telegram's export"):
        read(tmp_path, "a.json", json.dumps({"messages": [{"user": "a", "text": "b"}]}))


def test_a_folder_of_an_export_stands_for_its_messages(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "result.json").write_text(json.dumps(CHAT))
    assert [source.path.name for source in listed([tmp_path], suffix)] == ["result.json"]


@pytest.mark.parametrize(
    "written",
    [
        "Gruppe: \u200eNachrichten und Anrufe sind Ende-zu-Ende-verschlüsselt.",
        "Ann: \u200eBild weggelassen",
        "Ann: \u200eimagem ocultada",
        "Ann: \u200eAnn hat Bob hinzugefügt",
        "Ann: \u200ePOLL:",
        "Ann: \u200e<Anhang: 00000007-PHOTO.jpg>",
        "Ann: letter.pdf • \u200e4 pages \u200e<attached: 00000008-letter.pdf>",
        "Ann: IMG.jpg (arquivo anexado)",
        "Ann: Essa mensagem foi apagada",
        "Ann: Vous avez supprimé ce message",
        "Ann: यह मैसेज डिलीट कर दिया गया",
        "Ann hat den Betreff von „a“ zu „b: c“ geändert.",
        'Ann cambió el asunto de "a" a "b: c"',
        "Ann a changé l'objet de « a » à « b: c »",
        "Ann: Missed voice call",
    ],
)
def test_what_whatsapp_writes_is_no_message_in_any_language(tmp_path, written):
    assert said(read(tmp_path, "_chat.txt", f"[31/12/2023, 10:15:30] {written}\n")) == []


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("Bob: You left your keys", "You left your keys"),
        ("Bob: Video call?", "Video call?"),
        ("Bob: This business is mad", "This business is mad"),
        ("Bob: oi \u200e<Mensagem editada>", "oi"),
        ("Bob: oi <Mensagem editada>", "oi"),
        ("Bob: look \u200e<attached: 00000007-PHOTO.jpg>", "look"),
        ("Bob: \u200e@\u2068Ann\u2069 come", "@Ann come"),
    ],
)
def test_what_only_looks_like_whatsapps_own_words_is_kept(tmp_path, written, message):
    rows = read(tmp_path, "_chat.txt", f"\u200f[31/12/2023, 10:15:30] {written}\n")
    assert said(rows) == [("Bob", message)]


def test_what_was_forwarded_in_telegram_was_typed_by_somebody_else(tmp_path):
    own = {"type": "message", "from": "A", "from_id": "user1", "text": "mine"}
    others = {**own, "text": "theirs", "forwarded_from": None}
    export = {"name": "x", "type": "personal_chat", "id": 1, "messages": [own, others]}
    rows = read(tmp_path, "result.json", json.dumps(export))
    assert said(rows) == [("user1", "mine")]
    assert reasons(rows) == ["forwarded message"]
