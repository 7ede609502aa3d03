"""The user's own weights: served to whom they help, rolled back else, and gone with a wipe."""

from dataclasses import replace

import numpy as np
import pytest

from device_runtime import config, patch, personal
from device_runtime.bundle import CHECKPOINT, PREDICT, TOKENIZER, Bundle, describe
from device_runtime.errors import CheckpointError
from device_runtime.home import PERSONAL, PERSONAL_WEIGHTS, DeviceConfig, Home
from device_runtime.personal import Judged, Served
from device_runtime.predictor import Predictor
from device_runtime.reader import Reader
from device_runtime.weights import Checkpoint, Weights, digest, to_bytes
from model import vocabulary

HABIT = ["you can hear her tomorrow", "we like what they said", "i want to call my dog"]
OTHER = ["they do not know the new house", "you will see it"]


@pytest.fixture(params=["int8", "lean", "float"])
def bundle(request, tiny_bundle) -> Bundle:
    """The tiny bundle as it is, as an upgrade by a difference leaves it, without a checkpoint, or
    as an earlier version packaged it, without constants.
    """
    if request.param == "float":
        return without_constants(tiny_bundle)
    held = {name: tiny_bundle.content[name] for name in tiny_bundle.content if name != CHECKPOINT}
    return replace(tiny_bundle, content=held) if request.param == "lean" else tiny_bundle


def without_constants(bundle: Bundle) -> Bundle:
    manifest = replace(bundle.manifest, format=2, constants=None, graph=None)
    return replace(bundle, manifest=manifest, encoded=manifest.encoded())


@pytest.fixture
def phone(tmp_path, tiny_bundle, trusted):
    home = Home.create(
        tmp_path / "phone", DeviceConfig(tuple(trusted), str(tiny_bundle.path), seed=1)
    )

    def types(messages: list[str], times: int) -> Home:
        with home.typing_log() as log:
            log.append_many(
                [(text, float(log.count() + i)) for i, text in enumerate(messages * times)]
            )
        return home

    return types


def update(home, bundle, may_continue=lambda: True):
    return personal.update(home, bundle, 1000.0, may_continue)


def test_the_newest_fifth_is_held_back():
    trained, held = personal.split(list(range(50)))
    assert (len(trained), held) == (40, list(range(40, 50)))
    assert len(personal.split(list(range(5000)))[1]) == personal.MOST_HELD


def test_what_is_surely_ahead_is_served():
    assert Judged(words=50, nats=9.0, error=3.0, hits=0).ahead
    assert not Judged(words=50, nats=1.9, error=0.1, hits=5).ahead  # too little
    assert not Judged(words=50, nats=9.0, error=9.5, hits=5).ahead  # by chance
    assert not Judged(words=50, nats=9.0, error=3.0, hits=-1).ahead  # fewer first suggestions right
    assert not Judged().ahead


def test_a_user_with_habits_is_served_weights_that_are_better_for_them(phone, bundle):
    home = phone(HABIT, 20)
    verdict = update(home, bundle)
    assert verdict.serves
    assert verdict.messages == 48
    assert verdict.judged.nats > personal.MARGIN
    own = personal.served(home, bundle).network
    mine, everybodys = (Predictor(bundle, weights) for weights in (own, None))
    chance = [
        {s.word: s.probability for s in each.suggest("you can", k=40)}["hear"]
        for each in (mine, everybodys)
    ]
    assert chance[0] > chance[1]


def test_a_user_who_typed_little_is_not_tried(phone, bundle):
    home = phone(HABIT, 13)
    assert update(home, bundle) is None
    assert personal.verdict(home) is None


def test_weights_that_do_not_help_are_thrown_away(phone, bundle):
    home = phone(HABIT, 20)
    phone(OTHER, 8)  # what is held back is nothing like what was typed before
    verdict = update(home, bundle)
    assert not verdict.serves
    assert not verdict.judged.ahead
    assert home.kept(PERSONAL_WEIGHTS) is None
    assert personal.served(home, bundle) == Served()


def test_nothing_is_done_again_until_enough_is_typed_and_then_what_falls_behind_is_rolled_back(
    phone, bundle
):
    home = phone(HABIT, 20)
    first = update(home, bundle)
    assert update(home, bundle) is None
    spoil(home, first, bundle)
    phone(OTHER, 5)
    again = update(home, bundle)
    assert (again.serves, again.rolled_back, again.trained_to) == (False, True, first.trained_to)
    assert again.judged.nats < personal.MARGIN
    assert home.kept(PERSONAL_WEIGHTS) is None
    assert personal.served(home, bundle) == Served()


def spoil(home: Home, verdict: personal.Verdict, bundle) -> None:
    """A network that was served once, and by now is worse than everybody's."""
    weights = bundle.weights
    worse = {**weights, "output_bias": weights["output_bias"][::-1].copy()}
    keep(home, verdict, bundle, personal.shipped(bundle, worse))


