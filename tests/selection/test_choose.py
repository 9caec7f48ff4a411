import itertools
from collections import Counter

import datasets
import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict
from scipy.optimize import Bounds, LinearConstraint, milp

from rsr_trl.data import Columns
from rsr_trl.rsr import RSRError
from rsr_trl.scoring.scores import SCORES
from rsr_trl.selection.choose import Criteria, Selection, balance, choose, correctness, select_trajectories
from rsr_trl.selection.table import ScoredTable
from tests.selection import pools


def selection_of(dataset: Dataset, by: Criteria) -> Selection:
    return choose(ScoredTable.read(dataset, by.columns, [by.score], {by.score: by.prefer}, optional=True), by)


def scored(**changes):
    """Two problems, three teachers; row 2 ties with row 0, row 4 failed."""
    return Dataset.from_dict(
        {
            "problem_id": ["p", "p", "p", "q", "q", "q"],
            "teacher": ["a", "b", "c", "a", "b", "c"],
            "rsr": [2.0, 3.0, 2.0, 5.0, None, 4.0],
            "rsr_num_tokens": [190, 110, 180, 130, 0, 140],
            "correct": [True, True, False, None, True, False],
        }
        | changes
    )


def naive_best(rows, keep, sign=1):
    """One loop over rows, as the words say it: best score, fewer tokens, source order; never a null."""
    chosen = []
    for problem in dict.fromkeys(row["problem_id"] for row in rows):
        group = [i for i, row in enumerate(rows) if row["problem_id"] == problem and row["rsr"] is not None]
        chosen += sorted(group, key=lambda i: (sign * rows[i]["rsr"], rows[i]["rsr_num_tokens"], i))[:keep]
    return sorted(chosen)


def random_pool(seed, problems=40, teachers=5, each=2):
    rng = np.random.default_rng(seed)
    number = problems * teachers * each
    return Dataset.from_dict(
        {
            "row": range(number),
            "problem_id": [f"p{i // (teachers * each)}" for i in range(number)],
            "teacher": [f"t{i // each % teachers}" for i in range(number)],
            "rsr": [None if rng.random() < 0.1 else float(x) for x in rng.integers(1, 6, number)],  # many ties
            "rsr_num_tokens": rng.integers(101, 104, number).tolist(),
        }
    ).shuffle(seed=seed)


class TestGroups:
    def test_lowest_of_each_group_in_source_order_with_ties_to_fewer_tokens(self):
        best = select_trajectories(scored(), group_column="problem_id")
        assert best["teacher"] == ["c", "c"] and best["rsr"] == [2.0, 4.0]
        assert best.column_names == scored().column_names
        tied = scored(rsr=[2.0] * 6, rsr_num_tokens=[70] * 6)
        assert select_trajectories(tied, group_column="problem_id")["teacher"] == ["a", "a"]
        assert select_trajectories(scored(), "problem_id", max_tokens=130)["rsr"] == [3.0, 5.0]
        assert select_trajectories(scored().select([]), "problem_id").num_rows == 0

    @pytest.mark.parametrize("prefer, sign", [("low", 1), ("high", -1)])
    @pytest.mark.parametrize("keep", [1, 3, 99])
    def test_equals_a_plain_loop(self, keep, prefer, sign):
        pool = random_pool(seed=keep)
        best = select_trajectories(pool, group_column="problem_id", keep_per_group=keep, prefer=prefer)
        assert best["row"] == [pool["row"][i] for i in naive_best(pool.to_list(), keep, sign)]

    def test_any_kind_of_dataset_gives_the_same_rows(self, tmp_path):
        pool = random_pool(seed=3)
        expected = select_trajectories(pool, group_column="problem_id").to_list()
        pool.flatten_indices().save_to_disk(tmp_path, num_shards=3)
        on_disk = datasets.load_from_disk(tmp_path)
        pieces = datasets.concatenate_datasets([on_disk.select(range(0, 150)), on_disk.select(range(150, 400))])
        for other in (on_disk, pieces, pool.with_format("torch", columns=["row"])):
            assert select_trajectories(other, group_column="problem_id").with_format(None).to_list() == expected

    def test_whole_number_groups_and_class_labels(self):
        labelled = scored().cast_column("teacher", datasets.ClassLabel(names=["a", "b", "c"]))
        assert select_trajectories(labelled, group_column="teacher")["rsr"] == [2.0, 3.0, 2.0]

    def test_a_group_without_a_score_is_reported_and_gives_nothing(self):
        lost = scored(rsr=[2.0, 3.0, 2.0, None, float("nan"), float("inf")])
        with pytest.warns(UserWarning, match="1 of 2 groups in 'problem_id' have no scored trajectory.*'q'"):
            assert select_trajectories(lost, group_column="problem_id")["problem_id"] == ["p"]

    def test_counts(self):
        selection = selection_of(scored(), Criteria(group_column="problem_id", require="correct", max_tokens=150))
        assert selection.left_out == {"no finite score": 1, "not within 150 scored tokens": 2, "'correct' not true": 2}
        assert selection.empty_groups == {"have no scored trajectory for which 'correct' is true": ["q"]}
        assert (selection.num_rows, selection.num_groups, selection.rows.tolist()) == (6, 2, [1])


