"""Releases on a server: what may be published, what devices are told, what strangers may fetch."""

import shutil
from dataclasses import replace

import httpx
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime import bundle, codes, config, signing
from device_runtime.causes import Cause
from device_runtime.errors import RunError
from device_runtime.releases import MOST_NAMED, PURPOSE, WHOLE, Blob, Statement
from device_runtime.weights import Checkpoint, digest
from device_runtime.wire import Signed
from server import contract, endpoint, releases
from server.blobs import Blobs
from server.coordinator import Coordinator, open_folder
from server.release_rows import StoredRelease
from server.requests import CheckingIn, Refused
from server.rounds import Rules
from server.settings import Limits
from server.task import TaskSettings
from tests.kill_points import every_kill_point
from tests.test_server_endpoint import TOKEN, Device, problem, running
from tests.toy_releases import (
    CONSTANTS,
    MAKER,
    content,
    index_of,
    manifest_of,
    numbers,
    predict,
    published,
    put,
    signature,
    stated,
)
from tests.toy_server import (
    PLAN,
    READY,
    TOKENIZER,
    WEIGHTS,
    created,
    enrolled,
    key,
    new,
    reopened,
)

RULES = Rules(report_goal=1000, over_selection=1.0)
OPERATOR = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
PUTS = {**OPERATOR, "content-type": "application/octet-stream"}


@pytest.fixture
def coordinator(tmp_path):
    coordinator = new(tmp_path / "server", RULES)
    yield coordinator
    coordinator.close()


def told(coordinator, population: str = "default") -> str:
    """What a device's check-in is told of releases."""
    device = enrolled(coordinator, 1)[0]
    return coordinator.ask(CheckingIn(device, replace(READY, population=population)), 3.0).releases


def refused(coordinator, message: contract.Publication) -> str:
    """Why a publication is refused; the server is as it was before."""

    def state() -> object:
        with coordinator.store.reading() as rows:
            return rows.releases.all(), rows.releases.named()

    before = state()
    with pytest.raises(Refused) as caught:
        releases.publish(coordinator, message, 2.0)
    assert state() == before
    return f"{caught.value.cause}: {caught.value.detail}"


# what may be published


def test_a_published_release_is_in_the_index_that_every_check_in_names(coordinator):
    assert told(coordinator) == ""
    kept = published(coordinator, 7)
    name = told(coordinator)
    with coordinator.store.reading() as rows:
        body = rows.releases.index(name)
    assert digest(body) == name
    (offer,) = index_of(coordinator).offers
    assert (offer.statement, offer.signature) == (kept.signed, kept.signature)
    assert told(coordinator, "another") == ""  # there, nothing has been published
    # a device that gets no work is told the same
    busy = replace(READY, conditions=replace(READY.conditions, idle=False))
    answer = coordinator.ask(CheckingIn(enrolled(coordinator, 2)[1], busy), 3.0)
    assert (answer.cause, answer.releases) == (Cause.IN_USE, name)


def test_what_is_published_survives_a_restart(tmp_path):
    coordinator = new(tmp_path / "server", RULES)
    published(coordinator, 7)
    before, index = releases.reports(coordinator), told(coordinator)
    coordinator.close()
    again = reopened(tmp_path / "server")
    assert (releases.reports(again), told(again)) == (before, index)
    again.close()


def test_the_same_statement_again_is_answered_as_before_and_changes_nothing(coordinator):
    message = stated(put(coordinator, 7))
    first = releases.publish(coordinator, message, 1.0)
    index = told(coordinator)
    assert releases.publish(coordinator, message, 2.0) == first
    assert told(coordinator) == index


def test_a_share_rises_with_the_next_statement_and_with_no_other(coordinator):
    manifest = put(coordinator, 7)
    releases.publish(coordinator, stated(manifest, 500), 1.0)
    for share, serial, says in (
        (2000, 1, "published already, to 5 % of the devices"),
        (2000, 3, "expected statement 2, found 3"),
        (500, 2, "expected a share above its 5 %, found 5 %"),
        (499, 2, "expected a share above its 5 %, found 4.99 %"),
    ):
        assert says in refused(coordinator, stated(manifest, share, serial))
    kept = releases.publish(coordinator, stated(manifest, 2000, 2), 2.0)
    assert (kept.statement.share, kept.published_at, kept.changed_at) == (2000, 1.0, 2.0)
    # of two operators who promote at the same time, the second is told
    assert "expected statement 3, found 2" in refused(coordinator, stated(manifest, WHOLE, 2))


