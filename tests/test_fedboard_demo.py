"""The demo's own sums; the whole of it runs in test_path."""

from fedboard.demo import totals_of


def test_totals_of_devices_are_read_behind_what_an_interpreter_says(tmp_path):
    log = tmp_path / "devices-0.log"
    log.write_text(
        "INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\n"
        '{"counted": 3, "bytes_up": 900, "peak_memory_mb": 61.5}\n'
    )
    assert totals_of(log) == {"counted": 3, "bytes_up": 900, "peak_memory_mb": 61.5}
