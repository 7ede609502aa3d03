"""The server's log: what is entered when, what devices are shown, and what a helper must sign."""

import shutil
from contextlib import closing
from dataclasses import replace

import pytest

from device_runtime import chain, config, log_wire, merkle, signing
from device_runtime.causes import Cause
from device_runtime.log_wire import Believed, Head, Policy, RoundEntry, SeenLogs
from device_runtime.transport import Unreachable
from device_runtime.weights import Checkpoint
from device_runtime.wire import Assignment, Reject
from server import operators
from server.requests import Refused
from server.rounds import Rules
from tests import toy_server
from tests.toy_opening import THREE, desk, joined, new, opened, sealed, settings, way_to
from tests.toy_server import READY, TOKENIZER, WEIGHTS, certify, encoded, enrolled

ONE = Rules(report_goal=1, over_selection=1.0)


def entries(coordinator):
    return [log_wire.read(each) for each in coordinator.log_entries(0, 500).entries]


def newest(coordinator):
    return config.from_json(Head, coordinator.log_head().newest.text.encode(), "head")


def root(coordinator):
    frontier = merkle.Frontier()
    for each in coordinator.log_entries(0, 500).entries:
        frontier, _ = frontier.append(merkle.leaf(each.encode()))
    return frontier.size, frontier.root.hex()


def believed(work, seen=SeenLogs()):
    answer = log_wire.believe(work, chain.certificate_of(work), seen)
    assert isinstance(answer, Believed), answer
    return answer


def committed(coordinator, now, seen=0):
    """One round with one device, and the work that it had."""
    (device,) = enrolled(coordinator, 1)
    work = coordinator.check_in(device, replace(READY, log_size=seen), now)
    assert isinstance(work, Assignment), work
    assert coordinator.update(device, work.assignment, encoded(work, 0), now).counted
    return work


@pytest.fixture
def plain(fast_folder):
    coordinator = toy_server.new(fast_folder / "server", ONE)
    yield coordinator
    coordinator.close()


def test_a_certified_task_has_its_policy_and_its_first_checkpoint_entered(plain):
    policy, first = entries(plain)
    assert isinstance(policy, Policy)
    assert policy == log_wire.policy_of(chain.certificate_of(joined_once(plain)))
    assert first == RoundEntry(policy.task_id, 0, 0, 0, 0.0, policy.start)


def joined_once(coordinator):
    (device,) = enrolled(coordinator, 1)
    return coordinator.check_in(device, READY, 1.0)


def test_each_committed_round_is_entered_with_its_count_and_its_checkpoint(plain):
    works = [committed(plain, 10.0 * number) for number in (1, 2)]
    *_, one, two = entries(plain)
    assert (one.round, one.count, one.sums, one.parent) == (1, 1, 1, works[0].checkpoint)
    assert (two.round, two.sums, two.parent) == (2, 2, one.checkpoint)
    assert works[1].checkpoint == one.checkpoint


def test_the_head_that_is_signed_is_that_of_the_entries(plain):
    committed(plain, 10.0)
    assert root(plain) == (newest(plain).size, newest(plain).root)
    assert plain.log_head().countersignature is None


def test_a_device_believes_each_round_from_where_it_was_before(plain):
    seen = SeenLogs()
    for number in range(1, 9):
        work = committed(plain, 10.0 * number, seen.size(plain.server))
        answer = believed(work, seen)
        assert answer.seen.size(plain.server) == number + 1
        seen = answer.seen


def test_a_device_that_says_it_has_seen_more_than_there_is_gets_no_path(plain):
    work = committed(plain, 10.0, seen=900)
    assert work.log.consistency == ""


def test_anybody_may_ask_for_a_path_between_two_sizes_and_no_others(plain):
    committed(plain, 10.0)
    path = plain.log_path(2, 3)
    sizes = [(size, sub_root(plain, size)) for size in (2, 3)]
    assert merkle.extends(*sizes, log_wire.from_path(path.path))
    for first, second in ((3, 2), (0, 4)):
        with pytest.raises(Refused):
            plain.log_path(first, second)


