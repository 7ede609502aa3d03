"""The keys of all devices of a fleet."""

import os
from itertools import chain

import pytest

from device_runtime.errors import RunError
from device_runtime.signing import public_hex
from fleet import keys, pocket


def made(devices, processes):
    return list(chain.from_iterable(keys.of_all(7, devices, processes)))


@pytest.fixture
def in_groups_of_two(monkeypatch):
    monkeypatch.setattr(keys, "AT_ONCE", 2)
    monkeypatch.setattr(keys, "MANY", 3)


def test_devices_have_the_keys_that_they_sign_with(in_groups_of_two):
    assert made(5, 1) == [public_hex(pocket.key_of(7, device)) for device in range(5)]


def test_many_processes_make_the_keys_that_one_makes_in_the_same_order(in_groups_of_two):
    assert made(5, 2) == made(5, 1)


def test_a_process_that_dies_is_told(in_groups_of_two, monkeypatch):
    monkeypatch.setattr(keys, "_of", die)
    with pytest.raises(RunError, match="a process died"):
        made(5, 2)


def die(seed, devices):
    os._exit(1)
