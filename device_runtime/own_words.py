"""The user's own words: n-grams mixed with the network as far as they were right before.

They are counted in what one user typed lately. Every message is scored before it is counted, so
each is held back once and none is wasted. From these scores the user's trust is learned: how much
weight n-grams of each length deserve after contexts seen so many times. The mix is served only
while it is ahead of the network alone. What was typed lives in memory as a row of ids, in which
n-grams are counted when they are asked for: a table of them would take many times the room. It
is built anew from the typing log; only the trust, numbers without words, is worth keeping. A word
that the vocabulary lacks is offered once it was sent often enough (`learnable`). Sources:
Jelinek and Mercer 1980 (weights by bucket, estimated by expectation maximisation on held-out text);
Dempster et al. 1977.
"""

from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_runtime import learnable
from device_runtime.config import from_json
from device_runtime.errors import ConfigError
from device_runtime.text import (
    BOS,
    EOS,
    FIRST_WORD,
    OOV,
    PAD,
    Vocabulary,
    is_letters,
    is_word,
    spaceless,
)

ORDERS = 4  # contexts of 0 to 3 tokens
BUCKETS = (1, 2, 3, 5, 9, 17, 33, 65, 129)  # how often a context was seen: at least so many times
# weights before anything is known of a user: those of the validation users of chitchat, estimated
# together
PRIOR = (
    (0.002,) * 9,
    (0.03, 0.03, 0.02, 0.02, 0.015, 0.015, 0.01, 0.005, 0.005),
    (0.05, 0.05, 0.05, 0.05, 0.02, 0.02, 0.01, 0.01, 0.01),
    (0.08, 0.07, 0.07, 0.07, 0.04, 0.04, 0.01, 0.01, 0.01),
)
PRIOR_COUNT = 20.0  # targets the prior is worth, in each bucket
MEMORY = 500.0  # targets a bucket's weight remembers
MARGIN = 2.0  # nats the mix must be ahead on held-back messages to be served
FADED = 0.01  # uses of a new word whose messages dropped out
LAST = 1e-12  # what one use of a new word is worth while the mix is not served
MOST_TOKENS = 20_000  # of the newest messages are counted; older ones drop out
START = (PAD, PAD, BOS)  # what stands before a message


# of a length of context: order, bucket, weight, the ids that followed and their shares
_Step = tuple[int, int, float, NDArray[Any], NDArray[Any]]


@dataclass(frozen=True)
class Trust:
    """What was learned about the own words of one user. Numbers only."""

    won: tuple[tuple[float, ...], ...] = tuple(
        tuple(PRIOR_COUNT * weight for weight in weights) for weights in PRIOR
    )
    seen: tuple[tuple[float, ...], ...] = ((PRIOR_COUNT,) * len(BUCKETS),) * ORDERS
    nats: float = 0.0  # what the mix was ahead of the network, all held-back words together
    hits: int = 0  # first suggestions it got right more than the network
    words: int = 0  # held-back words so far
    network: str = ""  # whom it was learned beside: the personal one's name, none of everybody's

    @property
    def serves(self) -> bool:
        """Whether the mix is ahead on the user's own held-back messages: by a margin in nats, and
        in no fewer first suggestions.
        """
        return self.nats > MARGIN and self.hits >= 0


def read_trust(data: bytes, where: object) -> Trust:
    """What `config.to_json` wrote of a trust. Raises ConfigError for anything else."""
    trust = from_json(Trust, data, str(where))
    won, seen = ([np.array(row) for row in table] for table in (trust.won, trust.seen))
    shapes = {row.shape for row in (*won, *seen)}
    if (len(won), len(seen)) != (ORDERS, ORDERS) or shapes != {(len(BUCKETS),)}:
        raise ConfigError(
            where,
            f"expected {ORDERS} rows of {len(BUCKETS)} numbers, found others",
            "remove the file: it is learned again",
        )
    if (
        not np.isfinite([*won, *seen]).all()
        or not np.isfinite(trust.nats)
        or (np.array(seen) <= 0).any()
        or (np.array(won) < 0).any()
    ):
        raise ConfigError(
            where, "holds numbers that are no counts", "remove the file: it is learned again"
        )
    return replace(
        trust,
        won=tuple(
            tuple(min(w, s) for w, s in zip(*rows, strict=True))
            for rows in zip(trust.won, trust.seen, strict=True)
        ),
    )


