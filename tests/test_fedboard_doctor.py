import sys

from fedboard import doctor


def test_this_machine_can_run_the_project():
    found = doctor.checks()
    names = {check.name for check in found}
    assert {"Python", "tensorflow", "TFF worker", "TFLite interpreter", "chitchat corpus"} <= names
    wrong = [
        check
        for check in found
        if not check.ok and check.name not in ("free memory", "free disk", "left-over workers")
    ]
    assert wrong == []


def test_what_is_wrong_has_a_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    bad = [
        doctor.python((3, 12)),
        doctor.package("no-such-package", "1."),
        doctor.package("numpy", "9."),
        doctor.worker_binary(tmp_path),
        doctor.memory(doctor.GIB),
        doctor.disk(10),
        doctor.loopback("203.0.113.1"),
        doctor.writable(tmp_path / "file" / "runs")
        if (tmp_path / "file").is_dir()
        else doctor.writable(tmp_path / "file"),
        doctor.leftovers([12, 34]),
        doctor.tool("no-such-tool"),
    ]
    assert [check.name for check in bad if check.ok] == []
    assert all(check.remedy for check in bad)
    assert "kill 12 34" in doctor.leftovers([12, 34]).remedy


def test_the_right_python_passes():
    assert doctor.python(sys.version_info[:2]).ok
