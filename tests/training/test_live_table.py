import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from scipy import stats

from rsr_trl.selection.teachers import rank_teachers
from rsr_trl.training.live_table import ScoreHistory, ScoreTable, spearman, summarize, summarize_teachers


@pytest.fixture
def table() -> ScoreTable:
    table = ScoreTable([3, 0, 7, 2])
    table.update([0, 3], [4.0, 9.0], [2.0, 1.5], step=5)
    return table


def check(table, **expected):
    for name, values in expected.items():
        np.testing.assert_array_equal(getattr(table, name), values)


def test_later_measurements_replace_earlier_ones_and_raise_the_version(table):
    check(table, rsr=[2.0, np.nan, np.nan, 6.0], step=[5, -1, -1, 5], train_mode=[False] * 4)
    version = table.version
    table.update([3, 2], [8.0, 1.0], [4.0, 1.0], step=9, train_mode=True)
    assert table.version > version
    check(table, rsr=[2.0, np.nan, 1.0, 2.0], step=[5, -1, 9, 9], train_mode=[False, False, True, True])


@pytest.mark.parametrize(
    ("rows", "ranks", "surprisals", "message"),
    [
        ([0, 2], [1.0], [1.0], "one length"),
        ([0, 4], [1.0, 1.0], [1.0, 1.0], r"\[0, 4\)"),
        ([-1], [1.0], [1.0], r"\[0, 4\)"),
        ([1], [1.0], [1.0], "Row 1 has no scored token"),
        ([0, 2], [1.0, np.nan], [1.0, 1.0], "row 2.*logits are broken"),
        ([0], [1.0], [np.inf], "row 0"),
        ([0], [0.5], [1.0], "row 0"),
    ],
)
def test_refuses_what_is_no_measurement_and_keeps_what_it_had(table, rows, ranks, surprisals, message):
    before, version = table.rsr, table.version
    with pytest.raises(ValueError, match=message):
        table.update(rows, ranks, surprisals, step=6)
    check(table, rsr=before, version=version)


def test_a_saved_table_comes_back_bit_for_bit_and_only_for_the_same_examples(table, tmp_path):
    table.update([2], [10 / 3], [0.1], step=7, train_mode=True)
    table.save(tmp_path / "scores.safetensors")
    loaded = ScoreTable.load(tmp_path / "scores.safetensors")
    names = ("num_tokens", "mean_clipped_rank", "mean_surprisal", "step", "train_mode", "version", "rsr")
    check(loaded, **{name: getattr(table, name) for name in names})
    with pytest.raises(ValueError, match="4 examples with 12 scored tokens, the training set has 3 with 5"):
        ScoreTable([1, 2, 2]).load_state_dict(table.state_dict())


MEANS = {"rsr_mean_clipped_rank": [4.0, None, 9.0], "rsr_mean_surprisal": [2.0, None, 1.5]}


def test_reads_the_columns_of_a_scored_dataset():
    others = {"rsr_num_tokens": [3, 0, 2], "score_lark": [0.1, 0.4, 0.3], "rank": [0, 0, 0]}
    scored = Dataset.from_dict(MEANS | others)
    check(ScoreTable.from_dataset(scored), rsr=[2.0, np.nan, 6.0], num_tokens=[3, 0, 2])
    check(ScoreTable.from_dataset(scored, "lark"), scores=[0.1, 0.4, 0.3])
    check(ScoreTable.from_dataset(scored, "surprisal"), scores=[2.0, np.nan, 1.5])
    with pytest.raises(ValueError, match="'rank' may mean the score of that name or the dataset's own column"):
        ScoreTable.from_dataset(scored, "rank")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ScoreTable.from_dataset(Dataset.from_dict({"text": ["a"]})), "rsr_num_tokens"),
        (lambda: ScoreTable.from_dataset(Dataset.from_dict(MEANS | {"rsr_num_tokens": [3, 2, 2]})), "row 1"),
        (lambda: ScoreTable([1, 2], "lark"), "rsr, surprisal, rank are measured live.*got score='lark' without them"),
        (lambda: ScoreTable([1, 2], "rank", [1.0, 2.0]), "got score='rank' with them"),
        (lambda: ScoreTable([1, 2], "lark", [1.0]), "a value for each of 2 rows"),
    ],
)
def test_what_is_no_score_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_summary_leaves_out_what_is_not_finite():
    scores = np.array([1.0, 2.0, np.nan, 4.0, np.inf])
    expected = {"mean": 7 / 3, "median": 2.0, "p10": 1.2, "p90": 3.6}
    assert summarize(scores) == pytest.approx({f"rsr/{name}": value for name, value in expected.items()})
    assert summarize(np.array([np.nan])) == {}