class TestWithoutGroups:
    @pytest.mark.parametrize(
        "options, kept",
        [
            ({"keep_fraction": 0.4}, [2.0, 2.0]),
            ({"keep_fraction": 0.2, "prefer": "high"}, [5.0]),
            ({"keep_fraction": 1.0}, [2.0, 3.0, 2.0, 5.0, 4.0]),
            ({"score_threshold": 3.0}, [2.0, 3.0, 2.0]),  # its own value too
            ({"score_threshold": 4.0, "prefer": "high"}, [5.0, 4.0]),
            ({"score_threshold": 0.5}, []),
        ],
    )
    def test_a_share_of_the_rows_that_have_a_score_or_all_up_to_a_threshold(self, options, kept):
        assert select_trajectories(scored(), **options)["rsr"][:] == kept

    def test_fraction_is_not_moved_by_rounding(self):
        hundred = Dataset.from_dict({"rsr": np.arange(100.0)})
        assert select_trajectories(hundred, keep_fraction=0.07).num_rows == 7


class TestByAnotherScore:
    @pytest.mark.parametrize("name, rows", [("surprisal", [2, 4]), ("rank", [0, 3]), ("length", [2, 4])])
    def test_by_its_own_direction(self, name, rows):
        dataset = pools.scored(row=range(6))
        assert select_trajectories(dataset, "problem_id", score=name)["row"][:] == rows
        other = "high" if SCORES[name].prefer == "low" else "low"
        assert select_trajectories(dataset, "problem_id", score=name, prefer=other)["row"][:] != rows

    def test_a_column_of_ones_own_a_threshold_and_a_cap(self):
        own = Dataset.from_dict({"judge": [1, 5, 3]})
        assert select_trajectories(own, keep_fraction=0.3, score="judge", prefer="high")["judge"] == [5]
        with pytest.raises(RSRError, match="Which end"):
            select_trajectories(own, keep_fraction=0.3, score="judge")
        dataset = pools.scored(score_lark=[0.1, 0.2, 0.3, 0.4, 0.5, None])
        kept = select_trajectories(dataset, score_threshold=0.3, score="lark")
        assert kept["score_lark"][:] == [0.3, 0.4, 0.5]  # high is better
        options = dict(score="lark", max_share_per_teacher=0.5, teacher_column="teacher")
        capped = select_trajectories(dataset, keep_fraction=0.4, **options)
        assert sorted(capped["score_lark"][:]) == [0.4, 0.5]


