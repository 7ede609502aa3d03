"""The record of a corpus: what people typed, cleaned and split by user. Protocol nwp-v2, steps 2-4.

`corpora.py` loads one by name, `imported.py` makes one of a user's own file; every corpus that is
split here is scored like any other.
"""

import hashlib
import itertools
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from device_runtime.errors import CorpusError
from device_runtime.text import is_word, tokenise

SPLITS = ("train", "validation", "test")
LONG = 8  # tokens from which an utterance seen in train would be recited rather than predicted
NO_WORD, MASHING, IN_TRAIN = "no word", "mashing", "verbatim in train"
# of six tokens or more, fewer distinct ones than this share are mashing
_SHORT, _DISTINCT = 6, 0.34
# prose repeats its words the more the longer it is: what is longer is judged by windows of so many
_WINDOW = 100


@dataclass(frozen=True, slots=True)
class Utterance:
    """One message: what was typed, its tokens, and when (seconds since 1970; None if unknown)."""

    text: str
    tokens: tuple[str, ...]
    time: float | None = None


# user -> utterances in time order; users in alphabetical order
Users = Mapping[str, Sequence[Utterance]]


class LazyUsers(Mapping[str, Sequence[Utterance]]):
    """Users whose names are known and whose utterances are read each time they are asked for.

    The last `keep` users read are remembered.

    `len`, `in` and iteration over names read nothing. `items` and `values` read one user after the
    other, so a loop over all holds one at a time. Cleaning happens on reading: unlike in a dict, a
    user can turn out to have no utterance left.
    """

    def __init__(
        self, names: Iterable[str], read: Callable[[str], Sequence[Utterance]], keep: int = 0
    ):
        """read is given one of the names; what it raises reaches whoever asked."""
        self._names = dict.fromkeys(names)
        self._read = lru_cache(keep)(read)

    def __getitem__(self, name: str) -> Sequence[Utterance]:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # Mapping's own would read the user


@dataclass(frozen=True)
class Noted:
    """What is known of a corpus without reading a message: it was noted at the import."""

    rows: int  # of what was imported
    words: Mapping[str, Sequence[int]]  # of each split, by user, in the order of their names
    utterances: Mapping[str, Sequence[int]]  # likewise
    distinct_words: int
    # reason -> the first places of what was dropped for it, such as chat.csv:12
    places: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: Sequence[str] = ()  # what else the import said


@dataclass(frozen=True)
class Corpus:
    """A cleaned corpus, split by user.

    `digest` is the SHA-256 of the file it was read from; TFF's file is too large: of the users'
    names.
    """

    name: str
    digest: str
    train: Users
    validation: Users
    test: Users
    # reason -> utterances left out by cleaning; None: cleaned on reading, not counted
    dropped: dict[str, int] | None = field(default_factory=dict)
    # users of a split that scores are taken from, by `sample`, and all else of which nothing is
    # noted; None: all
    most: int | None = None
    noted: Noted | None = None  # None: nothing is known before the messages are read
    # as BCP 47 tags with "+" between them; empty: nobody said
    language: str = ""

    def split(self, name: str) -> Users:
        """Raises CorpusError for a name that is not a split."""
        if name not in SPLITS:
            raise CorpusError(
                self.name,
                f"expected a split, one of {', '.join(SPLITS)}, found {name!r}",
                "name one of them",
            )
        return getattr(self, name)


@dataclass(frozen=True)
class Size:
    """How much of a corpus, or of one of its splits, there is."""

    users: int
    utterances: int
    words: int


@dataclass(frozen=True)
class Bin:
    """The users who typed so much, both ends included."""

    least: int
    most: int
    users: int
    typed: int  # by all of them


@dataclass(frozen=True)
class Stats:
    """What `fedboard data stats` prints.

    Of a corpus with a `most`, everything but `users` is about that many users of each split.
    """

    name: str
    users: dict[str, int]  # of each split, read or not
    most: int | None  # users of a split that were read at most; None: all
    total: Size
    train: Size
    validation: Size
    test: Size
    median_words: float  # per user
    median_utterances: float
    distinct_words: int
    largest_ten: float  # share of all words that the ten users with most words typed, 0..1
    dropped: dict[str, int] | None  # None: not counted
    rows: int | None  # dropped and kept; None: not counted
    places: dict[str, tuple[str, ...]]  # of the first that were dropped, by reason, where known
    notes: tuple[str, ...]  # what the import said
    by_words: tuple[Bin, ...]  # users by how many words they typed, each bin twice the last
    by_utterances: tuple[Bin, ...]
    language: str = ""  # as the import was told; empty: nobody said


