import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime import sensors
from device_runtime.causes import Cause
from device_runtime.errors import ConfigError
from device_runtime.sensors import (
    charging,
    last_key_at,
    linux,
    named,
    note_key,
    remembered,
    stated,
    termux,
)
from device_runtime.wire import Conditions, forbidden_by

NOW = 1_800_000_000.0

# what NetworkManager 1.42 and logind 252 answered busctl, and nmcli 1.42 printed, on an Ethernet
# port with a gateway beside one without
WIRED = '{"type":"u","data":4}\n{"type":"u","data":70}\n'
AWAY = '{"type":"u","data":0}\n{"type":"u","data":20}\n'
NMCLI_WIRED = (
    "GENERAL.METERED:no (guessed)\nIP4.GATEWAY:10.9.9.1\nIP6.GATEWAY:\n\n"
    "GENERAL.METERED:unknown\nIP4.GATEWAY:\nIP6.GATEWAY:\n"
)

# the fields termux-api's BatteryStatusAPI and WifiAPI write
PLUGGED = {
    "present": True,
    "health": "GOOD",
    "plugged": "PLUGGED_AC",
    "status": "CHARGING",
    "temperature": 25.5,
    "percentage": 61,
}
ON_WIFI = {
    "ip": "192.168.1.7",
    "bssid": "02:00:00:00:00:00",
    "ssid": "<unknown ssid>",
    "rssi": -50,
    "supplicant_state": "COMPLETED",
}


def idle_since(seconds: float, hint: bool = True) -> str:
    return f'{{"type":"b","data":{json.dumps(hint)}}}\n{{"type":"t","data":{int(seconds * 1e6)}}}\n'


def sysfs(folder: Path, **supplies: dict[str, str]) -> Path:
    """A tree like /sys/class/power_supply: a folder per supply, a file per property."""
    for name, properties in supplies.items():
        (folder / name).mkdir(parents=True)
        for key, value in properties.items():
            (folder / name / key).write_text(f"{value}\n")
    return folder


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Real programs on a PATH of their own: commands(name="shell script")."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def install(**scripts: str) -> None:
        for name, script in scripts.items():
            path = folder / name.replace("_", "-")
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)

    return install


def prints(text: str) -> str:
    return f"/bin/cat <<'END'\n{text.rstrip()}\nEND"


def busctl(network: str, logind: str) -> str:
    return (
        'case "$*" in\n*NetworkManager*Metered\\ State) '
        f"{prints(network)}\n;;\n*login1*IdleHint\\ IdleSinceHint) {prints(logind)}\n;;\nesac"
    )


MAINS_ON, MAINS_OFF = {"type": "Mains", "online": "1"}, {"type": "Mains", "online": "0"}
MOUSE = {"type": "Battery", "scope": "Device", "status": "Discharging", "present": "1"}


def battery(status: str) -> dict[str, str]:
    return {"type": "Battery", "present": "1", "status": status}


EMPTY_BAY = {**battery("Discharging"), "present": "0"}


