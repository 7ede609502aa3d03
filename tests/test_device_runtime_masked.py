"""A device whose server has a helper: what it refuses, what leaves it, and that it leaves once."""

import shutil
from dataclasses import replace

import pytest

from device_runtime import chain, config, exposure, outgoing, signing
from device_runtime.causes import Cause
from device_runtime.drive import Turn
from device_runtime.encoding import encode
from device_runtime.errors import Unanswered
from device_runtime.home import LEARNED, LOGS, OUTGOING, UNFINISHED, DeviceConfig, Home, parts
from device_runtime.local import simulated
from device_runtime.noise import Mechanism, Noise
from device_runtime.terms import Aggregation
from device_runtime.transport import Interrupted
from device_runtime.turn import Status
from device_runtime.update import Form, header
from fedboard import device_words
from tests.kill_points import every_kill_point
from tests.test_device_runtime_drive import ABLE, EASY, golden_home
from tests.test_device_runtime_exposure import rewritten
from tests.toy_leader import Leader, learnt, masked_terms, seal_key, seed_and_codes
from tests.toy_server import OPERATOR, key

NOISE = Noise(Mechanism.GAUSSIAN, 2.0, 8.0, 1e-10, 100, participations=6)


@pytest.fixture
def leader(tmp_path, tiny_bundle):
    (tmp_path / "bodies").mkdir()
    terms = masked_terms(tiny_bundle)
    return Leader(tiny_bundle, tmp_path / "bodies", terms, seal_key(terms))


@pytest.fixture
def phone(tmp_path, tiny_bundle, trusted):
    """Makes a real device, or with a seed a simulated one."""

    def make(name="phone", seed=None, path=None) -> Home:
        (tmp_path / "able.tsv").write_text(ABLE)
        settings = DeviceConfig(
            tuple(trusted),
            str(path or tiny_bundle.path),
            None if seed is not None else "http://127.0.0.1:1",
            str(tmp_path / "able.tsv"),
            seed=seed,
            limits=EASY,
        )
        typed = [(f"i will see you {i}", float(i)) for i in range(20)]
        return Home.create(tmp_path / name, settings, typed)

    return make


def turn(home, leader, at=0.0):
    taken = Turn(home, leader, simulated(at, batch_s=0.0), learnt, sleep=lambda seconds: None)
    return taken.whole()


def public(home):
    return signing.public_hex(home.key)


def test_one_masked_message_leaves_and_only_words_and_helper_together_say_what_it_holds(
    leader, phone
):
    home = phone()
    assert turn(home, leader).status is Status.COUNTED
    (body,) = leader.bodies()
    assert header(body).form is Form.SEALED and header(body).terms == leader.terms.name
    _, codes = seed_and_codes(body, leader, public(home))
    assert {*codes} <= set(range(16)) and len(codes) == leader.terms.encoding.values
    assert [path.partition(" ")[0] for path in leader.asked].count("PUT") == 1
    (line,) = home.contributions()
    assert (line.outcome, line.bytes_up > len(body)) == ("counted", True)
    assert line.seen_by == f"the server and helper {leader.terms.helper[:16]} together"
    assert home.kept(OUTGOING) is None


def test_the_codes_are_those_of_the_delta_by_the_signed_terms(leader, phone):
    home, deltas = phone(seed=3), []

    def train(graph, action, may_continue):
        tuned = learnt(graph, action, may_continue)
        deltas.append(tuned.delta)
        return tuned

    taken = Turn(home, leader, simulated(), train, sleep=lambda seconds: None)
    assert taken.whole().status is Status.COUNTED
    _, codes = seed_and_codes(leader.bodies()[0], leader, public(home))
    rng = taken._local.randomness(leader.work())
    assert codes == encode(deltas[0], leader.terms.encoding, rng).tolist()


# --- what it refuses before anything is fetched
# ------------------------------------------------------------------------------------------------


