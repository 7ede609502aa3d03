"""SecAgg+ on a device: what each state sends, what it refuses by name, what it has forgotten."""

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime import config, packing, secagg, signing, weights
from device_runtime.causes import Cause
from device_runtime.errors import ConfigError
from device_runtime.secagg import Distrust, Masked, Refused
from device_runtime.secagg_wire import (
    Advertised,
    Announced,
    Box,
    Consent,
    Consents,
    Inbox,
    Neighbour,
    NeighbourConsent,
    Revealed,
    Roster,
    Shares,
    from_bits,
    to_bits,
)
from server import secagg as server
from tests.toy_secagg import (
    Begun,
    agreeing,
    announced,
    begun,
    key,
    layout,
    numbers,
    played,
    session,
    words_of,
)

GOLDEN = Path(__file__).parent / "golden" / "secagg.json"
LAYOUT = layout(60)
SESSION = session()  # 12 devices have 4 neighbours each, of whom 3 open a secret
EVERYBODY = frozenset(range(12))


@pytest.fixture(scope="module")
def start() -> Begun:
    return begun(12, SESSION)


@pytest.fixture(scope="module")
def sent(start):
    return words_of(start, EVERYBODY, LAYOUT, EVERYBODY)


def consent_of(state: Masked, told: Announced) -> Consent:
    return secagg.agree(state, told)[1]


def refusal(answer) -> Distrust:
    assert isinstance(answer, Refused), answer
    return answer.why


def roster_of(start: Begun, place: int) -> Roster:
    return server.roster(start.circle, place)


def share(start: Begun, roster: Roster):
    """The device at place 3 goes on."""
    return secagg.share(start.sharing[3].before, roster, Random(1).randbytes)


def with_keys(roster: Roster, index: int, keys: Advertised) -> Roster:
    neighbours = list(roster.neighbours)
    neighbours[index] = Neighbour(neighbours[index].place, keys)
    return replace(roster, neighbours=tuple(neighbours))


def test_twelve_devices_have_their_numbers_summed(start):
    end = played(start, LAYOUT, {})
    assert end.total.tolist() == sum(numbers(place, 60) for place in range(12)).tolist()


def test_a_sum_without_those_who_shared_and_vanished_is_exact(start):
    end = played(start, LAYOUT, {"words": {0, 5}})
    assert end.total.tolist() == sum(numbers(place, 60) for place in EVERYBODY - {0, 5}).tolist()


def test_in_the_semi_honest_class_nobody_is_asked_for_consent():
    trusting = begun(12, session(semi_malicious=False))
    sent = words_of(trusting, EVERYBODY, LAYOUT, EVERYBODY)
    agreed, _ = agreeing(trusting.circle, sent.masked, lambda _: EVERYBODY)[0]
    assert isinstance(secagg.reveal(agreed, Consents()), Revealed)


def test_keys_are_of_one_round_of_one_task_of_one_server():
    keys = secagg.advertise(SESSION, key(1), Random(1).randbytes)[1]
    assert secagg.why_not_keys(SESSION, keys) is None
    for other in (
        replace(SESSION, round=4),
        replace(SESSION, task_id="7b" * 16),
        replace(SESSION, server="5f" * 16),
        session(fewest=11),
    ):
        assert secagg.why_not_keys(other, keys) is Distrust.BAD_SIGNATURE


def test_keys_of_an_earlier_round_are_refused(start):
    roster = roster_of(start, 3)
    earlier = secagg.advertise(replace(SESSION, round=2), key(9), Random(5).randbytes)[1]
    assert refusal(share(start, with_keys(roster, 0, earlier))) is Distrust.BAD_SIGNATURE


def test_a_key_that_stands_twice_is_refused(start):
    roster = roster_of(start, 3)
    again = roster.neighbours[1].keys
    assert refusal(share(start, with_keys(roster, 0, again))) is Distrust.REPLAYED_KEY
    own = start.circle.keys[3]
    assert refusal(share(start, with_keys(roster, 0, own))) is Distrust.REPLAYED_KEY


def test_a_key_that_gives_everybody_the_same_secret_is_refused(start):
    names = (roster_of(start, 3).neighbours[0].keys.public_key, "00" * 32, "17" * 32)
    signer = next(each for each in map(key, range(1, 13)) if signing.public_hex(each) == names[0])
    weak = Advertised(*names, signer.sign(SESSION.keys_message(*names)).hex())
    assert refusal(share(start, with_keys(roster_of(start, 3), 0, weak))) is Distrust.BAD_KEY