class TestRequireAndLength:
    def test_groups_that_no_row_qualifies_of(self):
        with pytest.warns(UserWarning, match="'correct' is true and give nothing: 'q'"):
            assert select_trajectories(scored(), group_column="problem_id", require="correct")["teacher"] == ["a"]
        criteria = Criteria(group_column="problem_id", require="correct", when_none_qualifies="any")
        selection = selection_of(scored(), criteria)
        assert selection.rows.tolist() == [0, 5] and selection.relaxed_groups == ["q"]
        with pytest.raises(RSRError, match="1 of 2 groups in 'problem_id'.*'correct' is true: 'q'"):
            select_trajectories(scored(), "problem_id", require="correct", when_none_qualifies="error")

    def test_require_takes_zeros_and_ones(self):
        numbers = scored(correct=[1, 1, 0, None, 1, 0])
        expected = select_trajectories(scored(), keep_fraction=1.0, require="correct")["rsr"]
        assert select_trajectories(numbers, keep_fraction=1.0, require="correct")["rsr"] == expected
        with pytest.raises(RSRError, match="'correct' must hold true or false, but it is int64"):
            select_trajectories(scored(correct=[1, 2, 0, None, 1, 0]), keep_fraction=1.0, require="correct")

    def test_bare_answers_are_left_out_unless_asked_for(self):
        rows = scored(rsr=[5.0, 4.0, 3.0, 3.0, 2.0, 1.0], rsr_num_tokens=[40, 31, 32, 3, 2, 1])
        with pytest.warns(UserWarning) as said:
            assert select_trajectories(rows, "problem_id")["rsr"] == [3.0]
        counted, empty = (str(warning.message) for warning in said)
        assert "4 of 6 trajectories have fewer than 32 scored tokens and are left out" in counted
        assert (
            "1 of 2 groups" in empty and "no scored trajectory of 32 or more scored tokens" in empty and "'q'" in empty
        )
        assert select_trajectories(rows, "problem_id", min_tokens=0)["rsr"] == [3.0, 1.0]
        selection = selection_of(rows, Criteria(keep_fraction=1.0, min_tokens=2, max_tokens=32))
        assert (selection.rows.tolist(), selection.short) == ([1, 2, 3, 4], 1)
        assert selection.left_out == {"fewer than 2 scored tokens": 1, "not within 32 scored tokens": 1}
        only_short = rows.select([1, 3, 4, 5])
        with pytest.raises(RSRError, match="All 4 .* fewer than 32 .*isn't made for bare answers.*min_tokens=0"):
            select_trajectories(only_short, "problem_id")
        assert len(select_trajectories(only_short, "problem_id", min_tokens=0)) == 2

    def test_unknown_lengths_are_no_reason_but_cannot_be_asked_for(self):
        own = Dataset.from_dict({"rsr": [1.0, 2.0]})
        assert len(select_trajectories(own, keep_fraction=1.0)) == 2
        with pytest.raises(RSRError, match="need the column 'rsr_num_tokens'"):
            select_trajectories(own, keep_fraction=1.0, min_tokens=40)


def test_correctness_beside_what_chance_would_give():
    """Against every possible random choice of one trajectory per problem."""
    right = [True, False, False, True, True, False]
    rows = scored(rsr=[1.0, 2.0, 3.0, 3.0, 2.0, 1.0], rsr_num_tokens=[100, 9, 80, 60, 50, 40], correct=right)
    rows = rows.add_column("rsr_mean_surprisal", [2.0, 0.1, 1.0, 3.0, 1.0, 2.0])
    by, columns = Criteria("problem_id"), Columns(problem="problem_id", correct="correct")
    table = ScoredTable.read(rows, columns, optional=True)
    by_chance = [np.mean(pair) for pair in itertools.product(right[:3], right[3:])]
    of_long = [np.mean(pair) for pair in itertools.product([right[0], right[2]], right[3:])]
    found = correctness(table, by, choose(table, by).rows)  # rows 0 and 5; by surprisal 2 and 4
    assert found == pytest.approx(
        dict(before=0.5, chosen=0.5, random=np.mean(by_chance), random_long=np.mean(of_long), surprisal=0.5)
    )
    assert correctness(ScoredTable.read(rows, Columns(problem="problem_id"), optional=True), by, np.array([0])) is None


def total_under_cap(pool, share, keep=1):
    best = select_trajectories(
        pool, "problem_id", keep_per_group=keep, max_share_per_teacher=share, teacher_column="teacher"
    )
    return best, sum(best["rsr"])


