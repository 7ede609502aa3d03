"""Writing: how a word is shown and typed: its letters and capitals, its apostrophe, its spaces.

A suggestion is compared folded and shown as people write it. Capitals that were typed stay, and so
does the apostrophe; a word that opens a sentence gets a capital, in scripts that have them. A space
that came with a word is ours: it gives way to a stop, and comes back after it. All functions are
pure.
"""

import re
import unicodedata
from functools import lru_cache

from device_runtime.text import normalise, plain, spaceless, written

APOSTROPHES = "'’ʼ´′‛‘`ʻ＇"
_USUAL_APOSTROPHES = "'’ʼ"  # those that a whole text is written with
_JOINERS = "\u200c\u200d"  # shape the letters on both sides
_INNER = "\u00b7\u05f3\u05f4"  # within words of Catalan and Hebrew
_OF_SIGNS = re.compile("[\ufe00-\ufe0f\u20e3\U000e0100-\U000e01ef]")  # marks of emoji, not words
_CHUNK = 64  # characters looked at for what is no word: links, numbers, emoticons
_ADDRESS = re.compile(r"[^\s@]@[^\s@]*$|://\S*$")

_STOPS = ".!?…؟۔।॥։።。．！？‽⁇⁈⁉‼՞՜"
_OPENING = "\"'“”„«»‘’‚‹›([{¿¡*_"
_CLOSING = "\"'”’»«“›‹)]}*_"
_FULL_STOPS = ".．"
_ABBREVIATIONS = frozenset(
    [
        *("mr", "mrs", "ms", "dr", "prof", "st", "vs", "etc", "approx", "dept", "inc", "ltd"),
        *("jr", "sr", "jan", "feb", "sept", "oct", "nov", "dec", "cf", "fig", "vol", "pp"),
        *("ca", "bzw", "usw", "vgl", "nr", "evtl", "inkl", "zzgl", "sra", "srta", "dra"),
        *("mme", "mlle", "env", "av", "ул", "руб", "стр", "тел", "см", "др", "гг"),
        *("κ", "κα", "δηλ", "πχ", "डॉ"),
    ]
)
_SPOTS = re.compile(r"(?:^|[^\w.])(?:[^\W\d_]\.\s?)+$")  # e.g. i.e. p.m. J. z. B.
_GREEK = re.compile("[\u0370-\u03ff\u1f00-\u1fff]")

_ATTACHED = frozenset(".,?!)]}:;…’'”%،؛؟۔।॥։՝՞።，。？！：；、")
_PAIRS = {'"': '"', "»": "«", "“": "„", "›": "‹"}  # close only what was opened
_AFTER_APOSTROPHE = frozenset("stdmlrv")  # 's, 't, 'd, 'm, 'll, 're, 've
_NOSES = ":;="
_MOUTHS = frozenset("DPpOoSsXx3-")  # or a nose
_NO_SPACE_AFTER = frozenset("([{“„«‘‚‹¿¡\"'’-–—/\\@#_*&+=<>~^|$€£\u200b")


# --- what is being typed
# ------------------------------------------------------------------------------------------------


def split(typed: str) -> tuple[str, str]:
    """What was typed as context and the word being typed, which is empty after a space, a sign, an
    emoji or an emoticon. Both together are all of it. A link, an address or a number is one word.

    >>> split("i will s"), split("привет, дру"), split("ha :D")
    (('i will ', 's'), ('привет, ', 'дру'), ('ha :D', ''))
    """
    chunk = (typed[-_CHUNK:].split() or [""])[-1] if typed[-1:].strip() else ""
    if chunk and (whole := _whole(chunk)) is not None:
        return typed[: len(typed) - whole], typed[len(typed) - whole :]
    start, of_spaceless = len(typed), None
    while start > 0 and _in_word(letter := typed[start - 1]):
        if letter.isalpha() or letter.isdigit():
            kind = spaceless(letter)
            if of_spaceless is not None and kind != of_spaceless:
                break
            of_spaceless = kind
        start -= 1
    while start < len(typed) and not typed[start].isalnum():
        start += 1  # an opening quote, the marks of an emoji
    return typed[:start], typed[start:]


def _whole(chunk: str) -> int | None:
    """How many characters at the end of a chunk without spaces are one thing that no word
    completes: none of an emoticon; None where a word may stand.
    """
    if _ADDRESS.search(chunk):
        return len(chunk)
    pairs = written(chunk)
    token, stands = pairs[-1] if pairs else ("", "")
    if not chunk.endswith(stands):
        return None  # it was normalised: no such thing
    if token == "<emoticon>":
        return 0
    return len(stands) if token in ("<url>", "<num>", "<anon>", "<code>") else None


def _in_word(letter: str) -> bool:
    if letter.isalnum() or letter in APOSTROPHES or letter in _JOINERS or letter in _INNER:
        return True
    return unicodedata.category(letter)[0] == "M" and not _OF_SIGNS.match(letter)


# --- how a word is shown
# ------------------------------------------------------------------------------------------------


