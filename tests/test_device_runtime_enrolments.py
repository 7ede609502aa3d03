"""Enrolment certificates: whose devices count, and how a server hears of one."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime import config, enrolments, signing
from device_runtime.drive import Turn
from device_runtime.errors import RunError
from device_runtime.home import ENROLMENT, DeviceConfig, Home
from device_runtime.local import simulated
from device_runtime.transport import Reply
from device_runtime.turn import Status
from device_runtime.wire import Enrolled, Enrolment, Server, Signed
from fedboard import devices
from fedboard.device_words import status
from tests.toy_server import key

TRUSTED, STRANGER = key(1), key(2)
SERVER = "5e" * 16


@pytest.fixture
def home(tmp_path, tiny_bundle, trusted):
    settings = DeviceConfig(tuple(trusted), str(tiny_bundle.path))
    return Home.create(tmp_path / "phone", settings)


@pytest.fixture
def key_file(tmp_path):
    signing.load_or_create(tmp_path / "enrolment.key")
    return tmp_path / "enrolment.key"


def public(home):
    return signing.public_hex(home.key)


def test_a_certificate_is_of_one_device_by_one_signer():
    device, other = signing.public_hex(key(3)), signing.public_hex(key(4))
    signed = enrolments.certificate(device, TRUSTED)
    by = signing.public_hex(TRUSTED)
    assert enrolments.is_certified(device, signed.signature, by)
    assert not enrolments.is_certified(other, signed.signature, by)
    assert not enrolments.is_certified(device, signed.signature, signing.public_hex(STRANGER))
    assert enrolments.why_not(signed, device) == ""
    assert "found one of" in enrolments.why_not(signed, other)
    forged = replace(signed, signer=signing.public_hex(STRANGER))
    assert "the signature is none of" in enrolments.why_not(forged, device)


@given(st.text("0123456789abcdef", max_size=128))
def test_no_text_is_a_certificate_by_itself(signature):
    device, by = signing.public_hex(key(3)), signing.public_hex(TRUSTED)
    assert not enrolments.is_certified(device, signature, by)


def test_a_signature_of_another_purpose_is_no_certificate():
    device, by = signing.public_hex(key(3)), signing.public_hex(TRUSTED)
    signed = signing.sign_text(TRUSTED, "link", device.encode())
    assert not enrolments.is_certified(device, signed.signature, by)


def test_a_certified_device_shows_its_certificate_at_its_next_turn_though_it_was_enrolled(
    home, key_file
):
    home.keep_enrolment("ab" * 8, SERVER)
    (certificate,) = devices.certify([str(home.folder)], key_file)
    name = signing.name_of(public(home))
    assert certificate.text == public(home)
    shown = []

    def server(method, path, body, headers):
        if path == "/v1/server":
            return Reply(200, {}, config.to_json(Server(SERVER, 10)))
        assert path == "/v1/devices"
        shown.append(config.from_json(Enrolment, body, "enrolment"))
        return Reply(200, {}, config.to_json(Enrolled(name)))

    home = Home.open(home.folder)
    assert home.server_name is None
    outcome = Turn(home, server, simulated(), sleep=lambda seconds: None).check_in()
    assert outcome.status is Status.NOT_ASKED  # too little was typed: it is enrolled and no more
    assert (home.name, home.server_name) == (name, SERVER)
    assert shown == [Enrolment(public(home), certificate=home.certificate)]
    by = signing.public_hex(signing.load_or_create(key_file))
    assert enrolments.is_certified(public(home), shown[0].certificate.signature, by)


def test_a_certificate_of_another_device_is_not_kept(home):
    foreign = enrolments.certificate(signing.public_hex(key(9)), TRUSTED)
    with pytest.raises(RunError, match="expected one of device key"):
        home.keep_certificate(foreign)
    assert home.certificate is None


def test_a_damaged_certificate_is_none_and_keeps_no_device_from_its_turns(home):
    home.keep(ENROLMENT, b"{")
    assert home.certificate is None


def test_nobody_is_certified_if_one_folder_is_no_device_or_the_key_is_not_there(
    home, key_file, tmp_path
):
    with pytest.raises(RunError, match=r"found no device\.toml"):
        devices.certify([str(home.folder), str(tmp_path / "elsewhere")], key_file)
    with pytest.raises(RunError, match="there is no private key"):
        devices.certify([str(home.folder)], tmp_path / "no.key")
    assert home.certificate is None
    assert not (tmp_path / "no.key").exists()


def test_a_public_key_is_certified_where_the_device_is_not_and_its_file_is_given_to_it(
    home, key_file, tmp_path
):
    (certificate,) = devices.certify([public(home)], key_file)
    assert home.certificate is None
    (tmp_path / "certificate.json").write_bytes(config.to_json(certificate) + b"\n")
    devices.keep_certificate(home.folder, tmp_path / "certificate.json")
    assert home.certificate == certificate
    said = status(home, 0.0)
    assert (said.public_key, said.certified_by) == (public(home), certificate.signer)
    (other,) = devices.certify([signing.public_hex(key(9))], key_file)
    (tmp_path / "other.json").write_bytes(config.to_json(other))
    for file, problem in (
        ("other.json", "expected one of device key"),
        ("no.json", "is no certificate of a device"),
        ("enrolment.key", "is no certificate of a device"),
    ):
        with pytest.raises(RunError, match=problem):
            devices.keep_certificate(home.folder, tmp_path / file)
    assert home.certificate == certificate


def test_an_enrolment_without_a_certificate_is_read_as_one_of_before():
    table = {"public_key": "ab" * 32, "code": "c"}
    read = config.from_json(Enrolment, json.dumps(table).encode(), "enrolment")
    assert read == Enrolment("ab" * 32, "c")
    shown = Enrolment("ab" * 32, certificate=Signed("ab" * 32, "cd" * 32, "ef" * 64))
    assert config.from_json(Enrolment, config.to_json(shown), "enrolment") == shown
