import os
import subprocess
import sys
from collections import Counter

import pytest
from datasets import Dataset


NUM_PROBLEMS = 20


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """One short run of the command in a process and a folder of its own, as a newcomer starts it."""
    cwd = tmp_path_factory.mktemp("demo")
    env = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "100", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-m", "rsr_trl", "demo", "--num_problems", str(NUM_PROBLEMS)]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return cwd / "demo_output", done.stdout, done.stderr


@pytest.mark.slow
def test_every_trajectory_is_scored(demo):
    folder, _, _ = demo
    scored = Dataset.from_parquet(str(folder / "scored.parquet"))
    assert set(Counter(scored["problem_id"]).values()) == {7}
    assert len(scored) == 7 * NUM_PROBLEMS
    for row in scored:
        assert row["rsr"] == pytest.approx(row["rsr_mean_clipped_rank"] / row["rsr_mean_surprisal"])
        assert row["rsr_error"] is None


@pytest.mark.slow
def test_selected_is_the_lowest_ratio_of_each_problem_among_those_that_reason(demo):
    folder, _, _ = demo
    candidates: dict[str, list[dict]] = {}
    for row in Dataset.from_parquet(str(folder / "scored.parquet")):
        if row["teacher"] != "guesser":
            candidates.setdefault(row["problem_id"], []).append(row)
    expected = {problem: min(rows, key=lambda row: row["rsr"])["teacher"] for problem, rows in candidates.items()}
    selected = Dataset.from_parquet(str(folder / "selected.parquet"))
    assert dict(zip(selected["problem_id"], selected["teacher"], strict=True)) == expected


@pytest.mark.slow
def test_student_is_fine_tuned_and_loads(demo):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rsr_trl.demo import STUDENT_PATH

    before = AutoModelForCausalLM.from_pretrained(STUDENT_PATH, dtype=torch.float32)
    after = AutoModelForCausalLM.from_pretrained(demo[0] / "student", dtype=torch.float32)
    moved = [not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    assert all(moved)
    assert AutoTokenizer.from_pretrained(demo[0] / "student").chat_template


@pytest.mark.slow
def test_output_names_the_direction_the_evidence_and_the_files(demo):
    folder, stdout, _ = demo
    text = " ".join(stdout.split())
    assert "A lower RSR suits it better." in text
    assert "claims no gain" in text
    assert "arxiv.org/abs/2601.14249" in text
    named = {name for name in ("scored.parquet", "selected.parquet", "student") if f"demo_output/{name}" in text}
    assert named == {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_output_speaks_of_the_guesser_exactly_when_it_is_chosen(demo):
    folder, stdout, _ = demo
    lowest: dict[str, dict] = {}
    for row in Dataset.from_parquet(str(folder / "scored.parquet")):
        if row["problem_id"] not in lowest or row["rsr"] < lowest[row["problem_id"]]["rsr"]:
            lowest[row["problem_id"]] = row
    guesses = sum(row["teacher"] == "guesser" for row in lowest.values())
    said = f"Of the {NUM_PROBLEMS} chosen from all, {guesses} are bare guesses"
    assert (said in " ".join(stdout.split())) == (guesses > 0)


@pytest.mark.slow
def test_a_normal_run_warns_of_nothing(demo):
    _, _, stderr = demo
    for word in ("warn", "deprecat", "error", "traceback"):
        assert word not in stderr.lower(), stderr


def test_too_few_problems_is_an_error(tmp_path, capsys):
    from rsr_trl.cli.main import main

    assert main(["demo", "--num_problems", "3", "--output_dir", str(tmp_path / "out")]) == 1
    assert "--num_problems must be at least 10, got 3" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