def test_a_withdrawn_release_stays_withdrawn(coordinator):
    manifest = put(coordinator, 7)
    releases.publish(coordinator, stated(manifest), 1.0)
    releases.publish(coordinator, stated(manifest, serial=2, withdrawn=True), 2.0)
    assert "withdrawn, which lasts" in refused(coordinator, stated(manifest, WHOLE, 3))
    assert "expected a number above 7" in refused(coordinator, stated(put(coordinator, 6)))
    published(coordinator, 8)
    assert numbers(index_of(coordinator)) == [8, 7]  # who runs 7 is told that it is withdrawn


def test_a_stopped_release_is_named_no_more_and_only_withdrawn(coordinator):
    manifest = put(coordinator, 7)
    releases.publish(coordinator, stated(put(coordinator, 6), WHOLE), 1.0)
    releases.publish(coordinator, stated(manifest), 1.0)
    before = told(coordinator)
    with coordinator.store.transaction() as rows:
        assert releases.stop(rows, "default", 7, "one word in fifty fewer", 5.0)
        assert not releases.stop(rows, "default", 7, "again", 6.0)
        assert not releases.stop(rows, "default", 9, "there is none", 6.0)
    assert numbers(index_of(coordinator)) == [6]
    # nor does anybody get what named it, or what it is of
    assert not releases.served(coordinator, before)
    assert not releases.served(coordinator, digest(predict(7)))
    assert releases.served(coordinator, digest(predict(6)))
    (report, _) = releases.reports(coordinator).releases
    assert (report.state, report.stopped, report.stopped_at) == (
        "stopped",
        "one word in fifty fewer",
        5.0,
    )
    says = refused(coordinator, stated(manifest, 2000, 2))
    assert "stopped (one word in fifty fewer); withdraw it" in says
    releases.publish(coordinator, stated(manifest, serial=2, withdrawn=True), 7.0)
    assert numbers(index_of(coordinator)) == [7, 6]


def test_what_was_not_signed_by_the_maker_of_the_releases_before_is_refused(coordinator):
    good = stated(put(coordinator, 7))
    other = key(98)
    altered = replace(good.statement, text=good.statement.text.replace(":500", ":9999"))
    message = replace(good, statement=altered)
    assert "not signed by the key it names" in refused(coordinator, message)
    encoded = manifest_of(7).encoded()
    for told_, says in (
        (signature(encoded, other), "signed by a key that is not trusted"),
        (signature(encoded + b" "), "altered: its signature does not match"),
        ("", "signed by a key that is not trusted"),
    ):
        assert says in refused(coordinator, replace(good, signature=told_))
    # a signature is good for one purpose
    text = good.statement.text.encode()
    elsewhere = signing.sign_text(MAKER, "certificate", text)
    assert "not signed" in refused(coordinator, replace(good, statement=elsewhere))
    releases.publish(coordinator, good, 1.0)
    stranger = stated(put(coordinator, 8), maker=other)
    assert "expected " + signing.public_hex(MAKER)[:16] in refused(coordinator, stranger)
    mine = stated(put(coordinator, 8), maker=other, population="mine")
    assert releases.publish(coordinator, mine, 1.0).population == "mine"


def test_what_is_not_whole_is_refused_by_the_file_that_is_missing(coordinator):
    message = stated(manifest_of(7))
    assert "unknown_blob: manifest.json" in refused(coordinator, message)
    coordinator.blobs.put(manifest_of(7).encoded())
    for data in content(7).values():
        assert "put it first" in refused(coordinator, message)
        coordinator.blobs.put(data)
    assert releases.publish(coordinator, message, 1.0).release == 7
    sizes = {**manifest_of(8).files, bundle.CARD: bundle.File(1, digest(content(8)[bundle.CARD]))}
    manifest = put(coordinator, 8, manifest_of(8, files=sizes))
    says = "MODEL_CARD.md: the manifest says 1 bytes, found 21"
    assert says in refused(coordinator, stated(manifest))


