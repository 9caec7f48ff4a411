import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from datasets import DatasetDict
from scipy.stats import binomtest, mannwhitneyu, rankdata, spearmanr

from rsr_trl.rsr import RSRError
from rsr_trl.selection.choose import select_trajectories
from rsr_trl.selection.compare import chance_overlap, compare_scores, comparison_table, correct_first, rank_correlation
from rsr_trl.selection.table import read_score
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
    rsr = np.where(lost, np.nan, column(dataset, "rsr").round(1)).tolist()
    correct = [None if x < 0.1 else bool(x < 0.6) for x in rng.random(size)]
    changes = dict(rsr=rsr, correct=correct, quality=quality, price=rng.integers(1, 9, size))
    return clean_pool(3, problems=30, teachers=4, **changes).shuffle(seed=0)


def usable(dataset):
    """Frames of the rows that have a finite value of all scores, and of their scores as costs."""
    frame = dataset.to_pandas().dropna(subset=["rsr", "quality"]).reset_index(drop=True)
    costs = pd.DataFrame(
        {"rsr": frame.rsr, "surprisal": frame.rsr_mean_surprisal, "quality": -frame.quality.astype(float)}
    )
    return frame, costs


def compared(dataset, **options):
    return compare_scores(dataset, scores=["surprisal"], own_scores={"quality": "high"}, **COLUMNS | options)


def naive_within(values, group):
    """Rank every group by itself, as the words say it, and correlate what is left of all rows."""
    rows = []
    for label in np.unique(group):
        part = values[group == label]
        ranks = np.stack([rankdata(column) for column in part.T], axis=1) / len(part)
        rows.append(ranks - ranks.mean(axis=0))
    return np.corrcoef(np.concatenate(rows).T)


def naive_pairs(cost, correct, group):
    won, pairs = 0.0, 0
    for i in np.flatnonzero(correct):
        for j in np.flatnonzero(~correct & (group == group[i])):
            won += 1.0 if cost[i] < cost[j] else 0.5 * (cost[i] == cost[j])
            pairs += 1
    return won / pairs


class TestAgainstLoops:
    def test_rank_correlation_within_problems(self, pool):
        frame, costs = usable(pool)
        truth, result = naive_within(costs.to_numpy(), frame.problem_id.to_numpy()), compared(pool)
        assert [score["name"] for score in result.scores] == ["rsr", "surprisal", "quality"]
        np.testing.assert_allclose(result.rank_correlation, truth)
        assert [score["rank_correlation"] for score in result.scores] == pytest.approx(truth[0].tolist())

    def test_rank_correlation_and_length_without_problems(self, pool):
        frame, costs = usable(pool)
        truth = spearmanr(costs.assign(tokens=frame.rsr_num_tokens)).statistic
        result = compared(pool, problem_column="none")
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
            (dict(problem_column="none"), dict(keep_fraction=0.5)),
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
            assert (score["chosen_balance"] is None) == ("problem_column" in options)
            if result.rule.startswith("--group_column"):  # where something of each problem is chosen
                by_problem = pd.DataFrame(rows.to_dict()).dropna(subset="correct").groupby("problem_id")["correct"]
                right, share = by_problem.sum().astype(float), by_problem.mean().astype(float)
                expected = (right.clip(upper=8) / 8 * share).mean()
                assert score["chosen_balance"] == pytest.approx(expected)
            teachers = rows["teacher"][:]
            most = max(set(teachers), key=teachers.count)
            assert score["chosen_top_teacher_share"] == pytest.approx(teachers.count(most) / len(teachers))
            assert teachers.count(score["chosen_top_teacher"]) == teachers.count(most)
        assert result.rule == " ".join(f"--{name} {value}" for name, value in choice.items())

    def test_correct_first_within_problems(self, pool):
        frame, costs = usable(pool)
        known = frame.correct.notna()
        for score in compared(pool).scores:
            correct, problem = (frame[name][known].to_numpy() for name in ("correct", "problem_id"))
            truth = naive_pairs(costs[score["name"]][known].to_numpy(), correct == True, problem)  # noqa: E712
            assert score["correct_first"] == pytest.approx(truth)
            assert score["correct_first_low"] < score["correct_first"] < score["correct_first_high"]

    def test_teachers_on_the_problems_that_all_have(self, pool):
        frame, _ = usable(pool)
        frame = frame[frame.groupby("problem_id").teacher.transform("nunique") == 4]
        means = frame.groupby("teacher")[["rsr_mean_clipped_rank", "rsr_mean_surprisal", "quality"]].mean()
        values = means.assign(rsr_mean_clipped_rank=means.rsr_mean_clipped_rank / means.rsr_mean_surprisal)  # Eq. 9
        result = compared(pool)
        assert result.num_shared_problems == frame.problem_id.nunique() < 30
        assert [row["teacher"] for row in result.teachers] == list(values.index[np.argsort(values.iloc[:, 0])])
        costs = values.to_numpy() * [1, 1, -1]
        places = pd.DataFrame(rankdata(costs.round(9), method="min", axis=0), values.index)
        for row in result.teachers:
            assert list(row["values"].values()) == pytest.approx(values.loc[row["teacher"]].tolist())
            assert list(row["places"].values()) == places.loc[row["teacher"]].tolist()
            assert row["trajectories"] == result.num_shared_problems
        np.testing.assert_allclose(result.teacher_agreement, spearmanr(costs).statistic)


