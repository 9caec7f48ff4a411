import os
from dataclasses import asdict

import numpy as np
import pytest
from datasets import Dataset

from rsr_trl import RSRScorer
from rsr_trl.selection.choose import select_trajectories
from rsr_trl.selection.compare import compare_scores
from rsr_trl.selection.failure_modes import GUESSED
from tests.selection.pools import clean_pool, column


TEXTS = {"prompt": "user", "completion": "assistant"}


def findings(dataset, **options):
    columns = dict(teacher_column="teacher", problem_column="problem_id", correctness_column="correct")
    return {finding.name: finding for finding in compare_scores(dataset, **columns | options).findings}


def planted(dataset, rows, **values):
    """The pool with other values in some of its rows."""
    if "score_guess_share" in values:
        dataset = dataset.add_column("score_guess_share", [0.02] * len(dataset))
    for name, value in values.items():
        changed = column(dataset, name)
        changed[rows] = value
        dataset = dataset.remove_columns(name).add_column(name, changed.tolist())
    return dataset


def of_teacher(dataset, name):
    return column(dataset, "teacher") == name


def only(dataset, name, **options):
    """The one finding that is there, which must be the one planted."""
    found = findings(dataset, **options)
    assert list(found) == [name]
    return found[name]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("without", [[], ["problem_column"], ["teacher_column"], ["correctness_column"]])
def test_nothing_is_said_of_a_pool_without_failure_modes(seed, without):
    assert findings(clean_pool(seed), **dict.fromkeys(without)) == {}


def every(number):
    return lambda dataset: np.arange(len(dataset)) % number == 0


@pytest.mark.parametrize(
    "rows, values, name, what, remedy",
    [
        # A teacher that only answers is named even if never chosen.
        (
            lambda dataset: of_teacher(dataset, "t3"),
            dict(rsr_num_tokens=8, rsr=50.0),
            "short responses",
            "100 trajectories (17% of all, 0% of what RSR chooses; most of what 't3' wrote)",
            "`rsr select` does by default",
        ),
        (every(7), dict(score_guess_share=0.16), "near guessing", "86 trajectories (14% of all, ", "--require"),
        (every(7), dict(score_guess_share=0.14), None, None, None),
        (every(7), dict(rsr_num_tokens=31), "short responses", "86 trajectories (14% of all, ", "--min_tokens"),
        (every(7), dict(rsr_num_tokens=32), None, None, None),
        (every(43), dict(rsr_num_tokens=8, rsr=0.5), None, None, None),  # left out of the choice
        (every(1), dict(rsr_mean_clipped_rank=55.0), "foreign to the student", "600 trajectories", "--as_chat"),
        (lambda dataset: of_teacher(dataset, "t1"), dict(rsr_mean_clipped_rank=55.0, rsr=9.0), None, None, None),
        (every(15), dict(rsr_truncated=True), "truncated trajectories", "40 trajectories (7% of all", "--max_length"),
        (every(101), dict(rsr_truncated=True), None, None, None),
    ],
)
def test_rows_that_mislead(rows, values, name, what, remedy):
    dataset = clean_pool()
    rows = rows(dataset)
    found = findings(planted(dataset, rows, **values))
    assert list(found) == ([] if name is None else [name])
    if name is not None:
        finding = found[name]
        assert what in finding.what and remedy in finding.what_to_do and finding.rows == rows.sum()
        most = ["t3"] if "'t3'" in what else sorted(set(dataset["teacher"])) if rows.all() else []
        assert finding.teachers == most
        assert set(finding.example_rows) <= set(np.flatnonzero(rows)) and len(finding.example_rows) == 5


def test_examples_are_rows_of_the_dataset_as_it_is():
    dataset = planted(clean_pool(), np.arange(600) % 7 == 0, rsr_num_tokens=9)
    dataset = planted(dataset, np.arange(600) < 10, rsr=np.nan).shuffle(seed=1)
    for row in only(dataset, "short responses").example_rows:
        assert dataset[row]["rsr_num_tokens"] == 9 and dataset[row]["rsr"] > 0


@pytest.mark.slow
def test_a_real_student_on_easy_problems_with_a_bare_teacher_and_on_random_digits(gsm8k_rows):
    """No bare answers in the choice, no false guesses, and true ones found."""
    if not os.environ.get("SMOLLM2"):
        pytest.skip("SMOLLM2 isn't set to a folder with SmolLM2-135M-Instruct")
    *reasoning, bare = ("DeepSeek-V2.5-0908", "Llama-3.1-8B-Instruct", "Qwen2-72B-Instruct", "gemma-2-9b-it")
    problems, rng = list(dict.fromkeys(row["problem_id"] for row in gsm8k_rows))[:15], np.random.default_rng(0)

    def chat(row: dict, answer: str) -> dict:
        texts = {"prompt": [{"role": "user", "content": row["prompt"]}]}
        texts["completion"] = [{"role": "assistant", "content": answer}]
        return texts | {name: row[name] for name in ("problem_id", "teacher", "correct")}

    rows = [row for row in gsm8k_rows if row["problem_id"] in problems and row["teacher"] in (*reasoning, bare)]
    pool = [chat(row, row["gold"] if row["teacher"] == bare else row["completion"]) for row in rows]
    digits = [chat(row, " ".join(map(str, rng.integers(0, 10, 40)))) for row in rows if row["teacher"] == bare]
    scorer = RSRScorer(os.environ["SMOLLM2"], dtype="float32", scores=["guess_share"])
    scored, guessed = (scorer.score(Dataset.from_list(texts)) for texts in (pool, digits))
    with pytest.warns(UserWarning, match="15 of 60 trajectories have fewer than 32 scored tokens"):
        assert bare not in select_trajectories(scored, "problem_id")["teacher"]
    found = findings(scored)
    assert "short responses" in found and not {"near guessing", "foreign to the student"} & set(found)
    assert np.mean(column(guessed, "score_guess_share") > GUESSED) >= 0.8


