"""The personal model: weights fine-tuned to one user. They never leave the device, and are served
only while they beat everybody's.

A user's newest messages are held back from training; the personal weights are judged on them,
message by message, against the bundle's. They are judged again on what is typed later, and rolled
back once they are ahead no more. Verdicts hold numbers only; the weights lie sealed under the
typing log's key, so that a wipe takes them with it. Source: Wang et al. 2019, arXiv:1910.10252
(personalisation and its gate by held-back data).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from device_runtime import config, examples, text, weights
from device_runtime.bundle import CHECKPOINT, Bundle
from device_runtime.errors import CheckpointError, ConfigError, TypingLogError
from device_runtime.finetune import finetune
from device_runtime.home import OWN_WORDS, PERSONAL, PERSONAL_WEIGHTS, Home
from device_runtime.interpreter import Graph
from device_runtime.metrics import top_words
from device_runtime.scoring import log_probs
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
PURPOSE = "personal weights"


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

    base: str  # SHA-256 of the checkpoint the weights grew from
    weights: str  # SHA-256 of the sealed weights; empty when they were thrown away
    at: float  # when it was judged last
    messages: int  # trained on
    trained_to: int  # number of the newest message trained on
    judged_to: int  # number of the newest message judged on
    judged: Judged
    rolled_back: bool = False  # they were served once, and are no more

    @property
    def serves(self) -> bool:
        """Whether the weights were kept, to be served."""
        return self.weights != ""


@dataclass(frozen=True)
class _Trial:
    """What a verdict is reached on, and when."""

    home: Home
    bundle: Bundle
    log: TypingLog
    records: Sequence[Record]  # oldest first
    now: float  # seconds of the device's clock
    may_continue: Callable[[], bool]

    def judge(self, personal: Weights, held: Sequence[Record]) -> Judged | None:
        """These weights against everybody's; None if it had to stop."""
        everybodys, ids = self.bundle.checkpoint.weights, _ids(held, self.bundle.vocabulary)
        return judge(self.bundle.train_graph, everybodys, personal, ids, self.may_continue)


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


def judge(
    graph: bytes,
    everybodys: Weights,
    personal: Weights,
    messages: Sequence[Sequence[int]],
    may_continue: Callable[[], bool] = lambda: True,
) -> Judged | None:
    """Compare two sets of weights on messages (token ids), word by word as they would be typed;
    None if it had to stop.
    """
    step = Graph(graph)
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
        ours, theirs = (log_probs(step, which, ids) for which in (personal, everybodys))
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


def served(home: Home, bundle: Bundle) -> Weights | None:
    """The personal weights, if they may be served with this bundle: else it serves everybody's."""
    last = verdict(home)
    if last is None or not last.serves or last.base != _base(bundle):
        return None
    with home.typing_log() as log:
        return _weights(home, log, last)


def update(
    home: Home, bundle: Bundle, now: float, may_continue: Callable[[], bool]
) -> Verdict | None:
    """Train or judge anew if enough was typed since; the new verdict, or None if there was nothing
    to do or it had to stop.

    Weights are written before the verdict that names them by their hash, so a crash between the two
    serves everybody's.
    """
    last = verdict(home)
    if last is not None and last.base != _base(bundle):
        last = None  # another bundle: what grew from the old one is no use
    with home.typing_log() as log:
        records = sorted(log.records(log.count()), key=lambda record: record.id)
        if len(records) < LEAST_MESSAGES:
            return None
        trial = _Trial(home, bundle, log, records, now, may_continue)
        newer = [record for record in records if last is None or record.id > last.judged_to]
        if last is None or sum(
            record.id > last.trained_to for record in records
        ) >= NEW_MESSAGES + len(split(records)[1]):
            latest = _try(trial)
        elif last.serves and len(newer) >= JUDGED_AGAIN:
            latest = _judge_again(trial, last)
        else:
            return None
    if latest is not None:
        _keep(home, latest, last)
    return latest


def _try(trial: _Trial) -> Verdict | None:
    """Train anew, judge, and keep the weights if they are ahead."""
    home, bundle = trial.home, trial.bundle
    to_train, held = split(trial.records)
    start, rng = bundle.checkpoint.weights, np.random.default_rng(home.config.seed or 0)
    messages, plan = _ids(to_train, bundle.vocabulary), own_plan(bundle.plan)
    own = train(bundle.train_graph, start, messages, plan, rng, trial.may_continue)
    if own is None and not trial.may_continue():
        return None
    judged, sealed = Judged(), b""
    if own is not None:
        # as they are kept
        own = {name: array.astype(np.float16).astype(np.float32) for name, array in own.items()}
        answer = trial.judge(own, held)
        if answer is None:
            return None
        judged = answer
        if judged.ahead:
            sealed = trial.log.seal(weights.to_bytes(Checkpoint(own), np.float16), PURPOSE)
            home.keep(PERSONAL_WEIGHTS, sealed)
    return Verdict(
        base=_base(bundle),
        weights=weights.digest(sealed) if sealed else "",
        at=trial.now,
        messages=len(to_train),
        trained_to=to_train[-1].id,
        judged_to=held[-1].id,
        judged=judged,
    )


def _judge_again(trial: _Trial, last: Verdict) -> Verdict | None:
    """Judge the weights kept on what was typed since they were trained."""
    held = [record for record in trial.records if record.id > last.trained_to][-MOST_HELD:]
    own = _weights(trial.home, trial.log, last)
    judged = Judged() if own is None else trial.judge(own, held)
    if judged is None:
        return None
    return replace(
        last,
        weights=last.weights if judged.ahead else "",
        at=trial.now,
        judged_to=held[-1].id,
        judged=judged,
        rolled_back=not judged.ahead,
    )


def _keep(home: Home, verdict: Verdict, last: Verdict | None) -> None:
    home.keep(PERSONAL, config.to_json(verdict))
    if not verdict.serves:
        home.drop(PERSONAL_WEIGHTS)
    if verdict.serves or (last is not None and last.serves):
        home.drop(OWN_WORDS)  # the mix was judged against other weights: it has to win anew


def _weights(home: Home, log: TypingLog, last: Verdict) -> Weights | None:
    sealed = home.kept(PERSONAL_WEIGHTS) or b""
    if weights.digest(sealed) != last.weights:
        return None
    try:
        return weights.from_bytes(log.unseal(sealed, PURPOSE), PURPOSE).weights
    except (TypingLogError, CheckpointError):
        return None


def _ids(records: Sequence[Record], vocabulary: Vocabulary) -> list[list[int]]:
    messages = (vocabulary.ids(text.tokenise(record.text)) for record in records)
    return [ids for ids in messages if ids]


def _base(bundle: Bundle) -> str:
    return bundle.manifest.files[CHECKPOINT].sha256
