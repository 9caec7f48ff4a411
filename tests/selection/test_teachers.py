import warnings

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from rsr_trl.data import find_columns
from rsr_trl.rsr import RSRError, dataset_rsr
from rsr_trl.selection.table import ScoredTable
from rsr_trl.selection.teachers import TeacherRanking, rank_table, rank_teachers
from tests.selection.pools import clean_pool


def pool(seed=0, problems=60, teachers=("a", "b", "c"), each=1, spread=0.2):
    """Teachers 10% apart in RSR, on shared problems of different difficulty."""
    rng = np.random.default_rng(seed)
    problem = np.repeat(np.arange(problems), len(teachers) * each)
    teacher = np.tile(np.repeat(np.arange(len(teachers)), each), problems)
    hard = rng.normal(0, 0.3, problems)[problem]
    surprisal = 0.6 * np.exp(hard + rng.normal(0, 0.1, len(problem)))
    rank = 1.1 ** (teacher % 99) * 1.8 * np.exp(1.5 * hard + rng.normal(0, spread, len(problem)))
    return Dataset.from_dict(
        {
            "problem_id": [f"p{i:03}" for i in problem],
            "teacher": [teachers[t] for t in teacher],
            "correct": rng.random(len(problem)) < 0.7,
            "rsr_mean_clipped_rank": rank,
            "rsr_mean_surprisal": surprisal,
            "rsr_num_tokens": rng.integers(50, 500, len(problem)),
            "rsr_truncated": rng.random(len(problem)) < 0.2,
        }
    )


def with_rows(dataset, **rows):
    """`dataset` with a row added; columns not given are null."""
    frame = pd.concat([dataset.to_pandas(), pd.DataFrame([rows])], ignore_index=True)
    frame["rsr_num_tokens"] = frame["rsr_num_tokens"].astype("Int64")
    for name in ("correct", "rsr_truncated"):
        frame[name] = frame[name].astype("boolean")
    return Dataset.from_pandas(frame, features=dataset.features, preserve_index=False)


def rank(dataset, **options):
    return rank_teachers(dataset, "teacher", **({"problem_column": "problem_id"} | options))


class TestTable:
    def test_against_pandas(self):
        dataset = pool(each=2)
        ranking = rank(dataset, correctness_column="correct")
        frame = dataset.to_pandas()
        assert [row["teacher"] for row in ranking.table] == ["a", "b", "c"] and ranking.best == "a"
        for row in ranking.table:
            mine = frame[frame.teacher == row["teacher"]]
            assert row["rsr"] == pytest.approx(dataset_rsr(mine.rsr_mean_clipped_rank, mine.rsr_mean_surprisal))
            assert row["rsr_all"] == pytest.approx(row["rsr"])
            assert row["mean_rank"] == pytest.approx(mine.rsr_mean_clipped_rank.mean())
            assert row["mean_surprisal"] == pytest.approx(mine.rsr_mean_surprisal.mean())
            assert row["mean_tokens"] == pytest.approx(mine.rsr_num_tokens.mean())
            assert row["truncated_share"] == pytest.approx(mine.rsr_truncated.mean())
            assert row["accuracy"] == pytest.approx(mine.correct.mean())
            assert (row["trajectories"], row["unscored"]) == (120, 0)
            assert row["rsr_low"] < row["rsr"] < row["rsr_high"]
        assert sum(row["probability_best"] for row in ranking.table) == pytest.approx(1)
        assert ranking.num_problems == ranking.num_problems_in_all == 60

    def test_pairs_of_the_best_twenty(self):
        ranking = rank(pool(teachers=[f"t{i:02}" for i in range(25)], problems=30))
        names = [row["teacher"] for row in ranking.table[:20]]
        assert len(ranking.pairs) == 20 * 19 // 2
        for pair in ranking.pairs:
            assert names.index(pair["better"]) < names.index(pair["worse"]) and pair["rsr_ratio"] >= 1
        assert ranking.pairs[18]["probability"] > 0.99  # the first against the twentieth

    def test_outputs(self):
        ranking = rank(pool())
        assert ranking.to_pandas()["teacher"].tolist() == ranking.to_dataset()["teacher"] == ["a", "b", "c"]
        assert "lower = more suitable" in str(ranking) and "on 60 problems" in str(ranking)
        assert len(repr(ranking)) < 120 and "a, b, c" in repr(ranking)
        long = rank(pool(teachers=["<b>" + "long name " * 9, "b", "c"]))
        assert max(map(len, str(long).split("\n")[:4])) <= 100
        html = long._repr_html_()
        assert "<b>long" not in html and "&lt;b&gt;long" in html and html.count("<tr") == 4
        assert f"{long.table[0]['rsr']:.3f}" in html and f"{long.table[0]['rsr']:.3f}" in str(long)
        table = ScoredTable.read(pool(), find_columns(pool()), scores=())
        assert rank_table(table) == rank_teachers(pool()) == ranking  # with the columns that are found

    @pytest.mark.parametrize("score", ["rsr", "surprisal"])
    def test_prints_in_100_columns_and_repeats_no_warning(self, score):
        names = [f"some-lab/Reasoner-{size}B-Instruct-with-a-long-name-{size}" for size in "123"]
        few = pool(teachers=names, problems=5)
        with pytest.warns(UserWarning) as said:
            text = str(rank_teachers(few, "teacher", "problem_id", score=score))
        assert max(map(len, text.splitlines())) <= 100 and len(said) > 0
        assert not any(str(warning.message) in text for warning in said)
        assert all(f"{name[:29]}…" in text for name in names)


