"""The keyboard of this device: suggest, type, send, close. Every face of it uses this one.

A face shows a strip and reads keys; what a suggestion does to the text, what is recorded and what
is learned from it is decided here.
"""

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime import config, personal, words
from device_runtime.bundle import MANIFEST, Bundle, open_verified
from device_runtime.errors import ConfigError, FedboardError, RunError
from device_runtime.folder import require_free
from device_runtime.home import (
    BUNDLES,
    FOLDER,
    KEY,
    OWN_WORDS,
    PERSONAL,
    REMOVED,
    DeviceConfig,
    Home,
)
from device_runtime.installed import POINTER, Pointer
from device_runtime.metrics import STRIP
from device_runtime.own_words import MOST_TOKENS, OwnWords, Trust, read_trust
from device_runtime.personal import Served
from device_runtime.predictor import Places, Predictor, Standing, Suggestion
from device_runtime.sensors import note_key
from device_runtime.text import Vocabulary, plain, tokenise
from device_runtime.typing_log import TypingLog, masked
from device_runtime.words import Lists
from device_runtime.writing import accept, split

log = logging.getLogger("fedboard.device")
__all__ = ["Keyboard", "accept", "home_of", "split"]

LEARNED_FROM = 200  # newest messages the trust is learned from, where none was kept
JUDGED_AT_ONCE = 60  # newest messages the trust is learned from anew, while somebody types
PATIENCE_S = 0.5  # nobody waits longer for a key while another process writes the typing log
LOOK_EVERY_S = 1.0  # at the typing log, while a removal is under way or was killed
MOST_WAITING = 1000  # messages that could not be recorded yet
_Mark = tuple[int, int, int] | None  # of a file: changes with it; None: there is none
_Message = tuple[str, list[str]]  # as it was sent, and its tokens
_REFUSED = (FedboardError, OSError)


def home_of(folder: Path, bundle: Bundle) -> Home:
    """The device in `folder`, made there on first use with this bundle, a folder or a zip.

    Where its settings are damaged the usual ones take their place, and where it cannot be made it
    is one that keeps nothing: `Home.problem` says so. Raises RunError for a folder of somebody
    else's.
    """
    folder = Path(folder)
    settings = DeviceConfig(trusted=(bundle.signer,), bundle=str(bundle.path.resolve()))
    try:
        if Home.is_there(folder):
            return Home.as_it_is(folder, settings)
    except _REFUSED as error:
        return _unmade(folder, settings, error)
    try:
        return Home.create(folder, settings)
    except _REFUSED as error:
        return _unmade(folder, settings, error)


def _unmade(folder: Path, settings: DeviceConfig, error: Exception) -> Home:
    """A device that could not be made. Raises what `require_free` does of a folder that is not
    its own: another one is meant then.
    """
    with contextlib.suppress(OSError):
        if folder.is_file() or os.access(folder, os.R_OK | os.X_OK):
            require_free(folder, FOLDER)
    return Home(folder, settings, Ed25519PrivateKey.generate(), str(error))


