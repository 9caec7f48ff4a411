import csv
import io
import json

import numpy as np
import pytest
from datasets import Dataset

from rsr_trl.cli import select, teachers
from rsr_trl.cli.options import parse
from rsr_trl.rsr import RSRError


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


UNMATCHED = ("--problem_column", "none")


def test_ranks_a_scored_dataset(pool_path, capsys):
    run("--dataset_name", pool_path)
    captured = capsys.readouterr()
    text = " ".join(captured.err.split())
    assert captured.out == ""
    assert "3 teachers on 39 problems" in text and "lower = more suitable, 39 trajectories each" in text
    assert text.index(" a 2.") < text.index(" b 2.") < text.index(" c 2.")
    assert "a is the most suitable." in text
    assert "Note: The 3 teachers share 39 of 40 problems" in text
    assert f"Next: rsr select --dataset_name {pool_path} --group_column problem_id --output_dir " in text


def shortened(pool_path, tmp_path, keep) -> list[str]:
    """The pool's rows that `keep` is true of, as the beginning of a command line."""
    path = str(tmp_path / "few.parquet")
    Dataset.from_parquet(pool_path).filter(keep).to_parquet(path)
    return ["--dataset_name", path]


def shown(capsys, *argv) -> tuple[str, dict]:
    """What the terminal says and what JSON holds."""
    run(*argv)
    text = " ".join(capsys.readouterr().err.split())
    run(*argv, "--json")
    return text, json.loads(capsys.readouterr().out)


def test_a_teacher_with_one_trajectory_isnt_called_best(pool_path, tmp_path, capsys):
    argv = shortened(pool_path, tmp_path, lambda row: row["teacher"] != "a" or row["problem_id"] == "p0")
    text, result = shown(capsys, *argv, *UNMATCHED)
    verdict = "a comes first, but has only one trajectory and can't be judged. Of the others, b is the most suitable."
    assert verdict in text and result["verdict"] == verdict
    first, second, third = (row["probability_best"] for row in result["table"])
    assert first is None and second > 0.95 and second + third == pytest.approx(1)
    assert [pair["probability"] is None for pair in result["pairs"]] == [True, True, False]
    assert "Note: 1 teacher with a single trajectory can't be judged: 'a'." in text and " – – " in text


def test_the_only_teacher_that_can_be_judged(pool_path, tmp_path, capsys):
    argv = shortened(pool_path, tmp_path, lambda row: row["teacher"] == "a" or row["problem_id"] == "p0")
    text, result = shown(capsys, *argv, *UNMATCHED)
    assert result["verdict"] == "a is the only teacher that can be judged." and result["verdict"] in text


def test_one_problem_cant_tell_teachers_apart(pool_path, tmp_path, capsys):
    argv = shortened(pool_path, tmp_path, lambda row: row["problem_id"] == "p0")
    text, result = shown(capsys, *argv)
    assert "3 teachers on 1 problem, most" in text and "1 trajectory each" in text
    assert "One problem can't tell teachers apart." in text and "is the most suitable" not in text
    assert [row["probability_best"] for row in result["table"]] == [None] * 3


def test_a_single_teacher_has_no_contest(pool_path, tmp_path, capsys):
    argv = shortened(pool_path, tmp_path, lambda row: row["teacher"] == "b")
    text, result = shown(capsys, *argv, "--problem_column", "problem_id", "--correctness_column", "none")
    text = text[text.index("1 teacher on 39 problems RSR =") :]  # after the progress bars
    assert "most suitable first" not in text and "is the most suitable" not in text and "100%" not in text
    assert result["verdict"] is None and result["table"][0]["probability_best"] is None


def test_four_problems_have_a_sane_interval(pool_path, tmp_path, capsys):
    argv = shortened(pool_path, tmp_path, lambda row: row["problem_id"] in ("p0", "p1", "p2", "p3"))
    _, result = shown(capsys, *argv)
    assert result["num_problems"] == 4
    for row in result["table"]:
        assert row["rsr"] / 3 < row["rsr_low"] < row["rsr"] < row["rsr_high"] < 3 * row["rsr"]


