"""Shown: what people and files say, as a terminal may print it and a shell may read it."""

import math
import shlex
import unicodedata
from decimal import ROUND_CEILING, Decimal
from pathlib import Path

# they join what a person reads as one, as in Persian words and in emoji of a family
_JOINERS = ("\u200c", "\u200d")
_LETTERS = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: str) -> str:
    """The text on one line, with everything a terminal would obey written as an escape: line ends,
    control codes, marks that turn the direction of writing, bytes that are no text.

    >>> printable("caf\\xe9 [/x] \\x1b[31m\\u202e\\n")
    'café [/x] \\\\x1b[31m\\\\u202e\\\\n'
    """
    return "".join(c if _harmless(c) else _escaped(c) for c in text)


def command(*words: object) -> str:
    """`fedboard` with these words, each quoted so that a shell reads it as it is.

    A path that begins with a dash gets a `./`, so that it is not taken for an option.

    >>> command("export", Path("my run"), "--out", Path("-x"))
    "fedboard export 'my run' --out ./-x"
    """
    return " ".join(["fedboard", *map(_quoted, words)])


def rounded_up(epsilon: float) -> str:
    """An epsilon that was spent, to two digits after the point, or to three where it is small: what
    a person reads is never less than it is.

    >>> rounded_up(6.5), rounded_up(6.501), rounded_up(1.1), rounded_up(0.00012341)
    ('6.50', '6.51', '1.10', '0.000124')
    """
    if not math.isfinite(epsilon) or epsilon <= 0:
        return f"{epsilon:.2f}"
    digits = max(2, 2 - math.floor(math.log10(epsilon)))
    return f"{Decimal(repr(epsilon)).quantize(Decimal(1).scaleb(-digits), ROUND_CEILING):f}"


def _harmless(character: str) -> bool:
    return (
        character.isprintable()
        or character in _JOINERS
        or unicodedata.category(character) == "Zs"  # spaces of other widths
    )


def _is_byte(character: str) -> bool:
    """Whether it stands for a byte of a name that is no text, as Python reads such names."""
    return "\udc80" <= character <= "\udcff"


def _escaped(character: str) -> str:
    if _is_byte(character):
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def _quoted(word: object) -> str:
    text = str(word)
    if isinstance(word, Path) and text.startswith("-"):
        text = f"./{text}"
    if printable(text) == text:
        return shlex.quote(text)
    # what a terminal would obey is spelled: bash, zsh, and POSIX since 2024
    return f"$'{''.join(map(_spelled, text))}'"


def _spelled(character: str) -> str:
    if character in _LETTERS:
        return _LETTERS[character]
    if _harmless(character):
        return character
    # byte by byte: no shell needs to know the character set. Three digits always end an escape
    how = "surrogateescape" if _is_byte(character) else "surrogatepass"
    return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", how))
