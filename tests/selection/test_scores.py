"""`score=...`: a name or a column, its values and its direction; and teachers by other scores than RSR."""

import numpy as np
import pytest
from datasets import Dataset

from rsr_trl.scoring.scores import SCORES, casl, direction_of, known_score
from rsr_trl.selection.choose import select_trajectories
from rsr_trl.selection.table import available_scores, read_score
from rsr_trl.selection.teachers import rank_teachers


def scored(num_rows: int = 6, **extra) -> Dataset:
    """Rows as a plain scoring pass leaves them; the last one has no score."""
    ranks = [*np.linspace(2, 4, num_rows - 1), None]
    surprisals = [*np.linspace(1.5, 0.5, num_rows - 1), None]
    return Dataset.from_dict(
        {
            "rsr": [None if r is None else r / s for r, s in zip(ranks, surprisals, strict=True)],
            "rsr_mean_clipped_rank": ranks,
            "rsr_mean_surprisal": surprisals,
            "rsr_num_tokens": [*range(10, 10 * num_rows, 10), 0],
            "rsr_truncated": [False] * num_rows,
            "rsr_student": ["s"] * num_rows,
            "problem_id": [i // 3 for i in range(num_rows)],
            "teacher": ["abc"[i % 3] for i in range(num_rows)],
            **extra,
        }
    )


class TestDirection:
    @pytest.mark.parametrize("name", SCORES)
    def test_a_known_score_brings_its_own(self, name):
        assert direction_of(name) == direction_of(f"score_{name}") == SCORES[name].prefer
        assert direction_of(name, "high") == "high" and direction_of(name, "low") == "low"

    def test_a_column_of_ones_own_has_none(self):
        with pytest.raises(ValueError, match="Which end of the column 'judge' is the better one"):
            direction_of("judge")
        assert direction_of("judge", "high") == "high"
        with pytest.raises(ValueError, match="'low' or 'high', got 'up'"):
            direction_of("judge", "up")

    def test_names(self):
        assert known_score("lark") == known_score("score_lark") == "lark"
        assert known_score("rsr_mean_surprisal") is None and known_score("score_mine") is None


class TestRead:
    def test_what_every_pass_stores(self):
        dataset = scored()
        for name, column in (("rsr", "rsr"), ("surprisal", "rsr_mean_surprisal"), ("rank", "rsr_mean_clipped_rank")):
            np.testing.assert_array_equal(read_score(dataset, name), np.array(dataset[column][:], dtype=float))
        np.testing.assert_array_equal(read_score(dataset, "length"), [10, 20, 30, 40, 50, np.nan])
        assert available_scores(dataset) == ["rsr", "surprisal", "rank", "length"]

    def test_a_column(self):
        dataset = scored(score_lark=[1.0, 2, 3, 4, 5, None], judge=[6, 5, 4, 3, 2, 1])
        for name in ("lark", "score_lark"):
            np.testing.assert_array_equal(read_score(dataset, name), [1, 2, 3, 4, 5, np.nan])
        np.testing.assert_array_equal(read_score(dataset, "judge"), [6, 5, 4, 3, 2, 1])
        assert available_scores(dataset) == ["rsr", "surprisal", "rank", "lark", "length"]

    def test_rows_are_in_the_datasets_order(self):
        shuffled = scored(score_lark=[1.0, 2, 3, 4, 5, None]).select([4, 0, 5])
        np.testing.assert_array_equal(read_score(shuffled, "lark"), [5, 1, np.nan])

    def test_missing(self):
        with pytest.raises(ValueError, match=r"no score 'entropy'.*scores=\['entropy'\].*rsr score --scores entropy"):
            read_score(scored(), "entropy")
        with pytest.raises(ValueError, match="no column 'judge'"):
            read_score(scored(), "judge")
        with pytest.raises(ValueError, match="no column 'rsr_mean_surprisal'.*Score it first"):
            read_score(Dataset.from_dict({"prompt": ["a"]}), "surprisal")

    def test_one_name_for_two_things(self):
        dataset = scored(length=[100, 90, 80, 70, 60, 50])
        with pytest.raises(ValueError, match="'length' may mean .* pass score='score_length'.* or rename the column"):
            read_score(dataset, "length")
        np.testing.assert_array_equal(read_score(dataset, "score_length"), [10, 20, 30, 40, 50, np.nan])

    def test_two_students(self):
        dataset = scored(score_lark=[1.0] * 6).remove_columns("rsr_student").add_column("rsr_student", list("aaabbb"))
        with pytest.raises(ValueError, match="2 different students"):
            read_score(dataset, "lark")

    def test_casl_of_the_rows_that_are_there(self):
        rng = np.random.default_rng(0)
        parts = {"score_drop": rng.uniform(1, 2, 30), "rsr_step_share": rng.uniform(0.01, 0.2, 30)}
        dataset = scored(30, **{name: [*part[:-1], None] for name, part in parts.items()})
        surprisals = np.array(dataset["rsr_mean_surprisal"][:], dtype=float)
        expected = casl(surprisals[:-1], *(part[:-1] for part in parts.values()))
        np.testing.assert_allclose(read_score(dataset, "casl"), [*expected, np.nan])
        assert "casl" in available_scores(dataset)
        half = dataset.select(range(15))
        assert np.abs(read_score(half, "casl") - expected[:15]).max() > 1e-6  # another pool, another gamma

    def test_casl_takes_away_what_first_tokens_make(self):
        """Rows that differ in the share of their first tokens alone are all equal afterwards."""
        share = np.linspace(0.02, 0.3, 20)
        mean = share * 5.0 + (1 - share) * 1.0  # first tokens have 5 nats, the others 1
        corrected = casl(mean, np.ones(20), share)
        np.testing.assert_allclose(corrected, 1.0)


def test_a_misspelt_score_is_pointed_out():
    with pytest.raises(ValueError, match="did you mean the score 'surprisal'"):
        direction_of("suprisal")
    with pytest.raises(ValueError, match="Which end of the column 'judge'") as raised:
        direction_of("judge")
    assert "did you mean" not in str(raised.value)


class TestSelect:
    @pytest.mark.parametrize(
        "name, rows", [("surprisal", [2, 4]), ("rank", [0, 3]), ("length", [2, 4]), ("rsr", [0, 3])]
    )
    def test_by_the_scores_own_direction(self, name, rows):
        dataset = scored().add_column("row", list(range(6)))
        assert select_trajectories(dataset, "problem_id", score=name)["row"][:] == rows
        other = "high" if SCORES[name].prefer == "low" else "low"
        assert select_trajectories(dataset, "problem_id", score=name, prefer=other)["row"][:] != rows

    def test_by_a_column_of_ones_own(self):
        dataset = scored(judge=[1, 2, 3, 4, 5, 6]).add_column("row", list(range(6)))
        assert select_trajectories(dataset, "problem_id", score="judge", prefer="high")["row"][:] == [2, 5]
        with pytest.raises(ValueError, match="Which end"):
            select_trajectories(dataset, "problem_id", score="judge")

    def test_a_threshold_and_a_cap(self):
        dataset = scored(score_lark=[0.1, 0.2, 0.3, 0.4, 0.5, None])
        kept = select_trajectories(dataset, score_threshold=0.3, score="lark")
        assert kept["score_lark"][:] == [0.3, 0.4, 0.5]  # high is better
        capped = select_trajectories(
            dataset, keep_fraction=0.4, score="lark", max_share_per_teacher=0.5, teacher_column="teacher"
        )
        assert sorted(capped["score_lark"][:]) == [0.4, 0.5]


class TestTeachers:
    @pytest.fixture
    def pool(self) -> Dataset:
        rng = np.random.default_rng(1)
        rows = []
        for problem in range(60):
            for place, name in enumerate("abc"):
                value = float(rng.normal(0.1 * place - 0.1, 0.05))  # about nought: no logarithm of it
                rows.append({"problem_id": problem, "teacher": name, "rsr_mean_clipped_rank": 2.0 + place})
                rows[-1] |= {
                    "rsr_mean_surprisal": 1.0,
                    "rsr_num_tokens": 9,
                    "rsr_truncated": False,
                    "score_lark": value,
                }
        return Dataset.from_list(rows)

    def test_by_the_mean(self, pool):
        ranking = rank_teachers(pool, "teacher", "problem_id", score="lark")
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
        low = rank_teachers(pool, "teacher", "problem_id", score="score_lark", prefer="low")
        assert [row["teacher"] for row in low.table] == ["a", "b", "c"] and low.table[0]["probability_best"] == 1

    def test_rsr_stays_as_it_is(self, pool):
        plain = rank_teachers(pool, "teacher", "problem_id")
        assert plain.table == rank_teachers(pool, "teacher", "problem_id", score="rsr", prefer="low").table
        assert [row["rsr"] for row in plain.table] == [2, 3, 4] and "score" not in plain.table[0]
        assert rank_teachers(pool, "teacher", "problem_id", prefer="high").best == "c"

    def test_rows_without_the_score_arent_compared(self, pool):
        values = pool["score_lark"][:]
        with_gaps = pool.remove_columns("score_lark").add_column("score_lark", [None, *values[1:]])
        with pytest.warns(UserWarning, match="share 59 of 60 problems"):
            ranking = rank_teachers(with_gaps, "teacher", "problem_id", score="lark")
        assert {row["teacher"]: row["unscored"] for row in ranking.table} == {"a": 1, "b": 0, "c": 0}

    def test_intervals_cover_what_they_say(self):
        """Of skewed means: an interval of 90% holds the truth in 90% of the pools, give or take."""
        held = 0
        for seed in range(200):
            values = np.random.default_rng(seed).exponential(1.0, 80) - 1
            rows = {"teacher": ["a"] * 80, "problem_id": range(80), "rsr_mean_clipped_rank": [2.0] * 80}
            rows |= {"rsr_mean_surprisal": [1.0] * 80, "rsr_num_tokens": [9] * 80, "rsr_truncated": [False] * 80}
            dataset = Dataset.from_dict({**rows, "own": values})
            (row,) = rank_teachers(
                dataset, "teacher", "problem_id", confidence=0.9, num_draws=400, score="own", prefer="low"
            ).table
            held += row["score_low"] <= 0 <= row["score_high"]
        assert 0.85 <= held / 200 <= 0.95