@pytest.mark.parametrize(
    "forge",
    [
        lambda roster: replace(roster, neighbours=roster.neighbours[1:]),
        lambda roster: replace(roster, neighbours=roster.neighbours[::-1]),
        lambda roster: replace(roster, place=4),
        lambda roster: replace(roster, place=12),
        lambda roster: replace(roster, devices=30),
        lambda roster: replace(
            roster,
            neighbours=(Neighbour(7, roster.neighbours[0].keys), *roster.neighbours[1:]),
        ),
        lambda roster: replace(roster, order="0d" * 32),
    ],
    ids=["too few", "backwards", "other place", "no place", "more devices", "stranger", "order"],
)
def test_neighbours_that_the_order_does_not_give_are_refused(start, forge):
    assert refusal(share(start, forge(roster_of(start, 3)))) is Distrust.FORGED_NEIGHBOURS


def test_neighbours_that_changed_places_are_refused(start):
    roster = roster_of(start, 3)
    first, second = (each.keys for each in roster.neighbours[:2])
    assert refusal(share(start, with_keys(with_keys(roster, 0, second), 1, first))) is (
        Distrust.FORGED_NEIGHBOURS
    )


def test_a_round_of_fewer_devices_than_the_terms_say_is_refused(start):
    roster = replace(roster_of(start, 3), devices=9)
    answer = share(start, roster)
    assert refusal(answer) is Distrust.TOO_FEW
    assert answer.cause is Cause.TIMED_OUT  # nobody need have lied


def test_a_round_that_cannot_be_hidden_in_is_refused(start):
    hopeless = session(drop_out=0.9)
    state, _ = secagg.advertise(hopeless, key(1), Random(1).randbytes)
    roster = replace(roster_of(start, 3), devices=50)
    answer = secagg.share(state, roster, Random(1).randbytes)
    assert refusal(answer) is Distrust.TOO_FEW
    assert "too few honest devices" in answer.detail


def test_a_lie_gives_the_assignment_back_as_inconsistent(start):
    assert share(start, replace(roster_of(start, 3), place=4)).cause is Cause.INCONSISTENT


def inbox_of(start: Begun, place: int, shared=EVERYBODY) -> Inbox:
    return server.inbox(start.circle, place, {each: start.shares[each] for each in shared})


def mask(start: Begun, inbox: Inbox, place: int = 3):
    return secagg.mask(start.sharing[place], inbox, numbers(place, 60), LAYOUT)


def test_boxes_are_taken_of_the_neighbours_that_shared_and_of_no_others(start):
    whole = inbox_of(start, 3)
    for boxes in (whole.boxes[1:], whole.boxes[::-1], (*whole.boxes, Box(9, "00" * 82))):
        assert refusal(mask(start, replace(whole, boxes=boxes))) is Distrust.FOREIGN_SHARES
    less = to_bits(EVERYBODY - {2}, 12)
    assert refusal(mask(start, replace(whole, shared=less))) is Distrust.FOREIGN_SHARES


def test_a_device_that_is_not_said_to_have_shared_stops(start):
    inbox = replace(inbox_of(start, 3), shared=to_bits(EVERYBODY - {3}, 12))
    assert refusal(mask(start, inbox)) is Distrust.CONTRADICTION


@pytest.mark.parametrize("shared", ["", "ff", "ff1f", "zz0f", "ffff0f"])
def test_a_set_that_is_none_of_twelve_places_is_refused(start, shared):
    inbox = replace(inbox_of(start, 3), shared=shared)
    assert refusal(mask(start, inbox)) is Distrust.CONTRADICTION


def test_with_too_few_neighbours_nothing_is_sent(start):
    assert refusal(mask(start, inbox_of(start, 3, EVERYBODY - {1, 2}))) is Distrust.TOO_FEW


def test_with_too_few_devices_nothing_is_sent(start):
    assert refusal(mask(start, inbox_of(start, 3, EVERYBODY - {8, 9, 10}))) is Distrust.TOO_FEW


@pytest.mark.parametrize("spoil", ["damaged", "for another"])
def test_a_box_that_does_not_open_is_named_and_costs_one_share(start, spoil):
    inbox = inbox_of(start, 3)
    boxes = list(inbox.boxes)
    foreign = next(box for box in start.shares[1].boxes if box.place == 2).box
    boxes[0] = Box(boxes[0].place, "00" * 82 if spoil == "damaged" else foreign)
    state, _ = mask(start, replace(inbox, boxes=tuple(boxes)))
    revealed = secagg.agree(state, announced(start.circle, EVERYBODY))[0].revealed
    assert revealed.spoiled == (1,)
    assert [each.place for each in revealed.seeds] == [2, 4, 5]


