"""The console prints what it is told, whatever it holds."""

import ast
import io
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from device_runtime.shown import printable
from fedboard import console

ROOT = Path(__file__).parents[1]
HOSTILE = ["[/x]", "exp [final]", ":warning:", "[link=http://x]y[/link]", "\x1b[2J", "a\nb", "{x}"]


@pytest.fixture
def shown(monkeypatch) -> io.StringIO:
    """What is printed, on no terminal of 80 columns."""
    return printed_on(monkeypatch)


def printed_on(monkeypatch, width: int = 80, terminal: bool = False) -> io.StringIO:
    file = io.StringIO()
    kept = {"highlight": False, "markup": False, "emoji": False, "width": width}
    monkeypatch.setattr(console, "out", Console(file=file, force_terminal=terminal, **kept))
    monkeypatch.setattr(console, "errors", console.out)
    return file


@given(st.text())
@example("[/x]")
@example(" [bold]a[/] :warning: ")
def test_a_sentence_comes_out_equal(text):
    with pytest.MonkeyPatch.context() as monkeypatch:
        file = printed_on(monkeypatch)
        console.say(text)
        console.note(text)
        assert file.getvalue() == 2 * (printable(text) + "\n")


def test_the_consoles_of_the_program_read_no_markup(capsys):
    console.say(*HOSTILE)
    console.note("[/x] :warning:")
    console.heading("[red]a[/]")
    printed = capsys.readouterr()
    assert printed.out.splitlines()[: len(HOSTILE)] == list(map(printable, HOSTILE))
    assert printed.out.endswith("\n[red]a[/]\n")
    assert printed.err == "[/x] :warning:\n"


def test_a_table_holds_every_title_head_and_cell_as_it_is(shown):
    console.table("[/t]", ["[/a]", ":b:\nc"], [[text, text] for text in HOSTILE])
    lines = shown.getvalue().splitlines()
    assert lines[0] == "[/t]"
    assert [line.split() for line in lines[2:4]] == [[":b:"], ["[/a]", "c"]]
    for line, text in zip(lines[5:], HOSTILE, strict=False):
        assert line.count(printable(text)) == 2


def test_a_table_loses_nothing_on_a_narrow_terminal(monkeypatch):
    file = printed_on(monkeypatch, width=20)
    console.table("t", ["a", "b"], [["a name of some length", "1,234,567,890,123"]])
    assert "a name of some length   1,234,567,890,123" in file.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_progress_says_its_label_and_note_as_they_are(monkeypatch, terminal):
    file = printed_on(monkeypatch, 120, terminal)
    with console.progress("scoring out/[/x]", 2) as advance:
        advance(2, "[/y] :warning:")
    assert "scoring out/[/x]" in file.getvalue()
    assert "[/y] :warning:" in file.getvalue()


def said() -> list[ast.Constant]:
    """Every literal in an argument of `console.say` and the like."""
    return [
        part
        for path in (ROOT / "fedboard").glob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in ("say", "note", "heading", "table", "progress")
        for argument in call.args
        for part in ast.walk(argument)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]


def test_no_command_says_several_lines_in_one_or_relies_on_markup():
    assert len(said()) > 50
    for part in said():
        assert "\n" not in part.value, part.value
        assert "[/" not in part.value, part.value
