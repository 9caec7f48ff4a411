"""A run that was interrupted goes on bit for bit as the one that wasn't, and not at all with other settings."""

import itertools
import logging
from pathlib import Path

import numpy as np
import pytest

from rsr_trl.rsr import RSRError
from rsr_trl.scoring.shards import write_json
from rsr_trl.training.config import RSRSFTConfig
from rsr_trl.training.resume import SETTINGS_NAME, changes, deciding_settings
from tests.training.runs import DEFAULTS, examples, pairwise, run


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
        assert str(resumed[name]) == str(whole[name])  # where nothing is scored, all of the table is NaN


UNSCORED = {"rsr_sampling": "random", "rsr_rescore_strategy": "no"}
STEPS = {"rsr_rescore_strategy": "steps", "rsr_rescore_steps": 2}
GROUPS = {"rsr_group_column": "problem"}
# What changes, what the run was before, and what is named: name and both values.
CHANGED = [
    ({"seed": 1}, {}, {"seed (data_seed)": (42, 1)}),
    ({"rsr_sampling": "ordered"}, {}, {"rsr_sampling": ("weighted", "ordered")}),
    ({"rsr_temperature": 0.5}, {}, {"rsr_temperature": (0.2, 0.5)}),
    ({"rsr_score": "surprisal"}, {}, {"rsr_score": ("rsr", "surprisal")}),
    ({"rsr_prefer": "high"}, {}, {"rsr_prefer": ("low", "high")}),
    ({"rsr_r_max": 50}, {}, {"rsr_r_max": (100, 50)}),
    ({"rsr_keep_fraction": 0.5}, {}, {"rsr_keep_fraction": (1.0, 0.5)}),
    ({"rsr_score_threshold": 4.0}, {}, {"rsr_score_threshold": (None, 4.0)}),
    ({"rsr_rescore_strategy": "no"}, {}, {"rsr_rescore_strategy": ("epoch", "no")}),
    ({"rsr_keep_per_group": 2}, GROUPS, {"rsr_keep_per_group": (1, 2)}),
    ({"rsr_min_tokens": 5}, GROUPS, {"rsr_min_tokens": (32, 5)}),
    ({"gradient_accumulation_steps": 4}, {}, {"examples per step": (8, 16)}),
    ({"dataloader_num_workers": 1}, STEPS, {"batches read ahead": (1, 3)}),
    ({"rsr_sampling": "ordered"}, UNSCORED, {"rsr_sampling": ("random", "ordered")}),
    ({"seed": 1, "data_seed": 42}, {}, {}),
    ({"dataloader_num_workers": 1}, {}, {}),
    ({"rsr_temperature": 0.5}, UNSCORED, {}),
    ({"rsr_score": "surprisal", "rsr_r_max": 50}, UNSCORED, {}),
    ({"rsr_min_tokens": 32}, GROUPS, {}),
    ({"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}, {}, {}),
    ({"rsr_max_batch_tokens": 500, "rsr_share_prefixes": False, "rsr_teacher_column": "teacher"}, {}, {}),
    ({"logging_steps": 7, "save_steps": 3, "num_train_epochs": 9, "learning_rate": 1.0}, {}, {}),
]


@pytest.mark.parametrize("change, before, named", CHANGED)
def test_what_decides_order_and_scores_is_named_and_nothing_else(change, before, named, tmp_path):
    """Against a list by hand of what does."""

    def settings(changed: dict) -> dict:
        usual = {"gradient_accumulation_steps": 2, "rsr_sampling": "weighted", "rsr_rescore_strategy": "epoch"}
        args = RSRSFTConfig(str(tmp_path), **DEFAULTS | {"per_device_train_batch_size": 4} | usual | changed)
        return deciding_settings(args, args.per_device_train_batch_size, steps_per_epoch=5)

    write_json(tmp_path / SETTINGS_NAME, settings(before))
    found = dict(line.split(": ") for line in changes(str(tmp_path), settings(before | change)))
    assert {name.split(" (p")[0].split(" (by")[0]: value for name, value in found.items()} == {
        name: f"{then} -> {now}" for name, (then, now) in named.items()
    }


def test_a_ratio_of_all_steps_is_what_it_comes_to(tmp_path):
    def settings(**args) -> dict:
        args = DEFAULTS | {"rsr_rescore_strategy": "steps"} | args
        return deciding_settings(RSRSFTConfig(str(tmp_path), **args), 2, steps_per_epoch=10)

    write_json(tmp_path / SETTINGS_NAME, settings(rsr_rescore_steps=0.1))  # of 3 epochs
    assert changes(str(tmp_path), settings(rsr_rescore_steps=3)) == []
    longer = settings(rsr_rescore_steps=0.1, num_train_epochs=6)
    assert changes(str(tmp_path), longer) == ["rsr_rescore_steps: 3 -> 6"]


def test_resumed_with_other_settings_it_stops_and_goes_on_where_that_is_allowed(student, tmp_path, caplog):
    args = {"num_train_epochs": 1, "save_strategy": "steps", "save_steps": 4, "max_steps": 6}
    rows = examples()

    def resume(checkpoint: str, rows=rows, **changed) -> dict:
        return run(student, str(tmp_path / "resumed"), rows, args | changed, checkpoint)

    whole = run(student, str(tmp_path / "whole"), rows, args)
    checkpoint = f"{tmp_path}/whole/checkpoint-4"
    changed = {"seed": 7, "rsr_sampling": "ordered"}
    with pytest.raises(RSRError, match=r"seed \(data_seed\): 42 -> 7.*rsr_allow_changed_resume") as error:
        resume(checkpoint, **changed)
    assert "rsr_sampling: weighted -> ordered" in str(error.value)
    with pytest.raises(RSRError, match="ignore_data_skip: False -> True"):
        resume(checkpoint, ignore_data_skip=True)
    other = [row | {"completion": row["completion"].swapcase()[::-1]} for row in rows]
    with pytest.raises(RSRError, match="tokens of the training set: [0-9a-f]{16} -> [0-9a-f]{16}"):
        resume(checkpoint, rows=other)

    transformers_logger = logging.getLogger("transformers")
    transformers_logger.addHandler(caplog.handler)
    try:
        went_on = resume(checkpoint, rsr_allow_changed_resume=True, **changed)
    finally:
        transformers_logger.removeHandler(caplog.handler)
    assert "From step 4 on, this isn't the run that it was" in caplog.text
    of_whole = [rows for step, rows, _ in whole["record"] if step < 4]
    of_both = sum(of_whole + [rows for _, rows, _ in went_on["record"]], [])
    assert [step for step, *_ in went_on["record"]] == [4, 5] and len(set(of_both)) == len(of_both) == 12

    Path(checkpoint, SETTINGS_NAME).unlink()
    with pytest.raises(RSRError, match="rsr_settings.json is missing"):
        resume(checkpoint)


def test_a_run_that_scores_nothing_resumes_by_score_only_where_allowed_and_is_scored_then(student, tmp_path):
    args = {"rsr_sampling": "random", "rsr_rescore_strategy": "no", "num_train_epochs": 1, "save_strategy": "steps"}
    args |= {"save_steps": 5}
    whole = run(student, str(tmp_path / "whole"), examples(), args)
    assert np.isnan(whole["table"]).all()
    again = [student, str(tmp_path / "resumed"), examples()], f"{tmp_path}/whole/checkpoint-5"
    same = run(*again[0], args | {"rsr_score": "surprisal"}, again[1])
    assert same["record"] == [entry for entry in whole["record"] if entry[0] >= 5]
    by_score = args | {"rsr_sampling": "ordered", "rsr_allow_changed_resume": True}
    ordered = run(*again[0], by_score, again[1])
    assert not np.isnan(ordered["table"]).any() and set(ordered["steps_measured"]) == {5}
    assert {step for step, *_ in ordered["record"]} == {step for step, *_ in same["record"]}
