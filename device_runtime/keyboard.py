"""The keyboard of this device: suggest, type, send, close. Every face of it uses this one.

A face shows a strip and reads keys; what a suggestion does to the text, what is recorded and what
is learned from it is decided here.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from device_runtime import config, personal
from device_runtime.bundle import MANIFEST, Bundle, open_verified
from device_runtime.errors import ConfigError
from device_runtime.home import BUNDLES, OWN_WORDS, PERSONAL, DeviceConfig, Home
from device_runtime.installed import POINTER, Pointer
from device_runtime.metrics import STRIP
from device_runtime.own_words import OwnWords, Trust, read_trust
from device_runtime.personal import Served
from device_runtime.predictor import Predictor, Suggestion
from device_runtime.sensors import note_key
from device_runtime.text import tokenise
from device_runtime.writing import accept, split

log = logging.getLogger("fedboard.device")
__all__ = ["Keyboard", "accept", "home_of", "split"]

LEARNED_FROM = 200  # newest messages the trust is learned from, where none was kept
_Mark = tuple[int, int, int] | None  # of a file: changes with it; None: there is none


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

    While it is open, a bundle or a personal network that takes the place of the one it uses is used
    from the next key on.
    """

    def __init__(self, home: Home | None, bundle: Bundle, now: Callable[[], float] = time.time):
        """`now` gives seconds: messages are recorded with their time. Raises TypingLogError for a
        log that cannot be read.
        """
        self._home, self._now = home, now
        self._source = _source(home, bundle)
        # what changes when there may be another strip
        self._watched = [str(self._source.file)]
        if home:
            self._watched.append(str(home.folder / PERSONAL))
            if home.config.bundle is not None:  # until a release comes into its home
                self._watched.append(str(home.folder / BUNDLES / POINTER))
        # None: what is there now is another one already
        self._seen = self._marks() if _is_current(self._source, bundle) else None
        served = personal.served(home, bundle) if home else Served()
        own = _own_words(bundle, _beside(served, _trust(home)))
        self._strip = _Strip(bundle.encoded, served, Predictor(bundle, served.network, own), own)
        if own:
            self._learn(self._recorded())

    def suggest(self, typed: str, k: int = STRIP) -> list[Suggestion]:
        """The k likeliest words after the text typed so far, best first: the next word, or those
        that complete the one being typed.
        """
        marks = self._marks()
        if marks != self._seen:
            self._seen = marks
            self._renew(typed)
        return self._strip.predictor.suggest(*split(typed), k)

    def type(self) -> None:
        """Take note that keys were pressed, and not which: the device is in use."""
        if self._home:
            note_key(self._home.folder, self._now())

    def send(self, message: str, private: bool = False) -> None:
        """Record a sent message and learn from it; nothing of a private one."""
        if self._home and not private:
            with self._home.typing_log() as log:
                log.append(message, self._now())
            if self._strip.unjudged:
                self._judge_anew()
            self._strip.predictor.typed(message)

    def close(self) -> None:
        """Keep how far the own words are trusted: numbers, no words."""
        if self._home and self._strip.own:
            self._home.keep(OWN_WORDS, config.to_json(self._strip.own.trust))

    def __enter__(self) -> "Keyboard":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """A session that broke off keeps nothing: trust is learned again from the log."""
        if error is None:
            self.close()

    def _learn(self, messages: Sequence[Sequence[str]]) -> None:
        """Count messages, as tokens; those that the trust has not seen are judged."""
        own = self._strip.own
        unjudged = 0 if own is None or own.trust.words else LEARNED_FROM
        for place, tokens in enumerate(messages):
            self._strip.predictor.learn(tokens, judged=place >= len(messages) - unjudged)

    def _recorded(self) -> list[list[str]]:
        """The tokens of every message of the log."""
        if not self._home:
            return []
        with self._home.typing_log() as log:
            return [tokenise(message) for message in log.read(log.count())]

    def _marks(self) -> list[_Mark]:
        return [_mark(path) for path in self._watched]

    def _renew(self, typed: str) -> None:
        """Use the bundle and the personal network there are now. What cannot be used changes
        nothing, whatever is wrong with it: a key is pressed, and the strip goes on.
        """
        try:
            strip = self._renewed()
            strip.predictor.suggest(*split(typed))
        except Exception as error:  # its text may be anything
            log.info("the strip goes on as it was (%s)", type(error).__name__)
            return
        self._strip = strip

    def _renewed(self) -> "_Strip":
        bundle, now = self._source.open(), self._strip
        served = personal.served(self._home, bundle) if self._home else Served()
        if bundle.encoded == now.bundle and served.name == now.served.name:
            return now
        own, trust = now.own, now.own.trust if now.own else _trust(self._home)
        other = served.name != now.served.name
        if other or bundle.vocabulary.hash != now.predictor.vocabulary.hash:
            own = _own_words(bundle, _beside(served, trust))
            if own:
                for tokens in now.own.messages() if now.own else self._recorded():
                    own.add(tokens)
        predictor = Predictor(bundle, served.network, own)
        return _Strip(bundle.encoded, served, predictor, own, now.unjudged or other)

    def _judge_anew(self) -> None:
        """Learn beside this network how far the own words are to be trusted: when a message was
        sent, since nobody waits for the strip then.
        """
        strip = self._strip
        if strip.own is None:
            return
        own = OwnWords(strip.predictor.vocabulary, Trust(network=strip.served.name))
        strip.predictor.own = own
        self._strip = replace(strip, own=own, unjudged=False)
        self._learn(list(strip.own.messages()))