def test_a_statement_on_another_number_or_format_is_refused(coordinator):
    manifest = put(coordinator, 7)
    says = "the statement is on release 8, but the manifest it names is of release 7"
    assert says in refused(coordinator, stated(manifest, release=8))
    later = put(coordinator, 9, manifest_of(9, format=4))
    assert "expected format 2 or 3, found 4" in refused(coordinator, stated(later))
    assert "publish it first" in refused(coordinator, stated(manifest, serial=2))
    assert "publish it first" in refused(coordinator, stated(manifest, 0))
    assert "publish it first" in refused(coordinator, stated(manifest, withdrawn=True))
    releases.publish(coordinator, stated(manifest), 1.0)
    another = put(coordinator, 7, manifest_of(7, minimum_runtime="2.99.0"))
    assert "another bundle of that number" in refused(coordinator, stated(another, WHOLE, 2))


def test_a_report_says_whether_a_vocabulary_is_new(coordinator):
    assert not published(coordinator, 7).new_vocabulary  # the task's own
    kept = published(coordinator, 8, tokenizer="71" * 32)
    assert kept.new_vocabulary
    assert not published(coordinator, 9, tokenizer="71" * 32).new_vocabulary


@given(st.text(max_size=60) | st.dictionaries(st.text(max_size=9), st.integers(), max_size=4))
@settings(max_examples=60)
def test_a_statement_that_is_none_is_refused_however_well_it_is_signed(text):
    written = config.to_json(text).decode() if isinstance(text, dict) else text
    if not written.isascii() or not written.isprintable():
        return
    message = contract.Publication(signing.sign_text(MAKER, PURPOSE, written.encode()), "")
    with pytest.raises(Refused) as caught:
        releases._statement(message.statement)
    assert caught.value.cause is Cause.MALFORMED


# the index


def release(number: int, share: int = WHOLE, withdrawn: bool = False, stopped: str = ""):
    """A release for `newest`, which looks at no signature."""
    text = config.to_json(Statement(number, "a" * 64, "default", share, 1, withdrawn)).decode()
    kept = StoredRelease(
        *("default", number, "{}", "", Signed(text, "0" * 64, "0" * 128), False, 0.0, 0.0),
        stopped=stopped,
    )
    vars(kept)["statement"] = config.from_json(Statement, text.encode(), "statement")
    return kept


def test_an_index_names_what_a_device_may_need_newest_first():
    kept = [
        release(9, 500),
        release(8, 2000, stopped="worse"),
        release(7),
        release(6, withdrawn=True),
        release(5),
    ]
    assert numbers(releases.newest(kept, {})) == [9, 7, 6, 5]


def test_an_index_with_more_than_it_has_room_for_leaves_out_what_is_needed_least():
    # a release for all, and more below it than there is room for
    kept = [release(20), *(release(number) for number in range(19, 10, -1))]
    assert numbers(releases.newest(kept, {})) == list(range(20, 20 - MOST_NAMED, -1))
    # what is withdrawn comes before what is only older
    kept = [release(20), *(release(n) for n in range(19, 5, -1)), release(5, withdrawn=True)]
    assert numbers(releases.newest(kept, {}))[-1] == 5
    # the newest for all stays, however many are being tried above it
    kept = [*(release(number, 500) for number in range(30, 10, -1)), release(10)]
    assert numbers(releases.newest(kept, {}))[-1] == 10


def test_an_index_is_the_same_for_the_same_releases(coordinator):
    published(coordinator, 7)
    first = told(coordinator)
    with coordinator.store.transaction() as rows:
        releases.renew(rows, "default")
    assert told(coordinator) == first


def test_who_was_told_of_an_index_may_still_fetch_it_after_the_next_release(coordinator):
    published(coordinator, 7)
    before = told(coordinator)
    published(coordinator, 8)
    assert told(coordinator) != before
    assert releases.served(coordinator, before)
    manifest = manifest_of(8)
    releases.publish(coordinator, stated(manifest, serial=2, withdrawn=True), 3.0)
    assert not releases.served(coordinator, before)  # it offers what is withdrawn


# differences


def differences_of(coordinator, number: int) -> dict[str, Blob]:
    """By the older release's manifest: what an index offers of a release."""
    index = index_of(coordinator)
    return index.offers[numbers(index).index(number)].differences