def sub_root(coordinator, size):
    frontier = merkle.Frontier()
    for each in coordinator.log_entries(0, size).entries:
        frontier, _ = frontier.append(merkle.leaf(each.encode()))
    return frontier.root


def test_certifying_again_enters_nothing_new(plain):
    before = newest(plain)
    certify(plain, 5.0)
    assert newest(plain) == before


def test_going_back_to_an_earlier_checkpoint_needs_no_new_entry(plain):
    committed(plain, 10.0)
    before = newest(plain)
    plain.roll_back("default", 0, 20.0)
    assert newest(plain) == before
    believed(joined_at(plain, 30.0))


def joined_at(coordinator, now):
    (device,) = enrolled(coordinator, 1)
    answer = coordinator.check_in(device, READY, now)
    assert isinstance(answer, Assignment), answer
    return answer


def test_a_log_whose_key_is_lost_is_followed_by_one_that_names_it(fast_folder):
    folder = fast_folder / "server"
    with closing(toy_server.new(folder, ONE)) as coordinator:
        old = coordinator.log_head().newest
    keys = [each for each in folder.rglob("log-key*")]
    assert len(keys) == 1
    keys[0].unlink()
    with closing(toy_server.OneByOne(*toy_server.open_folder(folder))) as coordinator:
        certify(coordinator, 5.0)
        begun, policy, first = entries(coordinator)
        before = config.from_json(Head, old.text.encode(), "head")
        assert (begun.log_key, begun.size, begun.root) == (old.signer, before.size, before.root)
        assert isinstance(policy, Policy)
        assert first.round == 0
        believed(joined_at(coordinator, 10.0))


# with a helper


def test_no_device_gets_work_before_the_helper_has_signed_the_head(fast_folder):
    helper = desk(fast_folder / "helper")
    with closing(opened(fast_folder / "server", way_to(helper))) as coordinator:
        toy_server.created(coordinator, *beginning())
        (device,) = enrolled(coordinator, 1)
        answer = coordinator.check_in(device, READY, 1.0)
        assert isinstance(answer, Reject)
        assert answer.cause is Cause.NO_HELPER
        coordinator.open_sums(2.0)
        believed(joined(coordinator, [device], 100.0)[0])
    helper.close()


def beginning():
    return settings(THREE), 0.0, Checkpoint(WEIGHTS, 0, "", TOKENIZER)


def test_a_committed_checkpoint_travels_under_a_head_that_the_helper_has_signed(fast_folder):
    helper = desk(fast_folder / "helper")
    with closing(new(fast_folder / "server", way_to(helper))) as coordinator:
        devices, seen = enrolled(coordinator, 3), SeenLogs()
        for now in (10.0, 20.0, 30.0):
            works = joined(coordinator, devices, now)
            for number, (device, work) in enumerate(zip(devices, works, strict=True)):
                body = sealed(work, number)
                assert coordinator.update(device, work.assignment, body, now + 1).counted
            shown = coordinator.log.seen_from
            with coordinator.store.reading() as rows:
                proof = shown(rows, works[0].log, seen.size(coordinator.server))
            seen = believed(replace(works[0], log=proof), seen).seen
            coordinator.open_sums(now + 2)
        told = coordinator.log_head()
        assert told.newest == told.countersigned
        assert told.countersignature.signer == chain.terms_of(works[0]).helper
        assert signing.text_of(
            told.countersignature, log_wire.SEEN, frozenset({told.countersignature.signer})
        )
    helper.close()


def test_a_helper_that_is_away_is_asked_again(fast_folder):
    helper = desk(fast_folder / "helper")
    way = way_to(helper)
    is_away = True

    def send(method, path, body, headers):
        if is_away and path == "/v1/heads":
            raise Unreachable("heads", "no connection", "start it")
        return way(method, path, body, headers)

    with closing(opened(fast_folder / "server", send)) as coordinator:
        toy_server.created(coordinator, *beginning())
        (device,) = enrolled(coordinator, 1)
        coordinator.open_sums(1.0)
        assert coordinator.check_in(device, READY, 2.0).cause is Cause.NO_HELPER
        is_away = False
        coordinator.open_sums(100.0)
        believed(joined(coordinator, [device], 200.0)[0])
    helper.close()


