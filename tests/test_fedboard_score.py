"""Tables and sentences about scored systems, from counts small enough to check by hand."""

import math

import numpy as np
import pytest
from rich.console import Console

from device_runtime import weights
from device_runtime.errors import RunError, VocabularyError
from device_runtime.metrics import Counts
from fedboard import console, score
from fedboard.score import Measured
from model import corpus, network
from model.comparison import Comparison, Gain
from model.measures import Evaluation
from model.vocabulary import build_unigram

HUNDRED = Counts(
    targets=100,
    top1=20,
    top3=30,
    in_vocabulary=80,
    nll=80 * math.log(50),
    letters=500,
    keys=250,
    first=10,
    first_top1=1,
    tokens=120,
    tokens_top1=36,
    tokens_top3=60,
)
NOTHING = Gain(0.0, (0.0, 0.0), 0, 0, 0, None)


def measured(name: str, *users: Counts) -> Measured:
    return Measured(
        name,
        "baseline",
        Evaluation({f"user{i}": counts for i, counts in enumerate(users)}, sum(users, Counts())),
    )


def printed(monkeypatch, title: str, columns: list[str], rows: list[list[str]]) -> list[str]:
    """A table as a terminal of 80 columns shows it."""
    terminal = Console(width=80, highlight=False)
    monkeypatch.setattr(console, "out", terminal)
    with terminal.capture() as captured:
        console.table(title, columns, rows)
    return captured.get().splitlines()


def test_the_full_table_has_every_measure_once_and_divides_as_the_protocol_says():
    users = [
        Counts(targets=100, top1=hits, top3=2 * hits, letters=1, tokens=1) for hits in (10, 20, 30)
    ]
    ((columns, rows),) = score.full_tables(
        [score.scored(measured("one", HUNDRED)), score.scored(measured("three", *users))]
    )
    assert columns == ["measure", "one", "three"]
    one, three = ({label: cells[i] for label, *cells in rows} for i in (0, 1))
    assert one == {
        "top-1 %": "20.0 ±0.0",
        "top-3 %": "30.0 ±0.0",
        "keys saved %": "50.0",
        "perplexity": "50",
        "OOV rate %": "20.0",
        "in vocabulary, top-1 %": "25.0",
        "in vocabulary, top-3 %": "37.5",
        "first word, top-1 %": "10.0",
        "punctuation too, top-1 %": "30.0",
        "punctuation too, top-3 %": "50.0",
        **{f"users' top-1 %, {part}": "20.0" for part in ("mean", "p10", "p50", "p90")},
        **{f"users' top-3 %, {part}": "30.0" for part in ("mean", "p10", "p50", "p90")},
    }
    # percentiles between ranks: the 10th of 10, 20, 30 lies a fifth of the way from 10 to 20
    assert [three[f"users' top-1 %, {part}"] for part in ("mean", "p10", "p50", "p90")] == [
        "20.0",
        "12.0",
        "20.0",
        "28.0",
    ]
    assert [three[f"users' top-3 %, {part}"] for part in ("mean", "p10", "p50", "p90")] == [
        "40.0",
        "24.0",
        "40.0",
        "56.0",
    ]
    assert three["top-1 %"].startswith("20.0 ±")
    # the mean of users who differ is less certain than that of one
    assert three["top-1 %"] != one["top-1 %"]


def test_measures_without_anything_to_measure_are_dashes():
    ((_, rows),) = score.full_tables(
        [score.scored(measured("x", Counts(targets=19, top1=1, letters=50, keys=50)))]
    )
    cells = dict(rows)
    assert [
        cells[label] for label in ("perplexity", "users' top-1 %, mean", "users' top-3 %, p90")
    ] == ["–"] * 3