def refusal(home, leader):
    """Why a device gave its work back, after it was sure that nothing was fetched or sent."""
    outcome = turn(home, leader)
    assert outcome.status is Status.ABANDONED
    assert leader.bodies() == []
    assert not [path for path in leader.asked if "/blobs/" in path]
    assert leader.given_back == [outcome.cause]
    line = home.contributions()[-1]
    assert line.cause == outcome.cause
    return outcome.cause, line.detail


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (lambda terms: None, "found none"),
        (lambda terms: seal_key(terms, key(71)), "found one by "),
        (lambda terms: seal_key(terms, round=8), "seal key: expected round 9, found 8"),
        (lambda terms: seal_key(terms, task_id="8b" * 16), "seal key: expected task_id 7a7a"),
        (lambda terms: seal_key(replace(terms, fewest=1)), "seal key: expected terms "),
        (lambda terms: seal_key(terms, key="00" * 32), "which is of small order"),
    ],
)
def test_work_without_a_seal_key_of_the_named_helper_for_this_round_is_given_back(
    leader, phone, changed, reason
):
    leader.seal_key = changed(leader.terms)
    cause, detail = refusal(phone(), leader)
    assert cause is Cause.EXPOSED and reason in detail


@pytest.mark.parametrize(
    ("pins", "reason"),
    [
        ({"helper": "2e" * 32}, "terms.helper: expected 2e2e2e2e2e2e2e2e, found "),
        ({"aggregation": Aggregation.SECAGG}, "terms.aggregation: expected secagg, found helper"),
    ],
)
def test_a_server_cannot_choose_another_helper_than_the_bundle_pins_though_its_maker_signs_it(
    leader, phone, tmp_path, tiny_bundle, signing_key, pins, reason
):
    pinned = rewritten(tmp_path / "pinned", tiny_bundle, signing_key, **pins)
    cause, detail = refusal(phone(path=pinned), leader)
    assert cause is Cause.EXPOSED and detail.startswith(reason)


def test_a_bundle_that_pins_this_helper_takes_part(
    leader, phone, tmp_path, tiny_bundle, signing_key
):
    pins = {"aggregation": Aggregation.HELPER, "helper": leader.terms.helper}
    pinned = rewritten(tmp_path / "pinned", tiny_bundle, signing_key, **pins)
    assert turn(phone(path=pinned), leader).status is Status.COUNTED


def test_plain_is_taken_only_since_signed_terms_say_so_by_name(
    leader, phone, tmp_path, tiny_bundle, signing_key
):
    masked = leader.terms
    leader.terms = replace(masked, aggregation=Aggregation.PLAIN, helper="")
    leader.seal_key = None
    pins = {"helper": masked.helper}
    pinned = rewritten(tmp_path / "pinned", tiny_bundle, signing_key, **pins)
    cause, detail = refusal(phone("pinned-phone", path=pinned), leader)
    assert (cause, detail.startswith("terms.helper: ")) == (Cause.EXPOSED, True)
    leader.asked.clear()
    assert turn(phone(), leader).status is Status.COUNTED
    assert header(leader.bodies()[0]).form is Form.CODES


def test_a_certificate_of_before_that_names_nobody_gives_no_work(leader, phone):
    work = leader.work()
    text = work.certificate.text.encode()
    said = config.from_json(chain.Certificate, text, "certificate")
    old = replace(said, terms=None, format=1)
    certificate = signing.sign_text(OPERATOR, chain.CERTIFICATE, config.to_json(old))
    link = chain.Link(chain.name_of(certificate), 0, work.checkpoint)
    signed = signing.sign_text(key(1), chain.LINK, config.to_json(link))
    leader.work = lambda: replace(work, certificate=certificate, link=signed)
    cause, detail = refusal(phone(), leader)
    assert cause is Cause.UNCERTIFIED
    assert detail == "certificate: expected terms, which say who sees updates, found none"


def test_terms_of_another_network_are_given_back(leader, phone):
    leader.terms = replace(leader.terms, shapes="5a" * 32)
    leader.seal_key = seal_key(leader.terms)
    cause, detail = refusal(phone(), leader)
    assert cause is Cause.UNCERTIFIED and detail.startswith("terms.shapes: expected ")


# --- sent again as it is, or not at all
# ------------------------------------------------------------------------------------------------


