"""SecAgg+ at the server: sums that are exact or not there, and a view that shows no single update.

Fifty devices have fourteen neighbours each, of whom nine open a secret.
"""

from collections import Counter
from dataclasses import replace
from functools import cache
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime import masking, packing, secagg
from device_runtime.errors import ConfigError
from device_runtime.neighbours import Impossible
from device_runtime.secagg import Distrust, Masked
from device_runtime.secagg_wire import Announced, Consent, Revealed, Share
from device_runtime.terms import Aggregation, who_sees
from server import secagg as server
from server.rounds import Rules
from server.secagg import Counted, Lost, Opened
from server.task import Peers, TaskSettings
from tests.toy_secagg import (
    Begun,
    Round,
    View,
    Words,
    agreeing,
    altered,
    announced,
    begun,
    key,
    layout,
    numbers,
    played,
    revealing,
    session,
    words_of,
)

DEVICES, VALUES = 50, 4096
EVERYBODY = frozenset(range(DEVICES))
LAYOUT = layout(VALUES)
SMALL = layout(12)
LOST = (5, 10, 15, 20, 25)  # of fifty devices: up to 50 %


@cache
def fifty() -> Begun:
    return begun(DEVICES, session())


@cache
def fifty_sent() -> Words:
    return words_of(fifty(), EVERYBODY, LAYOUT, EVERYBODY)


def drawn(count: int, seed: int) -> frozenset[int]:
    return frozenset(Random(seed).sample(range(DEVICES), count))


def can_be_opened(start: Begun, end: Round) -> bool:
    """Whether devices are left to be summed, and each secret that the sum needs has as many
    neighbours left as open it.
    """
    circle, counted = start.circle, end.counted
    needed = counted.masked | {
        place
        for place in counted.shared - counted.masked
        if counted.masked.intersection(circle.around(place))
    }
    return len(counted.masked) >= circle.session.terms.fewest and all(
        len(set(circle.around(place)) & set(end.revealed)) >= circle.graph.threshold
        for place in needed
    )


def assert_exact_or_abandoned(start: Begun, end: Round, values: int = VALUES) -> None:
    """The sum is exact where it can be opened; else there is none. Nothing else is to be seen."""
    view = View(
        start.circle, end.counted.shared, frozenset(end.words), end.revealed, adversaries={}
    )
    if can_be_opened(start, end):
        exact = sum(numbers(place, values) for place in end.counted.masked)
        assert end.total.tolist() == exact.tolist()
        assert view.sums == [end.counted.masked]
    else:
        assert isinstance(end.opened, Lost)
        assert end.total is None
        assert view.sums == []


@pytest.mark.parametrize("count", (0, *LOST))
def test_devices_that_send_no_keys_are_not_missed(count):
    """Those who are left stand in a smaller circle: half of the fifty have 6 neighbours each."""
    start = fifty() if not count else begun(DEVICES - count, session(), seed=count)
    end = played(start, LAYOUT, {})
    assert_exact_or_abandoned(start, end)
    assert len(end.counted.masked) == DEVICES - count
    assert end.total is not None


@pytest.mark.parametrize("count", LOST)
@pytest.mark.parametrize("step", ["shares", "words", "consent", "reveal"])
def test_a_sum_is_exact_above_the_threshold_and_abandoned_below_it(step, count):
    start = fifty()
    end = played(start, LAYOUT, {step: drawn(count, seed=count)}, fifty_sent())
    assert_exact_or_abandoned(start, end)
    if count <= 5:  # a tenth is what the terms foresee
        assert end.total is not None
        assert len(end.counted.masked) == DEVICES - (count if step in ("shares", "words") else 0)
    if count == 25:  # of fourteen neighbours seven stay
        assert end.total is None


def test_devices_may_be_lost_at_every_step_together():
    start = fifty()
    lost = {"shares": {1}, "words": {2, 20}, "consent": {3}, "reveal": {4, 40}}
    end = played(start, LAYOUT, lost)
    assert_exact_or_abandoned(start, end)
    assert end.counted.masked == EVERYBODY - {1, 2, 20}
    assert end.total is not None