def shown(word: str, usual: str | None, context: str, begun: str, capitals: bool = True) -> str:
    """How a suggested word is shown, and typed when it is taken.

    `word` is folded, `usual` is how people write it (None: as it is folded). The capitals and the
    apostrophe of the letters begun stay; `capitals` gives a word that opens a sentence one.

    >>> shown("london", "London", "in ", "lon"), shown("i'm", "I'm", "and ", "i’")
    ('London', 'I’m')
    >>> shown("you", None, "see ", "YO"), shown("you", None, "Ok. ", "")
    ('YOU', 'You')
    """
    form = _final_sigma(usual or word)
    begun = unicodedata.normalize("NFC", begun)
    if _shouted(begun) and not form.startswith(begun):
        form = _upper(form, begun)
    elif form.startswith(begun) and begun:
        if not begun[0].isupper() and capitals:
            form = _opened(form, context)
    else:
        form = _with_capitals(form, begun)
        if capitals:
            form = _opened(form, context)
    apostrophe = _apostrophe_of(begun, context)
    if apostrophe is not None:
        form = "".join(apostrophe if letter in "'’" else letter for letter in form)
    return form


@lru_cache(4)  # each word of a strip asks
def opens_sentence(context: str) -> bool:
    """Whether the word after this text opens a sentence: it stands first, in a new line, or behind
    a stop and a space. `e.g.`, initials and the like stop nothing.

    >>> [opens_sentence(text) for text in ("", "Hi! ", "e.g. ", "3.", "so, ")]
    [True, True, False, False, False]
    """
    tail = normalise(context[-2 * _CHUNK :])
    before = tail.rstrip(_OPENING + " \u00a0\u202f")
    if before.endswith(tuple(_OPENING + _CLOSING)) or len(before) < len(tail.rstrip()):
        # opening signs stand right before the word: what matters stands before them
        signs = tail[len(before) :]
        tail = before + signs[: len(signs) - len(signs.lstrip(_CLOSING))] + _space_in(signs)
    if not before.strip() or not tail.strip():
        return True
    if tail == tail.rstrip():
        return tail[-1] in "。！？．"
    if "\n" in tail[len(tail.rstrip()) :]:
        return True
    tail = _without_smileys(tail.rstrip())
    if not tail:
        return True
    tail = tail.rstrip(_CLOSING)
    if tail[-1:] == ";" and _GREEK.match(tail[-2:-1]):
        return True
    if tail[-1:] not in _STOPS or not tail:
        return not tail
    return tail[-1] not in _FULL_STOPS or not _is_abbreviation(tail)


def _space_in(signs: str) -> str:
    return "\n" if "\n" in signs else " " if re.search(r"\s", signs) else ""


def _without_smileys(tail: str) -> str:
    """A text without the emoji and emoticons at its end."""
    for token, stands in reversed(written(tail)):
        if token not in ("<emoji>", "<emoticon>") or not tail.endswith(stands):
            break
        tail = tail[: len(tail) - len(stands)].rstrip()
    return tail


def _is_abbreviation(tail: str) -> bool:
    if tail.endswith(("..", "．．")):
        return False
    if _SPOTS.search(tail):
        return not re.search(r"(?:^|[^\w.])(?:i|[^\W\d_a-z])\.$", tail) or bool(
            re.search(r"[^\W\d_]\.\s?[^\W\d_]\.$", tail)
        )
    last = re.split(r"[\s(\"'“„«]", tail)[-1]
    return last.rstrip(".．").casefold() in _ABBREVIATIONS


def _opened(form: str, context: str) -> str:
    """With a capital, where it opens a sentence and has none of its own: `iPhone` stays."""
    if any(letter.isupper() for letter in form[1:]) or not opens_sentence(context):
        return form
    return _capital(form)


def _capital(text: str) -> str:
    """With its first letter in the capital of a title: one of two letters has one of its own."""
    if not text or not text[0].islower():
        return text
    return unicodedata.normalize("NFC", text[0].title() + text[1:])


def _shouted(begun: str) -> bool:
    """Whether two or more letters were typed, all of them capitals."""
    letters = [letter for letter in begun if letter.isalpha()]
    return len(letters) > 1 and all(letter.isupper() for letter in letters)


def _upper(form: str, begun: str) -> str:
    """All in capitals: dotted ones where Turkish was typed, without the accents of Greek."""
    if "İ" in begun or "ı" in form:
        form = form.replace("i\u0307", "İ").replace("i", "İ")
    if "ẞ" in begun:
        form = form.replace("ß", "ẞ").replace("ss", "ẞ", 1)
    loud = form.upper()
    if _GREEK.search(loud) and not any("\u0301" in _decomposed(letter) for letter in begun):
        loud = _decomposed(loud).replace("\u0301", "")
    return unicodedata.normalize("NFC", loud)


def _decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def _with_capitals(form: str, begun: str) -> str:
    """A word whose letters have the capitals of those that were typed, as far as they agree."""
    letters, at = list(unicodedata.normalize("NFC", form)), 0
    for typed in begun:
        while at < len(letters) and _is_passed(letters[at], typed):
            at += 1
        if at == len(letters):
            break
        same = typed in APOSTROPHES and letters[at] in APOSTROPHES
        if not same and plain(typed) != plain(letters[at]):
            if at == 0 and typed.isupper():
                letters[0] = letters[0].title()  # two letters were swapped
            break
        if typed.isupper() or typed.istitle():
            capital = typed if typed.casefold() == letters[at] else letters[at]
            letters[at] = capital.title()
        at += 1
    return unicodedata.normalize("NFC", "".join(letters))