@pytest.mark.parametrize(
    ("supplies", "expected"),
    [
        ({"AC": MAINS_ON, "BAT0": battery("Charging")}, True),
        ({"AC": MAINS_ON, "BAT0": battery("Full")}, True),
        ({"AC": MAINS_ON, "BAT0": battery("Not charging")}, True),  # held at the owner's limit
        ({"AC": MAINS_ON, "BAT0": battery("Unknown")}, True),
        ({"AC": MAINS_OFF, "BAT0": battery("Discharging")}, False),
        ({"AC": MAINS_OFF, "BAT0": battery("Full")}, False),  # just unplugged
        ({"AC": MAINS_ON, "BAT0": battery("Discharging")}, False),  # a charger too weak
        ({"AC": MAINS_ON, "BAT0": battery("Not charging"), "BAT1": battery("Charging")}, True),
        ({"AC": MAINS_OFF, "BAT0": battery("Unknown"), "BAT1": battery("Discharging")}, False),
        # an empty bay
        ({"AC": MAINS_ON, "BAT0": battery("Charging"), "BAT1": EMPTY_BAY}, True),
        ({"AC": MAINS_ON, "mouse": MOUSE}, True),
        ({"mouse": MOUSE}, None),
        ({"dock": {**MAINS_ON, "scope": "Device"}}, None),
        ({"usb": {"type": "USB", "online": "1"}, "BAT0": battery("Charging")}, True),
        ({"usb": {"type": "USB_PD", "online": "2"}}, True),
        ({"usb": {"type": "USB", "online": "0"}}, None),  # a desktop's port
        # by a charger the kernel does not show
        ({"usb": {"type": "USB", "online": "0"}, "battery": battery("Charging")}, True),
        ({"battery": battery("Full")}, None),
        ({"ups": {"type": "UPS", "status": "Discharging"}}, False),
        ({"AC": {"type": "Mains", "online": "perhaps"}, "BAT0": battery("???")}, None),
        ({"AC": {"online": "1"}, "BAT0": {}}, None),  # without a type
        ({}, None),
    ],
)
def test_charging_is_read_from_the_kernels_supplies(tmp_path, supplies, expected):
    assert charging(sysfs(tmp_path, **supplies)) is expected


def test_supplies_that_cannot_be_read_tell_nothing(tmp_path):
    power = sysfs(tmp_path / "power", AC={"type": "Mains"}, BAT0={})
    (power / "AC/online").mkdir()  # read() fails as it does on a device just unplugged
    (power / "BAT0/type").write_bytes(b"\xff\x00Battery")
    (power / "gone").symlink_to(tmp_path / "nowhere")
    (power / "file").write_text("Mains")
    assert charging(power) is None
    assert charging(tmp_path / "nowhere") is None
    assert charging(power / "file") is None


@given(
    st.dictionaries(
        st.sampled_from(["type", "scope", "present", "status", "online"]), st.binary(max_size=12)
    )
)
def test_no_bytes_in_a_supply_raise(tmp_path_factory, files):
    supply = tmp_path_factory.mktemp("power") / "BAT0"
    supply.mkdir()
    for name, data in files.items():
        (supply / name).write_bytes(data)
    assert charging(supply.parent) in (True, False, None)


@pytest.mark.parametrize(
    ("metered", "state", "expected"),
    [
        (0, 70, None),
        (1, 70, False),
        (2, 70, True),
        (3, 70, False),
        (4, 70, True),
        (5, 70, None),
        (4, 60, True),
        (4, 20, None),
        (0, 20, None),
    ],
)
def test_networkmanager_tells_whether_the_network_is_metered(metered, state, expected):
    assert (
        sensors.bus_unmetered(
            f'{{"type":"u","data":{metered}}}\n{{"type":"u","data":{state}}}\n'.encode()
        )
        is expected
    )


@pytest.mark.parametrize(
    "said",
    [
        '{"type":"u","data":4}',
        '{"type":"s","data":4}\n{"type":"u","data":70}',
        '{"type":"u","data":true}\n{"type":"u","data":70}',
        "[4]\n[70]",
        "",
        "u 4",
    ],
)
def test_an_answer_of_another_form_is_unknown(said):
    assert sensors.bus_unmetered(said.encode()) is None


def test_nmcli_counts_every_device_with_a_gateway_and_no_other():
    def block(metered: str, v4: str = "", v6: str = "") -> str:
        return f"GENERAL.METERED:{metered}\nIP4.GATEWAY:{v4}\nIP6.GATEWAY:{v6}\n"

    def told(*blocks: str) -> bool | None:
        return sensors.nmcli_unmetered("\n".join(blocks).encode())

    assert told(block("no (guessed)", "10.9.9.1"), block("unknown")) is True
    assert told(block("no", v6="fe80\\:\\:1")) is True
    assert told(block("no", "10.9.9.1"), block("yes (guessed)", "192.168.43.1")) is False
    assert told(block("no", "10.9.9.1"), block("unknown", "10.8.0.1")) is None
    assert told(block("no")) is None
    assert told("Error: NetworkManager is not running.") is None


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=2)).map(
        lambda v: json.dumps(v).encode()
    )
)
def test_no_garbage_a_command_prints_is_an_answer(said):
    for parse in (
        sensors.bus_unmetered,
        sensors.nmcli_unmetered,
        sensors.logind_idle_since,
        sensors.battery_charging,
        sensors.wifi_unmetered,
    ):
        assert parse(said) is None
        assert parse(None) is None