@cache
def sixteen() -> Begun:
    return begun(16, session(fewest=6))  # 4 neighbours, 3 of them open a secret


@settings(max_examples=25, deadline=None)
@given(
    lost=st.fixed_dictionaries(
        dict.fromkeys(
            ["shares", "words", "consent", "reveal"], st.frozensets(st.integers(0, 15), max_size=4)
        )
    )
)
def test_whoever_vanishes_whenever_the_sum_is_exact_or_not_there(lost):
    start = sixteen()
    end = played(start, SMALL, lost)
    assert_exact_or_abandoned(start, end, SMALL.count)


# --- what a server sees of one device


def chi_square(words: np.ndarray) -> float:
    """How far the bytes of words are from uniform: about normal(0, 1) if they are."""
    counts = np.bincount(np.frombuffer(packing.to_bytes(words, LAYOUT), np.uint8), minlength=256)
    expected = counts.sum() / 256
    return float((np.square(counts - expected).sum() / expected - 255) / np.sqrt(2 * 255))


def without(words: np.ndarray, place: int, shared: dict[int, bytes]) -> np.ndarray:
    """The words of the device at a place without the streams that it shares with others."""
    added = masking.mask_sum([seed for each, seed in shared.items() if place < each], LAYOUT)
    taken = masking.mask_sum([seed for each, seed in shared.items() if place > each], LAYOUT)
    return packing.add(packing.subtract(words, added, LAYOUT), taken, LAYOUT)


def test_what_is_left_of_one_device_s_words_is_uniform():
    """Everything that the server can put together is taken off: of each counted device its own
    stream and those it shares with whom has dropped out, of each that is not counted the latter.
    """
    start = fifty()
    circle, session_ = start.circle, start.circle.session
    end = played(start, LAYOUT, {"words": drawn(5, 1)})
    assert end.total is not None
    scores = []
    for place, words in end.words.items():
        state = start.sharing[place]
        own = secagg.own_seed(session_, circle.keys[place].public_key, state.seed)
        left = packing.subtract(words, masking.mask_sum([own], LAYOUT), LAYOUT)
        shared = {
            each: secagg.shared_seed(session_, state.before.mask_key, circle.keys[each].mask_key)
            for each in circle.around(place)
        }
        gone = set(shared) - end.counted.masked
        left = without(left, place, {each: shared[each] for each in gone})
        scores.append(chi_square(left))
        # the others' words hide it, and nothing else: who knew those too would see the numbers
        left = without(left, place, {each: shared[each] for each in set(shared) - gone})
        assert packing.unpack(left, LAYOUT).tolist() == numbers(place, VALUES).tolist()
        assert chi_square(left) > 50
    # the largest of 45 draws, beside one of a normal distribution that 2 in a million exceed
    assert max(scores) < 6
    assert abs(np.mean(scores)) < 1


def test_whoever_has_both_secrets_of_a_device_sees_its_numbers():
    """So the tests that look for it would see it."""
    start = fifty()
    end = played(start, LAYOUT, {})
    both = {
        giver: replace(
            each,
            keys=(
                *(Share(place, "00" * 33) for place in start.circle.around(giver) if place == 7),
            ),
        )
        for giver, each in end.revealed.items()
    }
    view = View(start.circle, EVERYBODY, EVERYBODY, both, adversaries={})
    assert sorted(map(len, view.sums)) == [1, 49]


# --- a server that lies

THIRTY = frozenset(range(30))


@cache
def thirty() -> Begun:
    return begun(30, session())  # 8 neighbours, 5 of them open a secret; one device in twenty lies


@cache
def thirty_sent():
    return words_of(thirty(), THIRTY, SMALL, THIRTY)


