from pathlib import Path

import evaluate
import pytest
from datasets import Dataset

import rsr_trl.metrics
from rsr_trl import RSRScorer
from rsr_trl.rsr import RSRError, dataset_rsr, trajectory_rsr


METRICS = Path(rsr_trl.metrics.__file__).parent


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path)


def load(*configuration):
    return evaluate.load(str(METRICS / "rsr"), *configuration)


def test_from_ranks_and_surprisals():
    ranks, surprisals = [[1, 4, 300], [], [1, 2]], [[0.5, 1.5, 8.0], [], [0.1, 1.4]]
    found = load().compute(ranks=ranks, surprisals=surprisals)
    assert found["rsr"] == [10.5, None, pytest.approx(trajectory_rsr(ranks[2], surprisals[2]))]
    assert found["mean_clipped_rank"] == [35.0, None, 1.5] and found["mean_surprisal"][0] == pytest.approx(10 / 3)
    assert found["dataset_rsr"] == pytest.approx(dataset_rsr([35.0, 1.5], [10 / 3, 0.75]))


def test_in_batches_clipped_elsewhere_and_what_it_cannot_take():
    module = load()
    module.add_batch(ranks=[[1, 4, 300]], surprisals=[[0.5, 1.5, 8.0]])
    module.add(ranks=[2, 2], surprisals=[1.0, 1.0])
    assert module.compute()["rsr"] == [10.5, 2.0]
    assert load().compute(ranks=[[1, 4, 300]], surprisals=[[0.5, 1.5, 8.0]], r_max=None)["rsr"] == [30.5]
    with pytest.raises(RSRError, match="Trajectory 1 has 2 ranks and 1 surprisals"):
        load().compute(ranks=[[1], [1, 2]], surprisals=[[0.5], [0.5]])
    with pytest.raises(RSRError, match="'tokens', 'texts'.*got 'words'"):
        load("words")


@pytest.mark.parametrize("chat", [False, True])
def test_from_texts_and_a_model(chat, gsm8k_student):
    prompts, completions = ["What is 2 + 3?", "And 4 + 5?"], ["2 + 3 = 5. The answer is 5.", "It is 9."]
    found = load("texts").compute(prompts=prompts, completions=completions, model=gsm8k_student, chat=chat)
    rows = {"prompt": prompts, "completion": completions}
    if chat:
        rows["prompt"] = [[{"role": "user", "content": text}] for text in prompts]
        rows["completion"] = [[{"role": "assistant", "content": text}] for text in completions]
    scored = RSRScorer(gsm8k_student).score(Dataset.from_dict(rows))
    assert found["rsr"] == pytest.approx(scored["rsr"][:])
    means = scored["rsr_mean_clipped_rank"][:], scored["rsr_mean_surprisal"][:]
    assert found["dataset_rsr"] == pytest.approx(dataset_rsr(*means))
