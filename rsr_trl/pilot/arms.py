"""One arm of a pilot: a fresh student, trained on what its strategy chooses, and measured on the held-out problems.

The trainers are TRL's SFTTrainer and RSRSFTTrainer; nothing is kept of the student but what it scored.
"""

import gc
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

from rsr_trl.pilot.config import PilotConfig
from rsr_trl.pilot.held_out import HeldOut, Scores
from rsr_trl.pilot.strategies import RESCORED, Budget, Pool, Strategy
from rsr_trl.scoring.scorer import FORMAT_COLUMNS
from rsr_trl.training.config import RSRSFTConfig
from rsr_trl.training.trainer import RSRSFTTrainer


if TYPE_CHECKING:
    from peft import PeftConfig

TRIAL_STEPS = 4  # of the training that measures a step


@dataclass(frozen=True)
class Arm:
    """
    A training of the pilot.

    Args:
        strategy ([`Strategy`], *optional*): How it chooses; `None` is the student as it is, without training.
        seed (`int`, *optional*, defaults to `0`): Seed of the problems, of the order and of everything else.
    """

    strategy: Strategy | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        return "before" if self.strategy is None else f"{self.strategy.name}, seed {self.seed}"

    @property
    def file_name(self) -> str:
        return "before" if self.strategy is None else f"{quote(self.strategy.name, safe='')}-seed{self.seed}"


@dataclass(frozen=True)
class Student:
    """The student as every arm begins with it: what SFTTrainer takes of the same names."""

    model: str
    quantization_config: object | None = None
    peft_config: "PeftConfig | None" = None


@dataclass
class Training:
    """What an arm trained on, and how it went."""

    examples: int = 0
    tokens: int | None = 0  # scored tokens, over all epochs; unknown of a choice that is made while it trains
    steps: int = 0
    seconds: float = 0.0
    train_loss: list[dict] = field(default_factory=list)  # step, loss
    held_out_loss: list[dict] = field(default_factory=list)  # step, loss; the last is that of the finished student