def _is_passed(letter: str, typed: str) -> bool:
    """Whether a letter of a word is one that hurried people leave out, and was left out."""
    if letter in APOSTROPHES:
        return typed not in APOSTROPHES
    return unicodedata.combining(letter) > 0 and unicodedata.combining(typed) == 0


def _final_sigma(form: str) -> str:
    """Folded words of Greek end in the sigma of the middle."""
    return form[:-1] + "ς" if len(form) > 1 and form[-1] == "σ" and form[-2].isalpha() else form


def _apostrophe_of(begun: str, context: str) -> str | None:
    """The apostrophe this text is written with; None: any."""
    for letter in reversed(begun):
        if letter in APOSTROPHES:
            return letter
    pattern = rf"(?<=[^\W\d_])([{_USUAL_APOSTROPHES}])(?=[^\W\d_])"
    marks = re.findall(pattern, context[-4 * _CHUNK :])
    return marks[-1] if marks else None


# --- what taking a word does to the text
# ------------------------------------------------------------------------------------------------


def accept(typed: str, word: str) -> str:
    """The text after a suggestion was taken, as it was shown: it replaces the word being typed, and
    a space follows in scripts that have them. Capitals that were typed stay.

    >>> accept("i will s", "see"), accept("Y", "you"), accept("YO", "you"), accept("I'", "i'm")
    ('i will see ', 'You ', 'YOU ', "I'm ")
    >>> accept("so nice :D", "you")
    'so nice :D you '
    """
    context, begun = split(typed)
    form = shown(word, word, context, begun, capitals=False)
    if spaceless(form):
        return context + form
    last = context[-1:]
    if not begun and last and not last.isspace() and _wants_space(context):
        context += " "
    return context + form + " "


def _wants_space(context: str) -> bool:
    """Whether a word does not stand right behind the sign at the end of a text."""
    last = context[-1]
    if last == '"':
        return context.count('"') % 2 == 0
    if _without_smileys(normalise(context[-_CHUNK:])) != normalise(context[-_CHUNK:]):
        return True
    return last not in _NO_SPACE_AFTER and last not in _JOINERS and not spaceless(last)


def joined(typed: str, sign: str, space_is_ours: bool) -> str:
    """The text after a sign (or several) was typed. Where the space at the end came with a word
    that was taken, or did before the stop at the end, the sign says where it belongs.

    >>> joined("see you later ", ",", True), joined("see you later,", "i", True)
    ('see you later,', 'see you later, i')
    >>> joined("later ", ")", True), joined("later:", ")", True), joined("tard ", "?", False)
    ('later)', 'later :)', 'tard ?')
    """
    for place, each in enumerate(sign):
        if not space_is_ours:
            return typed + sign[place:]
        typed = _joined(typed, each)
        space_is_ours = still_ours(typed, each)
    return typed


def still_ours(typed: str, sign: str) -> bool:
    """Whether, after `joined` gave this text, the space that came with a word may still move."""
    if not sign or sign[-1].isspace():
        return False
    closes = sign[-1] in _PAIRS and not typed[-2:-1].isspace()
    return closes or sign[-1] in _ATTACHED or _smiley(typed) is not None


_SMILEY = re.compile(rf"(?<=\S) ([{_NOSES}])([^\W_])$")


def _smiley(typed: str) -> re.Match[str] | None:
    """A smiley with a letter for a mouth, before which our space came back."""
    return _SMILEY.search(typed)


def _joined(typed: str, sign: str) -> str:
    if typed.endswith(" "):
        if sign == " ":
            return typed  # it is theirs now
        attached = sign in _ATTACHED or (sign in _PAIRS and _closes(typed, sign))
        return (typed[:-1] if attached and typed[:-1].strip() else typed) + sign
    last = typed[-1:]
    if last and last in _NOSES and (sign in _MOUTHS or _is_smiley(last + sign)):
        return f"{typed[:-1]} {last}{sign}"
    if sign.isalnum() and (smiley := _smiley(typed)):  # a word after a colon, then
        return f"{typed[: smiley.start()]}{smiley[1]} {smiley[2]}{sign}"
    if last in "'’":
        attached = sign in _AFTER_APOSTROPHE or not sign.isalnum()
        return typed + sign if attached else f"{typed[:-1]} {last}{sign}"
    if (last in _ATTACHED or last in _PAIRS) and sign.isalnum():
        return typed + ("" if spaceless(sign) else " ") + sign
    return typed + sign


def _is_smiley(text: str) -> bool:
    return [token for token, _ in written(text)] == ["<emoticon>"]


def _closes(typed: str, sign: str) -> bool:
    opening = _PAIRS[sign]
    if opening == sign:
        return typed.count(sign) % 2 == 1
    return typed.rfind(opening) > typed.rfind(sign)