class TestCap:
    @pytest.mark.parametrize("seed", range(6))
    @pytest.mark.parametrize("keep", [1, 2])
    def test_least_total_of_all_choices(self, seed, keep):
        teacher = np.array(list("aabc") * 4)
        rsr = np.random.default_rng(seed).normal(3, 1, 16) - (teacher == "a")
        pool = Dataset.from_dict({"problem_id": np.repeat(range(4), 4), "teacher": teacher, "rsr": rsr})
        per_group = [itertools.combinations(range(4 * g, 4 * g + 4), keep) for g in range(4)]
        choices = (list(sum(choice, ())) for choice in itertools.product(*per_group))
        allowed = [picks for picks in choices if max(Counter(teacher[picks]).values()) <= 2 * keep]
        best, total = total_under_cap(pool, 0.5, keep)
        assert best.num_rows == 4 * keep and max(Counter(best["teacher"]).values()) <= 2 * keep
        assert total == pytest.approx(min(rsr[picks].sum() for picks in allowed), abs=1e-12)

    def test_least_total_of_many_problems(self):
        """Against a whole-number programme over all rows."""
        pool = random_pool(seed=5, problems=500)
        best, total = total_under_cap(pool, 0.21)
        frame = pool.to_pandas().dropna(subset="rsr")
        members = [pd.get_dummies(frame[name], dtype=float).T for name in ("problem_id", "teacher")]
        limits = [LinearConstraint(members[0], 1, 1), LinearConstraint(members[1], 0, 0.21 * 500)]
        truth = milp(frame.rsr, integrality=np.ones(len(frame)), bounds=Bounds(0, 1), constraints=limits)
        assert best.num_rows == 500 and total == pytest.approx(truth.fun, abs=1e-6)

    def test_an_idle_cap_changes_nothing(self):
        pool = random_pool(seed=6)
        best, _ = total_under_cap(pool, 1.0)
        assert best.to_list() == select_trajectories(pool, "problem_id").to_list()

    def test_highest_total_and_fraction_under_a_cap(self):
        half = dict(max_share_per_teacher=0.5, teacher_column="t")
        pool = Dataset.from_dict({"p": [0, 0, 1, 1], "t": ["a", "b"] * 2, "rsr": [9.0, 1.0, 9.0, 5.0]})
        assert select_trajectories(pool, "p", prefer="high", **half)["rsr"] == [9.0, 5.0]
        pool = Dataset.from_dict({"t": list("aaabbb"), "rsr": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]})
        assert select_trajectories(pool, keep_fraction=4 / 6, **half)["rsr"] == [1.0, 2.0, 4.0, 5.0]

    def test_a_cap_that_cannot_be_kept_names_the_smallest(self):
        pool = Dataset.from_dict({"p": [0, 1, 2, 2], "t": ["a", "a", "a", "b"], "rsr": [1.0, 2.0, 3.0, 4.0]})
        with pytest.raises(RSRError, match=r"at most 1 of them.*smallest share.* is 0.6667 \(2 of one teacher\)"):
            select_trajectories(pool, "p", max_share_per_teacher=0.4, teacher_column="t")
        with pytest.raises(RSRError, match="smallest share"):  # a cap below one trajectory
            select_trajectories(pool, "p", max_share_per_teacher=0.01, teacher_column="t")
        assert select_trajectories(pool, "p", max_share_per_teacher=0.6667, teacher_column="t")["t"] == ["a", "a", "b"]


def test_well_known_columns_are_found():
    """Of problems where nothing else says how to choose, of teachers for the cap."""
    for options, named in (
        ({}, {"group_column": "problem_id"}),
        ({"max_share_per_teacher": 0.5}, {"group_column": "problem_id", "teacher_column": "teacher"}),
        ({"keep_fraction": 0.5, "max_share_per_teacher": 0.4}, {"teacher_column": "teacher"}),
    ):
        expected = select_trajectories(scored(), **options, **named)
        assert select_trajectories(scored(), **options).to_list() == expected.to_list()
    both = DatasetDict(train=scored(), test=scored())
    assert select_trajectories(both)["test"].to_list() == select_trajectories(scored()).to_list()


