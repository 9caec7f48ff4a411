import json
from itertools import combinations

import numpy as np
import pytest
from datasets import DatasetDict
from scipy.stats import rankdata, spearmanr

from rsr_trl.rsr import dataset_rsr
from rsr_trl.selection.choose import select_trajectories
from rsr_trl.selection.compare import compare_scores
from tests.selection.pools import clean_pool, column


COLUMNS = dict(teacher_column="teacher", problem_column="problem_id", correctness_column="correct")


@pytest.fixture
def pool():
    """A shuffled pool with ties, rows without a score, unknown correctness, and two scores of the user's own."""
    rng = np.random.default_rng(5)
    dataset = clean_pool(3, problems=30, teachers=4)
    size = len(dataset)
    lost = rng.random(size) < 0.1
    quality = [None if x < 0.05 else float(x) for x in rng.random(size).round(1)]
    rsr = np.where(lost, np.nan, column(dataset, "rsr").round(1))
    correct = [None if x < 0.1 else bool(x < 0.6) for x in rng.random(size)]
    dataset = dataset.remove_columns(["rsr", "correct"]).add_column("rsr", rsr.tolist())
    dataset = dataset.add_column("correct", correct).add_column("quality", quality)
    return dataset.add_column("price", rng.integers(1, 9, size).tolist()).shuffle(seed=0)


def usable(dataset):
    """Rows as dicts that have a finite value of all scores, with their scores turned to lower = more suitable."""
    rows = [row for row in dataset if row["rsr"] is not None and not np.isnan(row["rsr"])]
    rows = [row for row in rows if row["quality"] is not None]
    costs = {
        "rsr": [row["rsr"] for row in rows],
        "surprisal": [row["rsr_mean_surprisal"] for row in rows],
        "quality": [-row["quality"] for row in rows],
    }
    return rows, costs


def compared(dataset, **options):
    return compare_scores(dataset, scores=["surprisal"], own_scores={"quality": "high"}, **COLUMNS | options)


