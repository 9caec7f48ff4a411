"""A pilot from its first arm to its verdict, in a folder that lets it go on after a stop.

An arm is a fresh student, trained by TRL on what a strategy chooses and measured on the held-out problems; nothing is
kept of it but its record, which is written whole when the arm is done.
"""

import gc
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer
from xxhash import xxh3_64_hexdigest

from rsr_trl.data import counted, duration
from rsr_trl.pilot.config import PilotConfig
from rsr_trl.pilot.differences import CONFIDENCE
from rsr_trl.pilot.held_out import HeldOut
from rsr_trl.pilot.strategies import RESCORED, Pool, Strategy
from rsr_trl.pilot.verdict import compare, notes, sentences
from rsr_trl.rsr import RSRError
from rsr_trl.scoring.loading import for_trainer
from rsr_trl.scoring.shards import differences, read_json, write_json
from rsr_trl.training.config import RSRSFTConfig
from rsr_trl.training.trainer import RSRSFTTrainer


SETTINGS, RESULT, ARMS, LOCK = "settings.json", "pilot.json", "arms", ".lock"
SCORED = "scored"  # the pool with its scores, where it came without
TRIAL_STEPS, TRIAL_SECONDS = 4, 15.0  # of the training that measures a step, at most
FORWARD = 1 / 3  # part of a training step's time that a scoring pass takes for the same tokens


class Arm(NamedTuple):
    """A training: how it chooses (`None`: the student as it is), and the seed of problems, order and all the rest."""

    strategy: Strategy | None = None
    seed: int = 0

    @property
    def file(self) -> str:
        return "before.json" if self.strategy is None else f"{quote(self.strategy.name, safe='')}-seed{self.seed}.json"