def lied(told, adversaries) -> View:
    """What a server sees that tells the device at each place that the set told(place) is counted,
    shows it every consent that fits, and has what the adversaries know, who sign anything.
    """
    start, sent = thirty(), thirty_sent()
    agreed = agreeing(start.circle, sent.masked, told)
    honest = {place: state for place, (state, _) in agreed.items() if place not in adversaries}
    consents = {place: {state.sets.name: agreed[place][1]} for place, state in honest.items()}
    for place in adversaries:
        consents[place] = {
            state.sets.name: Consent(
                sent.masked[place]
                .key.sign(start.circle.session.consent_message(state.roster, state.sets))
                .hex()
            )
            for state in honest.values()
        }
    return View(
        start.circle,
        THIRTY,
        THIRTY,
        revealing(start.circle, honest, consents),
        {place: sent.masked[place] for place in adversaries},
    )


def assert_nobody_is_singled_out(view: View) -> None:
    """At most one sum is learned, of no fewer than the terms say; no device's secrets are both."""
    both = view.opened("seeds") & view.opened("keys")
    assert both == set(view.adversaries)
    assert len(view.sums) <= 1
    for each in view.sums:
        assert len(each) + len(view.adversaries) >= 10
    for place, revealed in view.revealed.items():
        seeds, keys = (
            {each.place for each in shares} for shares in (revealed.seeds, revealed.keys)
        )
        assert not seeds & keys, place


def test_a_server_that_tells_everybody_the_same_learns_the_sum_with_an_adversary_s_help_too():
    view = lied(lambda _: THIRTY, {4})
    assert view.sums == [THIRTY - {4}]


