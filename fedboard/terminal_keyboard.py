"""The keyboard in a terminal: line by line (`converse`), or key by key (`run`).

Key by key the strip follows, and what is sent enters the typing log unless incognito is on.

`press` and `screen` are pure: keys and a session in, a session or lines out. `run` lends them a
terminal, whose keys, pastes, widths and signs are prompt_toolkit's to know. What a keyboard is
stands in `device_runtime/keyboard.py`, what a word does to a text in `device_runtime/writing.py`.
"""

import asyncio
import contextlib
import os
import re
import signal
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.text import Text

from device_runtime.errors import FedboardError, RunError
from device_runtime.keyboard import Keyboard
from device_runtime.metrics import STRIP
from device_runtime.predictor import Suggestion, best_place
from device_runtime.shown import printable
from device_runtime.writing import accept, joined, split, still_ours
from fedboard import console

# names of keys as prompt_toolkit has them; those with Alt come after an `escape`
TAB, ENTER, BACKSPACE, DELETE = "c-i", "c-m", "c-h", "delete"
LEFT, RIGHT, WORD_LEFT, WORD_RIGHT = "left", "right", "c-left", "c-right"
HOME, END = ("home", "c-a"), ("end", "c-e")
CLEAR, WORD_BACK, INCOGNITO, FORGET, LEAVE = "c-u", "c-w", "c-p", "c-f", ("c-c", "c-d")
CHOICES = ("alt-1", "alt-2", "alt-3")
PASTE = "<bracketed-paste>"
LINES_HELP = (
    "Type a line: it ends in a space -> next words; in letters -> completions. A line of just 1, 2 "
    "or 3 accepts a suggestion, an empty line starts anew."
)
HELP = (
    "Tab takes the middle word",
    "Alt+1 2 3 any",
    "Enter sends",
    "Ctrl-F forgets a word",
    "Ctrl-P incognito",
    "Ctrl-D leaves",
)
ASKED = "{word}: f forgets it, n never offers it again, any other key keeps it"
REFRESH_S = 0.5  # what another process removed is gone from the strip by then
_PASTE, _PASTE_END = "\x1b[200~", "\x1b[201~"
_REST = re.compile("^[\\w'\u2019\u200c\u200d]+")  # of a word that the cursor stands in
_SIGN = 64  # characters that one sign may take
_TAIL = 1024  # characters whose words the next one depends on


@dataclass(frozen=True)
class Session:
    """What was typed and what it cost. A word costs its letters and one key; with the strip, the
    letters typed and one key.
    """

    typed: str = ""  # of the message so far, what stands before the cursor
    after: str = ""  # and after it
    keys: int = 0  # pressed, over all messages
    sent_characters: int = 0  # of messages already sent: what they cost without the strip
    messages: int = 0
    incognito: bool = False
    private: bool = False  # incognito was on at some time while this message was typed
    space_is_ours: bool = False  # the space before the cursor came with a suggestion
    before: str | None = None  # what stood there before a suggestion was taken, right after it
    asked: str | None = None  # the word that may be forgotten, while that is asked
    sent: str | None = None  # the message this key sent
    forgotten: str | None = None  # the word this key said is to be forgotten
    barred: str | None = None  # or never to be offered again
    recorded: bool = False  # whether the message sent may be recorded
    left: bool = False

    @property
    def saved(self) -> float:
        """1 - keys pressed / keys without the strip; 0 before anything was typed."""
        plain = self.sent_characters + len(self.typed) + len(self.after)
        return 1 - self.keys / plain if plain else 0.0