class Pilot:
    """
    Tries strategies, each once with each seed, and says what follows from it. `student` is what SFTTrainer takes as
    `model`, `quantization_config` and `peft_config`; `identity` names it, the pool and the held-out set.
    """

    def __init__(
        self,
        student: dict,
        args: PilotConfig,
        pool: Pool,
        held_out: HeldOut,
        strategies: Sequence[Strategy],
        seeds: Sequence[int],
        identity: dict,
        say: Callable[[str], None] = lambda line: None,
    ):
        self.student, self.args, self.pool, self.held_out = student, args, pool, held_out
        self.strategies, self.seeds, self.folder = list(strategies), list(seeds), Path(args.output_dir)
        self.is_main = args.process_index == 0
        self.say = say if self.is_main else lambda line: None
        # Seed by seed, so that a pilot that is stopped early has whole comparisons.
        self.plan = [Arm(strategy, seed) for seed in self.seeds for strategy in self.strategies]
        for arm in self.plan:  # an error comes before the work
            self.choose(arm)
        budget = {"examples": pool.num_examples, "tokens": pool.num_tokens}
        settings = identity | {
            "recipe": args.recipe(),
            "budget": {name: value for name, value in budget.items() if value is not None},
            "max_new_tokens": held_out.max_new_tokens,
            "group_column": pool.table.columns.problem,
            "min_tokens": pool.min_tokens,
        }
        self.settings = json.loads(json.dumps(settings))
        self._name = xxh3_64_hexdigest(json.dumps(self.settings, sort_keys=True).encode())

    def run(self, dry_run: bool = False) -> dict:
        """Run what isn't done, and return what `pilot.json` then holds; with `dry_run` only measure the cost."""
        if dry_run:
            return self._cost(self.plan)
        with self._lock() if self.is_main else nullcontext():
            files = {arm: read_json(self.folder / ARMS / arm.file) for arm in [Arm(), *self.plan] if self.is_main}
            done = {arm: record for arm, record in files.items() if record.get("run") == self._name}
            records, cost = broadcast_object_list([done])[0], None
            if records:
                self.say(f"{len(records)} of {len(self.plan) + 1} arms are done already.")
            if Arm() not in records:
                self.say("Measuring the student on the held-out problems, before any training ...")
                records[Arm()] = self._keep(Arm())
            left = [arm for arm in self.plan if arm not in records]
            if left:
                cost = self._cost(left, records[Arm()])
            for arm in left:
                records[arm] = self._keep(arm)
            result = self._sum_up(records, cost)
            if self.is_main:
                write_json(self.folder / RESULT, result)
        return result

    def _lock(self):
        """The folder, for this pilot alone."""
        check_folder(self.folder, self.settings)
        (self.folder / ARMS).mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(self.folder / LOCK).acquire(timeout=0)
        except Timeout:
            raise RSRError(
                f"Another pilot is running in {str(self.folder)!r}: wait, or choose another --output_dir."
            ) from None
        write_json(self.folder / SETTINGS, self.settings)
        return lock

    def _keep(self, arm: Arm) -> dict:
        """Run an arm and write its record."""
        record = {"run": self._name, **self.run_arm(arm)}
        if self.is_main:
            write_json(self.folder / ARMS / arm.file, record)
        name = "before" if arm.strategy is None else f"{arm.strategy.name}, seed {arm.seed}"
        measured = [] if record["loss"] is None else [f"loss {record['loss']:.4f}"]
        measured += [] if record["correct"] is None else [f"{record['correct']:.1%} right"]
        self.say(f"{name}: {', '.join(measured)} ({record['seconds']:.0f} s)")
        return record

    def _sum_up(self, records: dict[Arm, dict], cost: dict | None) -> dict:
        by_strategy = {one.name: [records[Arm(one, seed)] for seed in self.seeds] for one in self.strategies}
        table, pool = compare(by_strategy, self.strategies), self.pool
        arms = [records[arm] for arm in (Arm(), *self.plan)]
        return {
            "settings": self.settings,
            "strategies": [strategy._asdict() for strategy in self.strategies],
            "seeds": self.seeds,
            "confidence": CONFIDENCE,
            "pool": {
                "trajectories": len(pool.table),
                "left_out": pool.left_out,
                "short": pool.short,
                "problems": pool.num_problems,
            },
            "cost": cost,
            "arms": [{name: value for name, value in arm.items() if name != "problems"} for arm in arms],
            "table": table,
            "verdict": sentences(table),
            "notes": notes(arms[0], by_strategy, self.strategies, pool),
        }

    def choose(self, arm: Arm) -> list[np.ndarray]:
        """Rows of the pool that an arm trains on, as [`Pool.choose`] gives them, or an error where it can't train."""
        strategy, count, epochs = arm.strategy, self.pool.num_examples, self.args.num_train_epochs
        num_epochs = self._schedule(count)[1] if count else 1
        if strategy.renewed and num_epochs < 2:
            raise RSRError(f"{strategy.name} re-selects every epoch: raise --num_train_epochs above 1.")
        if strategy.renewed and self.args.max_steps <= 0 and epochs % 1:
            raise RSRError(f"{strategy.name} needs whole epochs, got --num_train_epochs {epochs}.")
        return self.pool.choose(strategy, arm.seed, num_epochs)

    def _schedule(self, num_examples: int) -> tuple[int, int]:
        """Steps of a training on so many examples, and epochs that are begun."""
        per_epoch, steps = math.ceil(num_examples / self.args.batch), self.args.max_steps
        steps = steps if steps > 0 else math.ceil(self.args.num_train_epochs * per_epoch)
        return steps, math.ceil(steps / per_epoch)

    def run_arm(self, arm: Arm) -> dict:
        """Train and measure. On several processes all call it, and all get the record of the arm."""
        started, is_trained = time.perf_counter(), arm.strategy is not None
        arm = arm if is_trained else Arm(self.strategies[0], self.seeds[0])  # a trainer needs some rows
        rows = self.choose(arm)
        chosen = np.concatenate(rows) if is_trained and arm.strategy.name != RESCORED else None
        with tempfile.TemporaryDirectory() as folder:
            trainer = self._trainer(arm, rows, folder)
            watch = _Watch(self.held_out, trainer)
            if is_trained:
                trainer.add_callback(watch)
                trainer.train()
            train_seconds, state = time.perf_counter() - started, trainer.state
            batch_size, autocast = self.args.per_device_eval_batch_size, trainer.accelerator.autocast
            problems = self.held_out.measure(trainer.model, trainer.processing_class, batch_size, autocast)
        means = {name: [problem[name] for problem in problems] for name in ("correct", "loss")}
        means = {name: None if values[0] is None else float(np.mean(values)) for name, values in means.items()}
        if self.held_out.has_references:
            watch.losses.append({"step": state.global_step, "loss": means["loss"]})
        tokens = (
            None if chosen is None else round(state.epoch * float(self.pool.table.tokens[chosen].sum()) / len(rows))
        )
        return {
            "strategy": arm.strategy.name if is_trained else None,
            "seed": arm.seed if is_trained else 0,
            "examples": self.pool.num_examples or len(rows[0]) if is_trained else 0,
            "tokens": tokens if is_trained else 0,  # over all epochs; unknown for a choice that is made in training
            "teachers": None if chosen is None else self.pool.count_teachers(chosen),
            "steps": state.global_step,
            "seconds": round(time.perf_counter() - started, 3),
            "train_seconds": round(train_seconds, 3),
            "train_loss": [{"step": log["step"], "loss": log["loss"]} for log in state.log_history if "loss" in log],
            "held_out_loss": watch.losses,  # at the end of each epoch; the last is that of the finished student
            **means,
            "problems": problems,
        }

    def _trainer(self, arm: Arm, rows: list[np.ndarray], folder: str, **changes) -> SFTTrainer:
        gc.collect()  # the last student goes before this one comes
        strategy, trainer_class, config_class, own = arm.strategy, SFTTrainer, SFTConfig, {}
        if strategy.name == RESCORED:
            trainer_class, config_class, column = RSRSFTTrainer, RSRSFTConfig, self.pool.table.columns.problem
            own = {"rsr_rescore_strategy": "epoch", "rsr_sampling": "random", "rsr_group_column": column}
            own["rsr_min_tokens"] = 0  # the pool has left them out
            own |= {} if column else {"rsr_keep_fraction": self.pool.num_examples / len(self.pool.table)}
        elif strategy.ordered:
            own = {"train_sampling_strategy": "sequential"}
        recipe = {f.name: getattr(self.args, f.name) for f in fields(config_class) if f.init}
        args = config_class(**recipe | {"output_dir": folder, "seed": arm.seed} | own | changes)
        dataset, student = self.pool.dataset.select(np.concatenate(rows)), self.student
        if gguf := for_trainer(student["model"], args.model_init_kwargs, student.get("quantization_config")):
            student, args.model_init_kwargs = student | gguf, None
        set_seed(arm.seed)  # an adapter begins at random
        trainer = trainer_class(args=args, train_dataset=dataset, **student)
        if dropped := len(dataset) - len(trainer.train_dataset):
            raise RSRError(
                f"{strategy.name}: {dropped} of {len(dataset)} chosen trajectories have no token to train on within "
                f"{args.max_length} tokens: raise --max_length."
            )
        if strategy.renewed and trainer_class is SFTTrainer:
            trainer._get_train_sampler = lambda *dataset: _Renewed(len(rows[0]), len(rows), arm.seed)
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _cost(self, left: Sequence[Arm], before: dict | None = None) -> dict:
        """
        What `left` costs, said before it is paid: by a trial of the first arm, and the evaluation of `before`; without
        that by a part of one.
        """
        self.say(f"Timing up to {TRIAL_STEPS} training steps{'' if before else ' and a part of an evaluation'} ...")
        step, start, evaluation = self._trial(self.plan[0], with_evaluation=before is None)
        rows, tokens, seconds = self.choose(self.plan[0]), self.pool.table.tokens, 0.0
        usual, evaluation = tokens[rows[0]].mean(), evaluation if before is None else before["seconds"]
        for arm in left:
            chosen = np.concatenate(self.choose(arm))
            steps, epochs = self._schedule(self.pool.num_examples or len(chosen))
            seconds += start + step * steps * float(tokens[chosen].mean() / usual)
            if arm.strategy.name == RESCORED:
                seconds += FORWARD * step * epochs * float(tokens[chosen].sum() / usual) / self.args.batch
        cost = {
            "arms": len(left),
            "steps_per_arm": self._schedule(len(rows[0]))[0],
            "seconds_per_step": step,
            "training_seconds": seconds,
            "evaluation_seconds_per_arm": evaluation,
            "seconds": seconds + evaluation * len(left),
        }
        self.say(
            f"Estimated cost: {counted(len(left), 'run')} x (about {counted(cost['steps_per_arm'], 'step')} x "
            f"{step:,.1f} s + {evaluation:,.1f} s evaluation), about {duration(cost['seconds'])} in all."
        )
        return cost

    def _trial(self, arm: Arm, with_evaluation: bool) -> tuple[float, float, float]:
        """
        Train a few steps and throw the student away: seconds of a step without the first, of getting ready, and of an
        evaluation.
        """
        with tempfile.TemporaryDirectory() as folder:
            started, watch, evaluation = time.perf_counter(), _Watch(), 0.0
            # Processes that look at their own clocks would stop at different steps.
            watch.budget = TRIAL_SECONDS if self.args.world_size <= 1 else math.inf
            trainer = self._trainer(arm, self.choose(arm), folder, max_steps=TRIAL_STEPS)
            trainer.add_callback(watch)
            trainer.train()
            seconds = time.perf_counter() - started
            if with_evaluation:
                how = (self.args.per_device_eval_batch_size, trainer.accelerator.autocast)
                evaluation = self.held_out.estimate(trainer.model, trainer.processing_class, *how)
        steps = np.diff([watch.begin, *watch.ends])
        step = float(np.median(steps[min(2, len(steps) - 1) :]))
        return step, max(0.0, seconds - step * len(steps)), evaluation


