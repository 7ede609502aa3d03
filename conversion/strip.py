"""The strip in life: the network mixed with each user's own words, scored while the user types.

The mixing is the device's own code. Before each message the device knows all that the same user
typed before it, and nothing of anybody else's. Positions and measures are those of protocol nwp-v2,
so the result compares with any other system's, user by user. Loads no TensorFlow.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise

import numpy as np

from device_runtime.offensive import blocked_ids
from device_runtime.own_words import OwnWords
from device_runtime.text import BOS, Vocabulary
from model.corpus import Users
from model.evaluation import BASE, Engine, Scope, scored_of
from model.measures import Evaluation, Lexicon, Prediction, Tally, said, targets_of

BLOCK = 256  # messages of one user given to an engine at once


@dataclass(frozen=True)
class Life:
    """An evaluation, and to how many users the mix was served."""

    evaluation: Evaluation
    served: int  # users who saw the mix in at least one scored message
    # of them, those who saw it while it was behind on their held-back messages: always 0
    behind: int


def evaluate(
    engine: Engine,
    users: Users,
    vocabulary: Vocabulary,
    scope: Scope = BASE,
    progress: Callable[[int, int], None] | None = None,
    on_prediction: Callable[[Prediction], object] | None = None,
) -> Life:
    """Score the strip on each user's newest utterances, the earlier ones being history, by the base
    protocol unless scope differs.

    progress is called with (utterances done, all utterances). Raises VocabularyError for a
    vocabulary of pieces.
    """
    # users are read one at a time, once to count and once to score, and are not kept
    lengths = {
        name: len(own)
        for name, own in islice(users.items(), scope.max_users)
        if scored_of(own, scope.personal, scope.last)
    }
    tally = Tally(list(lengths))
    done, everything = 0, sum(lengths.values())
    served = behind = 0
    for user, utterances in enumerate(map(users.__getitem__, lengths)):
        own = OwnWords(vocabulary)
        history = len(utterances) - scored_of(utterances, scope.personal, scope.last)
        saw = lost = False
        for place, (tokens, scores) in enumerate(
            _scored(engine, [utterance.tokens for utterance in utterances], vocabulary)
        ):
            trust, withheld = own.trust, list(own.withheld)
            ids, words, alphabetical = np.array(own.known_ids(tokens)), own.words, own.alphabetical
            alone = own.extended(scores) if place >= history and not trust.serves else None
            mixed = own.hold_back(tokens, scores)
            if place >= history:
                saw, lost = saw or trust.serves, lost or (trust.serves and trust.nats <= 0)
                targets = targets_of([(user, tokens)])
                never = blocked_ids(words, scope.blocked) + withheld
                lexicon = Lexicon(words, alphabetical, never)
                shown = mixed if alone is None else alone
                answer = said(shown, ids, tokens, targets.is_word, lexicon)
                # perplexity compares at equal vocabulary
                known = answer.known & (ids < len(vocabulary))
                answer = replace(answer, known=known)
                tally.add(answer, targets, 0, on_prediction)
            own.add_message(utterances[place].text, tokens)
            done += 1
            if progress:
                progress(done, everything)
        served += saw
        behind += lost
    return Life(tally.evaluation(), served, behind)


def _scored(
    engine: Engine, messages: Sequence[tuple[str, ...]], vocabulary: Vocabulary
) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """Each message with the network's log-probabilities before each of its tokens, float32 [tokens,
    vocabulary].
    """
    for start in range(0, len(messages), BLOCK):
        block = messages[start : start + BLOCK]
        ends = np.cumsum([0, *map(len, block)])
        chunks = engine([[BOS, *vocabulary.ids(tokens)[:-1]] for tokens in block])
        rest = np.empty((0, len(vocabulary)), np.float32)
        for tokens, (first, last) in zip(block, pairwise(ends), strict=True):
            while len(rest) < last - first:
                rest = np.concatenate([rest, next(chunks)])
            yield tokens, rest[: last - first]
            rest = rest[last - first :]