@pytest.mark.parametrize(("systems", "tables"), [(1, 1), (2, 1), (4, 1), (5, 2), (9, 3)])
def test_full_tables_fit_80_columns_whatever_the_names(monkeypatch, systems, tables):
    name = "runs/a-long-name/checkpoints/best-of-all-rounds.safetensors"
    tables_shown = score.full_tables(
        [score.scored(measured(f"{name}{i}", HUNDRED)) for i in range(systems)]
    )
    assert len(tables_shown) == tables
    for columns, rows in tables_shown:
        lines = printed(monkeypatch, "title", columns, rows)
        assert max(map(len, lines)) <= 80
        assert "…" not in "".join(lines)
    assert "".join(columns[-1].split("\n")) == f"{name}{systems - 1}"


def test_a_comparison_is_the_second_minus_the_first_in_points():
    first = measured("A", *[Counts(targets=100, top1=20, top3=30, letters=500, keys=250)] * 3)
    second = measured("B", *[Counts(targets=100, top1=25, top3=30, letters=500, keys=275)] * 3)
    whole, spread = score.difference_tables("A", "B", score.compare(first, second))
    assert whole[0].startswith("B minus A")
    assert whole[2] == [
        ["top-1", "+5.0", "+5.0 to +5.0", "3", "0", "0"],
        ["top-3", "0.0", "0.0 to 0.0", "0", "0", "3"],
        ["keys saved", "-5.0", "-5.0 to -5.0", "0", "3", "0"],
    ]
    assert "20 or more words: 3 users" in spread[0]
    assert spread[2] == [
        ["top-1", *["+5.0"] * 4],
        ["top-3", *["0.0"] * 4],
        ["keys saved", *["-5.0"] * 4],
    ]


def test_comparison_tables_fit_80_columns_at_their_widest(monkeypatch):
    gain = Gain(-1.0, (-1.0, -1.0), 1000, 1000, 1000, (-1.0,) * 4)
    for table in score.difference_tables("A", "B", Comparison(3000, gain, gain, gain)):
        lines = printed(monkeypatch, *table)
        assert max(map(len, lines)) <= 80
        assert "…" not in "".join(lines)


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (
            Gain(0.012, (0.009, 0.015), 64, 20, 16, (0.0,) * 4),
            "B is better by 1.2 points of top-1 (0.9 to 1.5); 64 % of users gain more than a "
            "point with it, 20 % lose more than one.",
        ),
        (
            Gain(-0.012, (-0.015, -0.009), 20, 64, 16, (0.0,) * 4),
            "A is better by 1.2 points of top-1 (0.9 to 1.5); 64 % of users gain more than a "
            "point with it, 20 % lose more than one.",
        ),
        (
            Gain(-0.001, (-0.005, 0.003), 30, 33, 37, (0.0,) * 4),
            "No clear difference in top-1: B minus A is -0.1 points (-0.5 to +0.3); "
            "30 % of users gain more than a point with B, 33 % lose more than one.",
        ),
    ],
)
def test_the_sentence_names_the_better_system_unless_the_interval_holds_zero(gain, said):
    assert score.sentence("A", "B", Comparison(100, gain, NOTHING, NOTHING)) == said


def test_without_a_user_of_20_words_there_are_no_shares_of_users():
    first, second = (Counts(targets=10, top1=hits, letters=50, keys=50) for hits in (1, 2))
    comparison = score.compare(measured("A", first), measured("B", second))
    (whole,) = score.difference_tables("A", "B", comparison)
    assert whole[2][0] == ["top-1", "+10.0", "+10.0 to +10.0", "0", "0", "0"]
    assert (
        score.sentence("A", "B", comparison)
        == "B is better by 10.0 points of top-1 (10.0 to 10.0)."
    )


def test_systems_that_scored_other_words_are_not_compared():
    with pytest.raises(RunError, match=r"A and B cannot be compared .*same users and targets"):
        score.compare(measured("A", HUNDRED), measured("B", HUNDRED, HUNDRED))


