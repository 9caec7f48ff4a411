"""REDI by its definition: full logits in float64, pair by pair; pairs stay together; a collapse stops."""

import json

import numpy as np
import pytest
from datasets import Dataset
from trl import SFTConfig

from rsr_trl.experimental.pairs import choose_pairs
from rsr_trl.experimental.redi import REDIConfig, REDITrainer
from rsr_trl.rsr import RSRError
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


LAYOUTS = {"padded": {}, "free": {"padding_free": True, "max_length": None}}


def pool(problems: int = 7, seed: int = 0) -> list[dict]:
    """Two trajectories of each problem in random order, one right and one wrong, and a right one without a partner."""
    rng, rows = np.random.default_rng(seed), examples(2 * problems + 1)
    halves = [rng.permutation([True, False]).tolist() for _ in range(problems)]
    return [row | {"problem": f"p{i // 2}", "correct": ([*sum(halves, []), True])[i]} for i, row in enumerate(rows)]


def redi(trainer, right_weight=1.0, wrong_weight=0.8):
    """Mean over a step's pairs of -c ln p(right) / |right| + a ln p(wrong) / |wrong|."""

    def loss_of(model, rows, step):
        losses = []
        for row in (trainer.train_dataset[row] for row in rows):
            mean = surprisals(model, row).mean()
            losses.append(right_weight * mean if row["correct"] else -wrong_weight * mean)
        return sum(losses) / (len(rows) / 2)

    return loss_of


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("weights", [(1.0, 0.8), (0.5, 0.0)], ids=str)
def test_steps_are_of_the_mean_over_the_pairs_of_the_accumulated_batch(layout, weights, tiny_student_path, tmp_path):
    args = SGD | LAYOUTS[layout] | {"gradient_accumulation_steps": 3, "num_train_epochs": 2, "redi_max_fall": None}
    args |= {"redi_right_weight": weights[0], "redi_wrong_weight": weights[1]}
    trainer = build("redi", tiny_student_path, str(tmp_path / "out"), pool(), args)
    trainer.train()
    steps = numbered_rows(trainer)
    assert [len(rows) for rows in steps] == [6, 6, 2] * 2 and steps[:3] != steps[3:]
    naive = descend(tiny_student_path, trainer, steps, redi(trainer, *weights), SGD["learning_rate"])
    assert_trained_as(trainer, *naive, before=initial(tiny_student_path))


def test_logs_are_the_mean_log_probabilities_per_token_of_right_and_wrong_trajectories(tiny_student_path, tmp_path):
    args = SGD | {"learning_rate": 0.0, "gradient_accumulation_steps": 2, "num_train_epochs": 1}
    trainer = build("redi", tiny_student_path, str(tmp_path / "out"), pool(), args)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    model = trainer.model.double()
    for log, rows in zip(logs, numbered_rows(trainer), strict=True):
        for name, right in (("redi/right_logp", True), ("redi/wrong_logp", False)):
            chosen = [row for row in map(trainer.train_dataset.__getitem__, rows) if row["correct"] is right]
            assert len(chosen) == len(rows) / 2
            expected = np.mean([-surprisals(model, row).mean().item() for row in chosen])
            assert log[name] == pytest.approx(expected, rel=1e-5)
        assert log["loss"] == pytest.approx(-log["redi/right_logp"] + 0.8 * log["redi/wrong_logp"], rel=1e-5)


