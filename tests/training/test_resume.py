"""A run that was interrupted goes on bit for bit as the one that wasn't; on other processes, with the same steps."""

import itertools
from pathlib import Path

import pytest

from tests.training.runs import Job, examples, pairwise, run, run_on_processes


STRATEGIES = {
    "no": {"rsr_rescore_strategy": "no"},
    "epoch": {"rsr_rescore_strategy": "epoch"},
    "steps": {"rsr_rescore_strategy": "steps", "rsr_rescore_steps": 2},
    "online": {"rsr_rescore_strategy": "online"},
}
CHOICES = {
    "all": {},
    "fraction": {"rsr_keep_fraction": 0.7},
    "groups": {"rsr_group_column": "problem", "rsr_keep_per_group": 2},
    "threshold": {"rsr_score_threshold": 10.5},
}
FACTORS = {
    "strategy": list(STRATEGIES),
    "choice": list(CHOICES),
    "sampling": ["weighted", "ordered", "random"],
    "workers": [0, 2],
    "accumulation": [1, 3],
    "where": ["middle", "late", "epoch start"],
}
PAIRWISE = pairwise(FACTORS)
FULL = [dict(zip(FACTORS, values, strict=True)) for values in itertools.product(*FACTORS.values())]


def settings(case: dict) -> dict:
    return {
        "rsr_sampling": case["sampling"],
        "dataloader_num_workers": case["workers"],
        "gradient_accumulation_steps": case["accumulation"],
        **STRATEGIES[case["strategy"]],
        **CHOICES[case["choice"]],
    }


def test_the_default_cases_are_few_and_cover_every_pair():
    assert len(PAIRWISE) <= 20
    for a, b in itertools.combinations(FACTORS, 2):
        assert {(case[a], case[b]) for case in PAIRWISE} == set(itertools.product(FACTORS[a], FACTORS[b]))


def stop_and_go_on(case: dict, student: str, folder: Path, processes: int = 1) -> None:
    job = Job(student, str(folder / "whole"), examples(), settings(case) | {"save_strategy": "steps", "save_steps": 1})

    def train(job):
        return (
            [run(job)] if processes == 1 else run_on_processes([job], processes, folder / Path(job.output_dir).name)[0]
        )

    whole = train(job)
    num_steps = 1 + whole[0]["record"][-1][0]
    per_epoch = num_steps // 3
    step = {"middle": max(1, per_epoch // 2), "late": num_steps - 1, "epoch start": per_epoch}[case["where"]]
    job.output_dir, job.resume_from = str(folder / "resumed"), f"{folder}/whole/checkpoint-{step}"
    resumed = train(job)
    for first, second in zip(whole, resumed, strict=True):
        assert second["record"] == [entry for entry in first["record"] if entry[0] >= step]
        assert second["table"] == first["table"] and second["steps_measured"] == first["steps_measured"]
        assert second["weights"] == first["weights"]


@pytest.mark.parametrize("case", PAIRWISE, ids=lambda case: "-".join(map(str, case.values())))
def test_resumed_training_is_bitwise_the_same(case, student, tmp_path):
    stop_and_go_on(case, student, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", FULL, ids=lambda case: "-".join(map(str, case.values())))
def test_resumed_training_is_bitwise_the_same_in_every_combination(case, student, tmp_path):
    stop_and_go_on(case, student, tmp_path)
