"""A run's folder: what an earlier version wrote still opens."""

import shutil
from pathlib import Path

import pytest

from device_runtime import weights
from device_runtime.errors import CheckpointError
from fedboard import report
from fedboard.run import Run, checkpoint_of, require_fit, run_of, vocabulary_of

GOLDEN = Path(__file__).parent / "golden" / "run"  # as `fedboard train` and the demo wrote it


def test_a_run_of_an_earlier_version_still_opens():
    settings = Run(GOLDEN).settings()
    assert (settings.data, settings.recipe.size, settings.recipe.rounds) == ("chitchat", "tiny", 3)
    path = checkpoint_of(GOLDEN)
    assert path == GOLDEN / "checkpoints" / "best.safetensors"
    assert run_of(path) == Run(GOLDEN)
    checkpoint, vocabulary = weights.read(path), vocabulary_of(path)
    require_fit(checkpoint, vocabulary, path)
    assert checkpoint.round == 3
    assert checkpoint.parent == weights.digest(Run(GOLDEN).first.read_bytes())


def test_a_run_of_an_earlier_version_still_has_its_report(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "run")
    page = report.build(Run(tmp_path / "run")).read_text()
    sections = ("training", "systems", "funnel", "suggestions", "cost")
    assert [section for section in sections if f'id="{section}"' not in page] == []
    assert "condition lost" in page


def test_a_checkpoint_of_another_vocabulary_is_refused(tiny_vocabulary):
    path = checkpoint_of(GOLDEN)
    with pytest.raises(CheckpointError, match="trained with another vocabulary"):
        require_fit(weights.read(path), tiny_vocabulary, path)
