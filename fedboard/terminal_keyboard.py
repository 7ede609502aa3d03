"""The keyboard in a terminal: line by line (`converse`), or key by key (`run`).

Key by key the strip follows, and what is sent enters the typing log unless incognito is on.

`press` and `screen` are pure: keys and a session in, a session or text out. `run` is the loop that
owns the terminal and gives it back. What a keyboard is stands in `device_runtime/keyboard.py`.
"""

import codecs
import contextlib
import os
import re
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from device_runtime.errors import RunError
from device_runtime.keyboard import Keyboard, accept, split
from device_runtime.metrics import STRIP
from device_runtime.predictor import Suggestion, centred
from device_runtime.shown import printable
from fedboard import console, streams

TAB, ENTER, BACKSPACE = "\t", "\r", "\x7f"
# Ctrl-U, -W, -P, -V; Ctrl-C and -D
CLEAR, WORD_BACK, INCOGNITO, LITERAL, LEAVE = "\x15", "\x17", "\x10", "\x16", ("\x03", "\x04")
LINES_HELP = (
    "Type a line: it ends in a space -> next words; in letters -> completions. 1, 2 or 3 accepts "
    "a suggestion, an empty line starts anew."
)
HELP = "Tab or 1 2 3 accept · Enter sends · Ctrl-P incognito · Ctrl-V types a digit · Ctrl-D leaves"
# ECMA-48: control sequences, and keys with Alt
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O.|[^\[O])")
_PASTE, _PASTE_END = "\x1b[200~", "\x1b[201~"


@dataclass(frozen=True)
class Session:
    """What was typed and what it cost. A word costs its letters and one key; with the strip, the
    letters typed and one key.
    """

    typed: str = ""  # the message so far
    keys: int = 0  # pressed, over all messages
    sent_characters: int = 0  # of messages already sent: what they cost without the strip
    messages: int = 0
    incognito: bool = False
    private: bool = False  # incognito was on at some time while this message was typed
    space_is_ours: bool = False  # the space at the end came with a suggestion
    literal: bool = False  # the next key is typed as it is
    sent: str | None = None  # the message this key sent
    recorded: bool = False  # whether that message may be recorded
    left: bool = False

    @property
    def saved(self) -> float:
        """1 - keys pressed / keys without the strip; 0 before anything was typed."""
        plain = self.sent_characters + len(self.typed)
        return 1 - self.keys / plain if plain else 0.0


