import numpy as np
import pytest
from scipy import stats

from rsr_trl.report.sections.training import MAX_POINTS, read_history
from rsr_trl.rsr import RSRError
from rsr_trl.training.live_table import ScoreHistory, ScoreTable


def test_scores_move_as_they_were_logged(write, rows, run):
    factors = np.random.default_rng(0).uniform(0.3, 3, len(rows))
    page = write(rows, run=run(rows, 1.0, factors))
    assert page.sections()["training"]
    words = page.words("training")
    before = np.array([row["rsr"] for row in rows])
    after = before * factors
    assert f"({stats.spearmanr(before, after).statistic:.2f} at the end)" in words
    problems = [range(3 * problem, 3 * problem + 3) for problem in range(6)]
    first, last = ({min(rows, key=scores.__getitem__) for rows in problems} for scores in (before, after))
    assert f"{len(first & last) / 6:.0%} of the first choice would be chosen again" in words
    assert "(steps 0 to 10)" in words and "check that dataset and student" not in words


def test_the_history_keeps_the_latest_score_of_each_row(tmp_path):
    table, log = ScoreTable([4, 4, 4]), ScoreHistory(str(tmp_path), np.array([2, 0, 1]))
    table.update([0, 1, 2], [2.0, 3.0, 4.0], [1.0, 1.0, 1.0], step=0)
    log.write(table, np.array([0, 1, 2]), 0, "dataset")
    table.update([1], [9.0], [3.0], step=4, train_mode=True)
    log.write(table, np.array([1]), 5, "online")
    table.update([2], [8.0], [1.0], step=5)
    log.write(table, np.array([2]), 5, "pass")
    steps, scores = read_history(tmp_path, 4)
    assert steps == [0, 5]
    np.testing.assert_array_equal(scores[:, 0], [[3.0, 4.0, 2.0, np.nan], [3.0, 8.0, 2.0, np.nan]])
    np.testing.assert_array_equal(scores[1, 1:, :3], [[9.0, 8.0, 2.0], [3.0, 1.0, 1.0]])


def test_of_many_scorings_the_first_and_the_last_stay(tmp_path):
    table, log = ScoreTable([4]), ScoreHistory(str(tmp_path), np.array([0]))
    for step in range(100):
        table.update([0], [1.0 + step], [1.0], step=step)
        log.write(table, np.array([0]), step, "pass")
    steps, scores = read_history(tmp_path, 1)
    assert len(steps) == MAX_POINTS and (scores[0, 0, 0], scores[-1, 0, 0]) == (1.0, 100.0)


def test_a_run_on_other_data_is_noticed_and_none_needs_teachers_or_problems(write, rows, run):
    words = write(rows, run=run(rows, 2.0, 1.0), without=["teacher", "problem_id", "prompt"]).words("training")
    assert "check that dataset and student are those of the run" in words and "would be chosen again" in words
    with pytest.raises(RSRError, match="scored row 117, but the dataset has 18 rows"):
        write(rows, run=run(rows, 1.0, 2.0, source=np.arange(18) + 100))


def test_a_run_that_scored_once_says_how_to_score_again(write, rows, run):
    page = write(rows, run=run(rows, 1.0))
    assert not page.sections()["training"] and "--rsr_rescore_strategy" in page.words("training")
