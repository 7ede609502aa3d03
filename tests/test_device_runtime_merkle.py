"""The Merkle tree: RFC 6962's hashes, proofs against brute force, and what is no proof."""

import hashlib

import hypothesis.strategies as st
import pytest
from hypothesis import given

from device_runtime import merkle
from device_runtime.merkle import EMPTY, Frontier

# the eight entries that Certificate Transparency's own tests use, and the roots of the first n
ENTRIES = [
    bytes.fromhex(each)
    for each in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
MOST = 64
HASHES = [merkle.leaf(bytes([number])) for number in range(MOST)]


def root(hashes):
    """RFC 6962, section 2.1, word by word."""
    if not hashes:
        return hashlib.sha256(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    half = 1
    while 2 * half < len(hashes):
        half *= 2
    return merkle.node(root(hashes[:half]), root(hashes[half:]))


def kept(count):
    """The frontier after so many leaves, and the root of every whole range."""
    frontier, places = Frontier(), {}
    for each in HASHES[:count]:
        frontier, whole = frontier.append(each)
        places |= whole
    return frontier, places


PLACES = kept(MOST)[1]


def hashes_of(ranges):
    return [merkle.root_of(each, PLACES) for each in ranges]


@pytest.mark.parametrize("count", range(1, 9))
def test_the_roots_are_those_of_certificate_transparency(count):
    frontier = Frontier()
    for entry in ENTRIES[:count]:
        frontier, _ = frontier.append(merkle.leaf(entry))
    assert frontier.root.hex() == ROOTS[count - 1]


def test_proofs_are_those_of_certificate_transparency():
    places, frontier = {}, Frontier()
    for entry in ENTRIES:
        frontier, whole = frontier.append(merkle.leaf(entry))
        places |= whole
    path = [merkle.root_of(each, places).hex() for each in merkle.inclusion(5, 8)]
    assert path == [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]
    path = [merkle.root_of(each, places).hex() for each in merkle.consistency(6, 8)]
    assert path == [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]


def test_a_log_without_entries_has_the_root_of_nothing():
    assert Frontier().root == EMPTY == root([])


@pytest.mark.parametrize("size", range(1, MOST + 1))
def test_every_leaf_of_a_log_is_proved_and_no_other(size):
    frontier, _ = kept(size)
    assert frontier.root == root(HASHES[:size])
    for index in range(size):
        path = hashes_of(merkle.inclusion(index, size))
        assert len(path) <= 6
        assert merkle.includes(frontier.root, size, index, HASHES[index], path)
        assert not merkle.includes(frontier.root, size, index, merkle.leaf(b"other"), path)
        assert not merkle.includes(
            frontier.root, size, (index + 1) % size, HASHES[index], path
        ) or (size == 1)


@pytest.mark.parametrize("new", range(1, MOST + 1))
def test_every_beginning_of_a_log_is_proved_and_no_other(new):
    after = new, root(HASHES[:new])
    for old in range(new + 1):
        before = old, root(HASHES[:old])
        path = hashes_of(merkle.consistency(old, new))
        assert merkle.extends(before, after, path)
        assert not merkle.extends((old, merkle.leaf(b"other")), after, path)
        assert old == 0 or not merkle.extends(before, (new, merkle.leaf(b"other")), path)


def test_a_log_that_is_shorter_than_before_extends_nothing():
    assert not merkle.extends((3, root(HASHES[:3])), (2, root(HASHES[:2])), [])


def test_appending_keeps_a_root_for_each_bit_of_the_size():
    for size in range(MOST + 1):
        frontier, places = kept(size)
        assert len(frontier.roots) == size.bit_count()
        assert len(places) <= 2 * size


paths = st.lists(st.binary(max_size=40), max_size=80)


@given(st.integers(-2, 70), st.integers(-2, 70), paths)
def test_what_is_no_proof_of_a_leaf_is_refused_and_never_raises(index, size, path):
    assert not merkle.includes(root(HASHES[:9]), size, index, merkle.leaf(b"none"), path)


@given(st.integers(-2, 70), st.integers(-2, 70), paths)
def test_what_is_no_proof_of_a_beginning_is_refused_and_never_raises(old, new, path):
    before, after = (old, merkle.leaf(b"some")), (new, merkle.leaf(b"none"))
    assert not merkle.extends(before, after, path)


@given(st.integers(1, MOST), st.data())
def test_a_proof_with_one_hash_changed_is_none(size, data):
    index = data.draw(st.integers(0, size - 1))
    path = hashes_of(merkle.inclusion(index, size))
    if path:
        at = data.draw(st.integers(0, len(path) - 1))
        path[at] = bytes(32)
        assert not merkle.includes(root(HASHES[:size]), size, index, HASHES[index], path)
    assert not merkle.includes(root(HASHES[:size]), size, index, HASHES[index], [*path, bytes(32)])