def prepare(name: str, digest: str, rows: Iterable[tuple[str, str, float | None]]) -> Corpus:
    """Rows (user, text, time) cleaned and split by user.

    A user's utterances are in time order, equal times in the order given; without a time for every
    utterance the order given stands. Raises CorpusError if a split would be empty.
    """
    dropped: Counter[str] = Counter()
    splits: dict[str, dict[str, list[Utterance]]] = {split: defaultdict(list) for split in SPLITS}
    home: dict[str, dict[str, list[Utterance]]] = {}
    for user, text, time in rows:
        tokens = tokenise(text)
        if reason := unfit(tokens):
            dropped[reason] += 1
            continue
        if user not in home:
            home[user] = splits[split_of(user)]
        home[user][user].append(utterance_of(text, tokens, time))
    recited = {
        utterance.tokens
        for utterances in splits["train"].values()
        for utterance in utterances
        if len(utterance.tokens) >= LONG
    }
    for split in SPLITS[1:]:
        for user, utterances in list(splits[split].items()):
            kept = [utterance for utterance in utterances if utterance.tokens not in recited]
            dropped[IN_TRAIN] += len(utterances) - len(kept)
            splits[split][user] = kept
            if not kept:
                del splits[split][user]
    require_users(name, len(home), {split: len(users) for split, users in splits.items()})
    ordered = {
        split: {user: _in_time_order(users[user]) for user in sorted(users)}
        for split, users in splits.items()
    }
    return Corpus(
        name, digest, ordered["train"], ordered["validation"], ordered["test"], dict(dropped)
    )


def cleaned(rows: Iterable[tuple[str, float | None]]) -> tuple[Utterance, ...]:
    """One user's rows (text, time) without the `unfit` ones, in time order as in `prepare`."""
    tokenised = ((text, tokenise(text), time) for text, time in rows)
    utterances = [utterance_of(*row) for row in tokenised if not unfit(row[1])]
    return tuple(_in_time_order(utterances))


def unfit(tokens: list[str]) -> str:
    """Why cleaning leaves an utterance out, or "" if it stays. Source: protocol nwp-v2, step 3.

    A long one is mashing if its windows are, or if it pastes the same words again and again.

    >>> unfit(["hello", "there"]), unfit(["<num>"]), unfit(["ha"] * 6)
    ('', 'no word', 'mashing')
    """
    if not any(map(is_word, tokens)):
        return NO_WORD
    return MASHING if _is_mashing(tokens) else ""