def lost(leader, times=99):
    """The way to a leader that hears each report, and whose answers are lost."""
    left = iter(range(times))

    def way(method, path, body, headers):
        reply = leader(method, path, body, headers)
        if method == "PUT" and next(left, None) is not None:
            raise Interrupted(path, "the reply was lost", "try again")
        return reply

    return way


def test_what_nobody_answered_is_sent_again_to_the_byte_though_more_was_typed(leader, phone):
    home = phone()
    with pytest.raises(Unanswered):
        turn(home, lost(leader))
    with home.typing_log() as log:
        log.append_many([("what they said", 1000.0)] * 12)
    assert turn(home, leader, 60.0).status is Status.COUNTED
    assert len(leader.bodies()) > 1 and len({*leader.bodies()}) == 1
    assert home.kept(OUTGOING) is None


def test_a_report_that_may_have_left_and_is_gone_is_not_made_again(leader, phone):
    home = phone()
    with pytest.raises(Unanswered):
        turn(home, lost(leader))
    for gone in (lambda: home.keep(OUTGOING, b"damaged"), lambda: home.drop(OUTGOING)):
        gone()
        outcome = turn(home, leader, 60.0)
        assert (outcome.status, outcome.cause) == (Status.ABANDONED, Cause.REPORTED_RECENTLY)
    assert len({*leader.bodies()}) == 1


@pytest.mark.parametrize("how", ["forgotten", "wiped"])
def test_what_was_typed_takes_the_report_along_that_was_learned_from_it(leader, phone, how):
    home = phone()
    with pytest.raises(Unanswered):
        turn(home, lost(leader))
    sent = len(leader.bodies())
    if how == "wiped":
        home.wipe()
        assert [name for name in LEARNED if (home.folder / name).exists()] == []
        return
    with home.typing_log() as log:
        assert log.forget("you 18") == 1
    assert turn(home, leader, 60.0).cause is Cause.REPORTED_RECENTLY
    assert len(leader.bodies()) == sent


def test_a_report_lies_sealed_under_the_typing_log_s_key(leader, phone):
    home = phone()
    with pytest.raises(Unanswered):
        turn(home, lost(leader))
    kept = home.kept(OUTGOING)
    (body,) = {*leader.bodies()}
    assert body[:100] not in kept and b"assignment" not in kept
    assert len(kept) > len(body)


def test_a_report_of_other_work_is_thrown_away_when_that_is_taken(leader, phone):
    home = phone()
    with pytest.raises(Unanswered):
        turn(home, lost(leader))
    first = {*leader.bodies()}
    leader.name, leader.task_id = "b6" * 16, "8b" * 16
    leader.seal_key = seal_key(leader.terms, task_id=leader.task_id)
    seen = []

    def train(graph, action, may_continue):
        seen.append(home.kept(OUTGOING))
        return learnt(graph, action, may_continue)

    taken = Turn(home, leader, simulated(60.0, batch_s=0.0), train, sleep=lambda seconds: None)
    assert taken.whole().status is Status.COUNTED
    assert seen == [None]
    assert len(first | {*leader.bodies()}) == 2


def test_the_same_work_by_other_terms_is_not_encoded_again_after_it_may_have_left(leader, phone):
    home = phone()
    with pytest.raises(Unanswered):
        turn(home, lost(leader))
    first = {*leader.bodies()}
    leader.terms = replace(leader.terms, fewest=101)
    leader.seal_key = seal_key(leader.terms)
    assert turn(home, leader, 60.0).cause is Cause.INCONSISTENT  # its task's policy never changes
    home.drop(LOGS)  # not even where the device remembers no policy
    assert turn(home, leader, 120.0).cause is Cause.REPORTED_RECENTLY
    assert {*leader.bodies()} == first
    assert home.kept(OUTGOING) is None


def test_no_two_reports_of_real_devices_share_a_seed_and_simulated_ones_repeat(
    leader, phone, tmp_path
):
    bodies = []
    for number, seed in enumerate((None, None, 5, 5)):
        home = phone(f"phone-{number}", seed)
        if seed is not None:  # its key is the only other thing that differs
            home = replace(home, key=key(44))
        assert turn(home, leader).status is Status.COUNTED
        bodies.append((leader.bodies()[-1], public(home)))
    seeds = [seed_and_codes(body, leader, device)[0] for body, device in bodies]
    assert len({*seeds}) == 3 and seeds[2] == seeds[3]
    assert bodies[2] == bodies[3]