BESIDE_0 = frozenset({26, 27, 28, 29, 1, 2, 3, 4})
LIES = {
    # 0 is counted to those on one side of it, and not to those on the other
    "a device in two lists": lambda place: THIRTY if place <= 15 else THIRTY - {0},
    "a device is counted only by its neighbours": lambda place: (
        THIRTY if place in BESIDE_0 | {0} else THIRTY - {0}
    ),
    "a device is counted by itself alone": lambda place: THIRTY if place == 0 else THIRTY - {0},
    "a device is alone with the fewest there may be": lambda _: frozenset({0, *range(10, 19)}),
    "a device is alone with its neighbours": lambda _: BESIDE_0 | {0, 5},
    "the neighbours are told that all others are gone": lambda place: (
        BESIDE_0 | {0, 5} if place in BESIDE_0 | {0, 5} else THIRTY - {0}
    ),
    "two halves": lambda place: frozenset(range(15) if place < 15 else range(15, 30)),
    "every other one": lambda place: frozenset(range(place % 2, 30, 2)),
    "two sets that differ by one, to every other one": lambda place: THIRTY - {place % 2},
    "everybody hears that its next is gone": lambda place: THIRTY - {(place + 1) % 30},
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("adversary", [1, 14, 29])
def test_a_server_that_tells_devices_different_sets_singles_nobody_out(lie, adversary):
    assert_nobody_is_singled_out(lied(LIES[lie], {adversary}))


@settings(max_examples=25, deadline=None)
@given(data=st.data(), adversary=st.integers(0, 29))
def test_whatever_sets_a_server_announces_it_singles_nobody_out(data, adversary):
    left_out = st.frozensets(st.integers(0, 29), max_size=8)
    worlds = data.draw(st.lists(left_out.map(THIRTY.difference), min_size=1, max_size=3))
    choice = data.draw(st.lists(st.sampled_from(worlds), min_size=30, max_size=30))
    assert_nobody_is_singled_out(lied(choice.__getitem__, {adversary}))


# --- messages that may not be taken


def consent_of(state: Masked, told: Announced) -> Consent:
    return secagg.agree(state, told)[1]


def keys_of(name: int, seed: int = 1):
    return secagg.advertise(session(), key(name), Random(seed).randbytes)[1]


def test_keys_are_taken_of_their_own_device_once():
    first, second = keys_of(1, 1), keys_of(2, 2)
    assert server.why_not_keys(session(), second.public_key, second, [first]) is None
    assert server.why_not_keys(session(), first.public_key, second, []) is Distrust.BAD_SIGNATURE
    copied = keys_of(2, 1)  # another device advertises the same two keys
    assert (
        server.why_not_keys(session(), copied.public_key, copied, [first]) is Distrust.REPLAYED_KEY
    )
    twice = replace(second, box_key=second.mask_key)
    assert server.why_not_keys(session(), second.public_key, twice, []) is Distrust.REPLAYED_KEY
    forged = replace(second, mask_key=keys_of(3, 3).mask_key)
    assert server.why_not_keys(session(), second.public_key, forged, []) is Distrust.BAD_SIGNATURE


def test_a_circle_needs_as_many_devices_as_the_terms_say_and_as_hide_each_other():
    keys = [keys_of(name, name) for name in range(1, 13)]
    order = "0d" * 32
    assert server.arranged(session(fewest=13), keys, order) is Impossible.TOO_FEW_DEVICES
    assert server.arranged(session(drop_out=0.9), keys, order) is Impossible.TOO_MANY_LOST
    circle = server.arranged(session(), keys, order)
    assert (circle.graph.degree, circle.graph.threshold) == (4, 3)
    assert server.arranged(session(), keys[::-1], order) == circle
    assert server.arranged(session(), keys, "0e" * 32).keys != circle.keys


def test_a_task_whose_devices_cannot_hide_each_other_is_refused_when_it_is_made():
    rules = Rules(report_goal=5, over_selection=1.0)
    TaskSettings(aggregation=Aggregation.SECAGG, rules=rules)
    with pytest.raises(ConfigError, match=r"task\.secagg: .* rounds of 5 devices .*so few devices"):
        TaskSettings(aggregation=Aggregation.SECAGG, rules=rules, secagg=Peers(0.05, 0.33))
    with pytest.raises(ConfigError, match="leave too few honest devices"):
        TaskSettings(aggregation=Aggregation.SECAGG, secagg=Peers(0.5, 0.5))


def test_the_terms_say_how_sure_it_is_that_nobody_sees_an_update():
    said = who_sees(session().terms)
    assert "5 % of the devices are the server's own, even if it lies to them" in said
    assert "of 108 devices each has 26 neighbours, 16 of whom can open its secrets" in said
    assert said.endswith("the chance of an exposed update is 0, that of a lost sum 0")


def test_shares_are_taken_with_a_box_for_each_neighbour_and_no_more():
    start = thirty()
    whole = start.shares[0]
    assert server.why_not_shares(start.circle, 0, whole) is None
    for boxes in (whole.boxes[1:], whole.boxes[::-1], (*whole.boxes, whole.boxes[0])):
        wrong = replace(whole, boxes=boxes)
        assert server.why_not_shares(start.circle, 0, wrong) is Distrust.FOREIGN_SHARES


def test_a_consent_is_taken_of_who_is_counted_to_what_was_announced():
    start, sent = thirty(), thirty_sent()
    counted = Counted(THIRTY, THIRTY - {9})
    right = consent_of(sent.masked[0], server.announced(start.circle, counted))
    other = consent_of(sent.masked[0], announced(start.circle, THIRTY))
    assert server.why_not_consent(start.circle, 0, counted, right) is None
    assert server.why_not_consent(start.circle, 0, counted, other) is Distrust.DISAGREEMENT
    assert server.why_not_consent(start.circle, 9, counted, right) is Distrust.CONTRADICTION


@cache
def thirty_played() -> Round:
    return played(thirty(), SMALL, {"words": {3, 12}})


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda one: replace(one, seeds=one.seeds[1:]), Distrust.FOREIGN_SHARES),
        (lambda one: replace(one, seeds=(*one.seeds, one.seeds[0])), Distrust.FOREIGN_SHARES),
        (
            lambda one: replace(one, keys=(*one.keys, one.seeds[0]), seeds=one.seeds[1:]),
            Distrust.CONTRADICTION,
        ),
        (
            lambda one: replace(one, seeds=(*one.seeds, *one.keys), keys=()),
            Distrust.CONTRADICTION,
        ),
        (
            lambda one: replace(one, seeds=(Share(1, "ff" * 33), *one.seeds[1:])),
            Distrust.WRONG_SHARE,
        ),
    ],
    ids=["one is missing", "one twice", "of who is counted", "of who is not", "no number"],
)
def test_shares_of_the_wrong_secrets_are_not_taken(spoil, why):
    start, end = thirty(), thirty_played()
    whole = end.revealed[0]
    assert [each.place for each in whole.seeds] == [1, 2, 4, 26, 27, 28, 29]
    assert [each.place for each in whole.keys] == [3]
    assert server.why_not_revealed(start.circle, 0, end.counted, whole) is None
    assert server.why_not_revealed(start.circle, 0, end.counted, spoil(whole)) is why


