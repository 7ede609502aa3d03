"""Who can see an update: what terms say, what a bundle pins, and how both are told to people."""

from dataclasses import replace

import pytest

from conversion.card import Card, text
from device_runtime import agreement, bundle, exposure
from device_runtime.agreement import Pins
from device_runtime.bundle import Lineage
from device_runtime.errors import BundleError, ConfigError, RunError
from device_runtime.noise import Mechanism, Noise
from device_runtime.terms import Aggregation, Terms
from device_runtime.wire import Plan
from fedboard.export import pins_of
from model.network import SIZES
from tests.test_device_runtime_bundle import rewritten

HELPER, OTHER = "1f" * 32, "2e" * 32
PLAIN = Terms(Aggregation.PLAIN, 8, 0.5, 50, "5a" * 32, 7, most=200, fewest=100, min_separation=1)
HELPED = replace(PLAIN, aggregation=Aggregation.HELPER, bits=4, helper=HELPER)
SHARED = replace(PLAIN, aggregation=Aggregation.SECAGG, bits=4)
NOISE = Noise(Mechanism.BLT, 4.0, 8.0, 1e-10, 100, 6, decays=(0.9,), scales=(0.4,))
NOISED = replace(HELPED, noise=NOISE)
SILENT = replace(HELPED, noise=replace(NOISE, multiplier=0.0))


def said(terms):
    """Without what stands there of noise, which comes last."""
    every = exposure.sentences(terms)
    count = len(every) - len(exposure.of_noise(terms))
    assert every[count:] == exposure.of_noise(terms)
    return [(each.text, each.warns) for each in every[:count]]


def test_plain_is_said_in_red_and_a_helper_by_its_key():
    (seen, calm), (worry, red) = said(PLAIN)
    assert seen == "the server sees the update of every device" and not calm
    assert "read in each what was typed" in worry and red
    ((seen, red),) = said(HELPED)
    assert "the helper 1f1f1f1f1f1f1f1f" in seen and not red
    ((seen, red),) = said(SHARED)
    assert "more than 5 % of the devices" in seen and not red


def test_one_hand_and_a_least_count_below_a_hundred_are_said_in_red():
    assert said(replace(HELPED, is_beside=True))[1] == (
        "server and helper are in one hand",
        True,
    )
    worry, red = said(replace(HELPED, fewest=99))[1]
    assert "of only 99 devices" in worry and red


def test_no_noise_and_a_wide_budget_are_said_in_red():
    (none,) = exposure.of_noise(HELPED)
    assert "no noise is added" in none.text and none.warns
    assert exposure.of_noise(replace(HELPED, noise=replace(NOISE, multiplier=0.0))) == [none]
    (told,) = exposure.of_noise(replace(HELPED, noise=NOISE))
    assert told.text == (
        "BLT-correlated noise of multiplier 4 is added to each sum by the helper for a budget of "
        "epsilon 8 at delta 1e-10, at most 6 sums a device; nobody can see whether it is"
    )
    assert not told.warns
    (told,) = exposure.of_noise(replace(SHARED, noise=NOISE))
    assert "by the server, which sees it, for" in told.text
    _, wide = exposure.of_noise(replace(HELPED, noise=replace(NOISE, epsilon=10.5)))
    assert wide.text.startswith("a budget of epsilon 10.5 is wide") and wide.warns


@pytest.mark.parametrize(
    ("terms", "short"),
    [
        (PLAIN, "the server"),
        (HELPED, "the server and helper 1f1f1f1f1f1f1f1f together"),
        (
            replace(HELPED, is_beside=True),
            "whoever runs the server and helper 1f1f1f1f1f1f1f1f beside it",
        ),
        (SHARED, "the server with more than 5% of the devices"),
    ],
)
def test_a_ledger_says_in_short_who_could_see_what_left(terms, short):
    assert exposure.in_short(terms) == short