def test_teachers_arent_ranked_on_a_selection(pool_path, tmp_path, capsys):
    folder = tmp_path / "selected"
    argv = ["--dataset_name", pool_path, "--group_column", "problem_id", "--output_dir", str(folder)]
    pool = Dataset.from_parquet(pool_path)
    ratios = np.divide(pool["rsr_mean_clipped_rank"], pool["rsr_mean_surprisal"])
    pool = pool.add_column("rsr", ratios).add_column("rsr_error", [None] * len(pool))
    pool.add_column("rsr_student", ["tiny"] * len(pool)).to_parquet(pool_path)
    select.main(*parse(select.make_parser(), argv))
    capsys.readouterr()
    text, result = shown(capsys, "--dataset_name", str(folder))
    assert "These trajectories were chosen by their score" in text and "is the most" not in text
    assert result["verdict"].startswith("These trajectories were chosen by their score (`rsr select`)")


def test_json(pool_path, capsys):
    run("--dataset_name", pool_path, "--json")
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert captured.err == "" and result["direction"] == "lower = more suitable"
    assert [row["teacher"] for row in result["table"]] == ["a", "b", "c"]
    assert len(result["pairs"]) == 3 and result["num_problems"] == 39


def test_by_another_score(pool_path, capsys):
    argv = ["--dataset_name", pool_path, "--score", "rank"]
    run(*argv)
    text = " ".join(capsys.readouterr().err.split())
    assert "Mean rank of its trajectories, lower first, 39 trajectories each." in text
    assert text.index(" a 2.") < text.index(" b 2.") < text.index(" c ") and "RSR" not in text
    run(*argv, "--prefer", "high", "--json")
    result = json.loads(capsys.readouterr().out)
    assert [row["teacher"] for row in result["table"]] == ["c", "b", "a"]
    assert (result["score"], result["prefer"], result["direction"]) == ("rank", "high", "higher first")


def test_csv(pool_path, capsys):
    run("--dataset_name", pool_path, "--csv")
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
    run(*argv, "--json")
    result = json.loads(capsys.readouterr().out)
    assert result["certain"] and result["best"] == "Qwen2-72B-Instruct"
    assert result["num_trajectories"] == 40 and result["num_trajectories_in_pool"] == 100
    run(*argv, "--goal", "order")
    text = " ".join(capsys.readouterr().err.split())
    assert "The order of teachers is certain to 95%" in text and "Scored 40 (40%) of 100 trajectories" in text
    assert f"Next: rsr score --model_name_or_path {gsm8k_student} --dataset_name {gsm8k_path} --as_chat" in text


def test_with_a_student_it_can_score_all(gsm8k_path, gsm8k_student, capsys):
    argv = ["--dataset_name", gsm8k_path, "--model_name_or_path", gsm8k_student, "--as_chat", "--goal", "all"]
    run(*argv, "--json")
    result = json.loads(capsys.readouterr().out)
    assert [row["trajectories"] for row in result["table"]] == [50, 50]


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--json", "--csv"], "one of --json and --csv"),
        (["--model_name_or_path", "student", *UNMATCHED], "needs --problem_column"),
        (["--model_name_or_path", "student", "--score", "rank"], "--goal all"),
        (["--max_trajectories", "9"], "is for scoring in rounds"),
        (["--goal", "order"], "--goal order is for scoring in rounds"),
        (["--certainty", "95"], r"--certainty must be in \(0, 1\), got 95: 95% is 0.95"),
        (["--teacher_column", "writer"], "no column 'writer'"),
        (["--teacher_column", "none"], "--teacher_column is one of"),
        (["--problem_column", "problem"], "no column 'problem'"),
    ],
)
def test_contradictions(pool_path, argv, message):
    with pytest.raises(RSRError, match=message):
        run("--dataset_name", pool_path, *argv)