def _is_mashing(tokens: list[str]) -> bool:
    if len(tokens) < _SHORT:
        return False
    if len(tokens) <= _WINDOW:
        return len(set(tokens)) < _DISTINCT * len(tokens)
    windows = [tokens[i : i + _WINDOW] for i in range(0, len(tokens), _WINDOW)]
    distinct = sum(len(set(window)) for window in windows)
    threes = set(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return min(distinct, len(threes)) < _DISTINCT * len(tokens)


def split_of(user: str) -> str:
    """The split a user belongs to, the same in every corpus and on every machine.

    Source: protocol nwp-v2, step 4.

    >>> split_of("user0"), split_of("user26"), split_of("user13")
    ('train', 'validation', 'test')
    """
    slot = int(hashlib.sha256(f"nwp-v1:{user}".encode()).hexdigest()[:8], 16) % 100
    return "test" if slot < 20 else "validation" if slot < 30 else "train"


def require_users(where: object, users: int, by_split: Mapping[str, int]) -> None:
    """Raises CorpusError if there are no users, or none in one of the splits; `where` is named."""
    empty = [split for split in SPLITS if not by_split.get(split)]
    if users == 0:
        raise CorpusError(
            where,
            "no utterance is left after cleaning",
            "give rows with a user and a text of words",
        )
    if empty:
        raise CorpusError(
            where,
            f"{users} user{'s' * (users > 1)}, none of whom falls into {' or '.join(empty)}",
            "give at least 3 users, better 50: the user's id decides on the split (70 % train, 10 "
            "% validation, 20 % test)",
        )


def utterance_of(text: str, tokens: list[str], time: float | None) -> Utterance:
    """A message and its tokens, whose words are shared with every other message."""
    # one object a word, however often it is typed: the memory of a corpus is mostly its words
    return Utterance(text, tuple(map(sys.intern, tokens)), time)


def _in_time_order(utterances: list[Utterance]) -> list[Utterance]:
    times = [utterance.time for utterance in utterances if utterance.time is not None]
    if len(times) < len(utterances):
        return utterances
    order = sorted(range(len(times)), key=times.__getitem__)
    return [utterances[place] for place in order]


def sample(users: Users, most: int | None) -> Users:
    """At most `most` of these users, evenly spaced in the order of their names; None: all.

    They are the same ones each time. Reads nothing.
    """
    if most is None or len(users) <= most:
        return users
    names = list(users)
    return only(users, (names[i * len(names) // most] for i in range(most)))


def only(users: Users, names: Iterable[str]) -> Users:
    """The users of these names, read from `users` when they are asked for."""
    return LazyUsers(names, users.__getitem__)


def token_lists(users: Users, most: int | None = None) -> Iterator[tuple[str, ...]]:
    """The tokens of every utterance, one user after the other; of a `sample` of at most `most`."""
    return (
        utterance.tokens for utterances in sample(users, most).values() for utterance in utterances
    )


def few(corpus: Corpus, most_words: int) -> Users:
    """Train users who typed at most `most_words` words together, the same ones each time.

    All of them if they typed no more, or if that is not known: then a sample of `corpus.most`.
    They are spread by a hash of their names; of a single user who typed more, it is the newest
    utterances. Reads nothing before it is asked for.
    """
    users, noted = corpus.train, corpus.noted
    if noted is None:
        return sample(users, corpus.most)
    words = dict(zip(users, noted.words["train"], strict=True))
    if sum(words.values()) <= most_words:
        return users
    chosen, left = set(), most_words
    for name in sorted(words, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if words[name] <= left:
            chosen.add(name)
            left -= words[name]
    if chosen:
        return only(users, (name for name in users if name in chosen))
    name = min(words, key=words.__getitem__)

    def newest(name: str) -> Sequence[Utterance]:
        own = users[name]
        return own[-max(1, len(own) * most_words // words[name]) :]

    return LazyUsers([name], newest)


def stats(corpus: Corpus) -> Stats:
    """Users, utterances and words by split, and how unevenly they are spread.

    It is about at most `corpus.most` users of each split, unless all is noted; then nothing is
    read.

    Raises CorpusError if cleaning leaves no utterance of them.
    """
    counts, distinct_words = _counts(corpus) if corpus.noted is None else _noted(corpus.noted)
    everyone = sorted(itertools.chain.from_iterable(counts.values()), reverse=True)
    if not everyone:
        raise CorpusError(
            corpus.name,
            "no utterance is left after cleaning",
            "give rows with a user and a text of words",
        )
    sizes = {
        split: Size(len(own), sum(n for _, n in own), sum(n for n, _ in own))
        for split, own in counts.items()
    }
    total = Size(
        *(
            sum(getattr(size, name) for size in sizes.values())
            for name in ("users", "utterances", "words")
        )
    )
    noted = corpus.noted
    kept = None if corpus.dropped is None else total.utterances + sum(corpus.dropped.values())
    return Stats(
        corpus.name,
        {split: len(corpus.split(split)) for split in SPLITS},
        corpus.most if noted is None else None,
        total,
        **sizes,
        median_words=statistics.median(n for n, _ in everyone),
        median_utterances=statistics.median(n for _, n in everyone),
        distinct_words=distinct_words,
        largest_ten=sum(n for n, _ in everyone[:10]) / total.words,
        dropped=corpus.dropped,
        rows=noted.rows if noted else kept,
        places={reason: tuple(where) for reason, where in noted.places.items()} if noted else {},
        notes=tuple(noted.notes) if noted else (),
        by_words=bins(n for n, _ in everyone),
        by_utterances=bins(n for _, n in everyone),
        language=corpus.language,
    )


def bins(numbers: Iterable[int]) -> tuple[Bin, ...]:
    """Users by how much each typed, in bins of doubling size; numbers are 1 or more.

    >>> [(each.least, each.most, each.users, each.typed) for each in bins([1, 3, 2, 9])]
    [(1, 1, 1, 1), (2, 3, 2, 5), (4, 7, 0, 0), (8, 15, 1, 9)]
    """
    users: Counter[int] = Counter()
    typed: Counter[int] = Counter()
    for number in numbers:
        users[number.bit_length()] += 1
        typed[number.bit_length()] += number
    return tuple(
        Bin(2 ** (size - 1), 2**size - 1, users[size], typed[size])
        for size in range(min(users, default=1), max(users, default=0) + 1)
    )


# split -> words and utterances of each user
_Counts = dict[str, list[tuple[int, int]]]


def _counts(corpus: Corpus) -> tuple[_Counts, int]:
    """What is counted by reading, and the number of distinct words."""
    words: Counter[str] = Counter()
    counts: _Counts = {}
    for split in SPLITS:
        counts[split] = []
        for utterances in sample(corpus.split(split), corpus.most).values():
            if utterances:
                own = Counter(
                    token
                    for utterance in utterances
                    for token in utterance.tokens
                    if is_word(token)
                )
                counts[split].append((own.total(), len(utterances)))
                words.update(own)
    return counts, len(words)


def _noted(noted: Noted) -> tuple[_Counts, int]:
    """The same of a corpus of which it is noted."""
    counts = {
        split: list(zip(noted.words[split], noted.utterances[split], strict=True))
        for split in SPLITS
    }
    return counts, noted.distinct_words
