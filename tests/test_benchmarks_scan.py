"""A scan of the whole path finds nothing where updates are masked, and all of them where not."""

import pytest

from benchmarks.scan import marked, scan
from device_runtime.text import OOV


def test_every_device_types_words_nobody_knows_and_known_ones_in_an_order_of_its_own(tiny_bundle):
    one, other = marked(tiny_bundle, 2, seed=1)
    assert one.message != other.message and set(one.words).isdisjoint(other.words)
    assert set(tiny_bundle.vocabulary.ids(list(one.words))) == {OOV}
    assert OOV not in tiny_bundle.vocabulary.ids(list(one.known))


@pytest.mark.parametrize(
    ("is_plain", "noise"), [(False, 1.0), (True, 0.0)], ids=["masked and noised", "plain"]
)
def test_what_was_typed_is_nowhere_and_an_update_only_where_the_server_sees_it(
    tiny_bundle, tmp_path, is_plain, noise
):
    report = scan(
        tiny_bundle, tmp_path, devices=2, rounds=1, seed=0, is_plain=is_plain, multiplier=noise
    )
    assert report.counted == 2 and report.missed == ()
    assert report.requests > 6 and report.files > 20 and report.forms > 500
    assert {each.what for each in report.finds} == ({"codes of an update"} if is_plain else set())
    assert report.chance < 0.2