NOT_JUDGED = "and can't be judged. Of the others,"


def ranking_of(*rows, num_problems=9):
    """A ranking with these teachers: name, trajectories, and probability of being the best if it has an interval."""
    names = ("teacher", "trajectories", "rsr_low", "probability_best")
    values = [(name, count, 1.0 if best else None, (*best, None)[0]) for name, count, *best in rows]
    table = [dict(zip(names, row, strict=True)) for row in values]
    return TeacherRanking(table, [], num_problems, num_problems, 0.95, [])


class TestVerdict:
    @pytest.mark.parametrize(
        "rows, verdict",
        [
            ([("a", 9, 0.94), ("b", 9, 0.03), ("c", 9, 0.03)], "a is the most suitable."),
            ([("a", 9, 0.9), ("b", 9, 0.05), ("c", 9, 0.05)], "a leads; b, c may suit as well or better."),
            ([(x, 9, 0.14) for x in "abcdefg"], "a leads; b, c, d, e, f, ... may suit as well or better."),
            ([("a", 9, 0.97), ("b", 0)], "a is the only teacher that can be judged."),
            (
                [("y", 1), ("z", 3), ("a", 9, 0.5), ("b", 9, 0.5)],
                f"y, z come first, but have no interval {NOT_JUDGED} a leads; b may suit as well or better.",
            ),
            ([("a", 1), ("b", 1)], "No teacher can be judged: each has only one trajectory."),
            ([("a", 3), ("b", 1)], "No teacher can be judged: none has an interval."),
            ([("a", 9, None)], ""),
        ],
    )
    def test_what_may_be_said(self, rows, verdict):
        assert ranking_of(*rows).verdict() == verdict
        if len(rows) > 1:
            assert ranking_of(*rows, num_problems=1).verdict() == "One problem can't tell teachers apart."

    def test_names_as_a_page_writes_them(self):
        ranking = ranking_of(("a", 9, 1.0), ("b", 9, 0.0))
        assert ranking.verdict(lambda name: f"<b>{name}</b>") == "<b>a</b> is the most suitable."


class TestInvariance:
    @pytest.mark.parametrize("options", [{}, {"problem_column": None}])
    @pytest.mark.filterwarnings("ignore:Not matched by problem")
    def test_order_of_rows(self, options):
        dataset = pool(each=2)
        one, other = rank(dataset, **options), rank(dataset.shuffle(seed=1), **options)
        for left, right in zip(one.table + one.pairs, other.table + other.pairs, strict=True):
            for name in left:
                assert left[name] == (pytest.approx(right[name]) if isinstance(left[name], float) else right[name])

    @pytest.mark.parametrize("options", [{}, {"problem_column": None}])
    @pytest.mark.filterwarnings("ignore:Not matched by problem")
    def test_adding_a_teacher_changes_nothing_about_the_others(self, options):
        three, two = pool(), pool().filter(lambda row: row["teacher"] != "c")
        after = {row["teacher"]: row for row in rank(three, **options).table}
        for row in rank(two, **options).table:
            for name in ("rsr", "rsr_low", "rsr_high", "mean_rank", "mean_tokens", "trajectories", "rsr_all"):
                assert after[row["teacher"]][name] == pytest.approx(row[name])

    def test_a_teacher_with_fewer_problems_leaves_rsr_all_alone(self):
        dataset = pool()
        few = dataset.filter(lambda row, i: row["teacher"] != "c" or i < 90, with_indices=True)
        with pytest.warns(UserWarning, match="share 30 of 60 problems.*'c' 30, 'a' 60, 'b' 60"):
            ranking = rank(few)
        whole = {row["teacher"]: row["rsr_all"] for row in rank(dataset).table}
        found = {row["teacher"]: row for row in ranking.table}
        assert ranking.num_problems == 30 and ranking.num_problems_in_all == 60
        assert found["a"]["rsr_all"] == pytest.approx(whole["a"]) and found["a"]["trajectories"] == 30
        assert found["a"]["rsr"] == pytest.approx(rank(dataset.select(range(90))).table[0]["rsr"])


