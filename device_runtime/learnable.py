"""Learnable: which words of a message may become words of the strip, and how they were written.

A word is learned of a message only where it stands as a word: codes, passwords, addresses, handles,
names of files and numbers are strings of letters too, and are told by what is glued to them. How
often a word must be sent before it is offered depends on how much it looks like a mistake. Reads no
file and no clock.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from rapidfuzz import process
from rapidfuzz.distance import OSA

from device_runtime import text

TWICE = 2  # messages that a word must have been sent in
INSISTED = 6  # of one that looks like a slip of the finger
COMMON = 2000  # words, the most frequent of a vocabulary, that a slip is measured against
LONGEST = 32  # letters
_SLIP_FROM = 3  # letters: of shorter words everything is one slip from something

_AROUND = "\"'.,!?;:()[]{}<>*_~|«»“”„‘’‚‹›…¿¡،؟؛۔।॥。、，．！？；：—–-"
# words side by side without a space: `yes,no`, `well-known`, `and/or`, `wait...what`
_GLUE = re.compile(r"[,!?;…،؟؛۔।॥。、，！？；—–]+|\.{2,}|-|/")
_MOST_HYPHENS = 2  # of one chunk: passphrases and keys are words with hyphens
_STRETCHED = re.compile(r"(.)\1\1")
_TURNS = re.compile(r"[a-z](?=[A-Z])")
_MOST_TURNS = 2  # from small to capital letters within one word
# a message that has one of these tells a secret, whatever that looks like
_SECRETS = frozenset(
    [
        *("password", "passwords", "passcode", "passphrase", "pass", "pw", "pwd", "pin", "tan"),
        *("code", "codes", "key", "keys", "token", "secret", "wifi", "wlan", "login", "username"),
        *("otp", "iban", "bic", "cvv", "cvc", "passwort", "kennwort", "wachtwoord", "passe"),
        *("contraseña", "clave", "senha", "parola", "şifre", "hasło", "пароль", "код", "κωδικός"),
        *("סיסמה", "पासवर्ड", "비밀번호", "mật"),
    ]
)
_LONG_CAPITALS = 7  # letters: no abbreviation, in a message that is not all capitals
_HEXADECIMAL = re.compile("[a-f]{7,}")


def words(message: str) -> dict[str, str]:
    """Words of a message that may be learned, each as it was written last, by their token.

    >>> words("meet Zarnik at Qx7vant or me@example.org")
    {'meet': 'meet', 'zarnik': 'Zarnik', 'at': 'at', 'or': 'or'}
    """
    learned: dict[str, str] = {}
    if not _SECRETS.isdisjoint(text.tokenise(message)):
        return learned
    for chunk in text.normalise(message).split():
        for part in _parts(chunk, chunk.strip(_AROUND)):
            learned |= _sole(part)
    if not message.isupper():
        learned = {
            token: stands
            for token, stands in learned.items()
            if len(stands) < _LONG_CAPITALS or not stands.isupper()
        }
    return learned


def needed(word: str, common: Sequence[str], as_name: bool = False) -> int | None:
    """In how many messages a word must have been sent before it is offered; None: never, unless its
    owner allows it. `common` are words it may be a slip of, `as_name` says that it was written with
    a capital within a sentence.
    """
    if _STRETCHED.search(word):
        return None
    if len(word) < _SLIP_FROM or as_name or not _is_slip(word, common):
        return TWICE
    return INSISTED


def stands_as_name(message: str) -> frozenset[str]:
    """Tokens that are written with a capital in the middle of a sentence that is not all capitals.

    >>> stands_as_name("i saw Zarnik. Then left")
    frozenset({'zarnik'})
    """
    if message.isupper():
        return frozenset()
    names, begins = set(), True
    for token, stands in text.written(message):
        if text.is_word(token):
            if not begins and stands[:1].isupper() and not (len(stands) > 1 and stands.isupper()):
                names.add(token)
            begins = False
        elif token in (".", "?", "!", "..."):
            begins = True
    return frozenset(names)


def _parts(chunk: str, core: str) -> list[str]:
    """What stands between white space, as words side by side; nothing if any of it is no word."""
    if chunk[:1] in "@#/\\$~%&+=" or core.count("/") > 1 or core.count("-") >= _MOST_HYPHENS:
        return []
    parts = [part.strip(_AROUND) for part in _GLUE.split(core)]
    parts = [part for part in parts if part]
    return parts if all(map(_sole, parts)) else []


@lru_cache(1 << 12)
def _pair(part: str) -> tuple[str, str] | None:
    pairs = text.written(part)
    if len(pairs) != 1 or len(part) > LONGEST or len(_TURNS.findall(part)) > _MOST_TURNS:
        return None
    token, stands = pairs[0]
    if not text.is_letters(token) or text.spaceless(token) or len(stands) != len(part):
        return None
    if _HEXADECIMAL.fullmatch(token):
        return None
    return token, stands


def _sole(part: str) -> Mapping[str, str]:
    """The one word a part is; nothing if it is something else."""
    pair = _pair(part)
    return {} if pair is None else dict([pair])


def _is_slip(word: str, common: Sequence[str]) -> bool:
    if len(word) > _SLIP_FROM and word.endswith("s") and word[:-1] in common:
        return False  # more than one of it
    near = process.extractOne(word, common, scorer=OSA.distance, score_cutoff=1, processor=None)
    return near is not None and near[0] != word