def test_a_release_is_offered_as_a_difference_from_the_ones_before(coordinator):
    old = {number: published(coordinator, number) for number in (3, 4, 5, 6, 7)}
    new = published(coordinator, 8, share=WHOLE)
    before = told(coordinator)
    assert differences_of(coordinator, 8) == {}
    assert releases.work_out(coordinator, "another") == 0
    assert releases.work_out(coordinator, "default") == 1 + 2 + 3 + 4 + 4
    assert told(coordinator) != before
    offered = differences_of(coordinator, 8)
    assert offered.keys() == {old[number].sha for number in (4, 5, 6, 7)}  # no more than FROM
    for number in (4, 7):
        blob = offered[old[number].sha]
        data = coordinator.blobs.get(blob.sha256)
        assert (len(data), blob.bytes < 0.75 * len(predict(8))) == (blob.bytes, True)
        wanted = new.manifest.files[bundle.PREDICT].sha256
        assert codes.apply(predict(number), data, CONSTANTS, wanted) == predict(8)
        assert releases.served(coordinator, blob.sha256)
    (report, *_) = releases.reports(coordinator).releases
    assert [each.release for each in report.differences] == [7, 6, 5, 4]
    assert releases.work_out(coordinator) == 0
    # with the release, what leads to it is got no more
    releases.publish(coordinator, stated(manifest_of(8), serial=2, withdrawn=True), 3.0)
    assert not releases.served(coordinator, offered[old[7].sha].sha256)
    assert differences_of(coordinator, 8) == {}


@pytest.mark.parametrize(
    "changes",
    [{"graph": "9b" * 32}, {"tokenizer": "71" * 32}, {"constants": None, "graph": None}],
)
def test_another_graph_or_vocabulary_travels_whole(coordinator, changes):
    published(coordinator, 7, **changes)
    published(coordinator, 8)
    assert releases.work_out(coordinator) == 0
    assert differences_of(coordinator, 8) == {}


def test_constants_that_are_not_where_a_maker_says_cost_the_difference_and_no_more(coordinator):
    outside = {"embedding": replace(CONSTANTS["embedding"], offset=17)}
    published(coordinator, 7, constants=outside)
    published(coordinator, 8, constants=outside)
    assert releases.work_out(coordinator) == 1
    assert differences_of(coordinator, 8) == {}
    assert releases.work_out(coordinator) == 0


def test_a_release_whose_file_is_lost_keeps_no_other_from_its_difference(coordinator, tmp_path):
    for number in (6, 7, 8):
        published(coordinator, number)
    lost = manifest_of(7).files[bundle.PREDICT].sha256
    (tmp_path / "server" / "blobs" / lost).unlink()
    coordinator.close()
    again = reopened(tmp_path / "server")
    with pytest.raises(RunError, match=f"{lost}: missing"):
        releases.work_out(again)
    assert differences_of(again, 8).keys() == {digest(manifest_of(6).encoded())}
    again.close()


def test_a_difference_that_saves_too_little_is_not_offered(coordinator, monkeypatch):
    monkeypatch.setattr(releases, "SMALLER", 0.001)
    published(coordinator, 7)
    published(coordinator, 8)
    assert (releases.work_out(coordinator), releases.work_out(coordinator)) == (1, 0)
    assert differences_of(coordinator, 8) == {}


# what an operator does, again after every kill
OPERATOR_S_WORK = """
from server import releases
from tests.toy_releases import manifest_of, stated
from tests.toy_server import reopened

def work(folder):
    coordinator = reopened(folder)
    def say(*what, **more):
        with coordinator.store.reading() as rows:
            kept = rows.releases.one("default", what[0].release)
        message = stated(*what, **more)
        if kept is None or releases.statement_in(message.statement).serial >= kept.statement.serial:
            releases.publish(coordinator, message, 1.0)
    say(manifest_of(8))
    releases.work_out(coordinator)
    with coordinator.store.transaction() as rows:
        releases.stop(rows, "default", 8, "worse", 2.0)
    say(manifest_of(8), serial=2, withdrawn=True)
    coordinator.close()
"""


