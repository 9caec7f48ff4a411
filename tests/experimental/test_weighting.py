"""Weights per row: the definition in float64 by full logits, and SFTTrainer's own bits where they are all equal."""

import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from rsr_trl.experimental.weighting import WeightedRSRSFTConfig, WeightedRSRSFTTrainer, rank_weights
from rsr_trl.rsr import RSRError
from rsr_trl.training.config import RSRSFTConfig
from tests.experimental import naive_training
from tests.experimental.naive_training import (
    SGD,
    assert_trained_as,
    build,
    descend,
    initial,
    numbered_rows,
    surprisals,
)
from tests.training.runs import DEFAULTS, examples, losses_of_steps, on_processes, rows_of_steps
from tests.training.runs import run as run_sft


COLUMN = {"rsr_weight_column": "w"}
LAYOUTS = {"padded": {}, "free": {"padding_free": True, "max_length": None}}


def weighted_rows(n: int = 19, seed: int = 1, constant: float | None = None) -> list[dict]:
    values = np.random.default_rng(seed).exponential(size=n)
    values = values if constant is None else [constant] * n
    return [row | {"w": float(value)} for row, value in zip(examples(n), values, strict=True)]


@pytest.mark.parametrize(
    "args",
    [{}, {"gradient_accumulation_steps": 3, "dataloader_num_workers": 1}, {"padding_free": True, "max_length": None}],
    ids=str,
)
@pytest.mark.parametrize("constant", [1.0, 0.3])
def test_equal_weights_are_bitwise_sft_trainer(args, constant, tiny_student, tiny_student_path, tmp_path):
    student = tiny_student_path
    tiny_student(attention_dropout=0.1).save_pretrained(student)  # a random number more or less would show
    plain = run_sft(student, str(tmp_path / "plain"), examples(), args, plain=True)
    trainer = build("weighted", student, str(tmp_path / "ours"), weighted_rows(constant=constant), COLUMN | args)
    model = trainer.model
    trainer.train()
    assert trainer.record == plain["record"]
    assert sum(p.double().abs().sum().item() for p in model.parameters()).hex() == plain["weights"]
    metrics = ("loss", "grad_norm", "entropy", "mean_token_accuracy", "num_tokens")
    for ours, theirs in zip(trainer.state.log_history[:-1], plain["logs"][:-1], strict=True):
        assert {name: ours[name] for name in metrics} == {name: theirs[name] for name in metrics}


def weighted_mean(trainer, weights_at):
    """Sum of w l over all trained tokens of a step, over the sum of w."""

    def loss_of(model, rows, step):
        losses = [surprisals(model, trainer.train_dataset[row]) for row in rows]
        weights = [weights_at(step)[row] for row in rows]
        total = sum(w * len(one) for w, one in zip(weights, losses, strict=True))
        return sum(w * one.sum() for w, one in zip(weights, losses, strict=True)) / total

    return loss_of


@pytest.mark.parametrize("layout", [*LAYOUTS, "text"])
def test_loss_and_steps_are_the_weighted_mean_over_the_whole_accumulated_batch(layout, tiny_student_path, tmp_path):
    args = SGD | COLUMN | LAYOUTS.get(layout, {}) | {"gradient_accumulation_steps": 3, "num_train_epochs": 2}
    rows = weighted_rows()
    if layout == "text":  # the first token of a row has a label, and nothing that predicts it
        rows = [{"text": row["prompt"] + row["completion"], "w": row["w"]} for row in rows]
    trainer = build("weighted", tiny_student_path, str(tmp_path / "out"), rows, args)
    trainer.train()
    weights = np.array(trainer.train_dataset["w"][:])
    loss_of = weighted_mean(trainer, lambda step: weights)
    naive = descend(tiny_student_path, trainer, numbered_rows(trainer), loss_of, SGD["learning_rate"])
    assert_trained_as(trainer, *naive, before=initial(tiny_student_path))


class Scores(TrainerCallback):
    """The live scores at the beginning of each step."""

    def __init__(self, table):
        self.table, self.at = table, []

    def on_step_begin(self, *args, **kwargs):
        self.at.append(self.table.rsr)


