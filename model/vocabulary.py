"""The vocabulary of a corpus, built as a SentencePiece `.model`: words, or pieces that spell any.

Words are those of protocol nwp-v2, step 5.

Any SentencePiece reader encodes tokenised text (tokens joined by spaces) to the ids our own
`Vocabulary` gives, except that it joins neighbouring unknown words into one. The score of a piece
is its log unigram probability, where the network's output bias starts.
"""

import io
import math
import string
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer, sentencepiece_model_pb2

from device_runtime.errors import VocabularyError
from device_runtime.text import (
    BOS,
    CLASSES,
    EOS,
    FIRST_WORD,
    OOV,
    PAD,
    PARTS,
    PROTOCOL,
    SPECIALS,
    Vocabulary,
    is_word,
    spaceless,
)

SIZE = 10_000  # words, beside the special ids and classes
# train words that it is counted of, at most, where that is known: none of its words is rare then
COUNTED = 20_000_000
# score of pad and bos, which are never targets: below a word seen once among 400 million targets
NEVER = -20.0
_SPACE = "\u2581"
# pieces of any vocabulary of pieces, beside the letters of its corpus
ALPHABET = (_SPACE, *string.ascii_lowercase, *string.digits, "'")
COVERED = 0.9995  # share of a corpus's characters that can be spelled, at least
PASSES = 20  # scores and segmentation agree after some five
_Kind = sentencepiece_model_pb2.TrainerSpec
_Piece = sentencepiece_model_pb2.ModelProto.SentencePiece
_TYPES = {PAD: _Piece.CONTROL, BOS: _Piece.CONTROL, EOS: _Piece.CONTROL, OOV: _Piece.UNKNOWN}


def build(
    utterances: Iterable[Sequence[str]], size: int = SIZE, without: Collection[str] = ()
) -> Vocabulary:
    """The `size` most frequent words of these token lists, after the special ids and classes; but
    for those that are to stay out, which are unknown words to it.

    Ties are alphabetical. Fewer distinct words give a smaller vocabulary. The same utterances, in
    any order, give the same bytes. Raises VocabularyError if there is no word at all.
    """
    if size < 1:
        raise VocabularyError(
            "vocabulary",
            f"expected a size of at least 1, found {size}",
            "ask for some thousand words",
        )
    counts: Counter[str] = Counter()
    sentences = 0
    for utterance in utterances:
        counts.update(PARTS.get(token, token) for token in utterance)
        sentences += 1
    words = [word for word in _words(counts) if word not in without][:size]
    if not words:
        raise VocabularyError("vocabulary", "no word was used by enough people", "give more text")
    known = [counts[token] for token in (*CLASSES, *words)]
    return Vocabulary(
        _model(
            _Kind.WORD,
            [_SPACE + word for word in words],
            [sentences, counts.total() - sum(known), *known],
        )
    )


