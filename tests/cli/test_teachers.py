import csv
import io
import re

import numpy as np
import pytest
from datasets import Dataset


@pytest.fixture
def pool_path(tmp_path) -> str:
    """A scored file: three teachers 20% apart in RSR on 40 problems, `b` without one of them."""
    rng = np.random.default_rng(0)
    rows = []
    for problem in range(40):
        for place, name in enumerate("abc"):
            if (problem, name) == (7, "b"):
                continue
            surprisal = float(np.exp(rng.normal(0, 0.2)))
            rank = surprisal * 2 * 1.2**place * float(np.exp(rng.normal(0, 0.1)))
            rows.append(
                {
                    "problem_id": f"p{problem}",
                    "teacher": name,
                    "correct": name != "c",
                    "rsr": rank / surprisal,
                    "rsr_mean_clipped_rank": rank,
                    "rsr_mean_surprisal": surprisal,
                    "rsr_num_tokens": 100,
                    "rsr_truncated": False,
                }
            )
    path = tmp_path / "pool.parquet"
    Dataset.from_list(rows).to_parquet(path)
    return str(path)


UNMATCHED = ("--problem_column", "none")


@pytest.fixture
def teachers(rsr, pool_path, tmp_path):
    """`teachers(*more, keep=...)` runs `rsr teachers` on the pool's rows that `keep` is true of."""

    def run(*more, keep=None):
        path = pool_path
        if keep is not None:
            path = tmp_path / "few.parquet"
            Dataset.from_parquet(pool_path).filter(keep).to_parquet(path)
        return rsr("teachers", "--dataset_name", path, *more)

    return run


def test_ranks_a_scored_dataset(teachers, pool_path):
    text = teachers().text
    assert "3 teachers on 39 problems" in text and "lower = more suitable, 39 trajectories each" in text
    assert text.index(" a 2.") < text.index(" b 2.") < text.index(" c 2.")
    assert "a is the most suitable." in text
    assert "Note: The 3 teachers share 39 of 40 problems" in text
    assert f"Next: rsr select --dataset_name {pool_path} --group_column problem_id --output_dir " in text
    done = teachers("--json")
    result = done.json
    assert done.err == "" and result["direction"] == "lower = more suitable"
    assert [row["teacher"] for row in result["table"]] == ["a", "b", "c"]
    assert len(result["pairs"]) == 3 and result["num_problems"] == 39


@pytest.mark.parametrize(
    "keep, options, verdict, said",
    [
        (
            lambda row: row["teacher"] != "a" or row["problem_id"] == "p0",
            UNMATCHED,
            "a comes first, but has only one trajectory and can't be judged. Of the others, b is the most suitable.",
            ["Note: 1 teacher with a single trajectory can't be judged: 'a'.", " – – "],
        ),
        (
            lambda row: row["teacher"] == "a" or row["problem_id"] == "p0",
            UNMATCHED,
            "a is the only teacher that can be judged.",
            ["3 teachers on unmatched problems", "name a column of problems that they share"],
        ),
        (
            lambda row: row["problem_id"] == "p0",
            ("--problem_column", "problem_id"),
            "One problem can't tell teachers apart.",
            ["3 teachers on 1 problem, most", "1 trajectory each"],
        ),
    ],
)
def test_the_verdict_is_in_the_terminal_and_in_json(teachers, keep, options, verdict, said):
    text = teachers(*options, keep=keep).text
    assert teachers(*options, "--json", keep=keep).json["verdict"] == verdict
    assert all(part in text for part in (verdict, *said)) and ("is the most suitable" in text) == ("Of the" in verdict)


def test_a_single_teacher_isnt_compared(teachers):
    options = {"keep": lambda row: row["teacher"] == "b"}
    argv = ("--problem_column", "problem_id", "--correctness_column", "none")
    text = teachers(*argv, **options).text
    text = text[text.index("1 teacher on 39 problems RSR =") :]  # after the progress bars
    assert "most suitable first" not in text and "is the most suitable" not in text and "100%" not in text
    result = teachers(*argv, "--json", **options).json
    assert result["verdict"] is None and result["table"][0]["probability_best"] is None