def test_real_reasoning_isnt_taken_for_guesses_by_a_weak_student_either(gsm8k_rows, shared):
    """Every tenth problem with all its teachers; on the whole pool the student puts 6% of the rows above 0.10."""
    problems = list(dict.fromkeys(row["problem_id"] for row in gsm8k_rows))[::10]
    rows = [
        {name: row[name] for name in ("problem_id", "teacher", "correct")}
        | {name: [{"role": role, "content": row[name]}] for name, role in TEXTS.items()}
        for row in gsm8k_rows
        if row["problem_id"] in problems
    ]
    scored = RSRScorer(str(shared / "models" / "gsm8k_6m"), dtype="float32", scores="guess_share").score(
        Dataset.from_list(rows)
    )
    assert np.mean(column(scored, "score_guess_share") > 0.1) > 0.03  # else it would prove nothing
    assert "near guessing" not in findings(scored)


class TestCollapse:
    def test_one_teacher_of_most_chosen(self):
        dataset = clean_pool()
        rows = of_teacher(dataset, "t2") & (np.arange(600) < 390)
        finding = only(planted(dataset, rows, rsr=0.5), "one-teacher collapse")
        assert finding.teachers == ["t2"] and 65 <= finding.rows < 80
        assert f"'t2' wrote {finding.rows}% of what RSR chooses, and 17% of the pool" in finding.what
        assert "--max_share_per_teacher 0.4" in finding.what_to_do

    def test_a_pool_that_is_mostly_one_teachers_or_of_two_has_not_collapsed(self):
        names = column(clean_pool(), "teacher")
        names[np.isin(names, ["t2", "t3", "t4"])] = "t1"
        assert findings(clean_pool(teacher=names.tolist())) == {}
        two = clean_pool(teachers=2)
        assert findings(planted(two, of_teacher(two, "t0"), rsr=0.5)) == {}


class TestFewProblems:
    def test_few_in_all(self):
        few = clean_pool(problems=12)
        assert "too few problems" in findings(few)
        assert "There are only 12 problems." in findings(few, teacher_column="none")["too few problems"].what

    def test_few_shared_by_all_teachers(self):
        dataset = clean_pool()
        gone = of_teacher(dataset, "t4") & (np.arange(600) > 100)
        finding = only(dataset.select(np.flatnonzero(~gone)), "too few problems")
        assert "17 of 100 problems have a scored trajectory of every teacher" in finding.what
        assert finding.teachers == ["t4"] and "fewest ('t4')" in finding.what_to_do
        # One without any score isn't compared at all.
        assert findings(planted(dataset, of_teacher(dataset, "t4"), rsr=np.nan)) == {}

    def test_nothing_to_choose_from(self):
        dataset = clean_pool()
        single = (np.arange(600) % 6 == 0) | (np.arange(600) < 150)
        found = findings(dataset.select(np.flatnonzero(single)), teacher_column="none")
        assert list(found) == ["nothing to choose from"]
        assert "75 of 100 problems" in found["nothing to choose from"].what
        assert "--keep_fraction" in found["nothing to choose from"].what_to_do


class TestScores:
    @pytest.mark.parametrize("more", [1.0, 100.0])
    def test_incorrect_ones_first(self, more):
        dataset = clean_pool()
        ratio = column(dataset, "rsr") + np.where(column(dataset, "correct"), more, 0.0)
        finding = only(planted(dataset, slice(None), rsr=ratio), "prefers incorrect ones")
        assert "--require" in finding.what_to_do
        ratio = column(dataset, "rsr") - np.where(column(dataset, "correct"), 1.0, 0.0)
        assert findings(planted(dataset, slice(None), rsr=ratio)) == {}

    @pytest.mark.parametrize("sign, end", [(1, "short"), (-1, "long")])
    def test_mostly_length(self, sign, end):
        dataset = clean_pool()
        noise = np.random.default_rng(0).normal(0, 60, 600)
        ratio = 10 + 0.01 * sign * (column(dataset, "rsr_num_tokens") + noise)
        finding = only(planted(dataset, slice(None), rsr=ratio), "mostly length")
        assert f"{end} trajectories come first" in finding.what

    def test_a_score_that_chooses_the_same(self):
        dataset = clean_pool()
        dataset = dataset.add_column("twin", (-3 * column(dataset, "rsr")).tolist())
        assert "twin (100%)" in only(dataset, "same choice", own_scores={"twin": "high"}).what
        assert findings(dataset, own_scores={"twin": "low"}) == {}


@pytest.mark.parametrize("problems, teachers", [(1, 4), (2, 3), (4, 4)])
def test_a_few_rows_are_no_pattern(problems, teachers):
    """Order by length, and one teacher's rows first: on so few rows that may be chance."""
    dataset = clean_pool(problems=problems, teachers=teachers)
    first = of_teacher(dataset, "t1")
    ratio = np.where(first, 1.0, 2.0) + column(dataset, "rsr_num_tokens") / 1e4
    assert set(findings(planted(dataset, slice(None), rsr=ratio))) <= {"too few problems"}


def test_every_finding_says_what_why_and_what_to_do():
    dataset = planted(clean_pool(problems=12), slice(None), rsr_num_tokens=5, rsr_truncated=True)
    found = findings(dataset).values()
    assert len(found) >= 3
    for finding in found:
        texts = asdict(finding)
        assert all(texts[name].endswith(".") for name in ("what", "why", "what_to_do"))
        assert "rsr " in finding.what_to_do and 0 < finding.rows <= 72