def press(
    session: Session, key: str, strip: Sequence[str] = (), best: int | None = None
) -> Session:
    """The session after one key: the name of one that types nothing, or the text that it types.
    strip holds the words as shown, left to right, empty where a place is free; best is the place
    of the likeliest, the centre where it is not given.
    """
    likeliest = strip[len(strip) // 2 if best is None else best] if strip else ""
    session = replace(session, sent=None, forgotten=None, barred=None)
    if key in LEAVE:
        return replace(session, left=True)
    if session.asked is not None:
        word, session = session.asked, replace(session, asked=None)
        return replace(
            session,
            forgotten=word if key == "f" else None,
            barred=word if key == "n" else None,
        )
    if key == INCOGNITO:
        return replace(
            session,
            incognito=not session.incognito,
            private=not session.incognito or bool(session.typed + session.after),
        )
    if key == ENTER:
        return _send(session)
    if key == TAB:
        return _accept(session, likeliest) if likeliest else session
    if key in CHOICES:
        place = CHOICES.index(key)
        return _accept(session, strip[place]) if any(strip[place : place + 1]) else session
    if key == FORGET:
        return replace(session, asked=likeliest) if likeliest else session
    edited = _edited(session, key)
    if edited is not None:
        typed, after = edited
        if (typed, after) == (session.typed, session.after):
            return session
        emptied = not typed + after
        return replace(
            session,
            typed=typed,
            after=after,
            keys=session.keys + 1,
            space_is_ours=False,
            before=None,
            private=session.incognito if emptied and key == CLEAR else session.private,
        )
    return _type(session, key)


def last_sign(text: str) -> str:
    """The last sign of a text as people see it: a letter with its accents, an emoji of many parts.

    >>> last_sign("ok\\N{THUMBS UP SIGN}\\N{EMOJI MODIFIER FITZPATRICK TYPE-4}")
    '👍🏽'
    """
    from wcwidth import iter_graphemes

    signs = list(iter_graphemes(text[-_SIGN:]))
    return signs[-1] if signs else ""


def first_sign(text: str) -> str:
    """The first sign of a text, likewise."""
    from wcwidth import iter_graphemes

    return next(iter(iter_graphemes(text[:_SIGN])), "")


def _edited(session: Session, key: str) -> tuple[str, str] | None:
    """What stands before and after the cursor once a key has moved it or taken something away; None
    for a key that types.
    """
    typed, after = session.typed, session.after
    if key == BACKSPACE:
        if session.before is not None:
            return session.before, after
        return typed.removesuffix(last_sign(typed)) if typed else typed, after
    if key == DELETE:
        return typed, after.removeprefix(first_sign(after)) if after else after
    if key == WORD_BACK:
        return _without_word(typed), after
    if key == CLEAR:
        return "", ""
    if key == LEFT:
        sign = last_sign(typed)
        return typed[: len(typed) - len(sign)], sign + after
    if key == RIGHT:
        sign = first_sign(after)
        return typed + sign, after[len(sign) :]
    if key == WORD_LEFT:
        kept = _without_word(typed)
        return kept, typed[len(kept) :] + after
    if key == WORD_RIGHT:
        moved = re.match(r"\s*\S*", after)
        end = moved.end() if moved else 0
        return typed + after[:end], after[end:]
    if key in HOME:
        return "", typed + after
    if key in END:
        return typed + after, ""
    return None


def _without_word(typed: str) -> str:
    """A text without its last word, or without its last sign where that is no letter."""
    stripped = typed.rstrip()
    context, begun = split(stripped)
    return context if begun else stripped.removesuffix(last_sign(stripped))


def _type(session: Session, text: str) -> Session:
    text = typeable(text)
    if not text:
        return session
    typed = joined(session.typed, text, session.space_is_ours)
    return replace(
        session,
        typed=typed,
        keys=session.keys + len(text),
        space_is_ours=session.space_is_ours and still_ours(typed, text),
        before=None,
    )


def typeable(text: str) -> str:
    """What a keyboard types of a text: all but controls, line breaks as spaces.

    >>> typeable("two\\r\\nlines\\x07")
    'two lines'
    """
    text = re.sub(r"[\r\n\t\v\f\u2028\u2029]+", " ", text)
    return "".join(sign for sign in text if unicodedata.category(sign) not in ("Cc", "Cs"))


def _accept(session: Session, word: str) -> Session:
    typed, after = accept(session.typed, word), session.after
    if split(session.typed)[1]:
        after = _REST.sub("", after)  # the whole word gives way
    if after[:1].isspace() and typed.endswith(" "):
        typed = typed[:-1]
    ours = typed.endswith(" ")
    return replace(
        session, typed=typed, keys=session.keys + 1, space_is_ours=ours, before=session.typed
    )


def _send(session: Session) -> Session:
    message = session.typed + session.after
    if not message.strip():
        return replace(
            session, typed="", after="", keys=session.keys - len(message), space_is_ours=False
        )
    return replace(
        session,
        typed="",
        after="",
        sent=message.strip(),
        recorded=not session.private,
        private=session.incognito,
        sent_characters=session.sent_characters + len(message),
        messages=session.messages + 1,
        space_is_ours=False,
        before=None,
    )


@dataclass(frozen=True)
class Line:
    """One line of the screen: runs of text with a style each, as prompt_toolkit names styles."""

    runs: tuple[tuple[str, str], ...] = ()

    @property
    def text(self) -> str:
        """Without styles."""
        return "".join(text for _, text in self.runs)


def screen(
    session: Session, strip: Sequence[str], width: int, notice: str = "", best: int | None = None
) -> list[Line]:
    """Lines to show, each at most `width` cells: the strip with the best word in bold, the text
    with its cursor, the count and as much help as fits, and a notice, if there is one. best is the
    place of that word, the centre where it is not given.
    """
    cell = max((width - STRIP + 1) // STRIP, 1)
    shown = [
        _fit(f"{i} {printable(word)}" if word else "", cell) for i, word in enumerate(strip, 1)
    ]
    bold = len(shown) // 2 if best is None else best
    words: list[tuple[str, str]] = []
    for place, word in enumerate(shown):
        words += [("", "│")] * (place > 0) + [("bold" if place == bold else "", word)]
    lines = [Line(tuple(words)), _cursor_line(session, width)]
    if session.asked is not None:
        said = ASKED.format(word=printable(session.asked))
        lines.append(Line((("bold", _fit(said, width).rstrip()),)))
    else:
        state = (
            "incognito: nothing is recorded"
            if session.incognito
            else "not recorded"
            if session.private
            else ""
        )
        count = f"{session.keys} keys, {session.saved:.0%} saved"
        lines.append(Line((("fg:ansibrightblack", _joined((count, state, *HELP), width)),)))
    if notice:
        lines += [
            Line((("fg:ansiyellow", _fit(part, width).rstrip()),))
            for part in textwrap.wrap(printable(notice), width, break_on_hyphens=False)
        ]
    return lines


def _joined(parts: Iterable[str], width: int) -> str:
    """As many of the parts, in order, as fit into a width; the first one in any case."""
    line = ""
    for part in filter(None, parts):
        longer = f"{line} · {part}" if line else part
        if _cells(longer) > width:
            break
        line = longer
    return line


def _cursor_line(session: Session, width: int) -> Line:
    room = max(width - 4, 1)
    before = printable(session.typed[-4 * room :])
    cut = len(before) < len(session.typed)
    while _cells(before) > room:
        before, cut = before[len(first_sign(before)) or 1 :], True
    under = first_sign(session.after)
    rest = _fit(printable(session.after[len(under) : len(under) + 2 * room]), room - _cells(before))
    mark = "…" if cut else " "
    cursor = _fit(printable(under), 2).rstrip() or " "
    return Line((("", mark + before), ("reverse", cursor), ("", rest.rstrip())))


def _cells(text: str) -> int:
    from wcwidth import wcswidth

    width = wcswidth(text)
    return width if width >= 0 else len(text)


def _fit(text: str, cells: int) -> str:
    """A text cut or filled to a width, never within a sign."""
    from wcwidth import iter_graphemes

    kept, used = "", 0
    for sign in iter_graphemes(text):
        wide = _cells(sign)
        if used + wide > cells:
            break
        kept, used = kept + sign, used + wide
    return kept + " " * max(cells - used, 0)


def recent(typed: str) -> str:
    """The end of a text, as far as the next word depends on it. It begins at the same place while
    few letters are typed, so that what was read of it is not read again.
    """
    if len(typed) <= 2 * _TAIL:
        return typed
    start = (len(typed) // _TAIL - 1) * _TAIL
    space = typed.find(" ", start, start + _TAIL // 2)
    return typed[space + 1 if space >= 0 else start :]


def default_home() -> Path:
    """Where the keyboard keeps its typing log if no device is named.

    Raises RunError where nobody has a home.
    """
    try:
        shared = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    except RuntimeError:
        raise RunError(
            "HOME", "is not set, and this user has no home", "pass --home FOLDER, or --no-log"
        ) from None
    return Path(shared) / "fedboard" / "keyboard"


def show(suggestions: Sequence[Suggestion]) -> Text:
    """A strip on one line: `1 you 12.3 %   2 it 8.0 %   3 the 4.1 %`."""
    if not suggestions:
        return Text("(no word of the vocabulary)")
    shown = (
        Text.assemble((printable(f"{i} {s.word}"), "bold"), f" {s.probability:.1%}")
        for i, s in enumerate(suggestions, 1)
    )
    return Text("   ").join(shown)


def converse(keyboard: Keyboard, lines: Iterable[str]) -> None:
    """A small keyboard: prints the strip after each line. Nothing typed is recorded."""
    typed = ""
    strip = keyboard.suggest(typed)
    console.say(show(strip))
    for line in (line.rstrip("\r\n") for line in lines):
        chosen = int(line) if line in ("1", "2", "3") else 0
        typed = accept(typed, strip[chosen - 1].word) if 0 < chosen <= len(strip) else line
        strip = keyboard.suggest(recent(typed))
        console.say(Text.assemble((f"{printable(typed)}|", "dim"), "  ", show(strip)))


def require_terminal(stdin: int = 0, stdout: int = 1) -> None:
    """Before anything is made: raises RunError if there is no terminal, ModuleNotFoundError if what
    draws there is not installed.
    """
    import prompt_toolkit  # noqa: F401
    import wcwidth  # noqa: F401

    if not (os.isatty(stdin) and os.isatty(stdout)):
        raise RunError(
            "fedboard keyboard",
            "expected a terminal",
            "run it in one, or use `fedboard predict`, which reads lines",
        )


def run(keyboard: Keyboard, incognito: bool = False, stdin: int = 0, stdout: int = 1) -> Session:
    """Show the keyboard until it is left. What is sent goes to it, unless it is private.

    The terminal is given back as it was however this ends, SIGTERM and SIGHUP included. Raises
    RunError if there is no terminal.
    """
    require_terminal(stdin, stdout)
    face = Face(keyboard, Session(incognito=incognito, private=incognito))
    asyncio.run(face.shown())
    return face.session


@dataclass
class Face:
    """A session on a screen, and the keyboard that answers it."""

    keyboard: Keyboard
    session: Session = field(default_factory=Session)
    _strip: tuple[str, list[str]] | None = None  # of which text
    _notice: str = ""

    def strip(self) -> tuple[list[str], int | None]:
        """The strip as it is shown, left to right, and the place of its best word."""
        places = self.keyboard.places(recent(self.session.typed))
        best = best_place(places)
        return ([] if best is None else [each.word if each else "" for each in places]), best

    def press(self, key: str) -> str | None:
        """Take one key; the message that it sent, if it sent one."""
        self.keyboard.type()
        chooses = key in (TAB, FORGET, *CHOICES)
        strip, best = self.strip() if chooses else ([], None)
        self.session = session = press(self.session, key, strip, best)
        if session.sent is not None:
            self.keyboard.send(session.sent, private=not session.recorded)
        if session.forgotten is not None:
            self.keyboard.forget(session.forgotten)
        if session.barred is not None:
            self.keyboard.never(session.barred)
        return session.sent

    def lines(self, width: int) -> list[Line]:
        """What is shown now."""
        self._notice = self.keyboard.notice() or self._notice
        strip, best = self.strip()
        return screen(self.session, strip, width, self._notice, best)

    async def shown(self) -> None:
        """Own the terminal until the keyboard is left."""
        application = _application(self)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, _leave, application, number)
        try:
            with _paste_that_ends(application.input.vt100_parser):
                await application.run_async(handle_sigint=False)
        except (OSError, EOFError, FedboardError):
            if os.isatty(sys.stdout.fileno()):
                raise
            _write_nowhere()
            raise SystemExit(128 + signal.SIGHUP) from None
        finally:
            for number in (signal.SIGTERM, signal.SIGHUP):
                loop.remove_signal_handler(number)
            sys.stdout.flush()


def _write_nowhere() -> None:
    """The window is closed: what was still to be shown goes nowhere, and is no error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    os.close(nowhere)


def _leave(application, number: int) -> None:
    if application.is_running and not application.future.done():
        application.exit(exception=SystemExit(128 + number))


def _application(face: Face):
    """The screen: lines that are drawn anew after each key."""
    from prompt_toolkit.application import Application, get_app
    from prompt_toolkit.formatted_text import FormattedText
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.keys import Keys
    from prompt_toolkit.layout import FormattedTextControl, Layout, Window
    from prompt_toolkit.output.vt100 import Vt100_Output

    def drawn() -> FormattedText:
        width = get_app().output.get_size().columns or 80
        runs: list[tuple[str, str]] = []
        for line in face.lines(width - 1):
            runs += [*line.runs, ("", "\n")]
        return FormattedText(runs[:-1])

    def keep(message: str) -> None:
        """Leave a sent message standing above the keyboard. The terminal stays in the mode it is
        in: in another one the keys pressed meanwhile would be its own.
        """
        application.renderer.erase(leave_alternate_screen=False)
        output.write(f"  {printable(message)}")
        output.write_raw("\r\n")
        output.flush()

    def act(key: str) -> None:
        sent = face.press(key)
        if sent is not None:
            keep(sent)
        if face.session.left:
            application.exit()

    bindings = KeyBindings()
    named = (TAB, ENTER, BACKSPACE, DELETE, LEFT, RIGHT, WORD_LEFT, WORD_RIGHT, *HOME, *END)
    for name in (*named, CLEAR, WORD_BACK, INCOGNITO, FORGET, *LEAVE):
        bindings.add(name, eager=True)(_bound(act, name))
    for name in CHOICES:
        bindings.add("escape", name[-1], eager=True)(_bound(act, name))
    bindings.add(Keys.BracketedPaste, eager=True)(lambda event: act(event.data))
    bindings.add(Keys.Any)(lambda event: act(event.data) if _types(event) else None)
    output = Vt100_Output.from_pty(sys.stdout, os.environ.get("TERM"))
    # where the cursor stands need not be asked for: what is drawn is drawn from there on
    output.enable_cpr = False
    application: Application = Application(
        layout=Layout(Window(FormattedTextControl(drawn, focusable=True), wrap_lines=False)),
        key_bindings=bindings,
        erase_when_done=True,
        output=output,
        refresh_interval=REFRESH_S,
    )
    application.ttimeoutlen = application.timeoutlen = 0.1
    return application


def _bound(act: Callable[[str], None], name: str):
    return lambda event: act(name)


def _types(event) -> bool:
    """Whether a key types what it sent: arrows, function keys and other sequences do not."""
    return len(event.key_sequence) == 1 and event.key_sequence[0].key == event.data


@contextlib.contextmanager
def _paste_that_ends(parser):
    """While a paste is read no key is: one that never ends is over when somebody wants to leave."""
    feed, state = parser.feed, {"text": ""}

    def fed(data: str) -> None:
        seen = state["text"] + data
        pasting = seen.rfind(_PASTE) > seen.rfind(_PASTE_END)
        if pasting and ("\x03" in data or "\x04" in data):
            parser.reset()
            state["text"] = ""
            return feed("\x03")
        state["text"] = _PASTE if pasting else seen[-len(_PASTE) :]
        feed(data)

    parser.feed = fed
    try:
        yield
    finally:
        del parser.feed