def test_the_score_of_a_teacher_is_that_of_rank_teachers():
    """With a score as another table has it too: of a trajectory without surprise, of one without tokens."""
    rows = {"rsr_mean_clipped_rank": [4.0, 2.0, 9.0, 1.0, None], "rsr_mean_surprisal": [1.0, 2.0, 3.0, 0.0, None]}
    rows |= {"rsr_num_tokens": [3, 3, 3, 3, 0], "rsr_truncated": [False] * 5, "teacher": [*"ABAAC"]}
    rows |= {"judge": [1.0, 2.0, 4.0, None, 3.0], "rsr": [4.0, 1.0, 3.0, None, None]}
    dataset, teachers = Dataset.from_dict(rows), (np.array([0, 1, 0, 0, 2]), [*"ABC"])
    found = summarize_teachers(ScoreTable.from_dataset(dataset), teachers)
    with pytest.warns(UserWarning):
        expected = {row["teacher"]: row["rsr_all"] for row in rank_teachers(dataset, "teacher").table}
    assert found == pytest.approx({f"rsr/teacher/{name}": expected[name] for name in "AB"}) and expected["C"] is None
    assert found["rsr/teacher/A"] == pytest.approx((4 + 9 + 1) / (1 + 3 + 0))
    by_judge = summarize_teachers(ScoreTable([1] * 5, "judge", rows["judge"][:3] + [np.nan, 3]), teachers, "judge")
    assert by_judge == {f"judge/teacher/{name}": value for name, value in zip("ABC", [2.5, 2.0, 3.0], strict=True)}


def test_spearman_is_of_the_rows_that_have_both():
    rng = np.random.default_rng(0)
    before, after = rng.integers(0, 9, 40).astype(float), rng.normal(size=40)
    after[3] = np.nan
    rest = np.arange(40) != 3
    assert spearman(before, after) == pytest.approx(stats.spearmanr(before[rest], after[rest]).statistic)
    assert spearman(np.full(40, np.nan), after) is spearman(np.ones(40), after) is None


def test_the_history_is_one_table_of_all_files(tmp_path):
    table, log = ScoreTable([4, 4, 0, 4]), ScoreHistory(str(tmp_path), np.array([10, 20, 30, 40]))
    table.update([0, 3], [2.0, 3.0], [1.0, 1.0], step=0)
    log.write(table, np.array([0, 3]), 0, "pass")
    table.update([1], [8.0], [2.0], step=6, train_mode=True)
    log.write(table, np.array([1]), 7, "online")
    log.write(table, np.array([0]), 7, "pass")
    found = pd.read_parquet(tmp_path / "rsr_history").sort_values(["step", "row"])
    check(found, row=[10, 10, 40, 20], rsr=[2, 2, 3, 4], step=[0, 0, 0, 6], train_mode=[False] * 3 + [True])
    (log.folder / ".step-00000007-pass.parquet-0.unfinished").touch()  # of a run that was killed
    log.start(6)
    assert [path.name for path in log.folder.iterdir()] == ["step-00000000-pass.parquet"]
    log.start(None)
    assert list(log.folder.iterdir()) == []