@pytest.mark.parametrize(
    "args", [{"rsr_rescore_strategy": "epoch"}, {"rsr_rescore_strategy": "steps", "rsr_rescore_steps": 2}], ids=str
)
def test_weights_by_score_follow_re_scoring(args, tiny_student_path, tmp_path, caplog):
    rows = examples()
    rows[4]["completion"] = ""  # nothing to score, though its end trains
    args = SGD | args | {"rsr_weighting": "rank", "rsr_weight_temperature": 0.5, "rsr_min_tokens": None}
    trainer = build("weighted", tiny_student_path, str(tmp_path / "out"), rows, args)
    assert "1 of 19 examples have no score: they have weight 0." in caplog.text
    scores = Scores(trainer.table)
    trainer.add_callback(scores)
    trainer.train()
    assert len({tuple(np.nan_to_num(one)) for one in scores.at}) > 2  # re-scored, to other values

    def naive_weights(step):
        known = sorted((score, i) for i, score in enumerate(scores.at[step]) if not math.isnan(score))
        assert len(known) == len(rows) - 1
        return {4: 0.0} | {i: math.exp(-place / (0.5 * len(known))) for place, (_, i) in enumerate(known)}

    loss_of = weighted_mean(trainer, naive_weights)
    naive = descend(tiny_student_path, trainer, numbered_rows(trainer), loss_of, SGD["learning_rate"])
    assert_trained_as(trainer, *naive, before=initial(tiny_student_path))


def test_rank_weights_share_the_place_of_equal_scores_and_give_none_to_no_score():
    weights = rank_weights(np.array([2.0, np.nan, 1.0, 2.0, np.inf]), "low", temperature=0.5)
    np.testing.assert_allclose(weights, [np.exp(-0.75), 0, 1, np.exp(-0.75), np.exp(-1.5)])
    high = rank_weights(np.array([2.0, 5.0]), "high", temperature=1.0)
    np.testing.assert_allclose(high, [np.exp(-0.5), 1])


