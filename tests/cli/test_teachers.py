import csv
import io
import json

import numpy as np
import pytest
from datasets import Dataset

from rsr_trl.cli import teachers
from rsr_trl.cli.options import parse


def run(*argv):
    return teachers.main(*parse(teachers.make_parser(), argv))


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
                    "rsr_mean_clipped_rank": rank,
                    "rsr_mean_surprisal": surprisal,
                    "rsr_num_tokens": 100,
                    "rsr_truncated": False,
                }
            )
    path = tmp_path / "pool.parquet"
    Dataset.from_list(rows).to_parquet(path)
    return str(path)


def test_ranks_a_scored_dataset(pool_path, capsys):
    run("--dataset_name", pool_path, "--problem_column", "problem_id", "--correctness_column", "correct")
    captured = capsys.readouterr()
    text = " ".join(captured.err.split())
    assert captured.out == ""
    assert "3 teachers on 39 problems" in text and "lower = more suitable, 39 trajectories each" in text
    assert text.index(" a 2.") < text.index(" b 2.") < text.index(" c 2.")
    assert "a is the most suitable." in text
    assert "Note: The 3 teachers share 39 of 40 problems" in text
    assert f"Next: rsr select --dataset_name {pool_path} --group_column problem_id --output_dir " in text


def test_json(pool_path, capsys):
    run("--dataset_name", pool_path, "--problem_column", "problem_id", "--json")
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert captured.err == "" and result["direction"] == "lower = more suitable"
    assert [row["teacher"] for row in result["table"]] == ["a", "b", "c"]
    assert len(result["pairs"]) == 3 and result["num_problems"] == 39


def test_by_another_score(pool_path, capsys):
    argv = ["--dataset_name", pool_path, "--problem_column", "problem_id", "--score", "rank"]
    run(*argv)
    text = " ".join(capsys.readouterr().err.split())
    assert "Mean rank of its trajectories, lower first, 39 trajectories each." in text
    assert text.index(" a 2.") < text.index(" b 2.") < text.index(" c ") and "RSR" not in text
    run(*argv, "--prefer", "high", "--json")
    result = json.loads(capsys.readouterr().out)
    assert [row["teacher"] for row in result["table"]] == ["c", "b", "a"]
    assert (result["score"], result["prefer"], result["direction"]) == ("rank", "high", "higher first")


def test_csv(pool_path, capsys):
    run("--dataset_name", pool_path, "--problem_column", "problem_id", "--csv")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["teacher"] for row in rows] == ["a", "b", "c"] and rows[0]["trajectories"] == "39"


def texts(rows, names, num_problems):
    """`names` teachers' completions for the first problems, as a dataset."""
    kept = [row for row in rows if row["teacher"] in names]
    problems = list(dict.fromkeys(row["problem_id"] for row in kept))[:num_problems]
    keys = ("problem_id", "teacher", "prompt", "completion")
    return Dataset.from_list([{key: row[key] for key in keys} for row in kept if row["problem_id"] in problems])


@pytest.fixture
def gsm8k_path(gsm8k_rows, tmp_path) -> str:
    path = tmp_path / "texts.parquet"
    texts(gsm8k_rows, ("Qwen2-72B-Instruct", "gemma-2-27b-it"), 50).to_parquet(path)
    return str(path)


def test_with_a_student_it_stops_when_it_is_certain(gsm8k_path, gsm8k_student, capsys):
    argv = ["--dataset_name", gsm8k_path, "--model_name_or_path", gsm8k_student, "--as_chat"]
    run(*argv, "--problem_column", "problem_id", "--json")
    result = json.loads(capsys.readouterr().out)
    assert result["certain"] and result["best"] == "Qwen2-72B-Instruct"
    assert result["num_trajectories"] == 40 and result["num_trajectories_in_pool"] == 100
    run(*argv, "--problem_column", "problem_id", "--goal", "order")
    text = " ".join(capsys.readouterr().err.split())
    assert "The order of teachers is certain to 95%" in text and "Scored 40 (40%) of 100 trajectories" in text
    assert f"Next: rsr score --model_name_or_path {gsm8k_student} --dataset_name {gsm8k_path} --as_chat" in text


def test_with_a_student_it_can_score_all(gsm8k_path, gsm8k_student, capsys):
    argv = ["--dataset_name", gsm8k_path, "--model_name_or_path", gsm8k_student, "--as_chat", "--goal", "all"]
    run(*argv, "--problem_column", "problem_id", "--json")
    result = json.loads(capsys.readouterr().out)
    assert [row["trajectories"] for row in result["table"]] == [50, 50]


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--json", "--csv"], "one of --json and --csv"),
        (["--model_name_or_path", "student"], "needs --problem_column"),
        (["--model_name_or_path", "student", "--problem_column", "problem_id", "--score", "rank"], "--goal all"),
        (["--max_trajectories", "9"], "is for scoring in rounds"),
        (["--teacher_column", "writer"], "no column 'writer'"),
        (["--problem_column", "problem"], "no column 'problem'"),
    ],
)
def test_contradictions(pool_path, argv, message):
    with pytest.raises(ValueError, match=message):
        run("--dataset_name", pool_path, *argv)
