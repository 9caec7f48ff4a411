"""What RSRSFTTrainer promises, on a GPU in bfloat16, as users train."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from rsr_trl.scoring.scorer import RSRScorer
from tests.training.runs import examples, losses_of_steps, rows_of_steps, run


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here"),
]
ON_GPU = {"use_cpu": False, "bf16": True, "num_train_epochs": 2}
IGNORING_SCORES = {"rsr_rescore_strategy": "no", "rsr_sampling": "random"}


@pytest.mark.parametrize("strategy", ["epoch", "online"])
def test_scores_are_those_of_rsr_scorer_with_the_same_autocast(strategy, tmp_path, tiny_student_path):
    args = ON_GPU | {"rsr_rescore_strategy": strategy, "learning_rate": 0.0}  # the student stays what it was
    trained = run(tiny_student_path, str(tmp_path / "out"), examples(), args)
    model = AutoModelForCausalLM.from_pretrained(tiny_student_path, dtype="float32").to("cuda")
    scorer = RSRScorer(model, AutoTokenizer.from_pretrained(tiny_student_path))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        expected = scorer.score(Dataset.from_list(examples()))["rsr"]
    np.testing.assert_allclose(trained["table"], expected, rtol=0.02)


def test_with_scores_ignored_losses_are_those_of_sft_trainer(tmp_path, tiny_student_path):
    ours = run(tiny_student_path, str(tmp_path / "ours"), examples(), ON_GPU | IGNORING_SCORES)
    theirs = run(tiny_student_path, str(tmp_path / "theirs"), examples(), ON_GPU, plain=True)
    assert rows_of_steps([ours]) == rows_of_steps([theirs])
    assert losses_of_steps([ours]) == pytest.approx(losses_of_steps([theirs]), rel=1e-3)


def test_resumed_in_an_epoch_the_same_rows_make_up_the_same_steps(tmp_path, tiny_student_path):
    args = ON_GPU | {"rsr_rescore_strategy": "epoch", "save_strategy": "steps", "save_steps": 6}
    job = (tiny_student_path, str(tmp_path / "out"), examples(), args)
    whole, resumed = run(*job), run(*job, resume_from=str(tmp_path / "out/checkpoint-6"))
    assert rows_of_steps([resumed]) == rows_of_steps([whole], since=6)
    assert losses_of_steps([resumed]) == pytest.approx(losses_of_steps([whole], since=6), rel=1e-2)
