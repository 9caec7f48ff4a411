"""What the README tells people to type works as it stands, and what it names exists."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, load_dataset

from rsr_trl.cli.main import COMMANDS
from rsr_trl.demo import STUDENT_PATH
from rsr_trl.demo.teachers import make_pool


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TRAINING = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
NEIGHBOURS = (ROOT / "docs" / "neighbours.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```(?:{language})\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A folder as a user has it: a small student by the names that the README uses, and a file of trajectories."""
    for name in ("Qwen/Qwen3-0.6B", "HuggingFaceTB/SmolLM2-135M-Instruct"):
        shutil.copytree(STUDENT_PATH, tmp_path / name)
    make_pool(num_problems=12, seed=1).to_json(tmp_path / "trajectories.jsonl")
    return tmp_path


def run(command: list[str] | str, cwd: Path) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command,
        cwd=cwd,
        shell=isinstance(command, str),
        env={**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[0])
def test_python_of_the_readme_runs(code, workspace):
    output = run([sys.executable, "-c", code], workspace)
    assert "warning" not in output.lower().replace("futurewarning", ""), output


@pytest.mark.slow
def test_commands_of_the_readme_run_one_after_another(workspace):
    for block in blocks("bash"):
        run(f"set -e\n{block}", workspace)
    scored = load_dataset("parquet", data_files=f"{workspace}/scored/**/*.parquet", split="train")
    selected = load_dataset("parquet", data_files=f"{workspace}/selected/**/*.parquet", split="train")
    best: dict[str, float] = {}
    for row in scored.filter(lambda row: row["rsr_num_tokens"] >= 32):  # bare answers are left out
        best[row["problem_id"]] = min(row["rsr"], best.get(row["problem_id"], float("inf")))
    assert {row["problem_id"]: row["rsr"] for row in selected} == best
    assert isinstance(selected, Dataset) and len(selected) == 12


@pytest.mark.slow
def test_the_page_on_training_runs_from_top_to_bottom(workspace):
    (workspace / "sft.yaml").write_text(*blocks("yaml", TRAINING))
    for block in blocks("bash|python", TRAINING):
        is_python = "import " in block
        output = run([sys.executable, "-c", block] if is_python else f"set -e\n{block}", workspace)
        assert "is scored again" not in output and "No score decides" not in output, output


@pytest.mark.slow
@pytest.mark.parametrize(
    "section", re.split(r"^## ", NEIGHBOURS, flags=re.MULTILINE)[1:], ids=lambda one: one.split()[0]
)
def test_each_neighbour_runs(section, workspace):
    """Block after block, with what they need: a student, larger and trained ones, and trajectories."""
    for name in ("Qwen/Qwen3-8B", "trained"):
        shutil.copytree(STUDENT_PATH, workspace / name)
    for block in blocks("bash|python", section):
        output = run([sys.executable, "-c", block] if "import " in block else f"set -e\n{block}", workspace)
        assert "weight 0" not in output  # all trajectories of the example have weights


def test_every_command_is_in_the_readme():
    for name in COMMANDS:
        assert f"| `rsr {name}" in README, f"the table of commands lacks rsr {name}"


def test_every_file_the_readme_names_exists():
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", README) + re.findall(r"`python (\S+\.py)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), f"README names {link}, which isn't there"
