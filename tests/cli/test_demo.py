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
def test_every_trajectory_is_scored_and_the_lowest_of_each_problem_chosen_among_those_that_reason(demo):
    folder, stdout, _ = demo
    scored = Dataset.from_parquet(str(folder / "scored.parquet"))
    assert set(Counter(scored["problem_id"]).values()) == {7} and len(scored) == 7 * NUM_PROBLEMS
    for row in scored:
        assert row["rsr"] == pytest.approx(row["rsr_mean_clipped_rank"] / row["rsr_mean_surprisal"])
        assert row["rsr_error"] is None
    lowest_of_all, lowest = {}, {}
    for row in sorted(scored, key=lambda row: row["rsr"]):
        lowest_of_all.setdefault(row["problem_id"], row["teacher"])
        if row["teacher"] != "guesser":
            lowest.setdefault(row["problem_id"], row["teacher"])
    selected = Dataset.from_parquet(str(folder / "selected.parquet"))
    assert dict(zip(selected["problem_id"], selected["teacher"], strict=True)) == lowest
    guesses = list(lowest_of_all.values()).count("guesser")
    said = f"Of the {NUM_PROBLEMS} chosen from all, {guesses} are bare guesses"
    assert (said in " ".join(stdout.split())) == (guesses > 0)


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
def test_output_names_the_direction_the_evidence_and_the_files_and_warns_of_nothing(demo):
    folder, stdout, stderr = demo
    text = " ".join(stdout.split())
    assert "A lower RSR suits it better." in text
    assert "claims no gain" in text
    assert "arxiv.org/abs/2601.14249" in text
    named = {name for name in ("scored.parquet", "selected.parquet", "student") if f"demo_output/{name}" in text}
    assert named == {path.name for path in folder.iterdir()}
    for word in ("warn", "deprecat", "error", "traceback"):
        assert word not in stderr.lower(), stderr


def test_too_few_problems_is_an_error(rsr, tmp_path):
    done = rsr("demo", "--num_problems", "3", "--output_dir", tmp_path / "out")
    assert done.code == 1 and "--num_problems must be at least 10, got 3" in done.err
    assert not (tmp_path / "out").exists()
