"""What takes longer than a test may: run by `make prove`, which writes docs/prove.md."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.prove, pytest.mark.timeout(3600)]
ROOT = Path(__file__).parents[1]
FUZZ = ROOT / "fuzz" / "readers.py"
SECONDS_EACH = 15
TIMES = 10


def readers() -> list[str]:
    """The names in the table READERS of fuzz/readers.py, read without what that imports."""
    for node in ast.parse(FUZZ.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "READERS":
            return [key.value for key in node.value.keys]
    raise AssertionError("fuzz/readers.py has no table READERS")


@pytest.mark.parametrize("reader", readers())
def test_every_reader_of_foreign_bytes_reads_or_refuses_what_a_fuzzer_finds(
    reader, record_property
):
    done = subprocess.run(
        [sys.executable, FUZZ, reader, f"-max_total_time={SECONDS_EACH}", "-print_final_stats=1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    inputs = int(re.search(r"number_of_executed_units: (\d+)", done.stderr)[1])
    record_property("did", f"{inputs:,} inputs in {SECONDS_EACH} s")
    assert inputs > 0


def test_every_property_holds_for_ten_times_as_many_examples(record_property):
    command = [sys.executable, "-m", "pytest", "-q", "-m", "property and quick"]
    done = subprocess.run(
        [*command, f"--examples-times={TIMES}", "--timeout=3000", "-p", "no:cacheprovider"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    passed = int(re.search(r"(\d+) passed", done.stdout)[1])
    record_property("did", f"{passed} properties, {TIMES} times their examples")
    assert passed >= 40