def keep(home: Home, verdict: personal.Verdict, bundle: Bundle, own: bytes | Weights) -> None:
    """Another network in the place of the one that a verdict names."""
    with home.typing_log() as log:
        if isinstance(own, bytes):
            sealed = log.seal(own, personal.INT8_PURPOSE)
        else:
            sealed = log.seal(to_bytes(Checkpoint(own), np.float16), personal.PURPOSE)
    home.keep(PERSONAL_WEIGHTS, sealed)
    home.keep(PERSONAL, config.to_json(replace(verdict, weights=digest(sealed))))


def test_after_many_new_messages_it_is_tried_anew(phone, bundle):
    home = phone(HABIT, 20)
    first = update(home, bundle)
    phone(HABIT, 10)
    second = update(home, bundle)
    assert second.messages == 72
    assert second.weights != first.weights


def test_work_that_has_to_stop_changes_nothing(phone, bundle):
    home = phone(HABIT, 20)
    for held in (0, 3, 20, 40):
        looks = iter([True] * held)
        assert update(home, bundle, lambda looks=looks: next(looks, False)) is None
        assert personal.verdict(home) is None
        assert home.kept(PERSONAL_WEIGHTS) is None


def test_the_weights_lie_sealed_and_damaged_ones_are_not_served(phone, bundle):
    home = phone(HABIT, 20)
    update(home, bundle)
    sealed = home.kept(PERSONAL_WEIGHTS)
    assert b"embedding" not in sealed
    home.keep(PERSONAL_WEIGHTS, sealed[:-1] + bytes([sealed[-1] ^ 1]))
    assert personal.served(home, bundle) == Served()
    home.drop(PERSONAL_WEIGHTS)
    assert personal.served(home, bundle) == Served()


def test_a_wipe_takes_them_and_they_serve_no_other_bundle(phone, bundle):
    home = phone(HABIT, 20)
    update(home, bundle)
    assert personal.served(home, release(bundle, likelier(bundle, "dog"))) == Served()
    home.wipe()
    assert personal.verdict(home) is None
    assert personal.served(home, bundle) == Served()


def test_judging_compares_word_by_word(bundle, tiny_checkpoint):
    weights = bundle.weights
    ids = [bundle.vocabulary.ids(text.split()) for text in HABIT]
    theirs = Reader(bundle.train_graph, weights)
    same = personal.judge(theirs, theirs, ids)
    assert (same.words, same.nats, same.hits, same.error) == (5 + 5 + 6, 0.0, 0, 0.0)
    likelier = {
        **weights,
        "output_bias": weights["output_bias"]
        + np.eye(len(weights["output_bias"]), dtype=np.float32)[ids[0][0]],
    }
    more = personal.judge(theirs, Reader(bundle.train_graph, likelier), [ids[0][:1]])
    assert (more.words, more.error) == (1, more.nats)
    assert 0 < more.nats < 1


# --- another release
# ------------------------------------------------------------------------------------------------


def likelier(bundle: Bundle, *words: str, by: float = 0.5) -> Weights:
    """The bundle's weights, with some words more likely everywhere."""
    bias = bundle.weights["output_bias"].copy()
    bias[[bundle.vocabulary.id(word) for word in words]] += by
    return {**bundle.weights, "output_bias": bias}


def release(bundle: Bundle, weights: Weights, tokenizer: bytes = b"") -> Bundle:
    """The next release of a bundle's maker: other weights, and another vocabulary if given."""
    graph = personal.shipped(bundle, weights)
    content = {
        **bundle.content,
        CHECKPOINT: to_bytes(Checkpoint(weights), np.float16),
        TOKENIZER: tokenizer or bundle.content[TOKENIZER],
        PREDICT: graph if isinstance(graph, bytes) else bundle.predict_graph,
    }
    manifest = replace(
        bundle.manifest,
        release=bundle.manifest.release + 1,
        files=describe(content),
        tokenizer=digest(content[TOKENIZER]),
    )
    return Bundle(bundle.path, manifest, content, manifest.encoded(), bundle.signature)


def test_on_a_release_that_is_not_better_for_the_user_the_same_network_is_served_once_judged(
    phone, bundle
):
    home, newer = phone(HABIT, 20), release(bundle, likelier(bundle, "house"))
    first = update(home, bundle)
    assert first.serves
    assert personal.served(home, newer) == Served()  # it was never judged against this one
    again = update(home, newer)
    assert (again.weights, again.trained_to) == (first.weights, first.trained_to)
    assert again.judged.ahead and again.judged != first.judged
    assert personal.served(home, newer).name == first.weights
    assert personal.served(home, bundle) == Served()
    assert update(home, newer) is None


def test_on_a_release_that_knows_the_users_habit_it_is_trained_anew_from_that(phone, bundle):
    home = phone(HABIT, 20)
    first = update(home, bundle)
    words = {word for message in HABIT for word in message.split()}
    better = release(bundle, likelier(bundle, *words, by=4.0))
    anew = update(home, better)
    assert anew.weights != first.weights
    assert personal.is_of(anew, better)
    if anew.serves:
        assert personal.served(home, better).name == anew.weights


