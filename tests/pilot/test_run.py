"""The pilot's arms: what they train on, that they are comparable, and that finished ones stay."""

import json
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset
from filelock import FileLock
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTTrainer

from rsr_trl.data import Columns
from rsr_trl.pilot import held_out
from rsr_trl.pilot import run as run_module
from rsr_trl.pilot.config import PilotConfig
from rsr_trl.pilot.held_out import HeldOut, same_number
from rsr_trl.pilot.run import Arm, Pilot
from rsr_trl.pilot.strategies import Pool, parse_strategies
from rsr_trl.scoring.scorer import RSRScorer


SETTINGS = {
    **{"num_train_epochs": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "use_cpu": True},
    **{"lr_scheduler_type": "constant", "activation_checkpointing": False},
}


def rows_of(count: int, seed: int, each: int = 3) -> list[dict]:
    """`count` problems with `each` trajectories of a random text."""
    rng, letters, rows = np.random.default_rng(seed), list("abcdefghij 0123456789=+"), []
    for problem in range(count):
        prompt = f"{seed}/{problem}: {''.join(rng.choice(letters, 6))} ="
        for teacher in "ABC"[:each]:
            completion = f" {''.join(rng.choice(letters, rng.integers(4, 30)))} {problem}"
            row = {"problem_id": f"{seed}-{problem}", "prompt": prompt, "completion": completion, "teacher": teacher}
            rows.append(row | {"gold": str(problem)})
    return rows


@pytest.fixture
def make(tiny_student_path, tmp_path):
    """`make(names, each=3, **settings)`: a pilot on a tiny student. What it says is in its `lines`."""

    def build(names, seeds=(0,), each=3, num_examples=4, folder="out", answers=False, **settings) -> Pilot:
        lines, strategies = [], parse_strategies(names)
        rows = RSRScorer(tiny_student_path).score(Dataset.from_list(rows_of(8, 0, each)))
        pool = Pool(rows, Columns(teacher="teacher", problem="problem_id"), strategies, num_examples, min_tokens=0)
        eval_rows = Dataset.from_list(rows_of(5, 1, 1))
        held_out = HeldOut(eval_rows, "problem_id", "gold" if answers else None, same_number, max_new_tokens=4)
        args, student = PilotConfig(str(tmp_path / folder), **SETTINGS | settings), {"model": tiny_student_path}
        pilot = Pilot(student, args, pool, held_out, strategies, seeds, {"data": "toy"}, say=lines.append)
        pilot.lines = lines
        return pilot

    return build


@pytest.fixture
def trained(monkeypatch):
    """Lists the texts of all trainings, in order; RSRSFTTrainer fills a batch up with empty ones, which aren't."""
    seen = []

    def recording(trainer_class):
        class Recording(trainer_class):
            def training_step(self, model, inputs, *args, **kwargs):
                for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
                    if text := self.processing_class.decode(ids[mask.bool()], skip_special_tokens=True):
                        seen.append(text)
                return super().training_step(model, inputs, *args, **kwargs)

        return Recording

    for name in ("SFTTrainer", "RSRSFTTrainer"):
        monkeypatch.setattr(run_module, name, recording(getattr(run_module, name)))
    return seen


def by_text(pilot, column: str) -> dict:
    """Text of each trajectory of the pool -> its value of a column."""
    return {row["prompt"] + row["completion"]: row[column] for row in pilot.pool.dataset}


def test_a_shuffled_arm_trains_on_its_choice_once_an_epoch(make, trained):
    pilot = make(["rsr"])
    arm = Arm(pilot.strategies[1], 1)
    record = pilot.run_arm(arm)
    (rows,) = pilot.choose(arm)
    texts = list(by_text(pilot, "rsr"))
    assert sorted(trained[:4]) == sorted(trained[4:]) == sorted(texts[row] for row in rows)
    assert (record["steps"], record["examples"]) == (4, 4)
    completions = pilot.pool.dataset.select(rows)["completion"]
    assert record["tokens"] == 2 * sum(len(completion.encode()) for completion in completions)
    assert [log["step"] for log in record["train_loss"]] == [1, 2, 3, 4]
    assert [point["step"] for point in record["held_out_loss"]] == [2, 4]