def test_a_bundle_without_pins_takes_whatever_its_maker_signs_of_a_task():
    for terms in (PLAIN, HELPED, SHARED):
        assert agreement.why_exposed(terms, Pins()) == ""
    assert exposure.of_pins(Pins()) == exposure.Sentence(exposure.OPEN)


@pytest.mark.parametrize(
    ("terms", "pins", "reason"),
    [
        (HELPED, Pins(helper=HELPER), ""),
        (HELPED, Pins(Aggregation.HELPER, HELPER), ""),
        (HELPED, Pins(Aggregation.HELPER), ""),
        (PLAIN, Pins(Aggregation.PLAIN), ""),
        (PLAIN, Pins(Aggregation.HELPER), "terms.aggregation: expected helper, found plain"),
        (SHARED, Pins(Aggregation.HELPER), "terms.aggregation: expected helper, found secagg"),
        (PLAIN, Pins(helper=HELPER), "terms.helper: expected 1f1f1f1f1f1f1f1f, found none"),
        (HELPED, Pins(helper=OTHER), "terms.helper: expected 2e2e2e2e2e2e2e2e, found 1f1f1f1f"),
        (NOISED, Pins(), ""),
        (NOISED, Pins(noise=True), ""),
        (NOISED, Pins(noise=True, epsilon=8.0, delta=1e-10), ""),
        (HELPED, Pins(noise=True), "terms.noise: expected some on every sum, found none"),
        (SILENT, Pins(noise=True), "terms.noise: expected some on every sum, found none"),
        (HELPED, Pins(noise=True, epsilon=9.0, delta=1e-10), "terms.noise: expected some"),
        (
            NOISED,
            Pins(noise=True, epsilon=4.0, delta=1e-10),
            "terms.noise.epsilon: expected at most 4 at delta 1e-10, found 8",
        ),
        # epsilon 8 at delta 1e-10 is less at 1e-6, and more at 1e-12
        (NOISED, Pins(noise=True, epsilon=7.0, delta=1e-6), ""),
        (NOISED, Pins(noise=True, epsilon=8.0, delta=1e-12), "terms.noise.epsilon: expected at"),
    ],
)
def test_terms_must_be_what_a_bundle_pins_whoever_signed_them(terms, pins, reason):
    why = agreement.why_exposed(terms, pins)
    assert why.startswith(reason) and bool(why) == bool(reason)


def test_terms_of_another_network_or_beyond_the_plan_do_not_agree():
    assert agreement.why_another_network(PLAIN, "5a" * 32) == ""
    assert "terms.shapes: expected 6b" in agreement.why_another_network(PLAIN, "6b" * 32)
    plan = Plan(bits=8, clipping_norm=0.5)
    assert agreement.why_another_plan(PLAIN, plan) == ""
    assert agreement.why_another_plan(HELPED, plan) == ""  # fewer bits say less
    wide, long = replace(PLAIN, bits=9), replace(PLAIN, clipping_norm=0.6)
    assert "terms.bits: expected at most the plan's 8" in agreement.why_another_plan(wide, plan)
    assert "terms.clipping_norm" in agreement.why_another_plan(long, plan)
    assert agreement.why_another_dimension(PLAIN, 50) == ""
    assert agreement.why_another_dimension(PLAIN, 51) == "terms.dimension: expected 51, found 50"


def test_pins_are_signed_with_the_bundle_and_left_out_where_there_are_none(
    tmp_path, tiny_bundle, signing_key, trusted
):
    pins = {"aggregation": Aggregation.HELPER, "helper": HELPER}
    pins |= {"noise": True, "epsilon": 4.0, "delta": 1e-10}
    path = rewritten(tmp_path / "pinned", tiny_bundle, signing_key, **pins)
    assert bundle.open_verified(path, trusted).manifest.pins == Pins(**pins)
    assert tiny_bundle.manifest.pins == Pins()
    for name in (b"helper", b"aggregation", b"noise", b"epsilon", b"delta"):
        assert b'"%b"' % name not in tiny_bundle.encoded


