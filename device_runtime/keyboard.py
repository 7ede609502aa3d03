"""The keyboard of this device: suggest, type, send, close. Every face of it uses this one.

A face shows a strip and reads keys; what a suggestion does to the text, what is recorded and what
is learned from it is decided here.
"""

import time
from collections.abc import Callable
from pathlib import Path

from device_runtime import config, personal
from device_runtime.bundle import Bundle
from device_runtime.errors import ConfigError
from device_runtime.home import OWN_WORDS, DeviceConfig, Home
from device_runtime.metrics import STRIP
from device_runtime.own_words import OwnWords, Trust, read_trust
from device_runtime.predictor import Predictor, Suggestion
from device_runtime.sensors import note_key

LEARNED_FROM = 200  # newest messages the trust is learned from, where none was kept


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
    """The text after a suggestion was taken: it replaces the word being typed, in that word's
    capitals, and a space follows.

    >>> accept("i will s", "see"), accept("Y", "you"), accept("YO", "you")
    ('i will see ', 'You ', 'YOU ')
    """
    context, begun = split(typed)
    if len(begun) > 1 and begun.isupper():
        word = word.upper()
    elif begun[:1].isupper():
        word = word[:1].upper() + word[1:]
    return context + word + " "


def home_of(folder: Path, bundle: Bundle) -> Home:
    """The device in `folder`, made there on first use with this bundle, a folder or a zip. Raises
    RunError or ConfigError for a folder that is none.
    """
    if Home.is_there(Path(folder)):
        return Home.open(folder)
    settings = DeviceConfig(trusted=(bundle.signer,), bundle=str(bundle.path.resolve()))
    return Home.create(folder, settings)


class Keyboard:
    """One user's keyboard, in a `with`. It remembers what is known of the user's own words; without
    a home it records and learns nothing.
    """

    def __init__(self, home: Home | None, bundle: Bundle, now: Callable[[], float] = time.time):
        """`now` gives seconds: messages are recorded with their time. Raises VocabularyError for a
        bundle of pieces, TypingLogError for a log that cannot be read.
        """
        self._home, self._now = home, now
        self._own = OwnWords(bundle.vocabulary, _trust(home))
        served = personal.served(home, bundle) if home else None
        self._predictor = Predictor(bundle, served, self._own)
        if home:
            self._read(home)

    def suggest(self, typed: str, k: int = STRIP) -> list[Suggestion]:
        """The k likeliest words after the text typed so far, best first: the next word, or those
        that complete the one being typed.
        """
        return self._predictor.suggest(*split(typed), k)

    def type(self) -> None:
        """Take note that keys were pressed, and not which: the device is in use."""
        if self._home:
            note_key(self._home.folder, self._now())

    def send(self, message: str, private: bool = False) -> None:
        """Record a sent message and learn from it; nothing of a private one."""
        if self._home and not private:
            with self._home.typing_log() as log:
                log.append(message, self._now())
            self._predictor.typed(message)

    def close(self) -> None:
        """Keep how far the own words are trusted: numbers, no words."""
        if self._home:
            self._home.keep(OWN_WORDS, config.to_json(self._own.trust))

    def __enter__(self) -> "Keyboard":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """A session that broke off keeps nothing: trust is learned again from the log."""
        if error is None:
            self.close()

    def _read(self, home: Home) -> None:
        """Count the messages of the log; those the kept trust has not seen are judged again."""
        with home.typing_log() as log:
            messages = log.read(log.count())
        unjudged = LEARNED_FROM if self._own.trust == Trust() else 0
        for place, message in enumerate(messages):
            self._predictor.typed(message, judged=place >= len(messages) - unjudged)


def _trust(home: Home | None) -> Trust:
    kept = home.kept(OWN_WORDS) if home else None
    try:
        return Trust() if kept is None else read_trust(kept, OWN_WORDS)
    except ConfigError:
        return Trust()  # learned again from the newest messages