def of_people(counts: Sequence[tuple[str, int]], size: int = SIZE) -> Vocabulary:
    """The first `size` of these words in their order, after the special ids and classes; how many
    people typed each is where its bias starts, and no count is taken for less than 1.

    Nothing else is known of what was typed: a sentence ends as often as the first word occurs, and
    classes occur as the middle word does. Raises VocabularyError if there is no word at all.
    """
    chosen = [(word, max(1, count)) for word, count in counts[:size]]
    if not chosen:
        raise VocabularyError(
            "vocabulary", "no word was typed by so many people", "lower --least-people"
        )
    known = [count for _, count in chosen]
    middle = known[len(known) // 2]
    targets = [known[0], middle, *[middle] * len(CLASSES), *known]
    return Vocabulary(_model(_Kind.WORD, [_SPACE + word for word, _ in chosen], targets))


def build_unigram(utterances: Iterable[Sequence[str]], size: int) -> Vocabulary:
    """`size` pieces of words by SentencePiece's unigram training on these token lists.

    They stand after the special ids and classes: those a word starts with, then the inner ones, as
    the training ranks them. ASCII's letters, digits and the apostrophe are always among them, and
    the most frequent other characters of the corpus, which cover it but for a rest that is OOV. A
    small corpus gives fewer pieces. The same utterances, in any order, give the same bytes: one
    thread, sorted text. Raises VocabularyError if there is no word at all or the size is below that
    of the alphabet. Source: Kudo 2018, arXiv:1804.10959.
    """
    counts: Counter[str] = Counter()
    texts = []
    for utterance in utterances:
        counts.update(PARTS.get(token, token) for token in utterance)
        texts.append(" ".join(filter(is_word, utterance)))
    words = _words(counts)
    alphabet = alphabet_of(counts)
    if size < len(alphabet):
        raise VocabularyError(
            "vocabulary",
            f"expected a size of at least {len(alphabet)} pieces, found {size}",
            "ask for some thousand pieces: every character of the corpus is one",
        )
    pieces, scores = _train(_covered(sorted(filter(None, texts)), alphabet), size, alphabet)
    known = [len(texts), 0, *(counts[name] for name in CLASSES)]  # eos, oov, classes
    model, before = _model(_Kind.UNIGRAM, pieces, known, scores), None
    # SentencePiece's scores come from soft counts, but targets are the pieces of best
    # segmentations; taking those counts as scores moves few of them
    for _ in range(PASSES):
        uses = Counter[int]()
        for word, ids in zip(
            words, SentencePieceProcessor(model_proto=model).encode(words), strict=True
        ):
            for i in ids:
                uses[i] += counts[word]
        if uses == before:
            break
        model, before = (
            _model(
                _Kind.UNIGRAM,
                pieces,
                [
                    len(texts),
                    uses[OOV],
                    *known[2:],
                    *(uses[i] for i in range(FIRST_WORD, FIRST_WORD + len(pieces))),
                ],
            ),
            uses,
        )
    return Vocabulary(model)


def _words(counts: Counter[str]) -> list[str]:
    """Distinct words, most frequent first."""
    words = sorted(
        (token for token in counts if is_word(token)), key=lambda word: (-counts[word], word)
    )
    if not words:
        raise VocabularyError(
            "vocabulary", "the utterances have no word", "give a corpus with text"
        )
    return words


def alphabet_of(counts: Mapping[str, int]) -> tuple[str, ...]:
    """The characters that pieces are made of, by how often each token occurs: `ALPHABET`, then the
    most frequent others until `COVERED` of all characters are.
    """
    uses: Counter[str] = Counter()
    for token, count in counts.items():
        if is_word(token):
            for character in token:
                uses[character] += count
    left = uses.total() * (1 - COVERED)
    others = sorted(set(uses) - set(ALPHABET), key=lambda character: (uses[character], character))
    while others and uses[others[0]] <= left:
        left -= uses[others.pop(0)]
    return *ALPHABET, *reversed(others)


def _covered(lines: list[str], alphabet: Sequence[str]) -> list[str]:
    """Lines of words without what cannot be spelled: a rare character of a run of several words,
    else the word it stands in.
    """
    spelled = frozenset(alphabet)
    covered = []
    for line in lines:
        if spelled.issuperset(line.replace(" ", "")):
            covered.append(line)
            continue
        words = (
            "".join(filter(spelled.__contains__, word))
            if spaceless(word)
            else word * spelled.issuperset(word)
            for word in line.split(" ")
        )
        covered.append(" ".join(filter(None, words)))
    return list(filter(None, covered))


def _train(lines: list[str], size: int, alphabet: Sequence[str]) -> tuple[list[str], list[float]]:
    """SentencePiece's pieces and their scores: those that start a word first, the alphabet among
    them.
    """
    file = io.BytesIO()
    SentencePieceTrainer.train(
        # whole lines, not counted words: seeds are the strings that occur twice
        sentence_iterator=iter(lines),
        model_writer=file,
        model_type="unigram",
        vocab_size=size + 1,  # and the unknown one
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        split_by_unicode_script=False,  # "don't" and "2day" may be pieces
        split_by_number=False,
        max_sentence_length=1 << 24,  # bytes; longer lines would be left out
        num_threads=1,  # sums in one order
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    processor = SentencePieceProcessor(model_proto=file.getvalue())
    score_of = {
        processor.id_to_piece(i): processor.get_score(i)
        for i in range(1, processor.get_piece_size())
    }
    lowest = min(score_of.values())
    single = frozenset(alphabet)
    longer = [piece for piece in score_of if piece not in single][: size - len(alphabet)]
    ranked = sorted(
        [*longer, *alphabet],
        key=lambda piece: (not piece.startswith(_SPACE), -score_of.get(piece, lowest), piece),
    )
    return ranked, [score_of.get(piece, lowest) for piece in ranked]


def _model(
    kind: int, pieces: Sequence[str], targets: Sequence[int], scores: Sequence[float] = ()
) -> bytes:
    """A `.model` of special ids, classes and these pieces. targets are how often each id from eos
    on is one; scores replace those of the pieces.
    """
    model = sentencepiece_model_pb2.ModelProto()
    marked = [*SPECIALS, *(_SPACE + name for name in CLASSES), *pieces]
    types = _TYPES | (
        dict.fromkeys(range(len(SPECIALS), FIRST_WORD), _Piece.USER_DEFINED)
        if kind == _Kind.UNIGRAM
        else {}
    )
    for i, (piece, score) in enumerate(
        zip(marked, [NEVER, NEVER, *_log_shares(targets), *scores], strict=True)
    ):
        model.pieces.add(piece=piece, score=score, type=types.get(i, _Piece.NORMAL))
    trainer = model.trainer_spec
    trainer.model_type = kind
    trainer.vocab_size = len(model.pieces)
    trainer.pad_id, trainer.bos_id, trainer.eos_id, trainer.unk_id = PAD, BOS, EOS, OOV
    trainer.pad_piece, trainer.bos_piece, trainer.eos_piece, trainer.unk_piece = SPECIALS
    model.normalizer_spec.name = PROTOCOL  # the text is normalised before
    return model.SerializeToString(deterministic=True)


def _log_shares(targets: Sequence[int]) -> list[float]:
    """Log probability of each, one added to each count."""
    total = math.log(sum(targets) + len(targets))
    return [math.log(count + 1) - total for count in targets]
