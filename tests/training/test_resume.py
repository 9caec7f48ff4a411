"""A run that was interrupted goes on bit for bit as the one that wasn't."""

import itertools

import pytest

from tests.training.runs import examples, pairwise, run


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
FEW = [tuple(case.values()) for case in pairwise(FACTORS)]
OTHERS = [
    pytest.param(*case, marks=pytest.mark.slow) for case in itertools.product(*FACTORS.values()) if case not in FEW
]


@pytest.mark.parametrize(list(FACTORS), FEW + OTHERS)
def test_resumed_training_is_bitwise_the_same(
    strategy, choice, sampling, workers, accumulation, where, student, tmp_path
):
    args = {
        **{"rsr_sampling": sampling, "dataloader_num_workers": workers, "gradient_accumulation_steps": accumulation},
        **STRATEGIES[strategy],
        **CHOICES[choice],
        **{"save_strategy": "steps", "save_steps": 1},
    }
    whole = run(student, str(tmp_path / "whole"), examples(), args)
    num_steps = 1 + whole["record"][-1][0]
    per_epoch = num_steps // 3
    step = {"middle": max(1, per_epoch // 2), "late": num_steps - 1, "epoch start": per_epoch}[where]
    resumed = run(student, str(tmp_path / "resumed"), examples(), args, f"{tmp_path}/whole/checkpoint-{step}")
    assert resumed["record"] == [entry for entry in whole["record"] if entry[0] >= step]
    for name in ("table", "steps_measured", "weights"):
        assert resumed[name] == whole[name]