class Keyboard:
    """One user's keyboard, in a `with`. It remembers what is known of the user's own words; without
    a home it records and learns nothing.

    It types whatever becomes of the home: what cannot be recorded waits for the next message, and
    `notice` says so once. While it is open, a bundle or a personal network that takes the place of
    the one it uses is used from the next key on, and what another process removes is gone at the
    next key, and stays so.
    """

    def __init__(self, home: Home | None, bundle: Bundle, now: Callable[[], float] = time.time):
        """`now` gives seconds: messages are recorded with their time."""
        self._home = None if home is None else replace(home, patience_s=PATIENCE_S)
        self._now = now
        self._notices: deque[str] = deque()
        self._said: set[str] = set()
        self._standing = Standing()
        self._source = _source(home, bundle)
        # what changes when there may be another strip
        self._watched = [str(self._source.file)]
        if home:
            files = (PERSONAL, KEY, REMOVED, words.FILE)
            self._watched += [str(home.folder / name) for name in files]
            if home.config.bundle is not None:  # until a release comes into its home
                self._watched.append(str(home.folder / BUNDLES / POINTER))
        # None: what is there now is another one already
        self._seen = self._marks() if _is_current(self._source, bundle, home) else None
        self._device = self._key_mark()
        self._removals, self._looked_at = self._count_removals(), now()
        self._lists_mark, self._lists = self._read_lists()
        self._messages: deque[_Message] = deque()  # that count, oldest first
        self._tokens = 0  # in them
        self._waiting: list[tuple[str, float]] = []  # to be recorded
        served = self._served(bundle)
        self._strip = self._strip_of(bundle, served, _beside(served, _trust(self._home)))
        self._learn(self._logged())

    def suggest(self, typed: str, k: int = STRIP) -> list[Suggestion]:
        """The k likeliest words after the text typed so far, best first: the next word, or those
        that complete the one being typed. None of those never to be offered.
        """
        self._follow(typed)
        return self._strip.predictor.suggest(*split(typed), k)

    def places(self, typed: str) -> Places:
        """The strip as it is shown, left to right: words that still fit the word being typed keep
        their places, and a place may be free. `best_place` says where the likeliest word stands.
        """
        self._standing = self._standing.after(*split(typed), self.suggest(typed))
        return self._standing.places

    def type(self) -> None:
        """Take note that keys were pressed, and not which: the device is in use."""
        if self._home and not self._is_gone:
            note_key(self._home.folder, self._now())

    def send(self, message: str, private: bool = False) -> None:
        """Record a sent message and learn from it; nothing of a private one."""
        if self._home is None or private:
            return
        self._follow(message)
        if self._is_gone:
            return
        if message.strip():
            self._waiting.append((message, self._now()))
        self._record()
        if self._strip.unjudged:
            self._judge_anew()
        self._count(message, tokenise(message), judged=True)

    def forget(self, word: str) -> int:
        """Take a word out of all that was sent, and remove what was learned: it is learned again.
        The number of messages that held it.

        Raises RunError or TypingLogError where storage refuses, and then the word is still there.
        """
        if self._home is None or self._is_gone:
            return 0
        waiting = [(masked(message, word), at) for message, at in self._waiting]
        if plain(word) in map(plain, self._lists.allow):
            self._keep_lists(words.without(self._lists, word))
        number = self._home.forget_word(word)
        self._follow("")
        self._waiting = waiting
        return number

    def never(self, word: str) -> None:
        """Never offer a word again, whoever knows it. Raises ConfigError for what is no word."""
        self._keep_lists(words.with_never(self._lists, words.require_word(word)))

    def allow(self, word: str) -> None:
        """Offer a word, whatever list has it and whatever it looks like. Raises as `never`."""
        self._keep_lists(words.with_allowed(self._lists, words.require_word(word)))

    def notice(self) -> str | None:
        """One sentence for who types, such as that nothing is recorded and why; each once. None if
        there is none.
        """
        return self._notices.popleft() if self._notices else None

    def close(self) -> None:
        """Record what waits, and keep how far the own words are trusted: numbers, no words. Nothing
        that was learned before a removal is kept after it.
        """
        if self._home is None or self._is_gone:
            return
        before = self._count_removals()
        if before != self._removals:
            return
        if self._waiting:
            self._record()
        own = self._strip.own
        if own is None:
            return
        trust = own.trust
        try:
            if before % 2 or not (trust.words or self._home.kept(OWN_WORDS)):
                return
            self._home.keep(OWN_WORDS, config.to_json(trust))
            if self._count_removals() != before or self._is_gone:
                self._home.drop(OWN_WORDS)
        except OSError as error:
            log.info("the trust was not kept (%s)", type(error).__name__)

    def __enter__(self) -> "Keyboard":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """However a session ends, what was learned in it is kept."""
        self.close()

    # --- recording
    # --------------------------------------------------------------------------------------------

    def _logged(self) -> list[_Message]:
        """The newest messages of the log, as many as count, oldest first."""
        if self._home is None or self._is_gone:
            return []
        try:
            with self._opened_log() as typing_log:
                with contextlib.suppress(*_REFUSED):  # a full disk can still be read
                    typing_log.retain(self._now())
                logged = newest(typing_log)
        except _REFUSED as error:
            self._unrecorded(error)
            return []
        if self._home.problem:
            self._say(f"{self._home.problem}: the usual settings are used")
        return logged

    def _record(self) -> None:
        """Record what waits, if the log takes it now."""
        try:
            with self._opened_log() as typing_log:
                typing_log.append_many(self._waiting)
                self._waiting = []
                with contextlib.suppress(*_REFUSED):
                    typing_log.retain(self._now())
        except _REFUSED as error:
            self._waiting = self._waiting[-MOST_WAITING:]
            self._unrecorded(error)

    def _opened_log(self) -> TypingLog:
        """Raises what opening does, and RunError where no device could be made: no log stands
        alone.
        """
        if self._home is None or (self._device is None and not Home.is_any(self._home.folder)):
            raise RunError("this keyboard", "has no device", "make one")
        return self._home.typing_log()

    def _unrecorded(self, error: Exception) -> None:
        problem = self._home.problem if self._home else None
        self._say(f"nothing is recorded: {problem or error}")

    def _say(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            self._notices.append(sentence)

    # --- learning
    # --------------------------------------------------------------------------------------------

    def _learn(self, messages: Iterable[_Message], judged: int = LEARNED_FROM) -> None:
        """Count these messages and no others; where the trust has seen none, so many of the newest
        are judged.
        """
        messages = list(messages)
        self._messages.clear()
        self._tokens = 0
        own = self._strip.own
        unjudged = 0 if own is None or own.trust.words else judged
        for place, (message, tokens) in enumerate(messages):
            self._count(message, tokens, judged=place >= len(messages) - unjudged)

    def _count(self, message: str, tokens: list[str], judged: bool = True) -> None:
        self._strip.predictor.learn(tokens, judged, message)
        self._messages.append((message, tokens))
        self._tokens += len(tokens)
        while self._tokens > MOST_TOKENS and len(self._messages) > 1:
            self._tokens -= len(self._messages.popleft()[1])

    def _judge_anew(self) -> None:
        """Learn beside this network how far the own words are to be trusted: when a message was
        sent, since nobody waits for the strip then.
        """
        self._begin_anew(Trust(network=self._strip.served.name), unjudged=False)
        self._learn(self._messages, JUDGED_AT_ONCE)

    def _begin_anew(self, trust: Trust, unjudged: bool) -> None:
        """Own words of which nothing is counted yet."""
        predictor = self._strip.predictor
        predictor.own = own = _own_words(predictor.vocabulary, trust, self._lists)
        self._strip = replace(self._strip, own=own, unjudged=unjudged)

    def _strip_of(self, bundle: Bundle, served: Served, trust: Trust) -> "_Strip":
        lists = self._lists
        own = _own_words(bundle.vocabulary, trust, lists)
        if own is None and self._home:
            self._say("own words are not learned: this bundle suggests by pieces of words")
        never = frozenset(lists.never)
        predictor = Predictor(bundle, served.network, own, allowed=lists.allowed, never=never)
        everybodys = bundle if served.name else None
        return _Strip(bundle.encoded, served, predictor, own, everybodys=everybodys)

    # --- the user's own lists
    # --------------------------------------------------------------------------------------------

    def _read_lists(self) -> tuple[_Mark, Lists]:
        if self._home is None or self._is_gone:
            return None, Lists()
        mark = _mark(str(self._home.folder / words.FILE))
        try:
            return mark, Lists() if mark is None else words.read(self._home)
        except _REFUSED as error:
            self._say(f"your lists of words are not used: {error}")
            return mark, Lists()

    def _keep_lists(self, lists: Lists) -> None:
        """Use these lists, here and from now on."""
        if self._home is not None and not self._is_gone:
            try:
                if self._lists_mark is not None:
                    words.read(self._home)  # what cannot be read is not written over
                words.keep(self._home, lists)
            except _REFUSED as error:
                self._say(f"the word is remembered until this keyboard is left: {error}")
            self._lists_mark = _mark(str(self._home.folder / words.FILE))
        self._use_lists(lists)

    def _use_lists(self, lists: Lists) -> None:
        before, self._lists = self._lists, lists
        self._strip.predictor.allow(lists.allowed, frozenset(lists.never))
        if lists.allowed != before.allowed and self._strip.own:
            self._begin_anew(self._strip.own.trust, self._strip.unjudged)
            self._learn(self._messages, judged=0)

    # --- following what other processes do
    # --------------------------------------------------------------------------------------------

    @property
    def _is_gone(self) -> bool:
        """Whether the device is not there any more, or another one is in its place."""
        return self._key_mark() != self._device

    def _key_mark(self) -> _Mark:
        return _mark(str(self._home.folder / KEY)) if self._home else None

    def _count_removals(self) -> int:
        return self._home.removals() if self._home else 0

    def _marks(self) -> list[_Mark]:
        return [_mark(path) for path in self._watched]

    def _follow(self, typed: str) -> None:
        """Take over what has changed since the last key."""
        marks = self._marks()
        unfinished = bool(self._removals % 2) and self._is_time_to_look()
        if marks == self._seen and not unfinished:
            return
        self._seen = marks
        removals = self._count_removals()
        if self._is_gone or unfinished or removals != self._removals:
            self._removals, self._looked_at = removals, self._now()
            self._forget_all()
        lists_mark, lists = self._read_lists()
        if lists_mark != self._lists_mark:
            self._lists_mark = lists_mark
            self._use_lists(lists)
        self._renew(typed)

    def _is_time_to_look(self) -> bool:
        return not 0 <= self._now() - self._looked_at < LOOK_EVERY_S

    def _forget_all(self) -> None:
        """Begin anew with what a removal has left; with nothing where the device is gone."""
        self._waiting = []
        if self._is_gone and self._home:
            folder = self._home.folder
            self._say(f"nothing is recorded any more: the device in {folder} was removed")
        everybodys = self._strip.everybodys
        if everybodys is not None:
            self._strip = self._strip_of(everybodys, Served(), Trust())
        self._begin_anew(Trust(network=self._strip.served.name), unjudged=True)
        self._learn(self._logged(), judged=0)

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
        served = self._served(bundle)
        if bundle.encoded == now.bundle and served.name == now.served.name:
            return now
        other = served.name != now.served.name
        trust = now.own.trust if now.own else _trust(self._home)
        strip = self._strip_of(bundle, served, _beside(served, trust))
        if other or bundle.vocabulary.hash != now.predictor.vocabulary.hash:
            for message, tokens in self._messages:
                strip.predictor.learn(tokens, False, message)
        else:
            strip.predictor.own = now.own
            strip = replace(strip, own=now.own)
        return replace(strip, unjudged=now.unjudged or other)

    def _served(self, bundle: Bundle) -> Served:
        try:
            return personal.served(self._home, bundle) if self._home else Served()
        except _REFUSED:
            return Served()


@dataclass(frozen=True)
class _Strip:
    """What suggests, and what it was made of."""

    bundle: bytes  # its manifest
    served: Served
    predictor: Predictor
    own: OwnWords | None  # None beside a network of pieces
    unjudged: bool = False  # the own words were not judged beside this network
    # beside a personal network: takes its place when that is removed
    everybodys: Bundle | None = None


@dataclass(frozen=True)
class _Source:
    """Where the bundle of a keyboard is."""

    file: Path  # is another one when the bundle is
    open: Callable[[], Bundle]
    in_place: bool = False  # by a home, until it has installed another one


def _source(home: Home | None, bundle: Bundle) -> _Source:
    if home and bundle.path.parent == home.folder / BUNDLES:
        return _Source(home.folder / BUNDLES / POINTER, home.bundle)
    file = bundle.path if bundle.path.is_file() else bundle.path / MANIFEST
    if home and home.config.bundle is not None:
        in_place = home.folder / home.config.bundle
        if in_place.resolve() == bundle.path.resolve():
            return _Source(file, home.bundle, in_place=True)
    return _Source(file, lambda: open_verified(bundle.path, frozenset({bundle.signer})))


def _is_current(source: _Source, bundle: Bundle, home: Home | None) -> bool:
    """Whether a bundle that was opened is still the one that is used; a zip surely is, unless a
    home used it in place and has installed another.
    """
    try:
        if home and source.in_place and (home.folder / BUNDLES / POINTER).exists():
            return False
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


def _own_words(vocabulary: Vocabulary, trust: Trust, lists: Lists) -> OwnWords | None:
    """What is learned beside a network; None beside one of pieces, whose words cannot be mixed with
    counts of whole ones.
    """
    return None if vocabulary.of_pieces else OwnWords(vocabulary, trust, lists.allowed)


def _beside(served: Served, trust: Trust) -> Trust:
    """A trust that was learned beside this network; beside another one it has to win anew."""
    return trust if trust.network == served.name else Trust(network=served.name)


def _trust(home: Home | None) -> Trust:
    try:
        kept = home.kept(OWN_WORDS) if home else None
        return Trust() if kept is None else read_trust(kept, OWN_WORDS)
    except (ConfigError, OSError):
        return Trust()  # learned again from the newest messages


def newest(typing_log: TypingLog) -> list[_Message]:
    """The newest messages of a log that can count, oldest of them first, with their tokens. Raises
    TypingLogError.
    """
    messages: list[_Message] = []
    room = MOST_TOKENS
    for record in typing_log.newest_first():
        tokens = tokenise(record.text)
        room -= len(tokens)
        if room < 0 and messages:
            break
        messages.append((record.text, tokens))
    return messages[::-1]