def test_a_server_killed_at_any_step_of_a_release_has_whole_ones_and_goes_on(fast_folder):
    ends: dict = {}
    begun = new(fast_folder / "begun", RULES)
    published(begun, 7, share=WHOLE)
    put(begun, 8)
    begun.close()

    def prepare(folder):
        shutil.copytree(fast_folder / "begun", folder, dirs_exist_ok=True)

    def whole(folder):
        """All that a server tells fits together."""
        coordinator = reopened(folder)
        with coordinator.store.reading() as rows:
            kept = rows.releases.all("default")
            known = rows.releases.differences("default")
        assert index_of(coordinator) == releases.newest(kept, known)
        for each in kept:
            for file in (each.sha, *(file.sha256 for file in each.manifest.files.values())):
                assert coordinator.blobs.get(file)
                assert releases.served(coordinator, file) or not each.is_offered
        for blob in known.values():
            assert coordinator.blobs.size(blob.sha256) == blob.bytes
        ends["index"] = index_of(coordinator)
        ends["differences"] = known
        coordinator.close()

    goes_on: list = []  # what kills have left: what follows from it is looked at once

    def check(folder):
        whole(folder)
        left = ends["index"], ends["differences"]
        if left in goes_on:
            return
        goes_on.append(left)
        work: dict = {}
        exec(OPERATOR_S_WORK, work)
        work["work"](folder)
        whole(folder)
        assert numbers(ends["index"]) == [8, 7]
        assert ends["differences"].keys() == {(8, 7)}

    every_kill_point(OPERATOR_S_WORK, fast_folder / "server", prepare, check)
    # nothing yet; published; with its difference; stopped; withdrawn
    assert len(goes_on) == 5


def test_whether_a_file_may_be_fetched_costs_the_same_however_many_releases_share_it(coordinator):
    shared = digest(content(1)[bundle.TOKENIZER])
    asked: list[str] = []

    @sa.event.listens_for(coordinator.store._engine, "before_cursor_execute")
    def count(_connection, _cursor, statement, *_):
        asked.append(statement)

    def queries() -> int:
        asked.clear()
        assert releases.served(coordinator, shared)
        return len(asked)

    published(coordinator, 1)
    of_one = queries()
    for number in range(2, 12):
        published(coordinator, number)
        withdrawn = stated(manifest_of(number - 1), serial=2, withdrawn=True)
        releases.publish(coordinator, withdrawn, 2.0)
    assert queries() == of_one
    with coordinator.store.transaction() as rows:
        releases.stop(rows, "default", 11, "a toy", 3.0)
    assert not releases.served(coordinator, shared)


# over HTTP


def fetched(url: str, name: str, **headers: str) -> httpx.Response:
    return httpx.get(f"{url}/v1/releases/{name}", headers=headers)


def test_an_operator_publishes_over_http_and_anybody_fetches_what_is_published(tmp_path):
    coordinator = new(tmp_path / "server", RULES)
    checkpoint = coordinator.checkpoint()
    closed = endpoint.Access(TOKEN, open_to_readers=False)
    with running(coordinator, access_=closed) as url:
        manifest = manifest_of(7)
        for data in (manifest.encoded(), *content(7).values()):
            put_ = httpx.put(f"{url}/v1/releases/blobs", headers=PUTS, content=data)
            assert put_.json() == {"sha256": digest(data)}
            # a blob is not published because it is there
            assert problem(fetched(url, digest(data))) == (404, "unknown_blob")
        message = config.to_json(stated(manifest))
        reply = httpx.post(f"{url}/v1/releases", headers=OPERATOR, content=message)
        report = config.from_json(contract.ReleaseReport, reply.content, "reply")
        assert (report.release, report.state, report.share) == (7, "offered", 500)
        assert (report.task, report.participants, report.round) == ("default", 40, 7)
        assert report.bytes == len(manifest.encoded()) + sum(map(len, content(7).values()))
        listed = httpx.get(f"{url}/v1/releases", headers=OPERATOR).content
        assert config.from_json(contract.ReleaseReports, listed, "reply").releases == (report,)
        for data in (manifest.encoded(), *content(7).values()):
            assert fetched(url, digest(data)).content == data
        named = Device(url, 1).check_in().releases
        index = fetched(url, named)
        assert digest(index.content) == named
        assert index.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert fetched(url, named, **{"if-none-match": f'"{named}"'}).status_code == 304
        part = fetched(url, digest(predict(7)), range="bytes=4-9")
        assert (part.status_code, part.content) == (206, predict(7)[4:10])
        assert fetched(url, digest(predict(7)), range="bytes=99999-").status_code == 416
        # nothing of a task is got this way
        for name in (checkpoint.sha, checkpoint.half, "0" * 64, "not-a-name"):
            assert problem(fetched(url, name)) == (404, "unknown_blob")