class TestBadInput:
    @pytest.mark.parametrize(
        "options, message",
        [
            ({"group_column": "none"}, "one of group_column.*got none"),
            ({"group_column": "problem_id", "keep_fraction": 0.5}, "got group_column and keep_fraction"),
            ({"keep_fraction": 0.5, "keep_per_group": 2}, "keep_per_group=2 needs group_column"),
            ({"group_column": "problem_id", "keep_per_group": 0}, "1 or more, got 0"),
            ({"keep_fraction": 0}, r"in \(0, 1\], got 0"),
            ({"score_threshold": float("nan")}, "finite number, got nan"),
            ({"keep_fraction": 0.5, "prefer": "lowest"}, "'low' or 'high', got 'lowest'"),
            ({"keep_fraction": 0.5, "when_none_qualifies": "any"}, "needs require and group_column"),
            ({"keep_fraction": 0.5, "max_tokens": 0}, "max_tokens must be 1 or more"),
            ({"keep_fraction": 0.5, "min_tokens": 9, "max_tokens": 8}, "min_tokens=9 is above max_tokens=8"),
            ({"keep_fraction": 0.5, "max_tokens": 8}, r"min_tokens=32 \(its default; 0 .* above max_tokens=8"),
            (dict(keep_fraction=0.5, max_share_per_teacher=0.3, teacher_column="none"), "needs teacher_column"),
            ({"keep_fraction": 0.5, "max_share_per_teacher": 3, "teacher_column": "teacher"}, r"in \(0, 1\], got 3"),
            (dict(score_threshold=3.0, max_share_per_teacher=0.3, teacher_column="teacher"), "instead of score_thres"),
            (dict(group_column="problem"), r"no column 'problem'; its columns are \['problem_id'.* mean problem_id"),
            (dict(keep_fraction=0.5, score="teacher", prefer="low"), "'teacher' must hold numbers, but it is string"),
            ({"keep_fraction": 0.5, "require": "rsr"}, "'rsr' must hold true or false, but it is double"),
        ],
    )
    def test_one_clear_error(self, options, message):
        with pytest.raises(RSRError, match=message):
            select_trajectories(scored(), **options)

    @pytest.mark.parametrize(
        "dataset, message",
        [
            (Dataset.from_dict({"problem_id": ["a"]}), "no column 'rsr'.*Score it first with RSRScorer"),
            (scored(rsr=[None] * 6), "None of the 6 rows has a finite score in 'rsr'"),
            (scored(problem_id=["p", "p", None, "q", "q", "q"]), "'problem_id' is null in 1 of 6 rows .*is row 2"),
            (scored(rsr_student=["s1"] * 5 + ["s2"]), "scored by 2 different students.*'s1', 's2'"),
        ],
    )
    def test_what_cannot_be_chosen_from(self, dataset, message):
        with pytest.raises(RSRError, match=message):
            select_trajectories(dataset, "problem_id")


def test_dataset_dict_is_chosen_from_split_by_split_and_a_stream_not_at_all():
    both = DatasetDict(train=scored(), test=scored().select([3, 4]))
    best = select_trajectories(both, group_column="problem_id")
    assert {split: rows["rsr"] for split, rows in best.items()} == {"train": [2.0, 4.0], "test": [5.0]}
    with pytest.raises(TypeError, match="all of them at once.*not IterableDataset"):
        select_trajectories(scored().to_iterable_dataset(), "problem_id")


def test_margins_are_between_the_worst_chosen_and_the_best_left_out():
    rows = scored().select(range(4)).remove_columns(["problem_id", "rsr"])
    rows = rows.add_column("problem_id", ["p"] * 3 + ["q"]).add_column("rsr", [2.0, 2.5, 4.0, 1.0])
    assert selection_of(rows, Criteria("problem_id")).margins == pytest.approx([0.25])
    assert selection_of(rows, Criteria("problem_id", keep_per_group=2)).margins == pytest.approx([0.6])
    high = selection_of(rows, Criteria("problem_id", prefer="high"))
    assert high.margins == pytest.approx([0.375]) and high.close_calls("float32") == 0
    assert selection_of(rows, Criteria(keep_fraction=0.5)).margins is None


@pytest.mark.parametrize("seed", range(4))
def test_balance_equals_the_definition_one_problem_at_a_time(seed):
    rng = np.random.default_rng(seed)
    problem = rng.integers(3, 9, 200)  # a table keeps the numbers of problems that have no row
    correct, chosen = rng.choice([0.0, 1.0, np.nan], 200, p=[0.2, 0.6, 0.2]), rng.random(200) < 0.5
    chosen[problem == 4] = False  # nothing of it chosen: 0
    correct[problem == 5] = np.nan  # nothing known of it: it doesn't count
    values = []
    for one in (3, 4, 6, 7, 8):
        known = [right for right in correct[(problem == one) & chosen].tolist() if right == right]
        c, n = sum(known), len(known)
        values.append((c / n if c >= 8 else c / 8 * (c / n)) if n else 0.0)  # as the authors' code has it
    assert balance(chosen, correct, problem) == pytest.approx(np.mean(values), rel=1e-12)
    assert min(values) == 0 < max(values)
    assert np.isnan(balance(chosen, np.full(200, np.nan), problem))
