"""One arm of a pilot: a fresh student, trained on what its strategy chooses, and measured on the held-out problems.

The trainers are TRL's SFTTrainer and RSRSFTTrainer; nothing is kept of the student but its results.
"""

import gc
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import fields
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from transformers import PrinterCallback, TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

from rsr_trl.pilot.config import PilotConfig
from rsr_trl.pilot.held_out import HeldOut
from rsr_trl.pilot.strategies import RESCORED, Pool, Strategy
from rsr_trl.rsr import RSRError
from rsr_trl.training.config import RSRSFTConfig
from rsr_trl.training.trainer import RSRSFTTrainer


TRIAL_STEPS = 4  # of the training that measures a step
FORWARD = 1 / 3  # part of a training step's time that a scoring pass takes for the same tokens


class Arm(NamedTuple):
    """A training: how it chooses (`None`: the student as it is), and the seed of problems, order and all the rest."""

    strategy: Strategy | None = None
    seed: int = 0

    @property
    def file_name(self) -> str:
        return "before" if self.strategy is None else f"{quote(self.strategy.name, safe='')}-seed{self.seed}"


class Arms:
    """Runs arms with one recipe. `student` is what SFTTrainer takes: `model`, `quantization_config`, `peft_config`."""

    def __init__(self, student: dict, args: PilotConfig, pool: Pool, held_out: HeldOut):
        self.student, self.args, self.pool, self.held_out = student, args, pool, held_out

    def check(self, strategy: Strategy, seed: int) -> None:
        """Raise `RSRError` for what can't be trained, before anything is."""
        self.choose(strategy, seed)
        if strategy.renewed and self._schedule(self.pool.num_examples)[1] < 2:
            raise RSRError(f"{strategy.name} chooses again in each epoch: raise num_train_epochs above 1.")
        if strategy.renewed and self.args.max_steps <= 0 and self.args.num_train_epochs % 1:
            raise RSRError(f"{strategy.name} needs whole epochs, got num_train_epochs={self.args.num_train_epochs}.")

    def _schedule(self, num_examples: int) -> tuple[int, int]:
        """Steps of a training on so many examples, and epochs that are begun."""
        per_epoch, steps = math.ceil(num_examples / self.args.batch), self.args.max_steps
        steps = steps if steps > 0 else math.ceil(self.args.num_train_epochs * per_epoch)
        return steps, math.ceil(steps / per_epoch)

    def choose(self, strategy: Strategy, seed: int) -> list[np.ndarray]:
        """Rows of the pool that an arm trains on, as [`Pool.choose`] gives them."""
        count = self.pool.num_examples
        return self.pool.choose(strategy, seed, self._schedule(count)[1] if count else 1)

    def run(self, arm: Arm) -> dict:
        """Train and measure. On several processes all call it, and all get the record of the arm."""
        started, is_trained = time.perf_counter(), arm.strategy is not None
        strategy = arm.strategy or Strategy("before")  # which needs some rows to make a trainer
        rows = self.choose(strategy, arm.seed)
        chosen = np.concatenate(rows) if is_trained and strategy.name != RESCORED else None
        with tempfile.TemporaryDirectory() as folder:
            trainer = self._trainer(strategy, arm.seed, rows, folder)
            watch, state = _Watch(self.held_out, trainer), trainer.state
            if is_trained:
                trainer.add_callback(watch)
                trainer.train()
                state = trainer.state
            train_seconds = time.perf_counter() - started
            batch_size, autocast = self.args.per_device_eval_batch_size, trainer.accelerator.autocast
            problems = self.held_out.measure(trainer.model, trainer.processing_class, batch_size, autocast)
            _free(trainer)
        correct, loss = (_mean([problem[metric] for problem in problems]) for metric in ("correct", "loss"))
        tokens = None if chosen is None else round(state.epoch * float(self.pool.table.tokens[chosen].sum()))
        return {
            "strategy": strategy.name if is_trained else None,
            "seed": arm.seed,
            "examples": self.pool.num_examples or len(rows[0]) if is_trained else 0,
            "tokens": tokens if is_trained else 0,  # over all epochs; unknown for a choice that is made in training
            "teachers": None if chosen is None else self.pool.count_teachers(chosen),
            "steps": state.global_step,
            "seconds": round(time.perf_counter() - started, 3),
            "train_seconds": round(train_seconds, 3),
            "train_loss": [{"step": log["step"], "loss": log["loss"]} for log in state.log_history if "loss" in log],
            # At the end of each epoch; the last is that of the finished student.
            "held_out_loss": watch.losses + ([] if loss is None else [{"step": state.global_step, "loss": loss}]),
            "correct": correct,
            "loss": loss,
            "problems": problems,
        }

    def cost(self, arms: Sequence[Arm], trial: Arm, evaluation: float) -> dict:
        """What `arms` will cost: by a few steps of `trial`, and the measured seconds of an evaluation."""
        step, start = self._trial(trial)
        rows, tokens, seconds = self.choose(*trial), self.pool.table.tokens, 0.0
        usual, steps_per_arm = tokens[rows[0]].mean(), self._schedule(len(rows[0]))[0]
        for strategy, seed in arms:
            rows = self.choose(strategy, seed)
            steps, epochs = self._schedule(self.pool.num_examples or len(rows[0]))
            seconds += start + step * steps * float(tokens[np.concatenate(rows)].mean() / usual)
            if strategy.name == RESCORED:
                seconds += FORWARD * step * epochs * float(tokens[rows[0]].sum() / usual) / self.args.batch
        return {
            "arms": len(arms),
            "steps_per_arm": steps_per_arm,
            "seconds_per_step": step,
            "training_seconds": seconds,
            "evaluation_seconds_per_arm": evaluation,
            "seconds": seconds + evaluation * len(arms),
        }

    def _trial(self, arm: Arm) -> tuple[float, float]:
        """Train a few steps and throw the student away: seconds of a step without the first, and of getting ready."""
        with tempfile.TemporaryDirectory() as folder:
            started, watch = time.perf_counter(), _Watch()
            trainer = self._trainer(*arm, self.choose(*arm), folder, max_steps=TRIAL_STEPS)
            trainer.add_callback(watch)
            trainer.train()
            seconds = time.perf_counter() - started
            _free(trainer)
        step = float(np.median(np.diff(watch.ends)[1:]))
        return step, max(0.0, seconds - step * TRIAL_STEPS)

    def _trainer(self, strategy: Strategy, seed: int, rows: list[np.ndarray], folder: str, **changes) -> SFTTrainer:
        trainer_class, config_class, own = SFTTrainer, SFTConfig, {}
        if strategy.name == RESCORED:
            trainer_class, config_class, column = RSRSFTTrainer, RSRSFTConfig, self.pool.table.columns.problem
            own = {"rsr_rescore_strategy": "epoch", "rsr_sampling": "random", "rsr_group_column": column}
            if column is None:
                own["rsr_keep_fraction"] = self.pool.num_examples / len(self.pool.table)
        elif strategy.renewed or strategy.ordered:
            own = {"train_sampling_strategy": "sequential"}
        if strategy.renewed and strategy.name != RESCORED:
            # One choice after another in one long epoch, with the steps of as many epochs of one choice each.
            own["max_steps"] = self._schedule(len(rows[0]))[0]
        recipe = {f.name: getattr(self.args, f.name) for f in fields(config_class) if f.init}
        args = config_class(**recipe | {"output_dir": folder, "seed": seed} | own | changes)
        dataset = self.pool.dataset.select(np.concatenate(rows))
        set_seed(seed)  # an adapter begins at random
        trainer = trainer_class(args=args, train_dataset=dataset, **self.student)
        if dropped := len(dataset) - len(trainer.train_dataset):
            raise RSRError(
                f"{strategy.name}: {dropped} of {len(dataset)} chosen trajectories have no token to train on within "
                f"max_length={args.max_length}: raise it."
            )
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise RSRError("A pilot keeps a whole student on each device: launch it without FSDP and DeepSpeed.")
        trainer.remove_callback(PrinterCallback)
        return trainer


def _mean(values: list) -> float | None:
    return None if values[0] is None else float(np.mean(values))


def _free(trainer: SFTTrainer) -> None:
    """Let go of the student and its optimizer before the next one comes."""
    trainer.accelerator.free_memory()
    trainer.model = trainer.model_wrapped = trainer.optimizer = trainer.lr_scheduler = None
    gc.collect()


class _Watch(TrainerCallback):
    """Notes when each step ended and, if asked, the held-out loss at the end of each epoch but the last."""

    def __init__(self, held_out: HeldOut | None = None, trainer: SFTTrainer | None = None):
        self.held_out, self.trainer, self.ends, self.losses = held_out, trainer, [], []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.held_out is not None and self.held_out.has_references and state.global_step < state.max_steps:
            loss = self.held_out.loss(self.trainer.model, self.trainer.processing_class)
            self.losses.append({"step": state.global_step, "loss": float(loss.mean())})