def test_a_step_of_weight_0_moves_nothing(tiny_student_path, tmp_path):
    rows = [row | {"w": float(i == 0)} for i, row in enumerate(examples(6))]
    args = COLUMN | {"num_train_epochs": 2, "lr_scheduler_type": "linear"}  # AdamW: momentum would move
    trainer = build("weighted", tiny_student_path, str(tmp_path / "out"), rows, args)
    seen = []

    class Weights(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            total = sum(p.double().abs().sum().item() for p in trainer.model.parameters())
            seen.append((total, trainer.lr_scheduler.get_last_lr()[0]))

    trainer.add_callback(Weights())
    trainer.train()
    trains = [0 in rows for rows in numbered_rows(trainer)]
    assert len(trains) == len(seen) == 6 and sum(trains) == 2
    for before, now, moved in zip(seen, seen[1:], trains[1:], strict=False):
        assert (before != now) == moved


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, None, None], r"'w' must be 0 or more in every row, and isn't in 2 of 3: the first is row 1 \(null\)"),
        ([1.0, 2.0, -0.5], r"row 2 \(-0.5\).*REDITrainer"),
        ([0.0, 0.0, 0.0], "0 in all 3 rows"),
        (["a", "b", "c"], "must hold numbers"),
    ],
)
def test_columns_that_are_no_weights_are_refused(values, message, tmp_path, tiny_student):
    rows = Dataset.from_list([row | {"w": w} for row, w in zip(examples(3), values, strict=True)])
    args = WeightedRSRSFTConfig(str(tmp_path), **DEFAULTS | COLUMN)
    with pytest.raises(RSRError, match=message):
        WeightedRSRSFTTrainer(tiny_student(), args=args, train_dataset=rows)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "Set one of rsr_weighting"),
        (COLUMN | {"rsr_weighting": "rank"}, "Set one of rsr_weighting"),
        ({"rsr_weighting": "w"}, "goes into rsr_weight_column"),
        ({"rsr_weighting": "rank", "rsr_weight_temperature": 0}, "rsr_weight_temperature must be above 0"),
        (COLUMN | {"packing": True}, "packing=True puts examples into one row"),
        (COLUMN | {"loss_type": "dft"}, "loss_type='dft': set loss_type='nll'"),
        (COLUMN | {"average_tokens_across_devices": False}, "average_tokens_across_devices=False"),
        (COLUMN | {"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_with_weights_are_refused(config, message, tmp_path, tiny_student):
    rows = Dataset.from_list(weighted_rows(3))
    with pytest.raises(RSRError, match=message):
        args = WeightedRSRSFTConfig(str(tmp_path), **DEFAULTS | config)
        WeightedRSRSFTTrainer(tiny_student(), args=args, train_dataset=rows)


@pytest.mark.filterwarnings("ignore:.compute_loss_func. is deprecated:FutureWarning")
def test_a_config_or_loss_of_another_kind_is_refused(tmp_path, tiny_student_path):
    rows = weighted_rows(3)
    with pytest.raises(RSRError, match="must be a WeightedRSRSFTConfig, got RSRSFTConfig"):
        WeightedRSRSFTTrainer(tiny_student_path, RSRSFTConfig(str(tmp_path), **DEFAULTS), train_dataset=rows)
    with pytest.raises(RSRError, match="compute_loss_func"):
        build("weighted", tiny_student_path, str(tmp_path), rows, COLUMN, compute_loss_func=lambda *_, **__: None)


def test_lora_and_online_scores_train_with_weights(tiny_student_path, tmp_path):
    from peft import LoraConfig

    args = {"rsr_weighting": "rank", "rsr_rescore_strategy": "online", "num_train_epochs": 2}
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    trainer = build("weighted", tiny_student_path, str(tmp_path), examples(8), args, peft_config=lora)
    trainer.train()
    assert (trainer.table.step >= 0).all() and trainer.table.train_mode.any()
    factors = trainer._factors[:-1]
    assert factors.max() / factors.min() == pytest.approx(math.exp(7 / 8))


@pytest.mark.parametrize("kind", ["weighted", "redi"])
def test_evaluation_is_that_of_sft_trainer(kind, tiny_student_path, tmp_path):
    rows = [row | {"correct": i % 2 == 0, "problem": f"p{i // 2}"} for i, row in enumerate(weighted_rows(6))]
    trainer = build(kind, tiny_student_path, str(tmp_path), rows, COLUMN if kind == "weighted" else {})
    loss = trainer.evaluate(Dataset.from_list(rows[:2]))["eval_loss"]  # one batch
    prepared = {row["prompt"]: row for row in trainer.train_dataset}
    tokens = [surprisals(trainer.model, prepared[row["prompt"]]) for row in rows[:2]]
    assert loss == pytest.approx(torch.cat(tokens).mean().item(), rel=1e-5)


@pytest.mark.distributed
def test_two_processes_take_the_steps_of_one(tiny_student_path, tmp_path):
    jobs = [
        {"kind": "weighted", "student": tiny_student_path, "rows": weighted_rows(18), "args": SGD | COLUMN},
        {
            "kind": "weighted",
            "student": tiny_student_path,
            "rows": examples(18),
            "args": SGD | {"rsr_weighting": "rank", "rsr_rescore_strategy": "epoch"},
        },
    ]
    one = [
        naive_training.run(output_dir=str(tmp_path / f"one{i}"), **job | {"args": job["args"] | ACCUMULATED[1]})
        for i, job in enumerate(jobs)
    ]
    two_jobs = [
        job | {"output_dir": str(tmp_path / f"two{i}"), "args": job["args"] | ACCUMULATED[2]}
        for i, job in enumerate(jobs)
    ]
    (tmp_path / "jobs.json").write_text(json.dumps(two_jobs))
    two = on_processes(naive_training.__file__, tmp_path)
    for alone, *together in zip(one, *two, strict=True):
        assert rows_of_steps(together) == rows_of_steps([alone])
        assert losses_of_steps(together) == pytest.approx(losses_of_steps([alone]), rel=1e-4)
        assert together[0]["weights"] == together[1]["weights"]
        assert together[0]["weights"] == pytest.approx(alone["weights"], rel=1e-6)


ACCUMULATED = {processes: {"gradient_accumulation_steps": 4 // processes} for processes in (1, 2)}
