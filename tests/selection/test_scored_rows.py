import numpy as np
import pytest

from rsr_trl.selection.scored_rows import ScoredRows, find_scores
from rsr_trl.selection.table import read_score
from tests.selection.pools import clean_pool, column


def test_costs_are_lower_where_more_suitable():
    dataset = clean_pool(problems=5).add_column("quality", list(range(30)))
    scores = find_scores(dataset, ["surprisal"], {"quality": "high"}, [])
    rows = ScoredRows.read(dataset, scores, "teacher", "problem_id", "correct")
    np.testing.assert_array_equal(rows.costs[:, 0], column(dataset, "rsr"))
    np.testing.assert_array_equal(rows.costs[:, 1], column(dataset, "rsr_mean_surprisal"))
    np.testing.assert_array_equal(rows.costs[:, 2], -np.arange(30))


def test_rsr_is_first_and_named_once():
    scores = find_scores(clean_pool(problems=5), ["length", "rsr", "length"], {}, [])
    assert [score.name for score in scores] == ["rsr", "length"]
    assert [score.prefer for score in scores] == ["low", "high"]


def test_scores_can_be_turned_round_but_not_rsr():
    scores = find_scores(clean_pool(problems=5), None, {"length": "low"}, [])
    assert {score.name: score.prefer for score in scores}["length"] == "low" and len(scores) == 4
    with pytest.raises(ValueError, match="lower is more suitable"):
        find_scores(clean_pool(problems=5), None, {"rsr": "high"}, [])


def test_unknown_correctness_is_neither_right_nor_wrong():
    dataset = clean_pool(problems=1, teachers=3, correct=[True, None, False])
    rows = ScoredRows.read(dataset, find_scores(dataset, None, {}, []), None, None, "correct")
    np.testing.assert_array_equal(rows.correct, [1, np.nan, 0])
    assert rows.teacher is None and rows.problem is None


def test_some_of_the_rows_keep_their_places_and_numbers():
    dataset = clean_pool(problems=4, teachers=3)
    rows = ScoredRows.read(dataset, find_scores(dataset, None, {}, []), "teacher", "problem_id", None)
    part = rows.where(np.arange(12) % 3 > 0)
    assert part.row.tolist() == [1, 2, 4, 5, 7, 8, 10, 11] and part.correct is None
    assert [part.teachers[i] for i in part.teacher] == ["t1", "t2"] * 4
    assert part.shared_problems().tolist() == [True] * 4  # of the teachers that are left
    assert rows.where(rows.row != 4).shared_problems().tolist() == [True, False, True, True]


def test_every_score_of_the_package_is_found_with_its_direction():
    """Also one that is made from the columns of others, and one whose name is a column of the user's too."""
    dataset = clean_pool(problems=10)
    random = np.random.default_rng(0)
    for name in ("score_lark", "score_drop", "rsr_step_share"):
        dataset = dataset.add_column(name, random.uniform(0.1, 0.2, len(dataset)))
    dataset = dataset.add_column("length", [7] * len(dataset))
    notes = []
    scores = find_scores(dataset, None, {}, notes)
    assert [score.name for score in scores] == ["rsr", "surprisal", "rank", "drop", "casl", "lark", "length"]
    assert [score.prefer for score in scores] == ["low"] * 5 + ["high"] * 2 and notes == []
    rows = ScoredRows.read(dataset, scores, None, None, None)
    np.testing.assert_array_equal(rows.costs[:, 5], -np.array(column(dataset, "score_lark")))
    np.testing.assert_array_equal(rows.costs[:, 6], -np.array(column(dataset, "rsr_num_tokens")))
    np.testing.assert_array_equal(rows.costs[:, 4], read_score(dataset, "casl"))