def test_a_simulated_device_that_learnt_something_else_for_the_same_work_has_another_seed(
    leader, phone
):
    seeds = set()
    for name in ("one", "two"):
        home = replace(phone(name, 5), key=key(44))
        if name == "two":
            with home.typing_log() as log:
                log.append_many([("what they said", 1000.0)] * 2)
        assert turn(home, leader).status is Status.COUNTED
        seeds.add(seed_and_codes(leader.bodies()[-1], leader, public(home))[0])
    assert len(seeds) == 2


def test_a_device_says_who_sees_its_updates_by_the_terms_it_was_given_last(leader, phone):
    home = phone()
    assert home.terms is None
    assert device_words.seen_lines(device_words.status(home, 0.0)) == []
    turn(home, leader)
    assert home.terms.terms == leader.terms
    line, noise, log = device_words.seen_lines(device_words.status(home, 0.0))
    assert leader.terms.helper[:16] in line.text and not line.warns
    assert exposure.UNNOISED in noise.text and noise.warns and "log" in log.text


# --- what the version before left
# ------------------------------------------------------------------------------------------------


def test_a_home_of_before_makes_no_second_report_of_what_may_have_left_and_takes_other_work(
    leader, tmp_path
):
    """golden/home-3.zip: a device of the version that kept no report was counted once, and did not
    hear what became of the second update, which it would have made again.
    """
    home = golden_home(tmp_path, "home-3.zip")
    lines = [(line.round, line.outcome, line.seen_by) for line in home.contributions()]
    assert lines == [(10_001, "counted", ""), (10_002, "sending", "")]
    assert len(home.seen().chains) == 2 and home.kept(UNFINISHED) is not None
    assert (home.terms, home.certificate) == (None, None)

    def offered(number):
        leader.name = leader.task_id = f"{number:032x}"
        leader.round, leader.made_in = 10_000 + number, 9_000
        same = {"task_id": leader.task_id, "round": leader.round}
        leader.seal_key = seal_key(leader.terms, **same)
        return turn(home, leader, 60.0 * number)

    assert offered(2).cause is Cause.REPORTED_RECENTLY
    assert leader.bodies() == []
    assert offered(3).status is Status.COUNTED
    assert header(leader.bodies()[0]).form is Form.SEALED


def test_a_report_that_the_version_before_kept_is_thrown_away_and_none_made_in_its_place(
    leader, tmp_path
):
    """golden/home-4.zip: a device of the version that knew no log was counted once, and keeps the
    report of a second update, whose answer was lost. Its seal is bound to the terms alone: no
    helper opens it any more. A second report under another seed would give the codes away.
    """
    home = golden_home(tmp_path, "home-4.zip")
    assert home.terms.terms == leader.terms and home.terms.terms.noise is None
    with home.typing_log() as log:
        kept = outgoing.unseal(home.kept(OUTGOING), log)
    assert kept.body == (tmp_path / "sent").read_bytes()
    assert kept.label.terms == leader.terms.name
    (one,), (two,) = (part.rounds for part in parts(home.contributions()))
    assert (one, two) == (10_001, 10_002)

    def offered(number):
        leader.name = leader.task_id = f"{number:032x}"
        leader.round, leader.made_in = 10_000 + number, 9_000
        same = {"task_id": leader.task_id, "round": leader.round}
        leader.seal_key = seal_key(leader.terms, **same)
        return turn(home, leader, 60.0 * number)

    assert offered(2).cause is Cause.REPORTED_RECENTLY
    assert home.kept(OUTGOING) is None and leader.bodies() == []
    assert offered(3).status is Status.COUNTED


