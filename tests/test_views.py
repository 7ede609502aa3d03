"""Neither side alone sees one update, by all that a real round leaves in its hands.

A view is every body and answer on the line, every file after every step, and every sum in memory.
It is read as bytes, as halves of bytes, as digits of words and as their differences, wherever that
begins, and says no more of what a device sent than of a device that was not there. The same reading
of a task whose updates are plain finds them all.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from device_runtime import chain, masking, packing, protection, update
from device_runtime.config import from_json
from device_runtime.helper_wire import Named, from_answer
from device_runtime.transport import Reply
from server.rounds import Rules
from tests import toy_server
from tests.toy_opening import codes, desk, joined, new, sealed, way_to
from tests.toy_server import encoded, enrolled

DEVICES = 5
STRANGERS = range(100, 106)  # devices that are not in the round: what they would have sent
CHANCE = 0.05  # correlation of 4,096 numbers, three times what one is off by chance
RULES = Rules(report_goal=DEVICES, over_selection=1.0)


@dataclass
class View:
    """What one side has had in its hands."""

    raw: list[bytes] = field(default_factory=list)
    words: list[np.ndarray] = field(default_factory=list)  # of a layout: masked, masks, sums
    layout: packing.Layout | None = None

    def see(self, folder: Path) -> None:
        """All files as they are now."""
        self.raw += [path.read_bytes() for path in folder.rglob("*") if path.is_file()]

    def told(self, sent: list[np.ndarray]) -> list[float]:
        """The largest correlation of each device's codes with anything in the view."""
        raw = list(dict.fromkeys(each for each in self.raw if len(each) >= len(sent[0]) // 2))
        numbers = [*map(_bytes, raw), *map(_halves, raw)]
        digits = [packing.unpack(each, self.layout).astype(float) for each in self._combined()]
        numbers += digits + [each % 16 for each in digits]
        found = [_correlations(each, sent) for each in numbers if len(each) >= len(sent[0])]
        return np.max(found, axis=0).tolist()

    def _combined(self) -> Iterator[np.ndarray]:
        yield from self.words
        for one, other in itertools.combinations(self.words, 2):
            yield packing.subtract(one, other, self.layout)


def _bytes(raw: bytes) -> np.ndarray:
    return np.frombuffer(raw, np.uint8).astype(float)


def _halves(raw: bytes) -> np.ndarray:
    each = np.frombuffer(raw, np.uint8)
    return np.stack([each >> 4, each & 15], axis=1).reshape(-1).astype(float)


def _correlations(long: np.ndarray, sent: list[np.ndarray]) -> list[float]:
    """The largest correlation of each with a part of `long` of the same length."""
    size = len(sent[0])
    length = 1 << (len(long) + size - 1).bit_length()
    spectrum = np.fft.rfft(long - long.mean(), length)
    sums, squares = (np.cumsum(np.r_[0.0, each]) for each in (long, long * long))
    sums, squares = (each[size:] - each[:-size] for each in (sums, squares))
    spread = squares - sums * sums / size
    valid = spread > size  # a part that hardly changes says nothing
    largest = []
    for each in sent:
        pattern = each - each.mean()
        products = np.fft.irfft(spectrum * np.conj(np.fft.rfft(pattern, length)), length)
        scale = np.sqrt(np.where(valid, spread, 1.0) * (pattern @ pattern))
        largest.append(float(np.abs(products[: len(valid)] / scale)[valid].max(initial=0.0)))
    return largest


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """A round from the first report to its checkpoint: what each side saw, what devices sent."""
    folder = tmp_path_factory.mktemp("views")
    server, helper, leader_folder = View(), View(), folder / "server"
    answering = desk(folder / "helper")
    way = way_to(answering)
    private = {}

    def send(method: str, path: str, body: bytes, headers) -> Reply:
        if path == "/v1/answers":  # before it answers, the helper holds all its keys
            named = from_json(Named, body, "body")
            for each in named.reports:
                bound = protection.bound_of(private["about"], each.public_key)
                kept = answering._keys.private((named.task_id, named.round), bound.seal_key)
                seed = masking.open_seal(bytes.fromhex(each.seal), bound, kept)
                helper.words.append(masking.mask(seed, server.layout))
        reply = way(method, path, body, headers)
        helper.raw += [body, reply.body]
        helper.see(folder / "helper")
        server.raw += [body, reply.body]
        if path == "/v1/answers":
            private["mask"] = packing.from_bytes(
                from_answer(reply.body, server.layout.bytes)[1], server.layout
            )
        return reply

    coordinator = new(leader_folder, send, RULES)
    devices = enrolled(coordinator, DEVICES)
    works = joined(coordinator, devices, 1.0)
    terms = chain.terms_of(works[0])
    by = terms.encoding
    server.layout = helper.layout = protection.layout(by.values, by.largest, terms)
    private["about"] = protection.addressed(works[0], terms)
    for number, (device, work) in enumerate(zip(devices, works, strict=True)):
        body = sealed(work, number)
        assert coordinator.update(device, work.assignment, body, 2.0).counted
        server.raw.append(body)
        server.words.append(update.sealed(body, server.layout).words)
        server.words += [each.total.view(np.uint64) for each in coordinator._sums._stored.values()]
    server.see(leader_folder)  # its log holds what was there before
    coordinator.open_sums(3.0)
    server.words.append(private["mask"])
    helper.words.append(private["mask"])
    server.see(leader_folder)
    helper.see(folder / "helper")
    assert coordinator.reports(3.0).rounds[0].phase == "committed"
    coordinator.close()
    sent = [codes(work, number).astype(float) for number, work in enumerate(works)]
    return server, helper, sent, [codes(works[0], each).astype(float) for each in STRANGERS]


def test_all_that_a_server_holds_of_a_round_says_nothing_of_one_update(played):
    server, _, sent, strangers = played
    assert len(server.words) > 2 * DEVICES
    # what it ends with is the sum, which it is meant to have: the last sum without its mask
    others = [each for each in server.words if not np.array_equal(each, server.words[-2])]
    only = View(server.raw, others, server.layout)
    assert max(only.told(sent)) < max(only.told(strangers)) + CHANCE


def test_all_that_a_helper_holds_of_a_round_says_nothing_of_one_update(played):
    _, helper, sent, strangers = played
    assert len(helper.words) == DEVICES + 1
    assert max(helper.told(sent)) < max(helper.told(strangers)) + CHANCE


def test_both_views_together_say_all_of_each_update(played):
    server, helper, sent, _ = played
    both = View([], [*server.words, *helper.words], server.layout)
    assert min(both.told(sent)) > 0.99


def test_the_same_reading_of_a_plain_round_finds_every_update(tmp_path):
    coordinator = toy_server.new(tmp_path, RULES)
    devices, view = enrolled(coordinator, DEVICES), View()
    works = joined(coordinator, devices, 1.0)
    sent = []
    for number, (device, work) in enumerate(zip(devices, works, strict=True)):
        body = encoded(work, number)
        coordinator.update(device, work.assignment, body, 2.0)
        view.raw.append(body)
        sent.append(update.codes(body, chain.terms_of(work).bits).astype(float))
    assert min(view.told(sent)) > 0.99
    coordinator.close()


def test_what_a_server_ends_with_is_the_sum_of_all_and_of_no_fewer(played):
    server, _, sent, _ = played
    total = packing.unpack(
        packing.subtract(server.words[-2], server.words[-1], server.layout), server.layout
    )
    assert np.array_equal(total, np.sum(sent, axis=0).astype(np.uint64))
