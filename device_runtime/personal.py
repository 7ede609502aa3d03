"""The personal model: weights fine-tuned to one user. They never leave the device, and are served
only while they beat everybody's.

A user's newest messages are held back from training; the personal weights are judged on them,
message by message, against the bundle's. They are judged again on what is typed later and on every
other bundle, and rolled back once they are ahead no more. They are kept as the int8 file that the
bundle's becomes by them, and judged as that. Verdicts hold numbers only; the file lies sealed under
the typing log's key, so that a wipe takes it with it.
Source: Wang et al. 2019, arXiv:1910.10252 (personalisation and its gate by held-back data).
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from device_runtime import config, examples, patch, text, weights
from device_runtime.bundle import CHECKPOINT, PREDICT, Bundle
from device_runtime.errors import CheckpointError, ConfigError, TypingLogError
from device_runtime.finetune import finetune
from device_runtime.home import PERSONAL, PERSONAL_WEIGHTS, Home
from device_runtime.metrics import top_words
from device_runtime.reader import Personal, Reader, reader_of
from device_runtime.text import FIRST_WORD, OOV, Vocabulary
from device_runtime.turn import Train
from device_runtime.typing_log import Record, TypingLog
from device_runtime.weights import Checkpoint, Weights
from device_runtime.wire import Plan

LEAST_MESSAGES = 40  # before it is worth trying
NEW_MESSAGES = 20  # typed since the last training before it is tried again
JUDGED_AGAIN = 10  # typed since the last verdict before it is judged again
HELD_SHARE, MOST_HELD = 0.2, 200  # of the messages, the newest
EPOCHS, RATE, MOST_ROWS = 1, 0.1, 512  # of training, in place of the plan's
MARGIN = 2.0  # nats it must be ahead, all held-back words together, to be served
SURE = 1.0  # standard errors it must be ahead besides
T = TypeVar("T")
PURPOSE, INT8_PURPOSE = "personal weights", "personal graph"  # of the seals


@dataclass(frozen=True)
class Judged:
    """The personal weights against everybody's, on messages neither was trained on."""

    words: int = 0  # of the vocabulary, in the held-back messages
    nats: float = 0.0  # ahead, all words together
    error: float = 0.0  # its standard error, from message to message
    hits: int = 0  # first suggestions right more

    @property
    def ahead(self) -> bool:
        """Whether they may be served: by a margin, surely, and in no fewer first suggestions."""
        return self.nats > max(MARGIN, SURE * self.error) and self.hits >= 0


@dataclass(frozen=True)
class Verdict:
    """What became of the last try. Numbers only."""

    # SHA-256 of what it was judged against: the bundle's predict.tflite, or the checkpoint of one
    # without constants
    base: str
    weights: str  # SHA-256 of what was sealed; empty when it was thrown away
    at: float  # when it was judged last
    messages: int  # trained on
    trained_to: int  # number of the newest message trained on
    judged_to: int  # number of the newest message judged on
    judged: Judged
    rolled_back: bool = False  # they were served once, and are no more
    vocabulary: str = ""  # SHA-256; of an earlier version it is not known
    graph: str = ""  # of an int8 file, as in the manifest; none of float weights

    @property
    def serves(self) -> bool:
        """Whether the weights were kept, to be served."""
        return self.weights != ""


@dataclass(frozen=True)
class Served:
    """The network that a strip runs in the place of everybody's."""

    # None: everybody's
    network: Personal | None = field(default=None, repr=False, compare=False)
    name: str = ""  # SHA-256 of what was sealed


@dataclass(frozen=True)
class _Trial:
    """What a verdict is reached on, and when."""

    home: Home
    bundle: Bundle
    log: TypingLog
    records: Sequence[Record]  # oldest first
    now: float  # seconds of the device's clock
    may_continue: Callable[[], bool]

    def judge(self, own: Personal, held: Sequence[Record]) -> Judged | None:
        """This network against everybody's; None if it had to stop."""
        messages = _ids(held, self.bundle.vocabulary)
        ours = reader_of(self.bundle, own)
        return judge(rival(self.bundle), ours, messages, self.may_continue)


def own_plan(plan: Plan, epochs: int = EPOCHS, rate: float = RATE) -> Plan:
    """A bundle's plan with the passes and the learning rate of personal training."""
    return replace(plan, epochs=epochs, learning_rate=rate)


def train(
    graph: bytes,
    start: Weights,
    messages: Sequence[Sequence[int]],
    plan: Plan,
    rng: np.random.Generator,
    may_continue: Callable[[], bool] = lambda: True,
) -> Weights | None:
    """Everybody's weights fine-tuned to the newest messages (token ids) by a plan that is
    `own_plan`'s; None if training failed or had to stop.
    """
    rows = examples.rows(messages, plan.length)[-MOST_ROWS:]
    tuned = finetune(graph, Train(start, rows, plan, rng), may_continue)
    return None if tuned.stopped else {name: start[name] + tuned.delta[name] for name in start}