def test_deeply_nested_json_is_no_answer():
    assert sensors.battery_charging(b"[" * 100_000) is None


def test_a_linux_machine_with_all_three_signals_may_train(tmp_path, commands):
    commands(busctl=busctl(WIRED, idle_since(NOW - 301)))
    source = linux(sysfs(tmp_path / "power", AC=MAINS_ON))
    assert source(NOW) == Conditions(True, True, True)
    assert forbidden_by(source(NOW)) is None


def test_each_lost_or_unknown_signal_is_named_as_the_reason(tmp_path, commands):
    power = sysfs(tmp_path / "power", AC=MAINS_ON)
    cases = [
        (tmp_path / "no_supplies", WIRED, idle_since(NOW - 400), Cause.NOT_CHARGING),
        (
            sysfs(tmp_path / "unplugged", BAT0=battery("Discharging")),
            WIRED,
            idle_since(NOW - 400),
            Cause.NOT_CHARGING,
        ),
        (
            power,
            '{"type":"u","data":3}\n{"type":"u","data":70}',
            idle_since(NOW - 400),
            Cause.METERED_NETWORK,
        ),
        (power, AWAY, idle_since(NOW - 400), Cause.METERED_NETWORK),
        (power, WIRED, idle_since(NOW - 400, hint=False), Cause.IN_USE),
        (power, WIRED, idle_since(NOW - 299), Cause.IN_USE),
        (power, WIRED, "Call failed", Cause.IN_USE),
    ]
    for supplies, network, logind, cause in cases:
        commands(busctl=busctl(network, logind))
        assert forbidden_by(linux(supplies)(NOW)) is cause


def test_nmcli_answers_where_busctl_is_missing_and_idle_is_then_unknown(tmp_path, commands):
    commands(nmcli=f'[ "$*" = "{" ".join(sensors.NMCLI[1:])}" ] || exit 2\n{prints(NMCLI_WIRED)}')
    assert linux(tmp_path)(NOW) == Conditions(None, True, None)


def test_without_any_command_nothing_is_known(tmp_path, commands):
    assert linux(tmp_path)(NOW) == Conditions()
    assert termux()(NOW) == Conditions()


def test_a_command_that_fails_is_no_answer_even_if_it_printed_one(tmp_path, commands):
    commands(busctl=busctl(WIRED, idle_since(NOW - 400)) + "\nexit 1")
    assert linux(tmp_path)(NOW) == Conditions()


def test_a_command_that_hangs_is_ended_with_all_it_started(tmp_path, commands):
    child = tmp_path / "child"
    commands(hangs=f"/bin/sleep 60 &\necho $! > {child}\nwait", leaves="/bin/sleep 60 &\necho done")
    begun = time.monotonic()
    assert sensors.output(["hangs"], 0.3) is None
    assert sensors.output(["leaves"], 0.3) is None  # its child holds the pipe open
    assert time.monotonic() - begun < 5
    pid = int(child.read_text())
    for _ in range(100):  # whoever adopts it takes a moment to bury it
        if not _runs(pid):
            break
        time.sleep(0.02)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_commands_are_asked_in_plain_english(commands, monkeypatch):
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    commands(says='echo "$LC_ALL"')
    assert sensors.output(["says"], 5) == b"C\n"


def test_a_key_pressed_lately_means_in_use_whatever_logind_says(tmp_path):
    keys = [None]
    source = linux(
        tmp_path,
        last_key=lambda: keys[0],
        run=lambda command, timeout_s: idle_since(NOW - 4000).encode(),
    )
    assert source(NOW).idle is True  # this keyboard was never used
    for pressed, idle in ((NOW - 299, False), (NOW - 301, True), (NOW, False)):
        keys[0] = pressed
        assert source(NOW).idle is idle