def test_publishing_needs_the_token_and_a_plain_body(tmp_path):
    closed = endpoint.Access(TOKEN, open_to_readers=False)
    with running(new(tmp_path / "server", RULES), access_=closed) as url:
        device = Device(url, 1)
        for method, path in (
            ("PUT", "/v1/releases/blobs"),
            ("POST", "/v1/releases"),
            ("GET", "/v1/releases"),
        ):
            assert problem(httpx.request(method, url + path)) == (401, "not_the_operator")
            assert problem(device.send(method, path))[0] == 401
        for body in (b"", b"{}", b"[", b'{"statement":{},"signature":""}', b"\xff" * 99):
            reply = httpx.post(f"{url}/v1/releases", headers=OPERATOR, content=body)
            assert problem(reply) == (400, "malformed")
        large = httpx.post(f"{url}/v1/releases", headers=OPERATOR, content=b"[" * 20_000)
        assert problem(large) == (413, "too_large")
        page = {**PUTS, "origin": "https://elsewhere.example"}
        reply = httpx.put(f"{url}/v1/releases/blobs", headers=page, content=b"x")
        assert problem(reply) == (401, "not_the_operator")


def test_a_release_that_no_device_takes_is_not_published(coordinator, monkeypatch):
    monkeypatch.setattr(releases, "MOST_BUNDLE", 7_000)
    says = refused(coordinator, stated(put(coordinator, 7)))
    assert "release 7: expected at most 7,000 bytes of files, found" in says
    assert "which no device takes" in says


def test_a_byte_of_a_blob_that_must_be_read_for_it_costs_the_address_all_of_it(tmp_path):
    coordinator = new(tmp_path / "server", RULES)
    coordinator.blobs = Blobs(tmp_path / "server" / "blobs", hot_bytes=100)  # none is kept
    published(coordinator, 7, share=WHOLE)
    limits = Limits(release_burst_bytes=2 * len(predict(7)), release_bytes_per_s=0.0)
    proxied = endpoint.Access(TOKEN, limits=limits, behind_proxy="127.0.0.1")
    first = {"x-forwarded-for": "9.9.9.9", "range": "bytes=0-0"}
    with running(coordinator, access_=proxied) as url:
        name = digest(predict(7))
        assert [fetched(url, name, **first).status_code for _ in range(3)] == [206, 206, 429]


def test_one_address_gets_so_many_bytes_of_releases_and_no_more(tmp_path):
    coordinator = new(tmp_path / "server", RULES)
    published(coordinator, 7, share=WHOLE)
    size = len(predict(7))
    limits = Limits(release_burst_bytes=2 * size, release_bytes_per_s=0.0)
    proxied = endpoint.Access(TOKEN, limits=limits, behind_proxy="127.0.0.1")
    with running(coordinator, access_=proxied) as url:
        name = digest(predict(7))
        mine, other = {"x-forwarded-for": "9.9.9.9"}, {"x-forwarded-for": "9.9.9.8"}
        assert [fetched(url, name, **mine).status_code for _ in range(3)] == [200, 200, 429]
        assert fetched(url, name, **mine, **{"if-none-match": f'"{name}"'}).status_code == 304
        assert fetched(url, name, **other).status_code == 200


def test_a_task_that_requires_an_audit_lets_no_release_out_without_one(tmp_path):
    settings = TaskSettings(PLAN, rules=RULES, require_audit=True)
    coordinator = Coordinator(*open_folder(tmp_path / "server"))
    created(coordinator, settings, 0.0, Checkpoint(WEIGHTS, 0, "", TOKENIZER))
    said = refused(coordinator, stated(put(coordinator, 1)))
    assert "expected an audit in its lineage, as task default requires, found none" in said
    audited = replace(manifest_of(1).lineage, audit="a0" * 32)
    assert published(coordinator, 1, lineage=audited).release == 1
    first = replace(manifest_of(2).lineage, task=None)  # it was learnt elsewhere
    assert published(coordinator, 2, lineage=first).release == 2
    coordinator.close()