class Arms:
    """
    Runs arms, one after another.

    Args:
        student ([`Student`]): Where each begins.
        args ([`PilotConfig`]): Recipe of the trainings.
        pool ([`Pool`]): Trajectories to choose from.
        held_out ([`HeldOut`]): Problems to measure on.
        budget ([`Budget`]): How much each trains on.
        max_new_tokens (`int`): Length limit of responses.
    """

    def __init__(
        self,
        student: Student,
        args: PilotConfig,
        pool: Pool,
        held_out: HeldOut,
        budget: Budget,
        max_new_tokens: int,
    ):
        self.student, self.args, self.pool, self.held_out = student, args, pool, held_out
        self.budget, self.max_new_tokens = budget, max_new_tokens

    def check(self, strategy: Strategy, seeds: list[int]) -> None:
        """Raise `ValueError` for what can't be trained, before anything is."""
        for seed in seeds:
            rows = self.choose(strategy, seed)
        if strategy.renewed and self.num_epochs(len(rows[0])) < 2:
            raise ValueError(
                f"{strategy.name} chooses anew each epoch, and there is one only: raise num_train_epochs."
            )
        if strategy.renewed and self.args.max_steps <= 0 and self.args.num_train_epochs % 1:
            raise ValueError(f"{strategy.name} needs whole epochs, got num_train_epochs={self.args.num_train_epochs}.")

    def num_epochs(self, num_examples: int) -> int:
        """Epochs that are begun."""
        return math.ceil(self.num_steps(num_examples) / math.ceil(num_examples / self.args.batch))

    def num_steps(self, num_examples: int) -> int:
        """Steps of an arm that trains on so many examples."""
        if self.args.max_steps > 0:
            return self.args.max_steps
        return math.ceil(self.args.num_train_epochs * math.ceil(num_examples / self.args.batch))

    def choose(self, strategy: Strategy, seed: int) -> list[np.ndarray]:
        epochs = 1 if self.budget.examples is None else self.num_epochs(self.budget.examples)
        return self.pool.choose(strategy, self.budget, seed, epochs)

    def trained_tokens(self, strategy: Strategy, seed: int) -> float:
        """Scored tokens that go through an arm's training; for a choice made while it trains, by the pool's mean."""
        rows = self.choose(strategy, seed)
        count = self.budget.examples if strategy.name == RESCORED else len(rows[0])
        mean = float(self.pool.tokens[np.concatenate(rows)].mean())
        return mean * min(self.num_steps(count) * self.args.batch, self.num_epochs(count) * count)

    # ------------------------------------------------------------------------------------------------- running

    def run(self, arm: Arm) -> tuple[Training, Scores]:
        """Train and measure. On several processes all call it, and all get the result."""
        with tempfile.TemporaryDirectory() as folder:
            started, training = time.perf_counter(), Training()
            strategy = arm.strategy or Strategy("before", control=None)
            rows = self.choose(strategy, arm.seed)
            trainer = self._trainer(strategy, arm.seed, rows, folder)
            if arm.strategy is not None:
                trainer.add_callback(_HeldOutLoss(lambda: self._loss(trainer), training.held_out_loss))
                trainer.train()
                training.steps = trainer.state.global_step
                training.examples = self.budget.examples if strategy.name == RESCORED else len(rows[0])
                training.tokens = None if strategy.name == RESCORED else round(self.trained_tokens(strategy, arm.seed))
                training.train_loss = [
                    {"step": log["step"], "loss": log["loss"]} for log in trainer.state.log_history if "loss" in log
                ]
            training.seconds = time.perf_counter() - started
            scores = self._measure(trainer)
            if scores.loss is not None:
                training.held_out_loss.append({"step": training.steps, "loss": float(scores.loss.mean())})
            _free(trainer)
        return training, scores

    def trial(self, strategy: Strategy, seed: int) -> tuple[float, float]:
        """
        Train a few steps and throw the student away.

        Returns:
            Seconds of a step without the first ones, and seconds of getting ready.
        """
        with tempfile.TemporaryDirectory() as folder:
            started, times = time.perf_counter(), _StepTimes()
            trainer = self._trainer(strategy, seed, self.choose(strategy, seed), folder, max_steps=TRIAL_STEPS)
            trainer.add_callback(times)
            trainer.train()
            whole = time.perf_counter() - started
            steps = np.diff(times.ends)
            _free(trainer)
        step = float(np.median(steps[len(steps) // 2 :]))
        return step, max(0.0, whole - step * TRIAL_STEPS)

    def _trainer(
        self, strategy: Strategy, seed: int, rows: list[np.ndarray], folder: str, **changes
    ) -> SFTTrainer | RSRSFTTrainer:
        count = len(rows[0])
        changes = {"output_dir": folder, "seed": seed} | changes
        if strategy.name == RESCORED:
            count = self.budget.examples
            changes |= {"rsr_rescore_strategy": "epoch", "rsr_sampling": "random"}
            if self.pool.group_column is None:
                changes["rsr_keep_fraction"] = count / len(self.pool.dataset)
            else:
                changes["rsr_group_column"] = self.pool.group_column
            trainer_class, args = RSRSFTTrainer, self.args.for_arm(RSRSFTConfig, **changes)
        else:
            if strategy.renewed:
                # One choice after another in one long epoch, with the steps of as many epochs of one choice each.
                changes = {"max_steps": self.num_steps(count)} | changes
            if strategy.renewed or strategy.ordered:
                changes["train_sampling_strategy"] = "sequential"
            trainer_class, args = SFTTrainer, self.args.for_arm(SFTConfig, **changes)
        dataset = _trainable(self.pool, np.concatenate(rows))
        set_seed(seed)  # an adapter begins at random
        trainer = trainer_class(
            self.student.model,
            args=args,
            train_dataset=dataset,
            quantization_config=self.student.quantization_config,
            peft_config=self.student.peft_config,
        )
        if (left := len(trainer.train_dataset)) < len(dataset):
            raise ValueError(
                f"{strategy.name}: {len(dataset) - left} of {len(dataset)} chosen trajectories have no token to train "
                f"on within max_length={args.max_length}: raise it."
            )
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise ValueError("A pilot keeps a whole student on each device: launch it without FSDP and DeepSpeed.")
        trainer.remove_callback(PrinterCallback)
        return trainer

    # ------------------------------------------------------------------------------------------------- measuring

    def _measure(self, trainer: SFTTrainer) -> Scores:
        loss = self._loss(trainer)
        if self.held_out.answers is None:
            return Scores(loss, None, None, None)
        accelerator = trainer.accelerator
        responses, cut = self.held_out.respond(
            trainer.model,
            trainer.processing_class,
            self.max_new_tokens,
            self.args.per_device_eval_batch_size,
            accelerator.process_index,
            accelerator.num_processes,
            accelerator.autocast,
        )
        return Scores(loss, self.held_out.check(responses), responses, cut)

    def _loss(self, trainer: SFTTrainer) -> np.ndarray | None:
        if not self.held_out.has_references:
            return None
        accelerator = trainer.accelerator
        return self.held_out.loss(
            trainer.model, trainer.processing_class, accelerator.process_index, accelerator.num_processes
        )


def _trainable(pool: Pool, rows: np.ndarray) -> Dataset:
    """The rows with the columns that training reads."""
    wanted = {*FORMAT_COLUMNS, "text", pool.group_column}
    return pool.dataset.select_columns([name for name in pool.dataset.column_names if name in wanted]).select(rows)


def _free(trainer: SFTTrainer) -> None:
    """Let go of the student and its optimizer before the next one comes."""
    trainer.accelerator.free_memory()
    trainer.model = trainer.model_wrapped = trainer.optimizer = trainer.lr_scheduler = None
    gc.collect()


class _HeldOutLoss(TrainerCallback):
    """The held-out loss at the end of each epoch but the last, after which all is measured."""

    def __init__(self, measure: Callable[[], np.ndarray | None], curve: list[dict]):
        self.measure, self.curve = measure, curve

    def on_epoch_end(self, args, state, control, **kwargs):
        if state.global_step < state.max_steps and (loss := self.measure()) is not None:
            self.curve.append({"step": state.global_step, "loss": float(loss.mean())})


class _StepTimes(TrainerCallback):
    """When each step ended."""

    def __init__(self):
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())