class OwnWords:
    """Remembers what one user typed as counts, and what they are worth. Ids past the vocabulary are
    words it lacks, in order of first use.
    """

    def __init__(
        self, vocabulary: Vocabulary, trust: Trust = Trust(), allowed: Collection[str] = ()
    ):
        """`allowed` are tokens that are offered from the start, whatever they look like. Raises
        VocabularyError for a vocabulary of pieces.
        """
        vocabulary.require_words("a count of own words")
        self._common = vocabulary.tokens[FIRST_WORD : FIRST_WORD + learnable.COMMON]
        self._sent: Counter[str] = Counter()  # messages that a new word may be learned of
        self._named: Counter[str] = Counter()  # of them, those that have it as a name
        self._forms: dict[str, Counter[str]] = {}  # how a word was written within sentences
        self._withheld: dict[str, int] = {}  # new words that are not offered yet, and their ids
        self._vocabulary = vocabulary
        self._won, self._seen = np.array(trust.won), np.array(trust.seen)
        self._nats, self._hits, self._words = trust.nats, trust.hits, trust.words
        self._network = trust.network
        self._new: dict[str, int] = {}  # words the vocabulary lacks
        self.words = list(vocabulary.tokens)  # of all ids
        self._alphabetical: tuple[list[str], list[int]] | None = None
        self._lengths: deque[int] = deque()  # of the messages counted, in tokens
        self._tokens = 0
        # pad, pad, bos, the message, eos; and so on, and room to grow
        self._row = np.empty(0, np.int32)
        self._begin = self._end = 0  # of what counts in it
        self._unigrams = np.zeros(len(vocabulary))
        self.changes = 0  # rises whenever `mix` may answer otherwise
        for token in sorted(allowed):
            if is_word(token) and vocabulary.id(token) == OOV:
                self._learn_word(token)
                self._offer(token)

    @property
    def trust(self) -> Trust:
        """What was learned so far: give it to the next OwnWords of the same user."""
        return Trust(
            tuple(map(tuple, self._won.tolist())),
            tuple(map(tuple, self._seen.tolist())),
            self._nats,
            self._hits,
            self._words,
            self._network,
        )

    @property
    def serves(self) -> bool:
        """Whether the mix is served now."""
        return self.trust.serves

    @property
    def alphabetical(self) -> tuple[list[str], list[int]]:
        """All words in alphabetical order and their ids, those the vocabulary lacks included."""
        return self._vocabulary.alphabetical if self._alphabetical is None else self._alphabetical

    def messages(self) -> Iterator[list[str]]:
        """The tokens of every message that counts, oldest first."""
        begin = self._begin + len(START)
        for length in self._lengths:
            yield [self.words[i] for i in self._row[begin : begin + length]]
            begin += length + 1 + len(START)

    def ids(self, tokens: Sequence[str]) -> list[int]:
        """Ids of tokens; OOV only for a word the user never typed and the vocabulary lacks."""
        return [i for _, i in self._pairs(tokens)]

    @property
    def withheld(self) -> Collection[int]:
        """Ids of words that the vocabulary lacks and that are not to be offered."""
        return self._withheld.values()

    def known_ids(self, tokens: Sequence[str]) -> list[int]:
        """Ids of tokens as the strip knows them: OOV for a word that is not offered."""
        return [OOV if token in self._withheld else i for token, i in self._pairs(tokens)]

    def offered(self) -> list[tuple[str, int]]:
        """The words the vocabulary lacks that are offered, and how often each was typed."""
        return [
            (word, int(self._unigrams[i]))
            for word, i in self._new.items()
            if word not in self._withheld
        ]

    def written(self, token: str) -> str | None:
        """How the user writes a word within sentences, most of the time; None before that was
        seen.
        """
        forms = self._forms.get(token)
        return forms.most_common(1)[0][0] if forms else None

    def add_message(self, message: str, tokens: Sequence[str]) -> None:
        """`add` the tokens of a message, of which only words that stand there as words are
        learned.
        """
        learned = learnable.words(message)
        self.add(tokens, learned, learnable.stands_as_name(message))

    def add(
        self,
        tokens: Sequence[str],
        learned: Mapping[str, str] | None = None,
        names: Collection[str] = (),
    ) -> None:
        """Count one message; the oldest ones drop out when there are too many. `learned` are the
        words that may be learned of it, as they are written there, and `names` those that stand as
        names; None: all that are made of letters.
        """
        for token, i in zip(tokens, self._vocabulary.ids(tokens), strict=True):
            if i == OOV and token not in self._new:
                self._learn_word(token)
        if learned is None:
            letters = filter(is_letters, tokens)
            learned = {token: token for token in letters if not spaceless(token)}
        self._hear(learned, names)
        ids = np.array([*START, *self.ids(tokens), EOS], np.int32)
        if self._end + len(ids) > len(self._row):
            kept = self._row[self._begin : self._end]
            self._row = np.concatenate([kept, np.empty(len(kept) + len(ids), np.int32)])
            self._begin, self._end = 0, len(kept)
        self._row[self._end : self._end + len(ids)] = ids
        self._end += len(ids)
        self._lengths.append(len(tokens))
        self._tokens += len(tokens)
        self._count(ids, 1)
        while self._tokens > MOST_TOKENS and len(self._lengths) > 1:
            oldest = self._lengths.popleft()
            self._tokens -= oldest
            after = self._begin + len(START) + oldest + 1
            self._count(self._row[self._begin : after], -1)
            self._begin = after
        self.changes += 1

    def hold_back(self, tokens: Sequence[str], log_probs: NDArray[Any]) -> NDArray[Any]:
        """Learn from a message before it is counted. log_probs, float32 [tokens, vocabulary], are
        the network's before each token.

        Returns the mix at these places, as `mix` does.
        """
        ids = self.ids(tokens)
        # none learns from another
        places = [self._steps(self._context(ids[:place])) for place in range(len(ids))]
        mixed = np.empty((len(ids), len(self.words)), np.float32)
        for place, (target, steps) in enumerate(zip(ids, places, strict=True)):
            base = self._base(log_probs[place])
            after = self._climb(base.copy(), steps)
            mixed[place] = np.log(after)
            if is_word(tokens[place]):
                self._judge(base, after, target, tokens[place] not in self._withheld)
                self._learn(float(base[target]), steps, target)
        self.changes += 1
        return mixed

    def mix(self, log_probs: NDArray[Any], tokens: Sequence[str]) -> NDArray[Any]:
        """The network's log-probabilities after `tokens`, float32 [vocabulary], mixed with the own
        words: float32 [words].
        """
        steps = self._steps(self._context(self.ids(tokens)))
        mixed: NDArray[Any] = np.log(self._climb(self._base(log_probs), steps))
        return mixed.astype(np.float32)

    def extended(self, log_probs: NDArray[Any]) -> NDArray[Any]:
        """The network alone over the same words, float32 [..., vocabulary] -> [..., words]: new
        words come last, so they complete only what no known word does.
        """
        size = log_probs.shape[-1]
        wide = np.empty((*log_probs.shape[:-1], len(self.words)), np.float32)
        wide[..., :size] = log_probs
        wide[..., size:] = np.log(LAST * np.maximum(self._unigrams[size:], FADED))
        return wide

    # --- counting
    # --------------------------------------------------------------------------------------------

    def _pairs(self, tokens: Sequence[str]) -> Iterator[tuple[str, int]]:
        for token, i in zip(tokens, self._vocabulary.ids(tokens), strict=True):
            yield token, self._new.get(token, OOV) if i == OOV else i

    def _learn_word(self, word: str) -> None:
        """Give a word an id, so that what stood beside it is counted. It is not offered yet."""
        self._new[word] = self._withheld[word] = len(self.words)
        self.words.append(word)
        self._unigrams = np.append(self._unigrams, 0.0)

    def _hear(self, learned: Mapping[str, str], names: Collection[str]) -> None:
        """Take note of words that stand in one message as words, and offer those heard enough."""
        for token, stands in learned.items():
            if token in names or stands != stands.capitalize():
                # a capital at the start of a sentence says nothing
                self._forms.setdefault(token, Counter())[stands] += 1
            if token not in self._withheld:
                continue
            self._sent[token] += 1
            self._named[token] += token in names
            as_name = 2 * self._named[token] > self._sent[token]
            needed = learnable.needed(token, self._common, as_name)
            if needed is not None and self._sent[token] >= needed:
                self._offer(token)

    def _offer(self, word: str) -> None:
        del self._withheld[word]
        if self._alphabetical is None:
            known, ids = self._vocabulary.alphabetical
            self._alphabetical = list(known), list(ids)
        at = bisect_left(self._alphabetical[0], word)
        insort(self._alphabetical[0], word)
        self._alphabetical[1].insert(at, self._new[word])
        self.changes += 1

    def _count(self, ids: NDArray[Any], by: int) -> None:
        np.add.at(self._unigrams, ids[ids >= FIRST_WORD], by)

    def _following(self, context: tuple[int, ...]) -> Iterator[NDArray[Any]]:
        """The ids that followed the last 1, 2 and 3 ids of a context, each time they did; ends with
        the first length that never occurred.
        """
        row = self._row[self._begin : self._end]
        places = np.flatnonzero(row == context[-1])
        for length in range(1, ORDERS):
            if length > 1:
                places = places[row[places - (length - 1)] == context[-length]]
            if not len(places):
                return
            yield row[places + 1]

    @staticmethod
    def _context(ids: Sequence[int]) -> tuple[int, ...]:
        """The last three ids, the sentence start among them."""
        return (*START, *ids[-3:])[-3:]

    # --- mixing
    # --------------------------------------------------------------------------------------------

    def _base(self, log_probs: NDArray[Any]) -> NDArray[Any]:
        """The network's probabilities over all words: new ones share what it gives to unknown
        words, one part stays for words never typed.
        """
        size = len(log_probs)
        base = np.empty(len(self.words))
        np.exp(log_probs, out=base[:size])
        own = np.maximum(self._unigrams[size:], FADED)
        share = base[OOV] / (own.sum() + 1)
        base[size:] = share * own
        base[OOV] = share
        return base

    def _steps(self, context: tuple[int, ...]) -> list[_Step]:
        """One for each length of context that was seen, the shortest first."""
        steps = []
        total = self._unigrams.sum()
        if total:
            ids = np.flatnonzero(self._unigrams)
            steps.append(self._step(0, int(total), ids, self._unigrams[ids] / total))
        for order, following in enumerate(self._following(context), 1):
            ids, times = np.unique(following, return_counts=True)
            steps.append(self._step(order, len(following), ids, times / len(following)))
        return steps

    def _step(self, order: int, times: int, ids: NDArray[Any], shares: NDArray[Any]) -> _Step:
        bucket = int(np.searchsorted(BUCKETS, times, side="right")) - 1
        return (
            order,
            bucket,
            float(self._won[order, bucket] / self._seen[order, bucket]),
            ids,
            shares,
        )

    @staticmethod
    def _climb(probabilities: NDArray[Any], steps: list[_Step]) -> NDArray[Any]:
        for _, _, weight, ids, shares in steps:
            probabilities *= 1 - weight
            probabilities[ids] += weight * shares
        return probabilities

    # --- learning
    # --------------------------------------------------------------------------------------------

    def _judge(self, base: NDArray[Any], mixed: NDArray[Any], target: int, offered: bool) -> None:
        self._words += 1
        self._nats += float(np.log(mixed[target]) - np.log(base[target]))
        if target != OOV and offered:
            hidden = list(self._withheld.values())
            self._hits += _first(mixed, target, hidden) - _first(base, target, hidden)

    def _learn(self, probability: float, steps: list[_Step], target: int) -> None:
        """One step of expectation maximisation: how much of the target's probability each length of
        context brought.
        """
        brought = []
        for order, bucket, weight, ids, shares in steps:
            own = weight * float(shares[ids == target].sum())
            probability = (1 - weight) * probability + own
            brought.append((order, bucket, own / probability))
        reached = 1.0  # that no longer context brought it
        for order, bucket, part in reversed(brought):
            if self._seen[order, bucket] > MEMORY:
                keep = MEMORY / self._seen[order, bucket]
                self._won[order, bucket] *= keep
                self._seen[order, bucket] *= keep
            self._won[order, bucket] += reached * part
            self._seen[order, bucket] += reached
            reached *= 1 - part


def _first(probabilities: NDArray[Any], target: int, hidden: Sequence[int]) -> int:
    """1 if `target` is the first suggestion, of those that are not hidden."""
    offered = probabilities.copy()
    offered[hidden] = 0.0
    return int(offered[FIRST_WORD:].argmax() + FIRST_WORD == target)