class TestAgainstLoops:
    def test_rank_correlation_within_problems(self, pool):
        rows, costs = usable(pool)
        names = [row["problem_id"] for row in rows]
        ranks = {name: np.zeros(len(rows)) for name in costs}
        for problem in set(names):
            at = [i for i, name in enumerate(names) if name == problem]
            for score, cost in costs.items():
                part = rankdata([cost[i] for i in at]) / len(at)
                ranks[score][at] = part - part.mean()
        truth = np.corrcoef(list(ranks.values()))
        result = compared(pool)
        assert [score["name"] for score in result.scores] == ["rsr", "surprisal", "quality"]
        np.testing.assert_allclose(result.rank_correlation, truth)
        assert [score["rank_correlation"] for score in result.scores] == pytest.approx(truth[0].tolist())

    def test_rank_correlation_and_length_without_problems(self, pool):
        rows, costs = usable(pool)
        tokens = [row["rsr_num_tokens"] for row in rows]
        truth = spearmanr(np.array([*costs.values(), tokens]).T).statistic
        result = compared(pool, problem_column=None)
        np.testing.assert_allclose(result.rank_correlation, truth[:3, :3])
        for score, row in zip(result.scores, truth, strict=False):
            assert score["length_correlation"] == pytest.approx(-row[3])  # what has a low cost is suitable
            assert score["length_r2"] == pytest.approx(row[3] ** 2)

    @pytest.mark.parametrize(
        "options, choice",
        [
            ({}, dict(group_column="problem_id")),
            (dict(keep_per_group=2), dict(group_column="problem_id", keep_per_group=2)),
            (dict(keep_fraction=0.3), dict(keep_fraction=0.3)),
            (dict(problem_column=None), dict(keep_fraction=0.5)),
        ],
    )
    def test_choices_are_those_of_select_trajectories(self, pool, options, choice):
        pool = pool.add_column("row", list(range(len(pool))))
        have = pool.filter(lambda row: row["quality"] is not None and row["rsr"] is not None and row["rsr"] > 0)
        ends = {"rsr": "low", "rsr_mean_surprisal": "low", "quality": "high"}
        kept = [select_trajectories(have, score=score, prefer=end, **choice) for score, end in ends.items()]
        result = compared(pool, **options)
        for i, j in combinations(range(3), 2):
            shared = len(set(kept[i]["row"][:]) & set(kept[j]["row"][:])) / len(kept[i])
            assert result.overlap[i][j] == result.overlap[j][i] == pytest.approx(shared)
        for score, rows in zip(result.scores, kept, strict=True):
            assert score["chosen_tokens"] == pytest.approx(np.mean(rows["rsr_num_tokens"][:]))
            known = [x for x in rows["correct"][:] if x is not None]
            assert score["chosen_accuracy"] == pytest.approx(np.mean(known))
            teachers = rows["teacher"][:]
            most = max(set(teachers), key=teachers.count)
            assert score["chosen_top_teacher_share"] == pytest.approx(teachers.count(most) / len(teachers))
            assert teachers.count(score["chosen_top_teacher"]) == teachers.count(most)
        words = " ".join(f"--{name} {value}" for name, value in choice.items())
        assert result.rule == words

    def test_correct_first_within_problems(self, pool):
        rows, costs = usable(pool)
        for score in compared(pool).scores:
            cost, won, pairs = costs[score["name"]], 0.0, 0
            for i, j in combinations(range(len(rows)), 2):
                kinds = {rows[i]["correct"], rows[j]["correct"]}
                if rows[i]["problem_id"] != rows[j]["problem_id"] or kinds != {True, False}:
                    continue
                right, wrong = (i, j) if rows[i]["correct"] else (j, i)
                won += 1.0 if cost[right] < cost[wrong] else 0.5 * (cost[right] == cost[wrong])
                pairs += 1
            assert pairs > 20 and score["correct_first"] == pytest.approx(won / pairs)
            assert score["correct_first_low"] < score["correct_first"] < score["correct_first_high"]

    def test_teachers_on_the_problems_that_all_have(self, pool):
        rows, costs = usable(pool)
        has = {row["problem_id"]: set() for row in rows}
        for row in rows:
            has[row["problem_id"]].add(row["teacher"])
        shared = [i for i, row in enumerate(rows) if len(has[row["problem_id"]]) == 4]
        values = {}
        for name in ("t0", "t1", "t2", "t3"):
            mine = [rows[i] for i in shared if rows[i]["teacher"] == name]
            rank, surprisal, quality = (
                np.array([row[column] for row in mine])
                for column in ("rsr_mean_clipped_rank", "rsr_mean_surprisal", "quality")
            )
            values[name] = (dataset_rsr(rank, surprisal), surprisal.mean(), quality.mean())
        result = compared(pool)
        assert result.num_shared_problems == len({rows[i]["problem_id"] for i in shared}) < 30
        table = {row["teacher"]: row for row in result.teachers}
        assert [row["teacher"] for row in result.teachers] == sorted(values, key=lambda name: values[name][0])
        costs = np.array(list(values.values())) * [1, 1, -1]
        places = rankdata(costs.round(9), method="min", axis=0)
        for (name, truth), place in zip(values.items(), places, strict=True):
            assert list(table[name]["values"].values()) == pytest.approx(list(truth))
            assert list(table[name]["places"].values()) == place.tolist()
            assert table[name]["trajectories"] == result.num_shared_problems
        np.testing.assert_allclose(result.teacher_agreement, spearmanr(costs).statistic)


def test_order_of_rows_and_monotone_changes_of_a_score_play_no_part(pool):
    before = compared(pool).to_dict()
    quality = [None if x is None else 7 - 2 * x**3 for x in pool["quality"]]
    turned = pool.remove_columns("quality").add_column("quality", quality).shuffle(seed=9)
    after = compare_scores(turned, scores=["surprisal"], own_scores={"quality": "low"}, **COLUMNS).to_dict()
    for name in ("rank_correlation", "num_compared", "chance_overlap"):
        np.testing.assert_allclose(after[name], before[name])
    assert after["scores"][2]["correct_first"] == pytest.approx(before["scores"][2]["correct_first"])


def test_by_default_every_score_that_is_there(pool):
    dataset = pool.add_column("score_random", np.random.default_rng(0).random(len(pool)).tolist())
    result = compare_scores(dataset)
    assert [score["name"] for score in result.scores] == ["rsr", "surprisal", "rank", "length", "random"]
    assert result.num_compared == int(np.isfinite(column(pool, "rsr")).sum())
    assert abs(result.scores[4]["rank_correlation"]) < 0.3