def test_an_ordered_arm_goes_from_the_lowest_ratio_to_the_highest_in_every_epoch(make, trained):
    pilot = make(["rsr_ordered"])
    pilot.run_arm(Arm(pilot.strategies[-1], 0))
    ratios = [by_text(pilot, "rsr")[text] for text in trained]
    assert ratios[:4] == sorted(ratios[:4]) == ratios[4:]


@pytest.mark.parametrize("batch", [2, 4])  # neither divides the examples: the last batch of an epoch is smaller
def test_renewed_arms_train_on_one_trajectory_of_each_problem_an_epoch_in_as_many_steps(make, trained, batch):
    pilot = make(["rsr_rescored"], num_examples=5, num_train_epochs=3, per_device_train_batch_size=batch)
    problem, completion, problems = by_text(pilot, "problem_id"), by_text(pilot, "completion"), []
    for strategy in pilot.strategies[1:]:
        trained.clear()
        record = pilot.run_arm(Arm(strategy, 0))
        assert (record["steps"], len(trained)) == (3 * -(-5 // batch), 15)
        problems += [sorted(problem[text] for text in trained[i : i + 5]) for i in (0, 5, 10)]
        if record["tokens"] is not None:  # here a token is a byte
            assert record["tokens"] == sum(len(completion[text].encode()) for text in trained)
    assert all(len(set(epoch)) == 5 and epoch == problems[0] for epoch in problems)


def test_rescored_takes_the_lowest_ratio_of_the_student_as_it_is(make, trained):
    pilot = make(["rsr_rescored"], num_examples=8)
    pilot.run_arm(Arm(pilot.strategies[-1], 0))
    ratio, problem = by_text(pilot, "rsr"), by_text(pilot, "problem_id")
    lowest = {problem[text]: text for text in sorted(ratio, key=ratio.get, reverse=True)}
    assert set(trained[:8]) == set(lowest.values())


def test_where_there_is_nothing_to_choose_arms_of_a_seed_are_equal_to_the_last_bit(make):
    result = make(["rsr"], seeds=(0, 1), each=1, answers=True).run()
    for row in result["table"]:
        assert row["mean"] == 0 and not row["significant"]
    assert len({arm["loss"] for arm in result["arms"] if arm["strategy"] == "random"}) == 2  # seeds do differ
    assert not any("as large as those observed" in sentence for sentence in result["verdict"])


def stats(folder) -> dict[str, tuple]:
    """What changes if a file is written again."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("[!.]*")}


def strip(result: dict) -> dict:
    """Without clocks."""
    arms = [{name: value for name, value in arm.items() if "seconds" not in name} for arm in result["arms"]]
    return {**result, "cost": None, "arms": arms}


@pytest.mark.slow
def test_goes_on_where_it_stopped_and_gives_what_an_undisturbed_one_gives(make, monkeypatch, tmp_path):
    whole = make(["rsr", "rank"], folder="whole").run()
    train, trainings = SFTTrainer.train, []

    def dying(self, *args, **kwargs):
        trainings.append(self)
        if len(trainings) == 3:  # after the trial and the first arm
            raise KeyboardInterrupt
        return train(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SFTTrainer, "train", dying)
        make(["rsr", "rank"]).run()
    folder = tmp_path / "out" / "arms"
    done, pilot = stats(folder), make(["rsr", "rank"])
    assert sorted(done) == ["before.json", "random-seed0.json"]
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(ValueError, match="Another pilot is running in"):
        pilot.run()
    result = pilot.run()
    assert "2 of 4 arms are done already." in pilot.lines
    assert {name: stats(folder)[name] for name in done} == done
    assert strip(result) == strip(whole)
    assert json.loads((tmp_path / "out" / "pilot.json").read_text()) == result
    # Strategies can be added, what is damaged is done again, and nothing else can be changed.
    done = stats(folder)
    (folder / "rsr-seed0.json").write_text('{"run": ')
    more = make(["rsr", "rank", "length"]).run()
    assert [arm["strategy"] for arm in more["arms"]] == [None, "random", "rsr", "rank", "length"]
    assert strip(more)["arms"][:4] == strip(result)["arms"]
    assert {name for name, stat in done.items() if stats(folder)[name] != stat} == {"rsr-seed0.json"}
    with pytest.raises(ValueError, match="other settings. What differs: recipe.learning_rate: 0.01 -> 0.001"):
        make(["rsr"], learning_rate=1e-3).run()
    with pytest.raises(ValueError, match="budget.examples: 4 -> 3"):
        make(["rsr"], num_examples=3).run()


def test_result_says_what_was_measured(make, tiny_student_path):
    pilot = make(["rsr"], seeds=(3, 4), answers=True)
    result = pilot.run()
    before, *arms = result["arms"]
    model = AutoModelForCausalLM.from_pretrained(tiny_student_path, dtype="float32")
    loss = pilot.held_out.loss(model, AutoTokenizer.from_pretrained(tiny_student_path))
    assert before["loss"] == pytest.approx(loss.mean(), rel=1e-6)
    assert before["strategy"] is None and before["steps"] == 0
    for row in result["table"]:
        names = (row["strategy"], row["control"])
        own, control = ([arm[row["metric"]] for arm in arms if arm["strategy"] == name] for name in names)
        assert row["mean"] == pytest.approx(np.mean(own) - np.mean(control))
        assert row["low"] <= row["mean"] <= row["high"] and row["these_runs_only"]
    assert sum(arms[0]["teachers"].values()) == 4
    assert "4 runs x (about 4 steps x" in next(line for line in pilot.lines if line.startswith("Estimated cost"))
    json.dumps(result, allow_nan=False)


def test_a_dry_run_says_the_cost_and_writes_nothing(make, tmp_path):
    pilot = make(["rsr", "rsr_rescored"], seeds=(0, 1))
    cost = pilot.run(dry_run=True)
    assert cost["arms"] == 8 and cost["steps_per_arm"] == 4 and cost["seconds"] > 0
    assert [line.split()[0] for line in pilot.lines] == ["Timing", "Estimated"] and not (tmp_path / "out").exists()


def test_a_dry_run_is_bounded_on_a_slow_machine(make, monkeypatch):
    """Where a step, a few rows and a few tokens already take the time that there is, it does no more than these."""
    pilot, done = make(["rsr"], answers=True), Counter()
    pilot.held_out.max_new_tokens = 64
    score_rows, generate, on_step_end = RSRScorer.score_rows, held_out.generate, run_module._Watch.on_step_end
    monkeypatch.setattr(run_module, "TRIAL_SECONDS", 0.0)
    monkeypatch.setattr(held_out, "PROBE_SECONDS", 0.0001)

    def count_rows(self, dataset, *more):
        done["rows"] += len(dataset)
        return score_rows(self, dataset, *more)

    def count_tokens(model, tokenizer, prompts, max_new_tokens):
        done["tokens"] += max_new_tokens
        return generate(model, tokenizer, prompts, max_new_tokens)

    monkeypatch.setattr(RSRScorer, "score_rows", count_rows)
    monkeypatch.setattr(held_out, "generate", count_tokens)
    monkeypatch.setattr(
        run_module._Watch, "on_step_end", lambda *a, **k: (done.update(steps=1), on_step_end(*a, **k))[1]
    )
    assert pilot.run(dry_run=True)["seconds"] > 0
    assert done == {"steps": 1, "rows": 4, "tokens": 16}


def test_lora(make):
    pilot = make(["rsr"])
    full = pilot.run_arm(pilot.plan[1])["loss"]
    pilot.student["peft_config"] = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    before, after = (pilot.run_arm(arm)["loss"] for arm in (Arm(), pilot.plan[1]))
    assert after not in (pytest.approx(full, rel=1e-6), pytest.approx(before, rel=1e-6))


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["rsr_rescored"], {"num_train_epochs": 1}, "re-selects every epoch: raise --num_train_epochs above 1"),
        (["rsr_rescored"], {"num_train_epochs": 2.5}, "whole epochs, got --num_train_epochs 2.5"),
        (["rsr"], {"rsr_sampling": "ordered"}, "--rsr_sampling ordered: the pilot sets this"),
        (["rsr"], {"folder": "taken"}, "contains files that aren't a pilot's .first: thesis.txt."),
        (["rsr"], {"max_length": 8}, "no token to train on within 8 tokens: raise --max_length"),
    ],
)
def test_errors(make, names, options, message, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").touch()
    with pytest.raises(ValueError, match=message):
        make(names, **options).run()