def test_a_long_quiet_keyboard_does_not_make_a_machine_idle(tmp_path):
    def said(answer):
        return linux(tmp_path, last_key=lambda: NOW - 4000, run=lambda command, timeout_s: answer)(
            NOW
        ).idle

    assert said(None) is None
    assert said(idle_since(NOW - 4000, hint=False).encode()) is False
    assert said(idle_since(NOW + 50).encode()) is False  # since a time to come: the clock went back


def test_a_key_in_the_future_counts_as_just_now_until_the_next_key(tmp_path):
    note_key(tmp_path, NOW + 86_400)  # then the clock went back a day
    source = termux(last_key=lambda: last_key_at(tmp_path), run=lambda command, timeout_s: None)
    assert source(NOW).idle is False
    assert source(NOW + 86_400).idle is False
    note_key(tmp_path, NOW)
    assert source(NOW + 899).idle is False
    assert source(NOW + 900).idle is True


def test_keys_are_noted_once_a_second_in_an_empty_file(tmp_path):
    assert last_key_at(tmp_path) is None
    for pressed, noted in ((NOW, NOW), (NOW + 0.9, NOW), (NOW + 1, NOW + 1), (NOW - 5, NOW - 5)):
        note_key(tmp_path, pressed)
        assert last_key_at(tmp_path) == noted
    assert [
        (path.name, path.read_bytes(), path.stat().st_mode & 0o777) for path in tmp_path.iterdir()
    ] == [("last_key", b"", 0o600)]


def test_a_home_that_is_gone_does_not_stop_the_typing(tmp_path):
    note_key(tmp_path / "wiped", NOW)
    assert not (tmp_path / "wiped").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"plugged": "PLUGGED_USB", "status": "FULL"}, True),
        ({"plugged": "PLUGGED_WIRELESS", "status": "NOT_CHARGING"}, True),
        ({"plugged": "UNPLUGGED", "status": "DISCHARGING"}, False),
        ({"status": "DISCHARGING"}, False),
        ({"plugged": "PLUGGED_-1", "status": "UNKNOWN"}, None),
        ({"plugged": None, "status": ["CHARGING"]}, None),
    ],
)
def test_termux_tells_whether_the_phone_is_plugged_in(changes, expected):
    assert sensors.battery_charging(json.dumps({**PLUGGED, **changes}).encode()) is expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"supplicant_state": "DISCONNECTED"}, False),
        ({"ip": ""}, False),
        ({"ip": None}, False),
        ({"supplicant_state": 3}, None),
    ],
)
def test_termux_tells_whether_the_phone_is_on_wifi(changes, expected):
    assert sensors.wifi_unmetered(json.dumps({**ON_WIFI, **changes}).encode()) is expected


def test_a_termux_error_is_unknown():
    assert sensors.wifi_unmetered(b'{"API_ERROR":"No current connection"}') is None
    assert (
        sensors.battery_charging(b'{"error":"Termux:API is not yet available on Google Play"}')
        is None
    )


def test_a_phone_that_charges_on_wifi_and_lies_still_may_train(tmp_path, commands):
    commands(
        termux_battery_status=prints(json.dumps(PLUGGED, indent=2)),
        termux_wifi_connectioninfo=prints(json.dumps(ON_WIFI, indent=2)),
    )
    source = named("termux", tmp_path)
    assert forbidden_by(source(NOW)) is Cause.IN_USE  # no key was ever noted: unknown
    note_key(tmp_path, NOW - 900)
    assert source(NOW) == Conditions(True, True, True)
    assert source(NOW - 1) == Conditions(True, True, False)
    commands(
        termux_battery_status=prints(
            json.dumps({**PLUGGED, "plugged": "UNPLUGGED", "status": "DISCHARGING"})
        )
    )
    assert forbidden_by(named("termux", tmp_path)(NOW)) is Cause.NOT_CHARGING
    commands(termux_battery_status=prints(json.dumps(PLUGGED)), termux_wifi_connectioninfo="exit 1")
    assert forbidden_by(named("termux", tmp_path)(NOW)) is Cause.METERED_NETWORK


