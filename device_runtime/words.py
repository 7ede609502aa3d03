"""Words: the user's own lists, of words never to offer and of words always allowed.

They come before every other list. What stands in them was typed by the user, so it lies sealed
under the key of the typing log: a wipe takes it with it.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from device_runtime import config, text
from device_runtime.errors import ConfigError, TypingLogError

if TYPE_CHECKING:
    from device_runtime.home import Home

FILE = "words.sealed"  # in a device's home
PURPOSE = "words"  # of the seal
MOST = 10_000  # words of one list


@dataclass(frozen=True)
class Lists:
    """Words as they were given, in order."""

    never: tuple[str, ...] = ()  # are not offered, whoever knows them
    allow: tuple[str, ...] = ()  # are, whatever list has them and whatever they look like

    def barred(self, token: str) -> bool:
        """Whether a token is never offered: it, or what hurried people write for it, is listed."""
        return text.plain(token) in {text.plain(word) for word in self.never}

    @property
    def allowed(self) -> frozenset[str]:
        """Tokens that are allowed."""
        return frozenset(map(text.fold, self.allow))


def with_never(lists: Lists, word: str) -> Lists:
    """The lists once a word is never to be offered; it is allowed no more."""
    plain = text.plain(word)
    allow = tuple(each for each in lists.allow if text.plain(each) != plain)
    return replace(lists, never=_with(lists.never, word), allow=allow)


def with_allowed(lists: Lists, word: str) -> Lists:
    """The lists once a word is allowed; it is offered again."""
    plain = text.plain(word)
    never = tuple(each for each in lists.never if text.plain(each) != plain)
    return replace(lists, never=never, allow=_with(lists.allow, word))


def without(lists: Lists, word: str) -> Lists:
    """The lists without a word: whether it is offered is decided as of any other."""
    plain = text.plain(word)
    never, allow = (
        tuple(each for each in listed if text.plain(each) != plain)
        for listed in (lists.never, lists.allow)
    )
    return Lists(never, allow)


def require_word(word: str) -> str:
    """A word, as it was given. Raises ConfigError, which does not quote it, for what is none."""
    word = text.normalise(word.strip())
    tokens = text.tokenise(word)
    if len(tokens) != 1 or not text.is_word(tokens[0]):
        raise ConfigError("the word", "expected one word, found something else", "give one word")
    return word


def read(home: "Home") -> Lists:
    """The lists of a device; empty before the first word. Raises ConfigError where they cannot be
    read: nothing may be written over them then.
    """
    sealed = home.kept(FILE)
    if sealed is None:
        return Lists()
    try:
        with home.typing_log() as log:
            return config.from_json(Lists, log.unseal(sealed, PURPOSE), FILE)
    except (TypingLogError, ConfigError):
        raise ConfigError(
            home.folder / FILE,
            "cannot be opened: it was damaged, or sealed with another key",
            "move it out of the folder to begin new lists",
        ) from None


def keep(home: "Home", lists: Lists) -> None:
    """Write the lists. Raises ConfigError if one is too long."""
    home.keep(FILE, sealed(home, lists))


def sealed(home: "Home", lists: Lists) -> bytes:
    """The lists as they are kept. Raises as `keep`."""
    if max(len(lists.never), len(lists.allow)) > MOST:
        raise ConfigError(FILE, f"expected at most {MOST:,} words", "remove some first")
    with home.typing_log() as log:
        return log.seal(config.to_json(lists), PURPOSE)


def _with(listed: tuple[str, ...], word: str) -> tuple[str, ...]:
    plain = text.plain(word)
    return (*(each for each in listed if text.plain(each) != plain), word)