def test_order_of_rows_and_monotone_changes_of_a_score_play_no_part(pool):
    before = compared(pool).to_dict()
    quality = [None if x is None else 7 - 2 * x**3 for x in pool["quality"]]
    turned = pool.remove_columns("quality").add_column("quality", quality).shuffle(seed=9)
    after = compare_scores(turned, scores=["surprisal"], own_scores={"quality": "low"}, **COLUMNS).to_dict()
    for name in ("rank_correlation", "num_compared", "chance_overlap"):
        np.testing.assert_allclose(after[name], before[name])
    assert after["scores"][2]["correct_first"] == pytest.approx(before["scores"][2]["correct_first"])


def names_and_ends(dataset, scores=None, own_scores=None, notes=None):
    return comparison_table(dataset, scores, own_scores, None, [] if notes is None else notes).prefer


class TestWhatIsCompared:
    def test_rsr_first_and_each_once_all_but_rsr_turned_round(self, pool):
        assert names_and_ends(pool, ["length", "rsr", "length"]) == {"rsr": "low", "length": "high"}
        assert [score["name"] for score in compare_scores(pool).scores] == ["rsr", "surprisal", "rank", "length"]
        assert compare_scores(pool).num_compared == int(np.isfinite(column(pool, "rsr")).sum())
        assert names_and_ends(pool, None, {"length": "low"})["length"] == "low"

    def test_every_score_of_the_package_with_its_direction(self, pool):
        """Also one that is made from the columns of others, and one whose name is a column of the user's too."""
        for name in ("score_lark", "score_drop", "rsr_step_share"):
            pool = pool.add_column(name, np.random.default_rng(0).uniform(0.1, 0.2, len(pool)))
        pool, notes = pool.add_column("length", [7] * len(pool)), []
        few = comparison_table(pool, None, None, None, notes)
        assert list(few.values) == ["rsr", "surprisal", "rank", "length"] and "drop, casl, lark" in notes.pop()
        table = comparison_table(pool, "all", None, None, notes)
        assert list(table.values) == ["rsr", "surprisal", "rank", "drop", "casl", "lark", "length"] and notes == []
        assert list(table.prefer.values()) == ["low"] * 5 + ["high"] * 2
        np.testing.assert_array_equal(table.cost("lark"), -column(pool, "score_lark"))
        np.testing.assert_array_equal(table.cost("length"), -column(pool, "rsr_num_tokens"))
        np.testing.assert_array_equal(table.values["casl"], read_score(pool, "casl"))

    def test_a_column_of_the_score_itself_wins_over_what_every_dataset_has(self, pool):
        dataset = pool.add_column("score_surprisal", column(pool, "price").astype(float).tolist())
        by_name = {score["name"]: score for score in compare_scores(dataset).scores}
        own = compare_scores(pool, own_scores={"price": "low"}).scores[-1]
        assert by_name["surprisal"] == {**own, "name": "surprisal"}

    def test_scores_of_unknown_direction_are_said_and_can_be_named(self, pool):
        dataset, notes = pool.rename_column("price", "score_price"), []
        assert "score_price" not in names_and_ends(dataset, notes=notes)
        assert "'score_price'" in compare_scores(dataset).notes[0] == notes[0]
        assert names_and_ends(dataset, None, {"score_price": "low"}, notes)["score_price"] == "low" and len(notes) == 1