def test_every_batch_holds_whole_pairs_and_every_epoch_all_of_them_in_another_order(tiny_student_path, tmp_path):
    args = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "learning_rate": 0.0}
    trainer = build("redi", tiny_student_path, str(tmp_path / "out"), pool(), args)
    trainer.train()
    problems = trainer.train_dataset["problem"]
    batches = [[problems[row] for row in rows] for rows in numbered_rows(trainer)]
    for batch in batches:
        assert all(batch.count(problem) == 2 for problem in batch)
    epochs = [sum(batches[:4], []), sum(batches[4:], [])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(problems) and batches[:4] != batches[4:]


POOL = [  # problem, correct, RSR, tokens
    ("b", False, 3.0, 40),
    ("a", True, 5.0, 50),
    ("a", True, 4.0, 60),
    ("a", True, 1.0, 31),  # too short to be chosen by RSR
    ("a", None, 0.5, 60),
    ("b", True, None, 40),
    ("a", False, 7.0, 50),
    ("a", False, 6.0, 50),
    ("a", False, 8.0, 50),
    ("b", True, 2.0, 40),
    ("c", True, 2.0, 40),
]


@pytest.mark.parametrize(
    ("pairs", "expected"), [("first", [1, 6, 5, 0]), ("low", [2, 7, 9, 0]), ("high", [2, 8, 9, 0])]
)
def test_pairs_are_the_first_ones_or_those_by_rsr(pairs, expected):
    names = ("problem_id", "correct", "rsr", "rsr_num_tokens")
    rows = [dict(zip(names, row, strict=True)) | {"at": i} for i, row in enumerate(POOL)]
    chosen = choose_pairs(Dataset.from_list(rows), pairs)
    assert chosen["at"][:] == expected
    assert chosen["redi_pair"][:] == [0, 0, 1, 1] and chosen["redi_right"][:] == [True, False, True, False]


def test_what_has_no_pair_is_counted_or_an_error(caplog):
    rows = Dataset.from_list(pool(3))
    with pytest.raises(RSRError, match="None of 4 problems has both a right and a wrong trajectory"):
        choose_pairs(rows.filter(lambda row: row["correct"]), problem_column="problem")
    with pytest.raises(RSRError, match="No boolean column says which trajectories are right"):
        choose_pairs(rows.remove_columns("correct"))
    with pytest.raises(RSRError, match="'rsr'"):
        choose_pairs(rows, "low")
    choose_pairs(rows)
    assert "3 of 4 problems have a pair; the others don't train." in caplog.text


def test_a_pair_whose_half_does_not_fit_max_length_goes_as_a_whole(tiny_student_path, tmp_path):
    rows = pool()
    rows[4]["prompt"] = "x" * 90  # SFTTrainer drops the row
    args = {"max_length": 60, "shuffle_dataset": True, "num_train_epochs": 1}
    trainer = build("redi", tiny_student_path, str(tmp_path / "out"), rows, args)
    trainer.train()
    problems = [trainer.train_dataset["problem"][row] for rows in numbered_rows(trainer) for row in rows]
    assert sorted(problems) == sorted(f"p{i}" for i in (0, 1, 3, 4, 5, 6) for _ in range(2))


def test_stops_where_the_right_ones_fall_for_long(tiny_student_path, tmp_path):
    collapse = SGD | {"redi_wrong_weight": 1.5, "learning_rate": 0.3, "redi_patience": 5, "num_train_epochs": 2}
    collapse |= {"save_strategy": "steps", "save_steps": 12}
    job = ("redi", tiny_student_path, str(tmp_path), pool())
    build(*job, collapse | {"redi_max_fall": None}).train()
    message = (
        r"Stopped at step {}: in the last 5 steps, ln p per token of the right trajectories.* below the first steps"
    )
    with pytest.raises(RSRError, match=message.format(r"\d")):
        build(*job, collapse | {"redi_max_fall": 0.5}).train()
    resumed = build(*job, collapse | {"redi_max_fall": 0.5, "num_train_epochs": 9})
    with pytest.raises(RSRError, match=message.format("17")):  # it knows where the run began
        resumed.train(resume_from_checkpoint=f"{tmp_path}/checkpoint-12")


def test_resumed_in_the_middle_of_an_epoch_it_is_the_same_run(tiny_student_path, tmp_path):
    args = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 9, "redi_max_fall": None}
    job = {"kind": "redi", "student": tiny_student_path, "rows": pool(), "args": args, "output_dir": str(tmp_path)}
    whole = naive_training.run(**job)
    resumed = naive_training.run(**job, resume_from=f"{tmp_path}/checkpoint-9")
    assert resumed["record"] == [entry for entry in whole["record"] if entry[0] >= 9]
    assert resumed["weights"] == whole["weights"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"per_device_train_batch_size": 3}, "must be even"),
        ({"redi_wrong_weight": -1}, "redi_wrong_weight must be 0 or more"),
        ({"redi_pairs": "lowest"}, "redi_pairs must be"),
        ({"packing": True}, "packing=True, which joins rows"),
        ({"loss_type": "dft"}, "loss_type='dft'"),
        ({"average_tokens_across_devices": False}, "average_tokens_across_devices=False"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_with_pairs_are_refused(config, message, tmp_path, tiny_student):
    with pytest.raises(RSRError, match=message):
        args = REDIConfig(str(tmp_path), **DEFAULTS | config)
        REDITrainer(tiny_student(), args=args, train_dataset=Dataset.from_list(pool()))


def test_a_format_whose_prompts_train_is_refused(tmp_path, tiny_student_path):
    texts = [{"text": row["prompt"] + row["completion"]} | row for row in pool()]
    rows = Dataset.from_list(texts).remove_columns(["prompt", "completion"])
    with pytest.raises(RSRError, match="the prompt trains too"):
        build("redi", tiny_student_path, str(tmp_path), rows, {})
    with pytest.raises(RSRError, match="must be a REDIConfig, got SFTConfig"):
        REDITrainer(tiny_student_path, SFTConfig(str(tmp_path), use_cpu=True, bf16=False), train_dataset=rows)


@pytest.mark.distributed
def test_two_processes_take_the_steps_of_one(tiny_student_path, tmp_path):
    job = {"kind": "redi", "student": tiny_student_path, "rows": pool(9)}
    args = SGD | {"redi_max_fall": None, "save_strategy": "steps", "save_steps": 4, "num_train_epochs": 2}
    on_one = args | {"gradient_accumulation_steps": 4}
    on_two = args | {"gradient_accumulation_steps": 2}
    one = naive_training.run(**job, output_dir=str(tmp_path / "one"), args=on_one)
    two = job | {"output_dir": str(tmp_path / "two"), "args": on_two}
    jobs = [two, two | {"resume_from": f"{tmp_path}/two/checkpoint-4"}]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    whole, resumed = zip(*on_processes(naive_training.__file__, tmp_path), strict=True)
    assert rows_of_steps(whole) == rows_of_steps([one])
    assert losses_of_steps(whole) == pytest.approx(losses_of_steps([one]), rel=1e-4)
    assert whole[0]["weights"] == whole[1]["weights"] == pytest.approx(one["weights"], rel=1e-6)
    logs = [[log["redi/right_logp"] for log in run["logs"] if "loss" in log] for run in (one, *whole)]
    assert logs[1] == logs[2] == pytest.approx(logs[0], rel=1e-5)
    for one_process in whole:  # a pair is in one process's batch
        assert all(len(rows) in (0, 2) for _, rows, _ in one_process["record"])
    for before, after in zip(whole, resumed, strict=True):
        assert after["record"] == [entry for entry in before["record"] if entry[0] >= 4]
        assert after["weights"] == before["weights"]
