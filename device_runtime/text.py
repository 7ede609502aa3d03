"""Text rules: what a token is, and the vocabulary that turns tokens into ids. Protocol nwp-v2,
steps 1 and 5.

Ids 0 to 3 are pad, bos, eos and oov; 4 to 12 are the classes (punctuation, numbers, links and so
on); words follow, most frequent first. Only words are ever suggested, so `FIRST_WORD` splits every
score vector into what may be shown and what may not. Classes that rules 2 tells apart share the ids
of those they were part of by rules 1, so that the ids of a vocabulary mean the same by both.

The rules are data: `text_rules.json` holds the characters of one version of Unicode and the
patterns that are tried at each place, in a syntax that Python and browsers share, so that every
face and every version of Python finds the same tokens. A word is letters and marks of any script
with their apostrophes and joiners; it is compared casefolded (`fold`) and kept as it was written
(`written`).

A vocabulary may hold pieces instead: those a word starts with follow the classes, then the inner
ones a word goes on with, so that any word is spelled. A vocabulary of words is the case without
inner pieces.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable
from functools import cache, cached_property, lru_cache
from pathlib import Path

import sentencepiece

from device_runtime.errors import VocabularyError

RULES = 2  # of text; those of an earlier number are still read
PROTOCOL = f"nwp-v{RULES}"
PAD, BOS, EOS, OOV = 0, 1, 2, 3
SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")
CLASSES = (".", ",", "?", "!", "...", "<sym>", "<num>", "<url>", "<anon>")
PARTS = {"<emoji>": "<sym>", "<emoticon>": "<sym>", "<code>": "<num>"}  # whose ids they share
FIRST_WORD = len(SPECIALS) + len(CLASSES)
_SPACE = "\u2581"  # SentencePiece marks the start of a word with this character
_SPELLINGS = 1 << 17  # words whose pieces are remembered
_WORDS = 1 << 16  # words whose folded form is remembered

_SHARED = json.loads(Path(__file__).with_name("text_rules.json").read_text("ascii"))


def _characters(spans: Iterable[str], last: int = 0x10FFFF) -> str:
    """Spans such as `41-5A AA` as what stands in a character class, up to a last character."""
    ends = (span.split("-") for line in spans for span in line.split())
    codes = ([int(end, 16) for end in pair] for pair in ends)
    kept = ([min(code, last) for code in pair] for pair in codes if pair[0] <= last)
    return "".join("-".join(rf"\U{code:08X}" for code in pair) for pair in kept) or r"\U0000FFFF"


_SETS = {name: _characters(spans) for name, spans in _SHARED["sets"].items()}
_KINDS = [kind for kind, _ in _SHARED["patterns"]]


@cache
def _matcher(ascii_only: bool, links: bool) -> re.Pattern[str]:
    """The patterns of the file, in order, in Python's syntax: sets by name, code points by number.
    Texts of ASCII, and those that hold no link, are read sooner by what they may hold.
    """
    last = 0x7F if ascii_only else 0x10FFFF
    sets = {name: _characters(spans, last) for name, spans in _SHARED["sets"].items()}
    tried = []
    for kind, source in _SHARED["patterns"]:
        if kind == "<url>" and not links:
            source = "(?!)"  # nothing
        source = re.sub(r"\{([a-z]+)\}", lambda name: sets[name[1]], source)
        tried.append(re.sub(r"\\u\{(\w+)\}", lambda code: rf"\U{int(code[1], 16):08X}", source))
    return re.compile("|".join(f"({source})" for source in tried))


_MAY_LINK = re.compile(r"[@/]|www\.|\.[a-z]{3}", re.IGNORECASE)
_QUOTES = str.maketrans(dict.fromkeys(_SHARED["apostrophes"], "'"))
# what changes nothing of how text reads: soft hyphens, marks of direction and of byte order
_UNSEEN = re.compile("[\u00ad\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
# letters in another dress: full width, bold, ligatures
_DRESSED = re.compile(
    "[\ufb00-\ufdff\ufe70-\ufefc\uff21-\uff3a\uff41-\uff5a\uff66-\uff9d\U0001d400-\U0001d7ff]"
)
_DIGIT = re.compile(f"[{_SETS['digits']}]")
_SPACELESS = re.compile(f"[{_SETS['spaceless']}]")
_RUNS = re.compile(f"[{_SETS['digits']}]+|[^{_SETS['digits']}]+")
_TATWEEL = "\u0640"
# letters that no mark makes of others
_LIKE = str.maketrans("łøđħŧıɫ", "lodhtil") | str.maketrans(
    {"æ": "ae", "œ": "oe", "þ": "th", "ð": "d", "'": None, "\u200c": None, "\u200d": None}
)


@cache
def _apostrophe() -> re.Pattern[str]:
    letter = f"[{_SETS['letters']}{_SETS['marks']}{_SETS['spaceless']}]"
    return re.compile(f"(?<={letter})[{_SHARED['apostrophes']}](?={letter})")


# most of what is typed holds nothing else, and is read sooner so; to the same tokens
_SIMPLE = re.compile(r"[A-Za-z .,?!']*")
_LAUGHS = re.compile("[xX]D")  # an emoticon of letters
_SIMPLE_TOKEN = re.compile(r"[a-z]+(?:'[a-z]+)*|\.{2,}|[?!]+|[.,]+|'")
_SIGNS = {"'": "<sym>", ".": ".", ",": ",", "?": "?", "!": "!", "...": "..."}


def normalise(text: str) -> str:
    """Text as the rules read it: composed (NFC), letters in their usual dress, every apostrophe
    between letters straight; its case is kept.
    """
    if text.isascii():
        return text.replace("`", "'") if "`" in text else text
    text = _UNSEEN.sub("", text)
    text = _DRESSED.sub(lambda letter: unicodedata.normalize("NFKC", letter[0]), text)
    return _apostrophe().sub("'", unicodedata.normalize("NFC", text))


@lru_cache(_WORDS)
def fold(word: str) -> str:
    """How a word is compared: casefolded, composed, apostrophes straight, no stretching strokes.

    >>> fold("Straße"), fold("DON’T"), fold("ΛΟΓΟΣ") == fold("λόγος".replace("ό", "ο"))
    ('strasse', "don't", True)
    """
    if word.isascii():
        return word.replace("`", "'").lower()
    folded = word.translate(_QUOTES).replace(_TATWEEL, "").casefold()
    return unicodedata.normalize("NFC", folded) or word


@lru_cache(_WORDS)
def plain(word: str) -> str:
    """A word without what hurried people leave out: accents, vowel points, apostrophes, joiners.

    >>> plain("Kraków"), plain("Łukasz"), plain("don't"), plain("İstanbul")
    ('krakow', 'lukasz', 'dont', 'istanbul')
    """
    folded = fold(word)
    if folded.isascii():
        return folded.replace("'", "")
    letters = unicodedata.normalize("NFD", folded)
    # accents stand above, below or over; points of vowels have classes of their own; signs that
    # a word of an Indic script cannot do without have neither
    kept = (
        letter
        for letter in letters
        if not (10 <= unicodedata.combining(letter) <= 36 or unicodedata.combining(letter) >= 200)
    )
    return unicodedata.normalize("NFC", "".join(kept)).translate(_LIKE) or folded


def written(text: str) -> list[tuple[str, str]]:
    """Tokens of one utterance, left to right, each with how it stands there, in `normalise`d text.

    >>> written("I'm in Kraków :)")
    [("i'm", "I'm"), ('in', 'in'), ('kraków', 'Kraków'), ('<emoticon>', ':)')]
    """
    pairs = []
    text = normalise(text)
    matcher = _matcher(text.isascii(), _MAY_LINK.search(text) is not None)
    for match in matcher.finditer(text):
        stands = match.group()
        kind = _KINDS[match.lastindex - 1] if match.lastindex else "<sym>"
        if kind == "word":
            token = "<code>" if not stands.isalpha() and _is_code(stands) else fold(stands)
        elif kind == "?!":
            token = "?" if any(sign in _SHARED["classes"]["questions"] for sign in stands) else "!"
        elif kind == ".,":
            token = "," if stands[0] in _SHARED["classes"]["commas"] else "."
        else:
            token = kind
        pairs.append((token, stands))
    return pairs


def tokenise(text: str) -> list[str]:
    """Words and class tokens of one utterance, left to right. Source: protocol nwp-v2, step 1."""
    if _SIMPLE.fullmatch(text) and not _LAUGHS.search(text) and not _MAY_LINK.search(text):
        return [
            token if token.isalpha() or token[0].isalpha() else _SIGNS.get(token) or _sign(token)
            for token in _SIMPLE_TOKEN.findall(text.lower())
        ]
    return [token for token, _ in written(text)]


def _sign(signs: str) -> str:
    """The class of a run of stops or of marks of a question."""
    if signs[0] in "?!":
        return "?" if "?" in signs else "!"
    return "..." if signs.startswith("..") else signs[0]


def is_word(token: str) -> bool:
    """Whether a token is a word rather than punctuation, a number, a link or a mask."""
    return token[0] not in "<.,?!"


def is_letters(token: str) -> bool:
    """Whether a token is a word without a digit."""
    return is_word(token) and not _DIGIT.search(token)


def spaceless(token: str) -> bool:
    """Whether a token is of a script that puts no space between words: a run of several of them."""
    return bool(_SPACELESS.match(token))


def require_readable(rules: int, where: object) -> None:
    """Raises VocabularyError for text rules that are newer than those of this program."""
    if rules > RULES:
        raise VocabularyError(
            where,
            f"expected text rules {RULES} or earlier, found text rules {rules}",
            "update Fedboard: by its rules this text has other words",
        )


def rules_of(model: bytes) -> int:
    """Text rules by which a SentencePiece `.model` was made, as the name of its normalizer says:
    those named `nwp-v2` are rules 2. A model that names none of ours is of rules 1.
    """
    named = re.fullmatch(rb"nwp-v([1-9][0-9]{0,5})", _field(_field(model, 3), 1))
    return int(named[1]) if named else 1


def _field(message: bytes, wanted: int) -> bytes:
    """The last field of this number that holds bytes, in a message as protobuf writes it; none: no
    bytes. What is not such a message holds no field.
    """
    found, at = b"", 0
    try:
        while at < len(message):
            key, at = _varint(message, at)
            if key & 7 == 2:
                size, at = _varint(message, at)
                if key >> 3 == wanted:
                    found = message[at : at + size]
                at += size
            elif key & 7 == 0:
                _, at = _varint(message, at)
            else:
                at += {1: 8, 5: 4}[key & 7]
    except (IndexError, KeyError):
        return b""
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number that starts at a place, and the place after it. Raises IndexError at the end."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _is_code(word: str) -> bool:
    """Whether letters and digits are mixed as nobody writes a word: `b4`, `2day`, `10am`, `1990s`
    and `covid19` are words.
    """
    digits = len(_DIGIT.findall(word))
    if digits <= 1 or len(word) <= 4:
        return False
    runs = _RUNS.findall(word)
    if len(runs) > 2:
        return True
    return digits > 4 or len(runs[1]) > 4 if _DIGIT.match(word) else digits > 2


class Vocabulary:
    """Tokens and their ids, read from a SentencePiece `.model`, which says by itself whether it
    holds words or pieces. Built by `model.vocabulary`.

    `tokens` are the texts of all ids, without SentencePiece's mark; ids from `first_inner` on go on
    within a word. `rules` are the text rules it was made by.
    """

    def __init__(self, model: bytes, where: object = "tokenizer.model"):
        """Raises VocabularyError if the bytes are not a SentencePiece model with our special ids,
        classes and order, or of newer text rules.
        """
        self.model = model
        self._where = where
        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(model)
            pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
        except (RuntimeError, TypeError, ValueError):
            raise VocabularyError(
                where,
                "not a SentencePiece model",
                "give the tokenizer.model written by `fedboard train`",
            ) from None
        self.rules = rules_of(model)
        require_readable(self.rules, where)
        expected = [*SPECIALS, *(_SPACE + name for name in CLASSES)]
        if pieces[:FIRST_WORD] != expected:
            raise VocabularyError(
                where,
                f"expected the pieces {' '.join(expected)} first, found "
                f"{' '.join(pieces[:FIRST_WORD])}",
                "give the tokenizer.model written by `fedboard train`",
            )
        inner = [not piece.startswith(_SPACE) for piece in pieces[FIRST_WORD:]]
        if inner != sorted(inner):
            raise VocabularyError(
                where,
                "expected all pieces that start a word before those that go on within one, found "
                "them mixed",
                "give the tokenizer.model written by `fedboard train`",
            )
        self.first_inner = len(pieces) - sum(inner)
        self.tokens = [
            *pieces[: len(SPECIALS)],
            *(piece.removeprefix(_SPACE) for piece in pieces[len(SPECIALS) :]),
        ]
        self.log_unigram = [processor.get_score(i) for i in range(len(pieces))]
        # a piece that looks like a whole word may still be the worse spelling of it
        whole = FIRST_WORD if self.of_pieces else len(pieces)
        self._ids = {token: i for i, token in enumerate(self.tokens[:whole]) if i >= len(SPECIALS)}
        self._ids |= {part: self._ids[shared] for part, shared in PARTS.items()}
        self._processor = processor

    @classmethod
    def read(cls, path: Path) -> "Vocabulary":
        """Raises VocabularyError if the file is missing or foreign."""
        try:
            return cls(Path(path).read_bytes(), path)
        except OSError as error:
            raise VocabularyError(
                path,
                f"cannot be read ({error.strerror})",
                "give the tokenizer.model of a run or bundle",
            ) from None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def of_pieces(self) -> bool:
        """Whether a word may take several ids."""
        return self.first_inner < len(self.tokens)

    def require_words(self, purpose: str) -> None:
        """Raises VocabularyError if words are spelled in pieces, which `purpose` cannot use."""
        if self.of_pieces:
            raise VocabularyError(
                self._where,
                f"holds pieces of words, but {purpose} needs whole words",
                'train with tokenizer = "words"',
            )

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the model file: what a bundle and a round name it by."""
        return hashlib.sha256(self.model).hexdigest()

    def id(self, token: str) -> int:
        """The id of a token that has one of its own, else OOV."""
        spelling = self.spelling(token)
        return spelling[0] if len(spelling) == 1 else OOV

    @lru_cache(_SPELLINGS)  # noqa: B019  (vocabularies are few and live as long as the program)
    def spelling(self, token: str) -> tuple[int, ...]:
        """The ids of one token: its own, or the pieces of its best segmentation; OOV stands for
        what is unknown.
        """
        if self.of_pieces and token not in self._ids:
            return tuple(self._processor.encode(token))
        return (self._ids.get(token, OOV),)

    def ids(self, tokens: Iterable[str]) -> list[int]:
        """The ids of tokens, one each in a vocabulary of words; unknown words are OOV."""
        if self.of_pieces:
            return [i for token in tokens for i in self.spelling(token)]
        return [self._ids.get(token, OOV) for token in tokens]

    def encode(self, text: str) -> list[int]:
        """bos and the ids of one utterance's tokens: the context of whatever is typed next."""
        return [BOS, *self.ids(tokenise(text))]

    @cached_property
    def alphabetical(self) -> tuple[list[str], list[int]]:
        """Words in alphabetical order and their ids: words with one prefix stand side by side.
        Raises VocabularyError for a vocabulary of pieces.
        """
        self.require_words("a list of all words")
        words = sorted((word, i) for i, word in enumerate(self.tokens) if i >= FIRST_WORD)
        return [word for word, _ in words], [i for _, i in words]