def test_words_of_two_rounds_have_nothing_in_common():
    """The same numbers of the same device, by the same randomness."""
    words = []
    for number in (4, 5):
        start = begun(12, replace(SESSION, round=number))
        place = start.circle.places[signing.public_hex(key(1))]
        inbox = inbox_of(start, place)
        words.append(secagg.mask(start.sharing[place], inbox, numbers(0, 60), LAYOUT)[1])
    assert not (words[0] == words[1]).any()


def test_a_device_gives_of_each_neighbour_one_kind_of_share_and_forgets_the_other(sent, start):
    agreed = agreeing(start.circle, sent.masked, lambda _: EVERYBODY - {4})[3][0]
    assert [each.place for each in agreed.revealed.seeds] == [1, 2, 5]
    assert [each.place for each in agreed.revealed.keys] == [4]
    # of the shares that it was sent, all that the state still holds
    held = config.to_json(agreed.revealed).decode()
    boxes = sent.masked[3].shares
    assert [boxes[place][:33].hex() in held for place in (1, 2, 4, 5)] == [True, True, False, True]
    assert [boxes[place][33:].hex() in held for place in (1, 2, 4, 5)] == [
        False,
        False,
        True,
        False,
    ]
    assert {name for name in vars(agreed)} == {"session", "roster", "graph", "sets", "revealed"}


def test_a_device_that_sent_its_words_does_not_help_a_sum_without_them(sent, start):
    answer = secagg.agree(sent.masked[3], announced(start.circle, EVERYBODY - {3}))
    assert refusal(answer) is Distrust.CONTRADICTION


def test_nobody_is_counted_who_has_not_shared(start):
    state, _ = mask(start, inbox_of(start, 3, EVERYBODY - {9}))
    answer = secagg.agree(state, announced(start.circle, EVERYBODY))
    assert refusal(answer) is Distrust.CONTRADICTION
    assert "1 of them sent no shares" in answer.detail


def test_a_sum_of_too_few_or_among_too_few_neighbours_is_not_opened(sent, start):
    for counted in (EVERYBODY - {8, 9, 10}, EVERYBODY - {1, 2}):
        answer = secagg.agree(sent.masked[3], announced(start.circle, counted))
        assert refusal(answer) is Distrust.TOO_FEW


def test_a_sum_of_more_than_have_room_is_not_opened():
    narrow = replace(SESSION, terms=replace(SESSION.terms, most=11))
    start = begun(12, narrow)
    sent = words_of(start, EVERYBODY, LAYOUT, EVERYBODY)
    answer = secagg.agree(sent.masked[3], announced(start.circle, EVERYBODY))
    assert refusal(answer) is Distrust.CONTRADICTION
    assert "at most 11" in answer.detail


def test_neighbours_that_were_told_of_others_keep_a_device_from_revealing(sent, start):
    fewer = EVERYBODY - {9}
    agreed = agreeing(start.circle, sent.masked, lambda _: EVERYBODY)[3][0]
    same, other = (
        {
            place: consent_of(sent.masked[place], announced(start.circle, told))
            for place in (1, 2, 4, 5)
        }
        for told in (EVERYBODY, fewer)
    )
    assert isinstance(secagg.reveal(agreed, server.consents(start.circle, 3, same)), Revealed)
    mixed = server.consents(start.circle, 3, same | {1: other[1]})
    assert refusal(secagg.reveal(agreed, mixed)) is Distrust.DISAGREEMENT
    two = server.consents(start.circle, 3, {1: same[1], 2: same[2]})
    assert refusal(secagg.reveal(agreed, two)) is Distrust.TOO_FEW


def test_neighbours_that_were_told_of_others_who_shared_keep_a_device_from_revealing(sent, start):
    state, _ = mask(start, inbox_of(start, 3, EVERYBODY - {9}))
    agreed, _ = secagg.agree(state, announced(start.circle, EVERYBODY - {9}))
    others = {
        place: consent_of(sent.masked[place], announced(start.circle, EVERYBODY - {9}))
        for place in (1, 2, 4, 5)
    }
    answer = secagg.reveal(agreed, server.consents(start.circle, 3, others))
    assert refusal(answer) is Distrust.DISAGREEMENT


def test_a_consent_counts_once_and_only_if_it_is_of_a_neighbour(sent, start):
    agreed = agreeing(start.circle, sent.masked, lambda _: EVERYBODY)[3][0]
    one = NeighbourConsent(
        1, consent_of(sent.masked[1], announced(start.circle, EVERYBODY)).signature
    )
    stranger = NeighbourConsent(
        9, consent_of(sent.masked[9], announced(start.circle, EVERYBODY)).signature
    )
    for several in ((one, one, one), (one, stranger)):
        answer = secagg.reveal(agreed, Consents(several))
        assert refusal(answer) is Distrust.FORGED_NEIGHBOURS