def test_a_found_column_without_shared_problems_isnt_used_and_one_asked_for_is_an_error(teachers):
    options = {"keep": lambda row: (row["teacher"] == "a") == (row["problem_id"] < "p2")}
    text = teachers(**options).text
    assert "3 teachers on unmatched problems" in text
    assert "Note: No problem in 'problem_id' has a scored trajectory of every teacher." in text
    done = teachers("--problem_column", "problem_id", **options)
    assert done.code == 1 and "No problem has a scored trajectory of all 3 teachers" in done.err


def test_teachers_arent_ranked_on_a_selection(rsr, pool_path, tmp_path):
    pool = Dataset.from_parquet(pool_path).add_column("rsr_error", [None] * 119)
    pool.add_column("rsr_student", ["tiny"] * 119).to_parquet(pool_path)
    options = ["--dataset_name", pool_path, "--group_column", "problem_id", "--output_dir", tmp_path / "selected"]
    assert rsr("select", *options).code == 0
    text = rsr("teachers", "--dataset_name", tmp_path / "selected").text
    assert "These trajectories were chosen by their score" in text and "is the most" not in text
    verdict = rsr("teachers", "--dataset_name", tmp_path / "selected", "--json").json["verdict"]
    assert verdict.startswith("These trajectories were chosen by their score (`rsr select`)")


def test_by_another_score(teachers):
    text = teachers("--score", "rank").text
    assert "Mean rank of its trajectories, lower first, 39 trajectories each." in text
    assert text.index(" a 2.") < text.index(" b 2.") < text.index(" c ") and "RSR" not in text
    result = teachers("--score", "rank", "--prefer", "high", "--json").json
    assert [row["teacher"] for row in result["table"]] == ["c", "b", "a"]
    assert (result["score"], result["prefer"], result["direction"]) == ("rank", "high", "higher first")


def test_csv(teachers):
    rows = list(csv.DictReader(io.StringIO(teachers("--csv").out)))
    assert [row["teacher"] for row in rows] == ["a", "b", "c"] and rows[0]["trajectories"] == "39"


def test_with_a_student_it_stops_when_it_is_certain_or_scores_all(rsr, gsm8k_rows, gsm8k_student, tmp_path):
    rows = [row for row in gsm8k_rows if row["teacher"] in ("Qwen2-72B-Instruct", "gemma-2-27b-it")]
    problems = list(dict.fromkeys(row["problem_id"] for row in rows))[:50]
    keys, path = ("problem_id", "teacher", "prompt", "completion"), tmp_path / "texts.parquet"
    texts = [{key: row[key] for key in keys} for row in rows if row["problem_id"] in problems]
    Dataset.from_list(texts).to_parquet(path)
    argv = ["teachers", "--dataset_name", path, "--model_name_or_path", gsm8k_student, "--as_chat"]
    result = rsr(*argv, "--json").json
    assert result["certain"] and result["best"] == "Qwen2-72B-Instruct"
    assert 40 < result["num_trajectories"] < result["num_trajectories_in_pool"] == 100
    text = rsr(*argv, "--goal", "order", "--worst_rank", "0").text
    assert "The order of teachers is certain to 95%" in text and "Scored 40 (40%) of 100 trajectories" in text
    assert f"Next: rsr score --model_name_or_path {gsm8k_student} --dataset_name {path} --as_chat" in text
    assert [row["trajectories"] for row in rsr(*argv, "--goal", "all", "--json").json["table"]] == [50, 50]


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--json", "--csv"], "one of --json and --csv"),
        (["--model_name_or_path", "student", *UNMATCHED], "No column of problems was found: pass --problem_column."),
        (["--model_name_or_path", "student", "--score", "rank"], "--goal all"),
        (["--max_trajectories", "9"], "is for scoring in rounds"),
        (["--goal", "order"], "--goal order is for scoring in rounds"),
        (["--certainty", "95"], r"--certainty must be in \(0, 1\), got 95: 95% is 0.95"),
        (["--teacher_column", "writer"], "no column 'writer'"),
        (["--teacher_column", "none"], "No column of teachers was found: pass --teacher_column."),
        (["--problem_column", "problem"], "no column 'problem'"),
    ],
)
def test_contradictions(teachers, argv, message):
    done = teachers(*argv)
    assert done.code == 1 and re.search(message, done.err)