def shipped(bundle: Bundle, tuned: Weights) -> Personal:
    """A user's weights as they are kept, judged and served: the int8 file that the bundle's becomes
    by them, so that they cost what everybody's cost; float ones where the bundle has no constants.

    Raises CheckpointError for weights that are not finite in float16.
    """
    rounded = weights.as_sent(tuned)
    if not all(np.isfinite(array).all() for array in rounded.values()):
        raise CheckpointError(PURPOSE, "values that are not finite in float16", "train again")
    constants = bundle.manifest.constants
    return rounded if constants is None else patch.predict(bundle.predict_graph, constants, rounded)


def rival(bundle: Bundle) -> Reader:
    """What a user's own network is judged against: the bundle's, of the same kind."""
    return reader_of(bundle, bundle.weights if _is_float(bundle) else None)


def judge(
    everybodys: Reader,
    own: Reader,
    messages: Sequence[Sequence[int]],
    may_continue: Callable[[], bool] = lambda: True,
) -> Judged | None:
    """Compare two networks on messages (token ids), word by word as they would be typed; None if
    it had to stop.
    """
    gains, words, hits = [], 0, 0
    for ids in messages:
        if not may_continue():
            return None
        targets = [
            (place, target)
            for place, target in enumerate(ids)
            if target >= FIRST_WORD and target != OOV
        ]
        if not targets:
            continue
        ours, theirs = (reader.log_probs(ids) for reader in (own, everybodys))
        places, wanted = (np.array(column) for column in zip(*targets, strict=True))
        gains.append(float((ours[places, wanted] - theirs[places, wanted]).sum()))
        hits += int((top_words(ours[places], 1)[:, 0] == wanted).sum()) - int(
            (top_words(theirs[places], 1)[:, 0] == wanted).sum()
        )
        words += len(targets)
    nats = float(np.sum(gains))
    # of one message nothing is sure
    error = float(np.std(gains, ddof=1) * np.sqrt(len(gains))) if len(gains) > 1 else abs(nats)
    return Judged(words, nats, error, hits)