def press(session: Session, key: str, strip: Sequence[str]) -> Session:
    """The session after one key (or a pasted text, which is typed as it is). strip holds the words
    as shown, left to right.
    """
    session = replace(session, sent=None)
    if session.literal and key.isprintable():
        return _type(replace(session, literal=False), key)
    if key in LEAVE:
        return replace(session, left=True)
    if key == INCOGNITO:
        return replace(
            session,
            incognito=not session.incognito,
            private=not session.incognito or bool(session.typed),
        )
    if key == LITERAL:
        return replace(session, literal=True)
    if key == ENTER:
        return _send(session)
    if key == TAB and strip:
        return _accept(session, strip[len(strip) // 2])
    if key in ("1", "2", "3") and int(key) <= len(strip):
        return _accept(session, strip[int(key) - 1])
    if key == BACKSPACE:
        return (
            replace(session, typed=session.typed[:-1], keys=session.keys + 1, space_is_ours=False)
            if session.typed
            else session
        )
    if key == WORD_BACK:
        kept = split(session.typed.rstrip())[0]
        return (
            replace(session, typed=kept, keys=session.keys + 1, space_is_ours=False)
            if session.typed
            else session
        )
    if key == CLEAR:
        return (
            replace(
                session,
                typed="",
                keys=session.keys + 1,
                space_is_ours=False,
                private=session.incognito,
            )
            if session.typed
            else session
        )
    return _type(session, "".join(character for character in key if character.isprintable()))


def _type(session: Session, text: str) -> Session:
    typed = session.typed
    if session.space_is_ours and text[:1] and text[0] in ".,?!":
        typed = typed[:-1]  # a stop belongs to the word before it
    return replace(
        session,
        typed=typed + text,
        keys=session.keys + len(text),
        space_is_ours=session.space_is_ours and not text,
    )


def _accept(session: Session, word: str) -> Session:
    typed = accept(session.typed, word)
    return replace(session, typed=typed, keys=session.keys + 1, space_is_ours=True)


def _send(session: Session) -> Session:
    if not session.typed.strip():
        return replace(session, typed="", keys=session.keys - len(session.typed))
    return replace(
        session,
        typed="",
        sent=session.typed.strip(),
        recorded=not session.private,
        private=session.incognito,
        sent_characters=session.sent_characters + len(session.typed),
        messages=session.messages + 1,
        space_is_ours=False,
    )


def keys(pending: str) -> tuple[list[str], str]:
    """Keys in what the terminal sent, and the rest that is not whole yet. A pasted text is one key;
    other escape sequences are none.

    >>> keys("a\\x1b[Ab\\x1b[")
    (['a', 'b'], '\\x1b[')
    """
    pressed: list[str] = []
    while pending:
        if pending.startswith(_PASTE):
            text, end, rest = pending[len(_PASTE) :].partition(_PASTE_END)
            if not end:
                break
            pressed.append(" ".join(text.split()))
            pending = rest
        elif pending[0] == "\x1b":
            match = _ESCAPE.match(pending)
            if not match:
                break
            pending = pending[match.end() :]
        else:
            pressed.append({"\n": ENTER, "\b": BACKSPACE}.get(pending[0], pending[0]))
            pending = pending[1:]
    return pressed, pending


def screen(session: Session, strip: Sequence[str], width: int) -> list[str]:
    """Lines to show, each at most `width` cells: the strip with the best word in bold at the
    centre, the text, the count.
    """
    cell = max((width - 4) // STRIP, 1)
    shown = [set_cell_size(f"{i} {printable(word)}", cell) for i, word in enumerate(strip, 1)]
    if shown:
        shown[len(shown) // 2] = f"\x1b[1m{shown[len(shown) // 2]}\x1b[0m"
    text = session.typed
    while cell_len(text) > max(width - 4, 1):
        text = text[1:]
    mark = "…" if text != session.typed else " "
    state = (
        "incognito: nothing is recorded"
        if session.incognito
        else "not recorded"
        if session.private
        else ""
    )
    count = f"{session.keys} keys, {session.saved:.0%} saved"
    status = set_cell_size(
        "  ".join(part for part in (count, state, HELP) if part), max(width - 1, 1)
    ).rstrip()
    return ["│".join(shown), f"{mark}{text}\x1b[7m \x1b[0m", f"\x1b[2m{status}\x1b[0m"]


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
        strip = keyboard.suggest(typed)
        console.say(Text.assemble((f"{printable(typed)}|", "dim"), "  ", show(strip)))


def run(keyboard: Keyboard, incognito: bool = False, stdin: int = 0, stdout: int = 1) -> Session:
    """Show the keyboard until it is left. What is sent goes to it, unless it is private.

    The terminal is given back as it was however this ends, SIGTERM included. Raises RunError if
    there is no terminal.
    """
    if not (os.isatty(stdin) and os.isatty(stdout)):
        raise RunError(
            "fedboard keyboard",
            "expected a terminal",
            "run it in one, or use `fedboard predict`, which reads lines",
        )
    session = Session(incognito=incognito, private=incognito)
    with _raw(stdin, stdout) as wake:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        pending, drawn = "", 0
        while not session.left:
            strip = _words(keyboard, session)
            drawn = _draw(stdout, screen(session, strip, _width(stdout)), drawn)
            ready, _, _ = select.select([stdin, wake], [], [])
            if wake in ready:
                if signal.SIGTERM in os.read(wake, 64):
                    raise SystemExit(128 + signal.SIGTERM)
                continue
            data = os.read(stdin, 4096)
            if not data:
                break
            keyboard.type()
            pressed, pending = keys(pending + decoder.decode(data))
            for key in pressed:
                session = press(session, key, strip)
                if session.sent is not None:
                    keyboard.send(session.sent, private=not session.recorded)
                    drawn = _keep(stdout, session.sent, drawn)
                if session.left:
                    break
                strip = _words(keyboard, session)
        _draw(stdout, [], drawn)
    return session


def _words(keyboard: Keyboard, session: Session) -> list[str]:
    """The strip as it is shown, left to right."""
    return centred([suggestion.word for suggestion in keyboard.suggest(session.typed)])


def _draw(stdout: int, lines: Sequence[str], drawn: int) -> int:
    """Draw over the `drawn` lines of last time; the number drawn now."""
    back = f"\x1b[{drawn - 1}A" if drawn > 1 else ""
    os.write(stdout, streams.encoded(f"{back}\r\x1b[J" + "\r\n".join(lines)))
    return len(lines)


def _keep(stdout: int, message: str, drawn: int) -> int:
    """Leave a sent message standing above the keyboard."""
    _draw(stdout, [f"  {message}", ""], drawn)
    return 1


def _width(stdout: int) -> int:
    try:
        return os.get_terminal_size(stdout).columns or 80
    except OSError:
        return 80


@contextlib.contextmanager
def _raw(stdin: int, stdout: int) -> Iterator[int]:
    """The terminal in raw mode; gives a file that can be read when SIGTERM or a new size has
    come.
    """
    before = termios.tcgetattr(stdin)
    read, write = os.pipe()
    os.set_blocking(write, False)
    handlers = {
        number: signal.signal(number, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGWINCH)
    }
    old_wake = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        tty.setraw(stdin)
        os.write(stdout, b"\x1b[?2004h")  # mark what is pasted
        yield read
    finally:
        os.write(stdout, b"\x1b[?2004l")
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)
        signal.set_wakeup_fd(old_wake)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(read)
        os.close(write)
        sys.stdout.flush()