def test_a_server_that_forgot_entries_begins_another_log_once_it_is_certified(fast_folder):
    helper, folder = desk(fast_folder / "helper"), fast_folder / "server"
    with closing(new(folder, way_to(helper))) as coordinator:
        seen = believed(joined_at(coordinator, 1.0)).seen
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.lock"))  # with its keys
    with closing(opened(folder, way_to(helper))) as coordinator:
        coordinator.create_codes(1, 60.0, 5.0)
        toy_server.created(coordinator, replace(beginning()[0], name="other"), *beginning()[1:])
        coordinator.open_sums(6.0)
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)
    with closing(opened(folder, way_to(helper))) as coordinator:
        toy_server.created(coordinator, replace(beginning()[0], name="third"), *beginning()[1:])
        coordinator.open_sums(10.0)
        to_do = operators.report(coordinator, "default", 11.0).certify
        assert "was put back from a backup" in to_do
        for name in ("default", "third"):
            certify(coordinator, 12.0, name)
        coordinator.open_sums(13.0)
        answer = believed(joined_at(coordinator, 100.0), seen)
        assert len(answer.seen.heads) == 2
    helper.close()


def test_a_server_that_was_put_back_says_so_before_any_new_entry(fast_folder):
    helper, folder = desk(fast_folder / "helper"), fast_folder / "server"
    with closing(new(folder, way_to(helper))) as coordinator:
        coordinator.create_codes(1, 60.0, 5.0)
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.lock"))
    with closing(opened(folder, way_to(helper))) as coordinator:
        toy_server.created(coordinator, replace(beginning()[0], name="other"), *beginning()[1:])
        coordinator.open_sums(6.0)
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)
    with closing(opened(folder, way_to(helper))) as coordinator:
        told = coordinator.log_head()
        assert told.newest == told.countersigned  # by its own database all is well
        coordinator.open_sums(10.0)
        to_do = operators.report(coordinator, "default", 11.0).certify
        assert "was put back from a backup" in to_do
    helper.close()


def test_a_helper_that_was_put_back_hears_of_the_log_when_its_server_begins(fast_folder):
    helper, folder = desk(fast_folder / "helper"), fast_folder / "server"
    with closing(new(folder, way_to(helper))) as coordinator:
        signer = coordinator.log_head().newest.signer
    helper.close()
    shutil.rmtree(fast_folder / "helper")
    helper = desk(fast_folder / "helper")
    with closing(opened(folder, way_to(helper))) as coordinator:
        coordinator.open_sums(10.0)
        with helper._store.reading() as rows:
            assert rows.head(signer)[0] == newest(coordinator).size
    helper.close()


def test_a_task_certified_by_an_earlier_version_must_be_certified_again_and_goes_on(plain):
    works = [committed(plain, 10.0 * number) for number in (1, 2)]
    certificate = chain.certificate_of(works[0])
    old = replace(certificate, log_key="", start="", version=0, format=2)
    signed = signing.sign_text(toy_server.OPERATOR, chain.CERTIFICATE, config.to_json(old))
    with plain.store.transaction() as rows:  # as a database of that version has it
        newest_ = rows.certificate("default")
        rows.add_certificate("default", replace(newest_, number=2, signed=signed))
        rows.set_link("default", rows.current("default").sha, 2, works[1].link)
        for table in ("log_heads", "log_nodes", "log_entries", "logs"):
            rows._connection.exec_driver_sql(f"DELETE FROM {table}")
    (device,) = enrolled(plain, 1)
    assert plain.check_in(device, READY, 30.0).cause is Cause.UNCERTIFIED
    to_do = operators.report(plain, "default", 30.0).certify
    assert to_do.startswith("devices get no work of it: its certificate is of an earlier version")
    certify(plain, 31.0)
    policy, current = entries(plain)
    assert (policy.start, current.round, current.count) == (works[0].checkpoint, 2, 0)
    work = plain.check_in(device, READY, 32.0)
    assert current.checkpoint == work.checkpoint
    believed(work)
    assert plain.update(device, work.assignment, encoded(work, 0), 33.0).counted
    assert entries(plain)[-1].parent == current.checkpoint