def test_no_state_shows_a_secret(start, sent):
    sharing = start.sharing[3]
    agreed = agreeing(start.circle, sent.masked, lambda _: EVERYBODY)[3][0]
    shown = "".join(map(repr, (sharing, sent.masked[3], agreed)))
    secrets = (
        sharing.seed,
        sharing.before.mask_key.private_bytes_raw(),
        *sent.masked[3].shares.values(),
    )
    for secret in secrets:
        assert repr(secret) not in shown
        assert secret.hex() not in shown
    assert agreed.revealed.seeds[0].share not in shown


HASHES = st.binary(min_size=32, max_size=32).map(bytes.hex)
SIGNATURES = st.binary(min_size=64, max_size=64).map(bytes.hex)
PLACES = st.integers(0, 13)
KEYS = st.builds(Advertised, HASHES, HASHES, HASHES, SIGNATURES)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_whatever_a_server_says_of_neighbours_a_device_answers_or_refuses(data, start):
    true = roster_of(start, 3)
    neighbours = st.builds(
        Neighbour, PLACES, st.one_of(KEYS, st.sampled_from([each.keys for each in true.neighbours]))
    )
    roster = data.draw(
        st.builds(
            Roster,
            st.integers(1, 100_000) | st.just(12),
            HASHES | st.just(true.order),
            PLACES,
            st.lists(neighbours | st.sampled_from(true.neighbours), max_size=6).map(tuple),
        )
    )
    answer = share(start, roster)
    assert isinstance(answer, Refused) or roster == true


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_whatever_a_server_says_after_that_a_device_answers_or_refuses(data, start, sent):
    sets = st.text("0123456789abcdef", max_size=6) | st.frozensets(
        PLACES.filter(lambda place: place < 12)
    ).map(lambda places: to_bits(places, 12))
    true = inbox_of(start, 3)
    boxes = st.builds(Box, PLACES, st.binary(min_size=82, max_size=82).map(bytes.hex))
    inbox = Inbox(
        data.draw(sets | st.just(true.shared)),
        data.draw(
            st.lists(boxes | st.sampled_from(true.boxes), max_size=5).map(tuple)
            | st.just(true.boxes)
        ),
    )
    answer = mask(start, inbox)
    assert isinstance(answer, Refused) or len(inbox.boxes) >= 3
    answer = secagg.agree(sent.masked[3], Announced(data.draw(sets)))
    if not isinstance(answer, Refused):
        consents = st.builds(NeighbourConsent, PLACES, SIGNATURES)
        told = Consents(data.draw(st.lists(consents, max_size=5).map(tuple)))
        assert isinstance(secagg.reveal(answer[0], told), Refused)


@given(devices=st.integers(1, 300), data=st.data())
def test_a_set_of_places_travels_as_bits(devices, data):
    places = data.draw(st.frozensets(st.integers(0, devices - 1)))
    assert from_bits(to_bits(places, devices), devices, "places") == places


@given(text=st.text("0123456789abcdefgAF ", max_size=8), devices=st.integers(1, 20))
def test_any_text_is_a_set_in_one_spelling_or_none(text, devices):
    try:
        places = from_bits(text, devices, "places")
    except ConfigError:
        return
    assert to_bits(places, devices) == text


def test_the_bytes_of_a_round_stay_what_they_were(start, sent):
    """To make the golden file anew after a change: write what this test puts together."""
    agreed = agreeing(start.circle, sent.masked, lambda _: EVERYBODY - {4})[3][0]
    round_of_3 = {
        "roster": roster_of(start, 3),
        "shares": start.shares[3],
        "inbox": inbox_of(start, 3),
        "words": weights.digest(packing.to_bytes(sent.words[3], LAYOUT)),
        "announced": announced(start.circle, EVERYBODY - {4}),
        "consent": consent_of(sent.masked[3], announced(start.circle, EVERYBODY - {4})),
        "revealed": agreed.revealed,
    }
    assert config.to_json(round_of_3) == GOLDEN.read_bytes()
    for name, kind in {
        "roster": Roster,
        "shares": Shares,
        "inbox": Inbox,
        "revealed": Revealed,
        "announced": Announced,
    }.items():
        message = json.dumps(json.loads(GOLDEN.read_bytes())[name]).encode()
        assert config.from_json(kind, message, name) == round_of_3[name]