def test_a_result_is_the_same_after_a_round_trip_and_seeds_only_move_intervals(tmp_path):
    rng = np.random.default_rng(0)
    many = [Counts(targets=100, top1=int(hits), letters=500) for hits in rng.integers(10, 30, 20)]
    sums = measured("A", HUNDRED, Counts(targets=19, top1=19, letters=19), *many)
    row = score.scored(sums, seed=1)
    (tmp_path / "a.json").write_text(score.to_json(row))
    assert score.read(tmp_path / "a.json") == row
    other = score.scored(sums, seed=2)
    assert (other.summary.top1, other.users) == (row.summary.top1, row.users)
    assert other.summary.top1_interval != row.summary.top1_interval


def test_a_user_of_few_words_has_no_recall_of_their_own():
    row = score.scored(
        measured(
            "A",
            HUNDRED,
            Counts(targets=19, top1=19, letters=19),
            Counts(targets=20, top1=2, letters=50),
        )
    )
    assert row.users == {"user0": 0.2, "user2": 0.1}
    assert row.summary.top1 == 41 / 139


@pytest.fixture(scope="module")
def run_of_pieces(tmp_path_factory, tiny_corpus):
    """A run's folder whose words are spelled in pieces; its network is as it was drawn."""
    folder = tmp_path_factory.mktemp("pieces")
    pieces = build_unigram(corpus.token_lists(tiny_corpus.train), 60)
    drawn = network.initial_weights(network.SIZES["tiny"], pieces, np.random.default_rng(0))
    (folder / "tokenizer.model").write_bytes(pieces.model)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "best.safetensors").write_bytes(
        weights.to_bytes(weights.Checkpoint(drawn, tokenizer=pieces.hash))
    )
    return folder


def test_a_run_of_pieces_is_scored_on_the_same_words_as_a_baseline_and_compared_with_it(
    run_of_pieces, tiny_corpus, tmp_path
):
    def measure(target, **options):
        return score.measure(str(target), tiny_corpus, frozenset, score.Asked(words=20, **options))

    pieces, words = measure(run_of_pieces, predictions=tmp_path / "p.jsonl"), measure("kn2")
    assert (
        pieces.evaluation.total.targets
        == words.evaluation.total.targets
        == len((tmp_path / "p.jsonl").read_text().splitlines())
    )
    assert (pieces.evaluation.total.letters, pieces.evaluation.total.tokens) == (
        words.evaluation.total.letters,
        words.evaluation.total.tokens,
    )
    assert score.compare(words, pieces).top1.change == pytest.approx(
        (pieces.evaluation.total.top1 - words.evaluation.total.top1)
        / words.evaluation.total.targets
    )
    row, other = score.scored(pieces), score.scored(words)
    assert row.summary.oov_rate == 0 < other.summary.oov_rate
    assert score.row(row)[3].endswith("*") and not score.row(other)[3].endswith("*")
    assert score.footnote([row, other]).startswith("* of all words, spelled in pieces")
    assert score.footnote([other]) == ""


def test_a_result_says_whether_the_run_kept_the_limits_of_a_device(run_of_pieces, tiny_corpus):
    def said(target) -> str:
        asked = score.Asked(words=20, users=1)
        return score.scored(score.measure(str(target), tiny_corpus, frozenset, asked)).device_limits

    settings = run_of_pieces / "config.toml"
    assert said(run_of_pieces).startswith("unknown: the checkpoint came without its run")
    try:
        settings.write_text("[recipe]\nencoded = true\ndevice_limits = true\n")
        assert said(run_of_pieces).startswith("yes")
        settings.write_text("")  # an earlier version's says nothing of limits
        assert said(run_of_pieces / "checkpoints" / "best.safetensors").startswith("no")
        settings.write_text("nothing of ours = 1\n")
        assert said(run_of_pieces).startswith("unknown")
    finally:
        settings.unlink()
    assert said("kn2") == ""


def test_a_baseline_over_pieces_is_refused(run_of_pieces, tiny_corpus):
    asked = score.Asked(tokenizer=run_of_pieces / "tokenizer.model")
    with pytest.raises(VocabularyError, match="a baseline needs whole words"):
        score.measure("kn2", tiny_corpus, frozenset, asked)
