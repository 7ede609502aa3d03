from dataclasses import replace

import numpy as np
import pytest

from conversion import classes, export, gate, int8, package
from conversion.gate import Gate
from conversion.int8 import Int8
from device_runtime.errors import BundleError

PASSING = Gate(50, 1e-6, 1e-6, Int8(20_000, 0.99, 0.001, 0.05, 0.05), 1_460_000, 0.3)


def test_a_gate_within_its_limits_has_no_problem():
    assert PASSING.problems == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"weights_apart": 2e-4},
            "weights differ by 2.0e-04 from TensorFlow's after 50 steps, expected at most 1e-04",
        ),
        ({"loss_apart": float("nan")}, "losses differ by nan"),
        (
            {"int8": Int8(20_000, 0.9, 0.0, 0.4, 0.05)},
            "int8 loses 0.40 points of top-1 on 20,000 words, expected at most 0.2",
        ),
        ({"int8": Int8(20_000, 0.9, 0.05, 0.0, 0.05)}, "int8 costs 0.050 nats a word"),
        (
            {"predict_bytes": 1_500_001},
            "predict.tflite has 1,500,001 bytes, expected at most 1,500,000",
        ),
        ({"step_ms": 6.0}, "a step takes 6.0 ms, expected at most 5 ms"),
    ],
)
def test_each_limit_is_named_with_what_was_found(changes, said):
    assert len(replace(PASSING, **changes).problems) == 1
    assert said in replace(PASSING, **changes).problems[0]


def test_few_words_refuse_nothing_by_chance():
    one_of_a_hundred = Int8(100, 0.99, 0.0, 1.0, 1.0)
    assert replace(PASSING, int8=one_of_a_hundred).problems == []


def test_the_time_of_a_step_is_not_signed():
    assert replace(PASSING, step_ms=1.0).manifest == replace(PASSING, step_ms=2.0).manifest


def test_int8_against_float_by_counting(tiny_bundle, tiny_checkpoint, tiny_rows):
    shipped = int8.difference(tiny_bundle.predict_graph, tiny_checkpoint.weights, tiny_rows)
    assert shipped.positions == np.count_nonzero(tiny_rows[:, 1:] >= 13)
    exact = int8.difference(
        export.predict_graph(tiny_checkpoint.weights, quantized=False),
        tiny_checkpoint.weights,
        tiny_rows,
    )
    assert (exact.same_best, exact.top1_lost) == (1.0, 0.0)
    assert abs(exact.nats) < 1e-5


def test_a_graph_that_fails_the_gate_is_not_signed(
    tmp_path, monkeypatch, tiny_checkpoint, tiny_vocabulary, tiny_rows, tiny_plan, signing_key
):
    monkeypatch.setattr(gate, "PREDICT_BYTES", 1000)
    with pytest.raises(
        BundleError, match=r"not signed: predict.tflite has [0-9,]+ bytes, expected at most 1,000"
    ):
        package.package(
            tmp_path / "bundle",
            package.Parts(tiny_checkpoint, tiny_vocabulary, tiny_plan, "tiny"),
            tiny_rows,
            signing_key,
            steps=2,
        )
    assert list(tmp_path.iterdir()) == []


def package_for(folder, name, budget, world):
    """`package` of the tiny world for a device class."""
    checkpoint, vocabulary, rows, plan, key = world
    parts = package.Parts(
        checkpoint, vocabulary, plan, "tiny", device_class=classes.Class(name, budget)
    )
    return package.package(folder / "bundle", parts, rows, key, steps=2)


def test_a_bundle_for_a_class_says_so_and_which_limits_it_kept(
    tmp_path, tiny_checkpoint, tiny_vocabulary, tiny_rows, tiny_plan, signing_key
):
    budget = classes.named("high")
    world = tiny_checkpoint, tiny_vocabulary, tiny_rows, tiny_plan, signing_key
    manifest, _ = package_for(tmp_path, "high", budget, world)
    assert manifest.device_class == "high"
    assert manifest.gate["class_ram_mb_at_most"] == budget.ram_mb
    assert budget.manifest.items() <= manifest.gate.items()


def test_a_bundle_that_takes_more_than_its_class_has_is_not_written(
    tmp_path, tiny_checkpoint, tiny_vocabulary, tiny_rows, tiny_plan, signing_key
):
    world = tiny_checkpoint, tiny_vocabulary, tiny_rows, tiny_plan, signing_key
    with pytest.raises(
        BundleError,
        match=r"not signed for class watch: ram_mb: expected at most 1.0, found [0-9.]+: export "
        "with a smaller --batch-size",
    ):
        package_for(tmp_path, "watch", replace(classes.named("high"), ram_mb=1.0), world)
    assert list(tmp_path.iterdir()) == []