class TestOddPools:
    def test_a_normal_run_warns_of_nothing(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert rank(pool()).notes == []

    def test_one_teacher_or_one_problem(self):
        ranking = rank(pool(teachers=("a",)))
        assert ranking.table[0]["probability_best"] is None and ranking.table[0]["rsr_low"] is not None
        assert ranking.pairs == [] and ranking.verdict() == "" and ranking.best == "a"
        assert "1 teacher on 60 problems" in str(ranking)
        with pytest.warns(UserWarning, match="With one problem there are no error bars"):
            ranking = rank(pool(problems=1))
        for row in ranking.table:
            assert row["rsr"] > 0 and row["rsr_low"] is row["rsr_high"] is row["probability_best"] is None
        assert [pair["probability"] for pair in ranking.pairs] == [None] * 3 and ranking.judged == []
        assert "One problem can't tell teachers apart." in str(ranking) and "on 1 problem," in str(ranking)

    @pytest.mark.filterwarnings("ignore:Not matched by problem")
    def test_a_teacher_with_one_trajectory_is_not_judged(self):
        few = pool().filter(lambda row, i: row["teacher"] != "c" or i < 3, with_indices=True)
        best = few.map(
            lambda row: {"rsr_mean_clipped_rank": row["rsr_mean_clipped_rank"] / (1 + 9 * (row["teacher"] == "c"))}
        )
        with pytest.warns(UserWarning, match="1 teacher with a single trajectory can't be judged: 'c'"):
            ranking = rank(best, problem_column="none")
        with pytest.warns(UserWarning, match="like with like"):
            without = rank(few.filter(lambda row: row["teacher"] != "c"), problem_column="none")
        first = ranking.table[0]
        assert first["teacher"] == "c" and first["rsr_low"] is first["rsr_high"] is first["probability_best"] is None
        assert ranking.table[1:] == without.table and ranking.best == without.best
        probability = {(pair["better"], pair["worse"]): pair["probability"] for pair in ranking.pairs}
        assert probability.pop(("c", "a")) is probability.pop(("c", "b")) is None and probability.popitem()[1] > 0.5
        assert ranking.verdict() == f"c comes first, but has only one trajectory {NOT_JUDGED} {without.verdict()}"

    def test_a_teacher_without_a_score_comes_last_and_is_said(self):
        dataset = with_rows(pool(), problem_id="p000", teacher="z", rsr_num_tokens=0, rsr_truncated=False)
        with pytest.warns(UserWarning, match="1 teacher has no scored trajectory and isn't compared: 'z'"):
            ranking = rank(dataset)
        last = ranking.table[-1]
        assert last["teacher"] == "z" and last["rsr"] is None and (last["trajectories"], last["unscored"]) == (0, 1)
        assert ranking.num_problems == 60 and list(last) == list(ranking.table[0])
        of_a_known_one = with_rows(pool(), problem_id="p000", teacher="a", rsr_num_tokens=0, rsr_truncated=False)
        assert rank(of_a_known_one).table[0] == rank(pool()).table[0] | {"unscored": 1}

    def test_duplicated_rows_are_noticed(self):
        dataset = pool()
        with pytest.warns(UserWarning, match="2 rows repeat another of the same teacher and problem"):
            rank(Dataset.from_dict(dataset[list(range(180)) + [0, 7]]))

    def test_teachers_that_tie_share_the_first_place(self):
        rows = pool(teachers=("a",)).to_pandas()
        twins = Dataset.from_pandas(pd.concat([rows, rows.assign(teacher="b")]), preserve_index=False)
        ranking = rank(twins)
        assert [row["teacher"] for row in ranking.table] == ["a", "b"]
        assert [row["probability_best"] for row in ranking.table] == [0.5, 0.5]
        assert ranking.pairs[0]["probability"] == 0.5

    def test_problems_that_are_all_alike(self):
        same = pool().map(lambda row: {"rsr_mean_clipped_rank": 3.0, "rsr_mean_surprisal": 2.0})
        row = rank(same).table[0]
        assert (row["rsr"], row["rsr_low"], row["rsr_high"]) == (1.5, 1.5, 1.5)

    @pytest.mark.filterwarnings("ignore:With 5 problems")
    def test_ten_thousand_teachers(self):
        ranking = rank(pool(teachers=[f"t{i:05}" for i in range(10_000)], problems=5), num_draws=100)
        assert len(ranking.table) == 10_000 and "... and 9980 more" in str(ranking)


class TestByAnotherScore:
    @pytest.fixture
    def pool(self) -> Dataset:
        """Scores about nought: no logarithm of them."""
        place = np.tile(np.arange(3), 60)
        scores = np.random.default_rng(1).normal(0.1 * place - 0.1, 0.05)
        rows = {"rsr_mean_clipped_rank": 2.0 + place, "rsr_mean_surprisal": np.ones(180), "score_lark": scores}
        return clean_pool(problems=60, teachers=3, teacher=np.array(list("abc"))[place], **rows)

    def test_by_the_mean(self, pool):
        ranking = rank(pool, score="lark")
        means = pool.to_pandas().groupby("teacher").score_lark.mean()
        assert [row["teacher"] for row in ranking.table] == ["c", "b", "a"]  # high is better
        for row in ranking.table:
            assert row["score"] == pytest.approx(means[row["teacher"]]) == row["score_all"]
            assert row["score_low"] < row["score"] < row["score_high"]
            assert row["score_high"] - row["score_low"] == pytest.approx(2 * 1.96 * 0.05 / np.sqrt(60), rel=0.35)
        assert ranking.table[0]["probability_best"] == 1 and ranking.table[0]["rsr"] == 4
        assert ranking.pairs[0]["better"] == "c" and ranking.pairs[0]["probability"] == 1
        assert ranking.pairs[0]["score_difference"] == pytest.approx(means["b"] - means["c"])
        assert (ranking.score, ranking.prefer) == ("lark", "high")
        assert "mean of lark, higher first" in str(ranking)
        low = rank(pool, score="score_lark", prefer="low")
        assert [row["teacher"] for row in low.table] == ["a", "b", "c"] and low.table[0]["probability_best"] == 1

    def test_rsr_stays_as_it_is(self, pool):
        plain = rank(pool)
        assert plain.table == rank(pool, score="rsr", prefer="low").table
        assert [row["rsr"] for row in plain.table] == [2, 3, 4] and "score" not in plain.table[0]
        assert rank(pool, prefer="high").best == "c"

    def test_rows_without_the_score_arent_compared(self, pool):
        values = pool["score_lark"][:]
        with_gaps = pool.remove_columns("score_lark").add_column("score_lark", [None, *values[1:]])
        with pytest.warns(UserWarning, match="share 59 of 60 problems"):
            ranking = rank(with_gaps, score="lark")
        assert {row["teacher"]: row["unscored"] for row in ranking.table} == {"a": 1, "b": 0, "c": 0}

    def test_intervals_cover_what_they_say(self):
        """Of skewed means: an interval of 90% holds the truth in 90% of the pools, give or take."""
        held = 0
        for seed in range(200):
            own = np.random.default_rng(seed).exponential(1.0, 80) - 1
            dataset = pool(seed, problems=80, teachers=("a",)).add_column("own", own)
            (row,) = rank(dataset, confidence=0.9, num_draws=400, score="own", prefer="low").table
            held += row["score_low"] <= 0 <= row["score_high"]
        assert 0.85 <= held / 200 <= 0.95


@pytest.mark.parametrize(
    "change, options, message",
    [
        (lambda all: all.remove_columns("rsr_mean_surprisal"), {}, "no column 'rsr_mean_surprisal'.*Score it first"),
        (None, {"problem_column": "problem"}, "no column 'problem'; its columns are"),
        (
            lambda all: all.filter(lambda row: (row["problem_id"] < "p030") == (row["teacher"] == "a")),
            {},
            "No problem has a scored trajectory of all 3 teachers.*'a' 30, 'b' 30",
        ),
        (lambda all: all.map(lambda row: {"rsr_mean_surprisal": np.nan}), {}, "None of the 180 rows has a score"),
        (None, {"confidence": 95}, "got 95"),
        (None, {"num_draws": 10}, "at least 100"),
    ],
)
def test_one_clear_error(change, options, message):
    with pytest.raises(RSRError, match=message):
        rank(change(pool()) if change else pool(), **options)