def check_folder(path: Path, settings: dict) -> None:
    """Raise `RSRError` unless `path` is absent, empty or a pilot's, one of these `settings` as far as they go."""
    names = {file.name for file in path.iterdir()} if path.exists() else set()
    if foreign := sorted(names - {SETTINGS, RESULT, ARMS, LOCK, SCORED}):
        raise RSRError(
            f"{str(path)!r} contains files that aren't a pilot's (first: {foreign[0]}): choose another --output_dir."
        )
    known, settings = read_json(path / SETTINGS), json.loads(json.dumps(settings))
    if known and (others := differences({name: known.get(name) for name in settings}, settings)):
        raise RSRError(
            f"{str(path)!r} holds a pilot with other settings. What differs: {'; '.join(others)}. Give the same "
            "options as before to resume, or choose another --output_dir."
        )


def leave() -> None:
    """Leave the group of processes at the end of the program, as [`RSRSFTTrainer.end`] does."""
    on_gloo = torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo"
    PartialState().destroy_process_group()
    time.sleep(1 if on_gloo else 0)


class _Renewed(Sampler[int]):
    """Draws the `count` rows of one choice after another, of `num_choices` in a dataset: one an epoch, shuffled."""

    def __init__(self, count: int, num_choices: int, seed: int):
        self.count, self.num_choices, self.seed, self.epoch = count, num_choices, seed, 0

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        first = self.epoch % self.num_choices * self.count
        return iter((first + torch.randperm(self.count, generator=generator)).tolist())


class _Watch(TrainerCallback):
    """Notes when each step ended and, if asked, the held-out loss at the end of each epoch but the last."""

    def __init__(self, held_out: HeldOut | None = None, trainer: SFTTrainer | None = None):
        self.held_out, self.trainer, self.begin, self.ends, self.losses = held_out, trainer, 0.0, [], []
        self.budget = math.inf  # seconds after which the training stops

    def on_train_begin(self, args, state, control, **kwargs):
        self.begin = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())
        control.should_training_stop |= self.ends[-1] - self.begin > self.budget

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.held_out is not None and self.held_out.has_references and state.global_step < state.max_steps:
            loss = self.held_out.loss(self.trainer.model, self.trainer.processing_class)
            self.losses.append({"step": state.global_step, "loss": float(loss.mean())})