def test_what_grew_from_another_vocabulary_is_never_judged_and_trained_anew(phone, bundle):
    home = phone(HABIT, 20)
    first = update(home, bundle)
    words = [message.split() for message in HABIT + OTHER]
    filled = next(
        other
        for size in range(1, 40)
        if len(other := vocabulary.build([*words, [a + b for a in "abcd" for b in "wxyz"]], size))
        == len(bundle.vocabulary)
    )
    other = release(bundle, bundle.weights, filled.model)
    assert personal.served(home, other) == Served()
    anew = update(home, other)
    assert anew.weights != first.weights
    assert anew.vocabulary == other.manifest.tokenizer


def test_after_a_withdrawal_it_is_judged_against_the_release_before_again(phone, bundle):
    home, newer = phone(HABIT, 20), release(bundle, likelier(bundle, "house"))
    for current in (bundle, newer, bundle):
        assert personal.served(home, current) == Served()
        assert update(home, current).serves
        assert personal.served(home, current) != Served()


def test_what_was_forgotten_meanwhile_is_no_reason_to_serve_what_was_not_judged(phone, bundle):
    home, newer = phone(HABIT, 20), release(bundle, likelier(bundle, "house"))
    first = update(home, bundle)
    with home.typing_log() as log:  # none is left that it was not trained on
        log.forget_since(float(first.trained_to))
    anew = update(home, newer)
    assert anew.trained_to < first.trained_to
    with home.typing_log() as log:
        log.forget_since(30.0)
    assert update(home, bundle) is None
    assert personal.served(home, bundle) == Served()


def test_on_another_release_work_that_has_to_stop_serves_everybodys(phone, bundle):
    home, newer = phone(HABIT, 20), release(bundle, likelier(bundle, "house"))
    first = update(home, bundle)
    for looks in (0, 1, 5, 11):
        left = iter([True] * looks)
        assert update(home, newer, lambda left=left: next(left, False)) is None
        assert personal.served(home, newer) == Served()
        assert personal.verdict(home) == first


def test_a_network_that_is_gone_is_trained_anew(phone, bundle):
    home = phone(HABIT, 20)
    first = update(home, bundle)
    home.keep(PERSONAL_WEIGHTS, b"half of")
    anew = update(home, bundle)
    assert anew.serves and anew.weights != first.weights
    assert personal.served(home, bundle).name == anew.weights


# --- how it is kept
# ------------------------------------------------------------------------------------------------


def of_version_1(verdict: personal.Verdict, bundle: Bundle) -> bytes:
    """A verdict on float weights as the version wrote it that kept no others."""
    table = vars(verdict) | {"base": bundle.manifest.files[CHECKPOINT].sha256}
    del table["vocabulary"], table["graph"]
    return config.to_json(table)


def test_it_is_kept_as_the_int8_file_of_its_graph_where_the_bundle_can_be_patched(phone, bundle):
    home = phone(HABIT, 20)
    verdict = update(home, bundle)
    network = personal.served(home, bundle).network
    assert verdict.graph == (bundle.manifest.graph or "")
    assert isinstance(network, dict if bundle.manifest.constants is None else bytes)
    if isinstance(network, bytes):
        assert len(network) == len(bundle.predict_graph)
        assert patch.graph_hash(network, bundle.manifest.constants) == bundle.manifest.graph


def test_float_weights_of_an_earlier_version_become_int8_when_they_are_judged(phone, tiny_bundle):
    home, before = phone(HABIT, 20), without_constants(tiny_bundle)
    first = update(home, before)
    weights = personal.served(home, before).network
    home.keep(PERSONAL, of_version_1(first, before))
    assert personal.served(home, before) == Served(name=first.weights)
    again = update(home, tiny_bundle)  # the same checkpoint, in a bundle that can be patched
    assert again.trained_to == first.trained_to
    assert personal.served(home, tiny_bundle).network == personal.shipped(tiny_bundle, weights)


def test_float_weights_of_an_earlier_version_and_an_unknown_vocabulary_are_trained_anew(
    phone, tiny_bundle
):
    home, before = phone(HABIT, 20), without_constants(tiny_bundle)
    first = update(home, before)
    home.keep(PERSONAL, of_version_1(first, before))
    newer = release(tiny_bundle, likelier(tiny_bundle, "house"))
    assert personal.served(home, newer) == Served()
    anew = update(home, newer)
    assert anew.weights != first.weights
    assert isinstance(personal.served(home, newer).network, bytes)


def test_what_grew_in_another_graph_is_never_judged_and_trained_anew(phone, tiny_bundle):
    home = phone(HABIT, 20)
    first = update(home, tiny_bundle)
    newer = release(tiny_bundle, likelier(tiny_bundle, "house"))
    other = replace(newer, manifest=replace(newer.manifest, graph="cd" * 32))
    anew = update(home, other)
    assert anew.weights != first.weights
    assert anew.graph == "cd" * 32


def test_weights_that_are_no_numbers_are_not_shipped(bundle):
    endless = likelier(bundle, "dog", by=1e6)  # more than float16 holds
    with pytest.raises(CheckpointError, match="not finite"):
        personal.shipped(bundle, endless)