@dataclass(frozen=True)
class _Strip:
    """What suggests, and what it was made of."""

    bundle: bytes  # its manifest
    served: Served
    predictor: Predictor
    own: OwnWords | None  # None beside a network of pieces
    unjudged: bool = False  # the own words were not judged beside this network


@dataclass(frozen=True)
class _Source:
    """Where the bundle of a keyboard is."""

    file: Path  # is another one when the bundle is
    open: Callable[[], Bundle]


def _source(home: Home | None, bundle: Bundle) -> _Source:
    if home and bundle.path.parent == home.folder / BUNDLES:
        return _Source(home.folder / BUNDLES / POINTER, home.bundle)
    file = bundle.path if bundle.path.is_file() else bundle.path / MANIFEST
    if home and home.config.bundle is not None:
        in_place = home.folder / home.config.bundle
        if in_place.resolve() == bundle.path.resolve():
            return _Source(file, home.bundle)
    return _Source(file, lambda: open_verified(bundle.path, frozenset({bundle.signer})))


def _is_current(source: _Source, bundle: Bundle) -> bool:
    """Whether a bundle that was opened is still the one that is there; a zip surely is."""
    try:
        if source.file == bundle.path:
            return True
        data = source.file.read_bytes()
        if source.file.name == MANIFEST:
            return data == bundle.encoded
        return config.from_json(Pointer, data, POINTER).current == bundle.path.name
    except (OSError, ConfigError):
        return False


def _mark(path: str) -> _Mark:
    try:
        file = os.stat(path)
    except OSError:
        return None
    return file.st_ino, file.st_size, file.st_mtime_ns


def _own_words(bundle: Bundle, trust: Trust) -> OwnWords | None:
    """What is learned beside this bundle's network; None for one of pieces, whose words cannot be
    mixed with counts of whole ones.
    """
    return None if bundle.vocabulary.of_pieces else OwnWords(bundle.vocabulary, trust)


def _beside(served: Served, trust: Trust) -> Trust:
    """A trust that was learned beside this network; beside another one it has to win anew."""
    return trust if trust.network == served.name else Trust(network=served.name)


def _trust(home: Home | None) -> Trust:
    kept = home.kept(OWN_WORDS) if home else None
    try:
        return Trust() if kept is None else read_trust(kept, OWN_WORDS)
    except ConfigError:
        return Trust()  # learned again from the newest messages
