"""Text rules: what a token is, and the vocabulary that turns tokens into ids. Protocol nwp-v1,
steps 1 and 5.

Ids 0 to 3 are pad, bos, eos and oov; 4 to 12 are the classes (punctuation, numbers, links and so
on); words follow, most frequent first. Only words are ever suggested, so `FIRST_WORD` splits every
score vector into what may be shown and what may not.

A vocabulary may hold pieces instead: those a word starts with follow the classes, then the inner
ones a word goes on with, so that any word is spelled. A vocabulary of words is the case without
inner pieces.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from functools import cached_property, lru_cache
from pathlib import Path

import sentencepiece

from device_runtime.errors import VocabularyError

PAD, BOS, EOS, OOV = 0, 1, 2, 3
SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")
CLASSES = (".", ",", "?", "!", "...", "<sym>", "<num>", "<url>", "<anon>")
FIRST_WORD = len(SPECIALS) + len(CLASSES)
_SPACE = "\u2581"  # SentencePiece marks the start of a word with this character
_SPELLINGS = 1 << 17  # words whose pieces are remembered

_TOKEN = re.compile(
    r"""(?P<anon><[a-z\#]+>)
      | (?P<url>(?:https?://|www\.)\S+ | [a-z0-9._%+-]+@[a-z0-9-]+(?:\.[a-z0-9-]+)+)
      | (?P<word>[a-z0-9]*[a-z][a-z0-9]*(?:'[a-z]+)*)
      | (?P<num>\d+(?:[.,:/]\d+)*)
      | (?P<dots>\.{2,})
      | (?P<ask>[?!]+)
      | (?P<stop>[.,]+)
      | (?P<sym>[^\sa-z0-9?!.,<]+ | <)""",
    re.VERBOSE,
)
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u02bc": "'", "`": "'"})


def normalise(text: str) -> str:
    """NFKC, lower case, every apostrophe straight."""
    if text.isascii():  # which NFKC leaves as it is
        return text.replace("`", "'").lower()
    return unicodedata.normalize("NFKC", text).translate(_QUOTES).lower()


def tokenise(text: str) -> list[str]:
    """Words and class tokens of one utterance, left to right. Source: protocol nwp-v1, step 1."""
    tokens = []
    for match in _TOKEN.finditer(normalise(text)):
        kind, token = match.lastgroup, match.group()
        if kind == "word":
            tokens.append(token)
        elif kind == "ask":
            tokens.append("?" if "?" in token else "!")
        elif kind == "stop":
            tokens.append(token[0])
        elif kind == "dots":
            tokens.append("...")
        else:
            tokens.append(f"<{kind}>")
    return tokens


def is_word(token: str) -> bool:
    """Whether a token is a word rather than punctuation, a number, a link or a mask."""
    return token[0].isalnum()


class Vocabulary:
    """Tokens and their ids, read from a SentencePiece `.model`, which says by itself whether it
    holds words or pieces. Built by `model.vocabulary`.

    `tokens` are the texts of all ids, without SentencePiece's mark; ids from `first_inner` on go on
    within a word.
    """

    def __init__(self, model: bytes, where: object = "tokenizer.model"):
        """Raises VocabularyError if the bytes are not a SentencePiece model with our special ids,
        classes and order.
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
