"""The bundle in the repository: whoever clones it has a keyboard before any training."""

import subprocess
import sys

from device_runtime import bundle
from device_runtime.predictor import Predictor
from fedboard.run import REFERENCE, open_bundle


def test_it_is_whole_and_signed_with_the_key_beside_it_and_knows_where_it_comes_from():
    opened = open_bundle(None, None)
    assert (opened.manifest.network, opened.manifest.lineage.corpus, opened.manifest.release) == (
        "gboard",
        "chitchat",
        450,
    )
    assert opened.manifest.gate["int8_top1_points_lost"] <= 0.2
    assert opened.checkpoint.round == 450


def test_what_a_phone_downloads_first_is_under_four_and_a_half_megabytes():
    sizes = [(REFERENCE / name).stat().st_size for name in (bundle.PREDICT, bundle.CHECKPOINT)]
    assert sizes[0] <= 1_500_000
    assert sum(sizes) < 4_500_000


def test_it_suggests_sensibly():
    predictor = Predictor(open_bundle(None, None))
    assert "are" in [suggestion.word for suggestion in predictor.suggest("how")]
    assert "you" in [suggestion.word for suggestion in predictor.suggest("how are")]
    assert predictor.suggest("good", "mor")[0].word == "morning"


def test_predict_uses_it_when_no_bundle_is_named(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "fedboard.cli", "predict"],
        input="how are \n",
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0
    assert "you" in done.stdout.splitlines()[-1]