def test_who_is_not_counted_has_nothing_to_reveal():
    start, end = thirty(), thirty_played()
    answer = server.why_not_revealed(start.circle, 3, end.counted, end.revealed[0])
    assert answer is Distrust.FOREIGN_SHARES


def opened(revealed: dict[int, Revealed]) -> Opened | Lost:
    start, end = thirty(), thirty_played()
    commitments = {place: each.commitment for place, each in start.shares.items()}
    return server.mask_sum(start.circle, end.counted, commitments, revealed, SMALL)


def wrong_of(giver: int, revealed: dict[int, Revealed]) -> dict[int, Revealed]:
    """All shares that one device gives are wrong."""
    one = revealed[giver]
    wrong = Revealed(tuple(map(altered, one.seeds)), tuple(map(altered, one.keys)))
    return revealed | {giver: wrong}


def test_a_device_s_wrong_shares_are_found_and_named_and_the_sum_is_exact():
    """Of eight shares five open a secret: one wrong one is put right."""
    right, end = opened(thirty_played().revealed), thirty_played()
    answer = opened(wrong_of(0, end.revealed))
    assert (answer.mask == right.mask).all()
    assert right.wrong == ()
    # 3 and 12 revealed nothing, so that some secrets have seven shares; still one may be wrong
    assert set(answer.wrong) <= {(0, place) for place in (1, 2, 3, 4, 26, 27, 28, 29)}
    assert len(answer.wrong) >= 4


def test_with_too_many_wrong_shares_the_sum_is_not_opened_and_those_concerned_are_named():
    revealed = thirty_played().revealed
    for giver in (26, 27, 28, 29):
        revealed = wrong_of(giver, revealed)
    answer = opened(revealed)
    assert isinstance(answer, Lost)
    assert 0 in answer.places
    assert "too few shares" in answer.reason


def test_a_seed_that_its_device_did_not_commit_to_is_not_taken():
    start, end = thirty(), thirty_played()
    commitments = {place: each.commitment for place, each in start.shares.items()}
    commitments[7] = commitments[8]
    answer = server.mask_sum(start.circle, end.counted, commitments, end.revealed, SMALL)
    assert answer == Lost((7,))


def test_what_is_lacking_is_known_before_shares_are_put_together():
    start, end = thirty(), thirty_played()
    assert server.lacking(start.circle, end.counted, end.revealed) == frozenset()
    # 0 has four of its eight neighbours left
    left = set(end.revealed) - {26, 27, 28, 29}
    assert 0 in server.lacking(start.circle, end.counted, left)
    lost = opened({place: end.revealed[place] for place in left})
    assert isinstance(lost, Lost)
    assert set(lost.places) == server.lacking(start.circle, end.counted, left)


def test_a_share_in_each_box_is_for_one_neighbour_only():
    """So that nobody can use what it gets as another's."""
    boxes = Counter(box.box for each in thirty().shares.values() for box in each.boxes)
    assert max(boxes.values()) == 1