def test_a_noised_update_is_masked_with_room_and_is_in_the_account_of_its_device(leader, phone):
    leader.terms = replace(leader.terms, noise=NOISE, compression=2)
    leader.seal_key = seal_key(leader.terms)
    home = phone()
    assert turn(home, leader).status is Status.COUNTED
    _, codes = seed_and_codes(leader.bodies()[0], leader, public(home))
    assert {*codes} <= set(range(16)) and len(codes) == leader.terms.encoding.values
    (cost,) = device_words.status(home, 0.0).spent
    assert (cost.rounds, cost.noise) == ((leader.round,), NOISE)
    assert cost.rho == pytest.approx(1 / 8)  # one of multiplier 2
    # the toy log says one sum before, and that round 8 made the checkpoint, or another
    (line,) = home.contributions()
    assert line.first_sum == 2 and line.last_sum == max(2, 1 + leader.round - leader.made_in)
    assert cost.by_log
    told = [each.text for each in device_words.seen_lines(device_words.status(home, 0.0))]
    assert "noise of multiplier 2 is added to each sum by the helper" in told[1]


@pytest.mark.parametrize(
    ("noise", "pins", "reason"),
    [
        (None, {"noise": True}, "terms.noise: expected some on every sum, found none"),
        (
            NOISE,
            {"noise": True, "epsilon": 4.0, "delta": 1e-10},
            "terms.noise.epsilon: expected at most 4 at delta 1e-10, found 8",
        ),
    ],
)
def test_work_with_less_noise_than_the_bundle_asks_for_is_given_back(
    leader, phone, tmp_path, tiny_bundle, signing_key, noise, pins, reason
):
    leader.terms = replace(leader.terms, noise=noise)
    leader.seal_key = seal_key(leader.terms)
    pinned = rewritten(tmp_path / "pinned", tiny_bundle, signing_key, **pins)
    assert refusal(phone(path=pinned), leader) == (Cause.EXPOSED, reason)


# --- killed at every step
# ------------------------------------------------------------------------------------------------

WORK = """
import sys
from pathlib import Path
from device_runtime.bundle import open_verified
from device_runtime.drive import Turn
from device_runtime.local import simulated
from device_runtime.home import Home
from tests.kill_points import SAID
from tests.toy_leader import Leader, learnt, masked_terms, seal_key

bundle = open_verified(Path({bundle!r}), frozenset({trusted!r}))
terms = masked_terms(bundle)
leader = Leader(bundle, Path({bodies!r}), terms, seal_key(terms))

def way(method, path, body, headers):
    sys.audit(SAID, f"{{method}} {{path}}")
    reply = leader(method, path, body, headers)
    sys.audit(SAID, f"the answer to {{method}} {{path}}")
    return reply

def work(folder):
    home = Home.open(folder / "phone")
    Turn(home, way, simulated(0.0, batch_s=0.0), learnt, sleep=lambda seconds: None).whole()
"""


def test_a_device_killed_at_any_step_sends_the_same_bytes_or_none_under_one_seed(
    leader, phone, tmp_path, fast_folder, tiny_bundle, trusted
):
    phone()
    script = WORK.format(
        bundle=str(tiny_bundle.path), trusted=set(trusted), bodies=str(leader.folder)
    )
    left = set()

    def prepare(folder):
        for path in leader.folder.iterdir():
            path.unlink()
        shutil.copytree(tmp_path / "phone", folder / "phone")

    def check(folder):
        home, sent = Home.open(folder / "phone"), len(leader.bodies())
        left.add(sent)
        was = [line.outcome for line in home.contributions()]
        assert not sent or was in (["sending"], ["counted"])  # a ledger never says less
        outcome = turn(home, leader, 60.0)
        if was == ["counted"] and outcome.status is Status.ABANDONED:  # it was thrown away by then
            assert outcome.cause is Cause.REPORTED_RECENTLY
        else:
            assert outcome.status is Status.COUNTED
        (body,) = {*leader.bodies()}  # two reports of one assignment never leave
        seed_and_codes(body, leader, public(home))
        assert home.kept(OUTGOING) is None
        assert [path.name for path in home.folder.rglob(".*")] == []

    assert every_kill_point(script, fast_folder / "kills", prepare, check) > 40
    assert left == {0, 1}