def test_a_column_of_the_score_itself_wins_over_what_every_dataset_has(pool):
    dataset = pool.add_column("score_surprisal", column(pool, "price").astype(float).tolist())
    by_name = {score["name"]: score for score in compare_scores(dataset).scores}
    own = compare_scores(pool, own_scores={"price": "low"}).scores[-1]
    assert by_name["surprisal"] == {**own, "name": "surprisal"}


def test_what_is_left_out_is_said(pool):
    result = compared(pool)
    rows, _ = usable(pool)
    assert (result.num_rows, result.num_compared) == (120, len(rows))
    missing = sum(x is None for x in pool["quality"][:])
    assert f"Compared on the {len(rows)} of 120 trajectories" in result.notes[0]
    assert f"quality in {missing}" in result.notes[0]
    assert compare_scores(clean_pool(), **COLUMNS).notes == []


def test_scores_of_unknown_direction_are_said_and_can_be_named(pool):
    dataset = pool.rename_column("price", "score_price")
    assert "'score_price'" in compare_scores(dataset).notes[0]
    assert "score_price" not in [score["name"] for score in compare_scores(dataset).scores]
    named = compare_scores(dataset, own_scores={"score_price": "low"})
    assert named.scores[-1] | {"name": "score_price", "prefer": "low"} == named.scores[-1]
    assert not any("score_price" in note for note in named.notes)


def test_teachers_that_share_no_problem_are_compared_on_what_they_have():
    dataset = clean_pool(problem_id=[f"p{i}" for i in range(600)])
    result = compare_scores(dataset, **COLUMNS)
    assert result.num_shared_problems is None and len(result.teachers) == 6
    assert "no problem has all of them" in result.notes[0]
    assert result.chance_overlap == 1 and result.scores[0]["rank_correlation"] is None


def test_a_teacher_without_a_score_is_named():
    dataset = clean_pool()
    ratio = np.where(column(dataset, "teacher") == "t5", np.nan, column(dataset, "rsr"))
    result = compare_scores(dataset.remove_columns("rsr").add_column("rsr", ratio.tolist()), **COLUMNS)
    assert [row["teacher"] for row in result.teachers if row["teacher"] == "t5"] == []
    assert any("not compared: 't5'" in note for note in result.notes)


@pytest.mark.parametrize("teachers", [2, 4])
@pytest.mark.parametrize("changes", [{}, dict(teacher_column=None), dict(problem_column=None)])
def test_json_can_hold_it(teachers, changes):
    dataset = clean_pool(problems=8, teachers=teachers, rsr_num_tokens=[9] * (8 * teachers))
    result = compare_scores(dataset, **COLUMNS | changes)
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False)) == result.to_dict()
    assert "short responses" in [finding["name"] for finding in result.to_dict()["findings"]]
    assert result.scores[0]["length_correlation"] is None  # all are of one length


class TestErrors:
    @pytest.mark.parametrize(
        "options, message",
        [
            (dict(scores=["grape"]), "There is no score 'grape'"),
            (dict(scores=["random"]), "`rsr score --scores random`"),
            (dict(own_scores={"price": "up"}), "must be 'low' or 'high'"),
            (dict(own_scores={"cost": "low"}), "no column 'cost'"),
            (dict(own_scores={"teacher": "low"}), "must hold numbers"),
            (dict(teacher_column="author"), "no column 'author'"),
            (dict(correctness_column="teacher"), "true or false"),
            (dict(keep_fraction=0.0), "keep_fraction must be in"),
            (dict(keep_per_group=2), "needs group_column"),
        ],
    )
    def test_one_message(self, pool, options, message):
        with pytest.raises(ValueError, match=message):
            compare_scores(pool, **options)

    def test_an_unscored_dataset(self, pool):
        with pytest.raises(ValueError, match="Score it first"):
            compare_scores(pool.remove_columns("rsr"), scores=["surprisal"])

    def test_several_students(self):
        with pytest.raises(ValueError, match="2 different students"):
            compare_scores(clean_pool(rsr_student=["one"] * 599 + ["two"]))

    def test_no_row_with_all_scores(self, pool):
        dataset = pool.add_column("empty", [None] * len(pool))
        with pytest.raises(ValueError, match="'empty' lacks most, in 120 rows"):
            compare_scores(dataset, own_scores={"empty": "low"})

    def test_splits(self, pool):
        with pytest.raises(TypeError, match="DatasetDict"):
            compare_scores(DatasetDict(train=pool))
