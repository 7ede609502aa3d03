"""Build the word vocabulary of a corpus as a SentencePiece `.model`. Protocol nwp-v1, step 5.

Any SentencePiece reader encodes tokenised text (tokens joined by spaces) to the ids our own `Vocabulary` gives, except that it joins neighbouring
unknown words into one. The score of a piece is its log unigram probability, where the network's output bias starts.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from sentencepiece import sentencepiece_model_pb2

from device_runtime.errors import VocabularyError
from device_runtime.text import BOS, CLASSES, EOS, OOV, PAD, SPECIALS, Vocabulary, is_word

SIZE = 10_000  # words, beside the special ids and classes
NEVER = -20.0  # score of pad and bos, which are never targets: below a word seen once among 400 million targets
_SPACE = "\u2581"
_Piece = sentencepiece_model_pb2.ModelProto.SentencePiece
_TYPES = {PAD: _Piece.CONTROL, BOS: _Piece.CONTROL, EOS: _Piece.CONTROL, OOV: _Piece.UNKNOWN}


def build(utterances: Iterable[Sequence[str]], size: int = SIZE) -> Vocabulary:
    """The `size` most frequent words of these token lists (ties alphabetical), after the special ids and classes.

    Fewer distinct words give a smaller vocabulary. The same utterances, in any order, give the same bytes.
    Raises VocabularyError if there is no word at all.
    """
    if size < 1:
        raise VocabularyError("vocabulary", f"expected a size of at least 1, found {size}", "ask for some thousand words")
    counts: Counter[str] = Counter()
    sentences = 0
    for utterance in utterances:
        counts.update(utterance)
        sentences += 1
    words = sorted((token for token in counts if is_word(token)), key=lambda word: (-counts[word], word))[:size]
    if not words:
        raise VocabularyError("vocabulary", "the utterances have no word", "give a corpus with text")
    model = sentencepiece_model_pb2.ModelProto()
    for token, score in zip([*SPECIALS, *CLASSES, *words], _scores(counts, sentences, words), strict=True):
        i = len(model.pieces)
        model.pieces.add(piece=token if i in _TYPES else _SPACE + token, score=score, type=_TYPES.get(i, _Piece.NORMAL))
    trainer = model.trainer_spec
    trainer.model_type = trainer.WORD
    trainer.vocab_size = len(model.pieces)
    trainer.pad_id, trainer.bos_id, trainer.eos_id, trainer.unk_id = PAD, BOS, EOS, OOV
    trainer.pad_piece, trainer.bos_piece, trainer.eos_piece, trainer.unk_piece = SPECIALS
    model.normalizer_spec.name = "identity"
    return Vocabulary(model.SerializeToString(deterministic=True))


def _scores(counts: Counter[str], sentences: int, words: list[str]) -> list[float]:
    """Log probability of each piece as a target: every token and the end of each utterance, one added to each count."""
    known = [counts[token] for token in (*CLASSES, *words)]
    targets = {EOS: sentences, OOV: counts.total() - sum(known)}
    total = math.log(counts.total() + sentences + len(known) + len(targets))
    specials = [math.log(targets[i] + 1) - total if i in targets else NEVER for i in range(len(SPECIALS))]
    return [*specials, *(math.log(count + 1) - total for count in known)]