def test_what_is_left_out_is_said(pool):
    result, (rows, _) = compared(pool), usable(pool)
    assert (result.num_rows, result.num_compared) == (120, len(rows))
    assert f"Compared on the {len(rows)} of 120 trajectories" in result.notes[0]
    assert f"quality in {sum(x is None for x in pool['quality'][:])}" in result.notes[0]
    clean = clean_pool()
    assert compare_scores(clean, **COLUMNS).notes == []
    ratio = np.where(column(clean, "teacher") == "t5", np.nan, column(clean, "rsr"))
    result = compare_scores(clean_pool(rsr=ratio.tolist()), **COLUMNS)
    assert "t5" not in [row["teacher"] for row in result.teachers]
    assert any("every score: 't5'" in note for note in result.notes)


def test_teachers_that_share_no_problem_are_compared_on_what_they_have():
    dataset = clean_pool(problem_id=[f"p{i}" for i in range(600)])
    result = compare_scores(dataset, **COLUMNS)
    assert result.num_shared_problems is None and len(result.teachers) == 6
    assert "no problem has all of them" in result.notes[0]
    assert result.chance_overlap == 1 and result.scores[0]["rank_correlation"] is None


@pytest.mark.parametrize("teachers", [2, 4])
@pytest.mark.parametrize("changes", [{}, dict(teacher_column=None), dict(problem_column=None)])
def test_json_can_hold_it(teachers, changes):
    dataset = clean_pool(problems=8, teachers=teachers, rsr_num_tokens=[9] * (8 * teachers))
    result = compare_scores(dataset, **COLUMNS | changes)
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False)) == result.to_dict()
    assert "short responses" in [finding["name"] for finding in result.to_dict()["findings"]]
    assert result.scores[0]["length_correlation"] is None  # all are of one length


def test_in_a_notebook_and_as_text(pool):
    result = compared(pool)
    assert len(repr(result)) < 200 and repr(result).startswith(f"Comparison(3 scores of {result.num_compared}")
    for text in (str(result), result._repr_html_()):
        assert "quality (high)" in text and f"{result.scores[1]['rank_correlation']:+.2f}" in text
        assert all(finding.name in text for finding in result.findings)


class TestErrors:
    @pytest.mark.parametrize(
        "options, message",
        [
            (dict(scores=["grape"]), "There is no score 'grape'"),
            (dict(scores=["random"]), "`rsr score --scores random`"),
            (dict(own_scores={"price": "up"}), "must be 'low' or 'high'"),
            (dict(own_scores={"rsr": "high"}), "lower is more suitable"),
            (dict(own_scores={"cost": "low"}), "no column 'cost'"),
            (dict(own_scores={"teacher": "low"}), "must hold numbers"),
            (dict(teacher_column="author"), "no column 'author'"),
            (dict(correctness_column="teacher"), "true or false"),
            (dict(keep_fraction=0.0), "keep_fraction must be in"),
            (dict(keep_per_group=2, problem_column="none"), "needs group_column"),
        ],
    )
    def test_one_message(self, pool, options, message):
        with pytest.raises(RSRError, match=message):
            compare_scores(pool, **options)

    def test_datasets_that_cannot_be_compared(self, pool):
        with pytest.raises(RSRError, match="Score it first"):
            compare_scores(pool.remove_columns("rsr"), scores=["surprisal"])
        with pytest.raises(RSRError, match="2 different students"):
            compare_scores(clean_pool(rsr_student=["one"] * 599 + ["two"]))
        with pytest.raises(RSRError, match="'empty' lacks most, in 120 rows"):
            compare_scores(pool.add_column("empty", [None] * len(pool)), own_scores={"empty": "low"})
        with pytest.raises(TypeError, match="DatasetDict"):
            compare_scores(DatasetDict(train=pool))