@pytest.mark.parametrize(
    ("pins", "problem"),
    [
        ({"helper": "1F" * 32}, "expected a public key of 64 hexadecimal digits"),
        ({"helper": "no key"}, "expected a public key of 64 hexadecimal digits"),
        ({"aggregation": Aggregation.PLAIN, "helper": HELPER}, "expected none for aggregation"),
        ({"aggregation": "by_carrier_pigeon"}, "by_carrier_pigeon"),
        ({"noise": False}, "expected true where noise is asked for"),
        ({"epsilon": 4.0, "delta": 1e-10}, "expected true where noise is asked for"),
        ({"noise": True, "epsilon": 4.0}, "expected an epsilon with its delta"),
        ({"noise": True, "epsilon": -1.0, "delta": 1e-10}, "epsilon: expected 0 to"),
        ({"noise": True, "epsilon": 4.0, "delta": 0.7}, "delta: expected 1e-300 to 0.5"),
    ],
)
def test_pins_that_cannot_be_are_refused_by_name(
    tmp_path, tiny_bundle, signing_key, trusted, pins, problem
):
    path = rewritten(tmp_path / "odd", tiny_bundle, signing_key, **pins)
    with pytest.raises(BundleError, match=problem):
        bundle.open_verified(path, trusted)


def test_pins_are_named_by_words_and_by_a_key_or_its_file(tmp_path):
    (tmp_path / "helper.pub").write_text(f"{HELPER}\n")
    assert pins_of(None, None) == Pins()
    assert pins_of("helper", HELPER) == Pins(Aggregation.HELPER, HELPER)
    assert pins_of(None, str(tmp_path / "helper.pub")) == Pins(None, HELPER)
    assert pins_of(None, None, require_noise=True) == Pins(noise=True)
    assert pins_of(None, None, epsilon=4.0) == Pins(noise=True, epsilon=4.0, delta=1e-10)
    assert pins_of(None, None, False, 4.0, 1e-6) == Pins(noise=True, epsilon=4.0, delta=1e-6)
    with pytest.raises(ConfigError, match="--at-delta: expected --max-epsilon with it"):
        pins_of(None, None, delta=1e-6)
    with pytest.raises(ConfigError, match="expected plain, helper, secagg, found 'open'"):
        pins_of("open", None)
    with pytest.raises(RunError, match="give the key that `fedboard helper` prints"):
        pins_of(None, "ab12")


def card(pins=Pins(), aggregation=None):
    lineage = Lineage("tiny", 3, "c4" * 32, task="night", rounds=3, participants=9)
    learnt = replace(lineage, aggregation=aggregation)
    return text(Card("tiny", SIZES["tiny"], 40, learnt, "yes", {}, {}, pins=pins))


def test_a_card_says_who_may_see_updates_and_plain_is_an_alert():
    assert exposure.OPEN[1:] in card() and "[!CAUTION]" not in card()
    assert f"the helper {HELPER[:16]}" in card(Pins(helper=HELPER))
    budget = "noise is added to every sum, for a budget of at most epsilon 4 at delta 1e-10"
    assert budget in card(Pins(noise=True, epsilon=4.0, delta=1e-10))
    assert "[!CAUTION]" in card(Pins(noise=True, epsilon=10.5, delta=1e-10))
    assert exposure.NOISED[1:] in card(Pins(noise=True))
    pinned = f"> [!CAUTION]\n> I{exposure.OPENLY[1:]}."
    assert pinned in card(Pins(Aggregation.PLAIN))
    learnt = f"> [!CAUTION]\n> I{exposure.LEARNT_OPENLY[1:]}."
    assert learnt in card(aggregation=Aggregation.PLAIN)
    assert "[!CAUTION]" not in card(aggregation=Aggregation.HELPER)
