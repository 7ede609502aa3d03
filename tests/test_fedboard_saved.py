"""What a killed training leaves half written, and what is counted of looks."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime import config
from device_runtime.errors import RunError
from fedboard.run import DEMO, FORMAT, MARK, TRAINED, Mark, Run
from fedboard.saved import Best, going_on, mend, sweep, versions_of, writing

WHOLE = "round,loss,top1\r\n1,5.5,0.1\r\n2,5.0,\r\n"


@settings(max_examples=50, derandomize=True, deadline=None)
@given(st.integers(0, len(WHOLE) + 6))
def test_wherever_a_line_was_cut_the_whole_ones_stay(tmp_path_factory, end):
    path = tmp_path_factory.getbasetemp() / "cut.csv"
    path.write_text((WHOLE + "3,4.5,")[:end], newline="")
    mend(path)
    lines = WHOLE[:end].count("\n")
    expected = "".join(WHOLE.splitlines(keepends=True)[:lines])
    assert (path.read_bytes().decode() if path.exists() else "") == expected


def test_a_file_that_is_no_curve_is_refused_and_stays(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("name,age\nann,5\n")
    with pytest.raises(RunError, match=r"metrics\.csv: expected a column `round`"):
        mend(path)
    assert path.read_text() == "name,age\nann,5\n"


def test_a_row_that_was_spoiled_is_left_out(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(WHOLE + "\0\0\0\r\n", newline="")
    mend(path)
    assert path.read_bytes().decode() == WHOLE


def test_only_what_was_left_half_written_is_swept(tmp_path):
    run = Run(tmp_path)
    kept = ["notes_temp", "program_state_3", "program_state_3_temporary", "program_state_mine"]
    names = [*kept, "program_state_4_temp1234"]
    for name in names:
        (run.state / name / "assets").mkdir(parents=True)
        (run.state / name / "saved_model.pb").write_bytes(b"")
    (run.state / "program_state_9" / "assets").mkdir(parents=True)  # no file is left of it
    (run.state / "program_state_5_temp1").write_text("a file of somebody's")
    (run.state / "program_state_6_temp1").symlink_to(tmp_path)
    (tmp_path / "metrics.csv_temp77").write_text("x")
    sweep(run)
    kept += ["program_state_5_temp1", "program_state_6_temp1"]
    assert sorted(path.name for path in run.state.iterdir()) == sorted(kept)
    assert versions_of(run) == [3]
    assert not (tmp_path / "metrics.csv_temp77").exists()


def test_what_stops_a_file_from_being_written_is_one_line_with_the_way_on(tmp_path):
    run = Run(tmp_path / "my run")
    with pytest.raises(RunError) as refused, writing(run, run.metrics):
        (tmp_path / "nowhere" / "file").write_bytes(b"")
    assert str(refused.value) == (
        f"{run.metrics}: cannot be written (No such file or directory); make room, then: fedboard "
        f"train --out '{run.path}' --resume"
    )
    with pytest.raises(KeyError), writing(run, run.metrics):
        raise KeyError("a fault of ours stays one")


def test_a_demo_without_room_is_begun_anew(tmp_path):
    (tmp_path / MARK).write_bytes(config.to_json(Mark(FORMAT, DEMO)))
    assert going_on(Run(tmp_path)) == f"fedboard demo --out {tmp_path}"
    (tmp_path / MARK).write_bytes(config.to_json(Mark(FORMAT, TRAINED)))
    assert going_on(Run(tmp_path)) == f"fedboard train --out {tmp_path} --resume"


def test_patience_counts_looks_in_a_row_that_are_not_better():
    best, waited = Best(rounds=9), []
    for number, top1 in enumerate([0.1, 0.1, 0.2, 0.2, 0.1], 1):
        best = best.after(top1, number, "")
        waited.append(best.has_waited(2))
    assert waited == [False, False, False, False, True]
    assert (best.round, best.top1, best.since) == (3, 0.2, 2)
    assert not best.has_waited(0)
    assert not best.over(10).has_waited(2)
    assert best.over(9).has_waited(2)