def test_a_signal_read_by_a_command_is_asked_again_only_after_a_while():
    clock, answers, asked = [100.0], [True, False, None, True], []

    def ask(now):
        asked.append(now)
        return answers[len(asked) - 1]

    signal = remembered(ask, 2.0, lambda: clock[0])
    told = []
    for tick in (100.0, 101.9, 102.0, 103.9, 104.0, 105.9, 106.0):
        clock[0] = tick
        told.append(signal(tick))
    assert told == [True, True, False, False, None, None, True]
    assert asked == [100.0, 102.0, 104.0, 106.0]


def test_a_slow_answer_is_as_new_as_its_arrival():
    clock, asked = [0.0], []

    def slow(now):
        asked.append(now)
        clock[0] += 5

    signal = remembered(slow, 2.0, lambda: clock[0])
    signal(0.0)
    clock[0] = 6.9
    signal(6.9)
    assert asked == [0.0]
    clock[0] = 7.0
    signal(7.0)
    assert asked == [0.0, 7.0]


def test_only_commands_are_remembered_the_plug_and_the_keys_are_read_at_every_call(tmp_path):
    clock, keys, said = (
        [0.0],
        [None],
        {sensors.NETWORK: WIRED, sensors.LOGIND: idle_since(NOW - 400)},
    )
    power = sysfs(tmp_path, AC=MAINS_ON)
    source = linux(
        power,
        last_key=lambda: keys[0],
        run=lambda command, timeout_s: said[command].encode(),
        clock=lambda: clock[0],
    )
    assert source(NOW) == Conditions(True, True, True)
    said.update({sensors.NETWORK: AWAY, sensors.LOGIND: idle_since(NOW, hint=False)})
    (power / "AC/online").write_text("0\n")
    clock[0] = 1.9
    assert source(NOW) == Conditions(None, True, True)
    keys[0] = NOW
    assert source(NOW) == Conditions(None, True, False)
    keys[0], clock[0] = None, 2.0
    assert source(NOW) == Conditions(None, None, False)


def test_the_owner_states_what_the_device_cannot_read():
    def source(now):
        return Conditions(charging=None, unmetered=False, idle=None)

    assert stated(source, ["charging", "unmetered"])(NOW) == Conditions(True, False, None)
    assert stated(source, [])(NOW) == source(NOW)
    with pytest.raises(
        ConfigError, match="stated: expected some of charging, unmetered, idle, found 'wifi'"
    ):
        stated(source, ["charging", "wifi"])


def test_a_server_without_sensors_trains_on_its_owners_word(tmp_path, commands):
    commands(busctl="echo 'Failed to get property' >&2; exit 1")
    source = stated(linux(tmp_path, last_key=lambda: NOW), ["charging", "unmetered", "idle"])
    assert source(NOW + 299) == Conditions(True, True, False)  # but its keyboard was just used
    assert source(NOW + 300) == Conditions(True, True, True)


def test_a_source_is_named_by_its_system(tmp_path):
    with pytest.raises(ConfigError, match="conditions: expected linux or termux, found 'windows'"):
        named("windows", tmp_path)
    with pytest.raises(ConfigError, match="stated"):
        named("linux", tmp_path, ["wifi"])
    # on whatever machine this is
    assert isinstance(named("linux", tmp_path, ["charging"])(NOW), Conditions)


def test_reading_the_plug_costs_little_beside_a_batch(tmp_path):
    power = sysfs(tmp_path, AC=MAINS_ON, BAT0=battery("Full"), mouse=MOUSE)
    begun = os.times().user + os.times().system
    for _ in range(100):
        charging(power)
    assert os.times().user + os.times().system - begun < 0.8  # a tenth of 100 batches of 80 ms