def split(messages: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """Messages, oldest first, to train on and to hold back."""
    held = min(MOST_HELD, max(1, round(HELD_SHARE * len(messages))))
    return messages[:-held], messages[-held:]


def verdict(home: Home) -> Verdict | None:
    """What became of the last try; None before the first."""
    data = home.kept(PERSONAL)
    try:
        return None if data is None else config.from_json(Verdict, data, PERSONAL)
    except ConfigError:
        return None


def is_of(verdict: Verdict, bundle: Bundle) -> bool:
    """Whether a verdict was reached against this bundle: else what it says is of another one."""
    vocabulary = bundle.manifest.tokenizer
    return verdict.base == _base(bundle) and verdict.vocabulary in ("", vocabulary)


def served(home: Home, bundle: Bundle) -> Served:
    """The personal network, if it may be served with this bundle: else it serves everybody's."""
    last = verdict(home)
    if last is None or not last.serves or not is_of(last, bundle) or not _is_there(home, last):
        return Served()
    with home.typing_log() as log:
        network = _kept(home, log, last)
    return Served() if network is None else Served(network, last.weights)


def update(
    home: Home, bundle: Bundle, now: float, may_continue: Callable[[], bool]
) -> Verdict | None:
    """Train or judge anew if enough was typed since, or if the bundle is another; the new verdict,
    or None if there was nothing to do or it had to stop.

    On another bundle what was served is judged against that; if it is ahead no more, it is trained
    anew at once. The network is written before the verdict that names it by its hash, so a crash
    between the two serves everybody's.
    """
    last = verdict(home)
    with home.typing_log() as log:
        records = sorted(log.records(log.count()), key=lambda record: record.id)
        if len(records) < LEAST_MESSAGES:
            return None
        trial = _Trial(home, bundle, log, records, now, may_continue)
        latest = _judge_kept(trial, last) if last else _try(trial)
    if latest is not None:
        _keep(home, latest)
    return latest


def _judge_kept(trial: _Trial, last: Verdict) -> Verdict | None:
    """What becomes of the last try, by what was typed since and by the bundle there is now."""
    unseen = [record for record in trial.records if record.id > last.trained_to]
    own = _kept(trial.home, trial.log, last) if last.serves else None
    if len(unseen) >= NEW_MESSAGES + len(split(trial.records)[1]) or (last.serves and own is None):
        return _try(trial)
    if not is_of(last, trial.bundle):
        fitting = None if own is None or not unseen else _fitting(trial.bundle, last, own)
        if fitting is None:
            return _try(trial)
        latest = _judge_again(trial, last, fitting, unseen)
        return _try(trial) if latest is not None and not latest.serves else latest
    newer = [record for record in unseen if record.id > last.judged_to]
    if own is None or len(newer) < JUDGED_AGAIN:
        return None
    return _judge_again(trial, last, own, unseen)


def _try(trial: _Trial) -> Verdict | None:
    """Train anew, judge, and keep the network if it is ahead."""
    home, bundle = trial.home, trial.bundle
    to_train, held = split(trial.records)
    start, rng = bundle.weights, np.random.default_rng(home.config.seed or 0)
    messages, plan = _ids(to_train, bundle.vocabulary), own_plan(bundle.plan)
    tuned = train(bundle.train_graph, start, messages, plan, rng, trial.may_continue)
    if tuned is None and not trial.may_continue():
        return None
    judged, sealed = Judged(), b""
    with contextlib.suppress(CheckpointError):  # weights that float16 cannot hold
        if tuned is not None:
            own = shipped(bundle, tuned)
            answer = trial.judge(own, held)
            if answer is None:
                return None
            judged = answer
            if judged.ahead:
                sealed = _seal(trial, own)
    return Verdict(
        base=_base(bundle),
        weights=weights.digest(sealed) if sealed else "",
        at=trial.now,
        messages=len(to_train),
        trained_to=to_train[-1].id,
        judged_to=held[-1].id,
        judged=judged,
        vocabulary=bundle.manifest.tokenizer,
        graph=bundle.manifest.graph or "",
    )


def _judge_again(
    trial: _Trial, last: Verdict, own: Personal, unseen: Sequence[Record]
) -> Verdict | None:
    """Judge a network that was kept on what was typed since it was trained."""
    held = unseen[-MOST_HELD:]
    judged = trial.judge(own, held)
    if judged is None:
        return None
    named = last.weights
    if judged.ahead and last.graph != (trial.bundle.manifest.graph or ""):
        named = weights.digest(_seal(trial, own))  # it has become int8
    return replace(
        last,
        base=_base(trial.bundle),
        weights=named if judged.ahead else "",
        at=trial.now,
        judged_to=held[-1].id,
        judged=judged,
        rolled_back=not judged.ahead,
        vocabulary=trial.bundle.manifest.tokenizer,
        graph=trial.bundle.manifest.graph or "",
    )


def _fitting(bundle: Bundle, last: Verdict, own: Personal) -> Personal | None:
    """A network that was kept, as it may be judged against another bundle: of the same vocabulary
    and graph, or float weights that the bundle's graph takes. None: it is of no use any more.
    """
    vocabulary = last.vocabulary
    if not vocabulary and last.base == bundle.manifest.files[CHECKPOINT].sha256:
        vocabulary = bundle.manifest.tokenizer
    if vocabulary != bundle.manifest.tokenizer:
        return None
    if isinstance(own, bytes):
        return own if last.graph == bundle.manifest.graph else None
    return shipped(bundle, own) if weights.shapes_hash(own) == bundle.manifest.shapes else None


def _keep(home: Home, verdict: Verdict) -> None:
    home.keep(PERSONAL, config.to_json(verdict))
    if not verdict.serves:
        home.drop(PERSONAL_WEIGHTS)


def _seal(trial: _Trial, own: Personal) -> bytes:
    """What was written: a network, sealed under the typing log's key."""
    if isinstance(own, bytes):
        sealed = trial.log.seal(own, INT8_PURPOSE)
    else:
        sealed = trial.log.seal(weights.to_bytes(Checkpoint(own), np.float16), PURPOSE)
    trial.home.keep(PERSONAL_WEIGHTS, sealed)
    return sealed


def _is_there(home: Home, last: Verdict) -> bool:
    return weights.digest(home.kept(PERSONAL_WEIGHTS) or b"") == last.weights


def _kept(home: Home, log: TypingLog, last: Verdict) -> Personal | None:
    """The network that a verdict names, None if it is not whole."""
    sealed = home.kept(PERSONAL_WEIGHTS) or b""
    if weights.digest(sealed) != last.weights:
        return None
    try:
        if last.graph:
            return log.unseal(sealed, INT8_PURPOSE)
        return weights.from_bytes(log.unseal(sealed, PURPOSE), PURPOSE).weights
    except (TypingLogError, CheckpointError):
        return None


def _ids(records: Sequence[Record], vocabulary: Vocabulary) -> list[list[int]]:
    messages = (vocabulary.ids(text.tokenise(record.text)) for record in records)
    return [ids for ids in messages if ids]


def _is_float(bundle: Bundle) -> bool:
    return bundle.manifest.constants is None


def _base(bundle: Bundle) -> str:
    return bundle.manifest.files[CHECKPOINT if _is_float(bundle) else PREDICT].sha256
