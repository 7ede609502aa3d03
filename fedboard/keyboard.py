"""The keyboard on the command line: suggestions for one text, for each line of standard input, or
key by key in a terminal (`live`).
"""

import os
import time
from collections.abc import Iterable
from pathlib import Path

from device_runtime import config, personal
from device_runtime.bundle import Bundle
from device_runtime.errors import ConfigError
from device_runtime.home import OWN_WORDS, DeviceConfig, Home
from device_runtime.own_words import OwnWords, Trust, read_trust
from device_runtime.predictor import Predictor, Suggestion
from device_runtime.sensors import note_key
from fedboard import console

HELP = (
    "Type a line: it ends in a space -> next words; in letters -> completions. 1, 2 or 3 accepts "
    "a suggestion, an empty line starts anew."
)


def split(typed: str) -> tuple[str, str]:
    """What was typed as context and the word being typed, which is empty after a space.

    >>> split("i will s")
    ('i will ', 's')
    """
    start = len(typed)
    while start > 0 and (typed[start - 1].isalnum() or typed[start - 1] in "'’"):
        start -= 1
    return typed[:start], typed[start:]


def accept(typed: str, word: str) -> str:
    """The text after a suggestion was taken: it replaces the word being typed, a space follows."""
    return split(typed)[0] + word + " "


def show(suggestions: list[Suggestion]) -> str:
    """`1 you 12.3 %   2 it 8.0 %   3 the 4.1 %`."""
    return (
        "   ".join(
            f"[bold]{i} {s.word}[/] {s.probability:.1%}" for i, s in enumerate(suggestions, 1)
        )
        or "(no word of the vocabulary)"
    )


def converse(predictor: Predictor, lines: Iterable[str]) -> None:
    """A small keyboard: prints the strip after each line."""
    typed = ""
    strip = predictor.suggest("")
    console.say(show(strip))
    for line in (line.rstrip("\r\n") for line in lines):
        chosen = int(line) if line in ("1", "2", "3") else 0
        typed = accept(typed, strip[chosen - 1].word) if 0 < chosen <= len(strip) else line
        strip = predictor.suggest(*split(typed))
        console.say(f"[dim]{typed}|[/]  {show(strip)}")


LEARNED_FROM = 200  # newest messages the trust is learned from, where none was kept


def default_home() -> Path:
    """Where the live keyboard keeps its typing log if no device is named."""
    return (
        Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
        / "fedboard"
        / "keyboard"
    )


def home_of(folder: Path, bundle: Bundle) -> Home:
    """The device in `folder`, made there on first use with this bundle. Raises RunError or
    ConfigError for a folder that is none.
    """
    if not Path(folder).exists():
        trusted = (bundle.path.joinpath("manifest.sig").read_text().split()[0],)
        return Home.create(folder, DeviceConfig(bundle=str(bundle.path.resolve()), trusted=trusted))
    return Home.open(folder)


def live(bundle: Bundle, home: Home | None, incognito: bool = False) -> None:
    """The live keyboard until it is left. Messages enter the home's typing log and own words;
    without a home nothing is recorded.
    """
    from fedboard import live_keyboard

    own = OwnWords(bundle.vocabulary, _trust(home))
    predictor = Predictor(bundle, personal.served(home, bundle) if home else None, own)
    if home:
        with home.typing_log() as log:
            messages = log.read(log.count())
        judged_from = len(messages) - LEARNED_FROM if own.trust == Trust() else len(messages)
        for place, message in enumerate(messages):
            predictor.typed(message, judged=place >= judged_from)

    def record(message: str) -> None:
        if home:
            with home.typing_log() as log:
                log.append(message, time.time())
            predictor.typed(message)

    def pressed() -> None:
        if home:
            note_key(home.folder, time.time())

    done = live_keyboard.run(predictor.suggest, record, incognito, on_key=pressed)
    if home:
        home.keep(OWN_WORDS, config.to_json(own.trust))
    console.say(
        f"{done.messages} messages, {done.keys} keys pressed, {done.saved:.1%} of keystrokes saved"
    )


def _trust(home: Home | None) -> Trust:
    path = home.folder / OWN_WORDS if home else None
    try:
        return read_trust(path.read_bytes(), path) if path and path.is_file() else Trust()
    except ConfigError:
        return Trust()  # learned again from the newest messages