class TestRankCorrelation:
    def test_is_spearmans_with_ties_within_groups_of_any_size(self):
        rng = np.random.default_rng(1)
        values, group = rng.integers(0, 5, (200, 3)).astype(float), rng.integers(0, 40, 200)
        np.testing.assert_allclose(rank_correlation(values), spearmanr(values).statistic, atol=1e-12)
        np.testing.assert_allclose(rank_correlation(values, group), naive_within(values, group), atol=1e-12)

    def test_what_does_not_vary_has_none(self):
        values = np.stack([np.ones(9), np.arange(9.0)], axis=1)
        assert np.isnan(rank_correlation(values)).tolist() == [[True, True], [True, False]]
        assert np.isnan(rank_correlation(values, np.arange(9))).all()  # groups of one row


class TestCorrectFirst:
    @pytest.mark.parametrize("seed", range(5))
    def test_share_of_pairs_with_ties_half(self, seed):
        rng = np.random.default_rng(seed)
        cost, correct = rng.integers(0, 5, 90).astype(float), rng.random(90) < 0.6
        group = rng.integers(0, 25, 90)
        share, low, high = correct_first(cost, correct, group)
        assert share == pytest.approx(naive_pairs(cost, correct, group)) and low < share < high
        auc = mannwhitneyu(-cost[correct], -cost[~correct]).statistic / correct.sum() / (~correct).sum()
        assert correct_first(cost, correct)[0] == pytest.approx(auc)

    @pytest.mark.parametrize("grouped", [True, False])
    def test_interval_covers_what_it_states(self, grouped):
        rng = np.random.default_rng(7)
        # Two normals one apart: P(correct is lower) = Phi(1 / sqrt 2). Problems differ in difficulty and accuracy.
        truth, covered = 0.7602, []
        for _ in range(400):
            group = np.repeat(np.arange(60), 5)
            correct = rng.random(300) < (rng.uniform(0.2, 0.9, 60)[group] if grouped else 0.6)
            cost = rng.normal(size=300) - correct + (3 * rng.normal(size=60)[group] if grouped else 0)
            _, low, high = correct_first(cost, correct, group if grouped else None)
            covered.append(low <= truth <= high)
        assert 0.92 <= np.mean(covered) <= 0.98

    def test_says_nothing_where_nothing_can_be_said(self):
        one, both = np.ones(4, dtype=bool), np.array([True, True, False, False])
        assert np.isnan(correct_first(np.arange(4.0), one)).all()
        assert np.isnan(correct_first(np.zeros(0), np.zeros(0, dtype=bool))[0])
        assert np.isnan(correct_first(np.arange(4.0), both, np.array([0, 1, 2, 3]))[0])  # no pair within a problem
        assert np.isnan(correct_first(np.zeros(4), both, np.array([0, 1, 1, 0]))[1])  # nothing but ties

    def test_all_pairs_one_way_bound_the_share_as_so_many_coins_would(self):
        correct, group = np.tile([True, True, False], 30), np.repeat(np.arange(30), 3)
        bound = binomtest(30, 30).proportion_ci(method="exact").low
        for sign, expected in ((-1, (1.0, bound, 1.0)), (1, (0.0, 0.0, 1 - bound))):
            for of in (group, None):  # 30 groups, or 30 incorrect ones
                assert correct_first(sign * correct.astype(float), correct, of) == pytest.approx(expected)


def test_chance_overlap_is_that_of_random_choices():
    rng = np.random.default_rng(3)
    group = np.repeat(np.arange(30), rng.integers(1, 8, 30))

    def at_random(group):
        order = np.lexsort((rng.random(len(group)), group))
        place = np.arange(len(group)) - np.searchsorted(group[order], group[order])
        chosen = np.zeros(len(group), dtype=bool)
        chosen[order[place < 2]] = True
        return chosen

    chosen = at_random(group)
    seen = np.mean([(at_random(group) & chosen).sum() / chosen.sum() for _ in range(2000)])
    assert chance_overlap(chosen, group) == pytest.approx(seen, abs=0.01)
    assert chance_overlap(chosen) == pytest.approx(chosen.mean())
