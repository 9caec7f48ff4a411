"""The scores of a training while it runs: what is known of each row, when it is measured again, in which order rows
come, and what is logged and kept of it.

It knows neither the trainer nor the model: what measures is passed in. Every process has its own `LiveScores`, and all
do the same at the same moments, so that tables and orders stay equal.
"""

import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.utils import logging

from rsr_trl.rsr import RSR, SCORE_PREFIX, RSRError
from rsr_trl.scoring.shards import write_json
from rsr_trl.selection.choose import balance
from rsr_trl.training.live_table import ScoreHistory, ScoreTable, spearman, summarize, summarize_teachers
from rsr_trl.training.prepare import SOURCE_ROW, correct_by_problem, labels_of
from rsr_trl.training.resume import SETTINGS_NAME, changes, check_changes, deciding_settings, digests, read_ahead
from rsr_trl.training.sampler import RSRSampler


logger = logging.get_logger(__name__)

SCORES_NAME, ORDER_NAME = "rsr_scores.safetensors", "rsr_order.safetensors"  # in a checkpoint


class LiveScores(TrainerCallback):
    """
    Table, order, history and re-scoring of a training. `sampler` and `steps_per_epoch` are of the last `train()`. As a
    callback it is called at the moments of the training, on all processes in step.

    `table` has the dataset's own scores, if it brought any; `dataset` the prepared rows, of `lengths` tokens.
    `measure` gives (rows, mean clipped rank, mean surprisal) of rows with the student as it is then; `log` takes named
    numbers for the next log.
    """

    def __init__(self, table: ScoreTable, accelerator, dataset, lengths: np.ndarray, args, measure, log):
        self.table, self.lengths, self.args, self.accelerator = table, lengths, args, accelerator
        self._measure, self._log = measure, log
        self._dataset, self._groups = dataset, labels_of(dataset, args.rsr_group_column)
        self._teachers = labels_of(dataset, args.rsr_teacher_column)
        self._correct = correct_by_problem(dataset, args.rsr_group_column)
        self._history = ScoreHistory(args.output_dir, np.asarray(dataset[SOURCE_ROW][:]))
        # Of the current step on this process, each of shape (rows, 3): row, mean clipped rank, mean surprisal.
        self._online: list[np.ndarray] = []
        self._unwritten = np.zeros(len(table), dtype=bool)  # measured online and not yet in the history
        # Of the next call of train(): whether the table describes its first student, and goes on from a checkpoint.
        self._known, self._resumed = bool((table.step >= 0).any()), False
        self._warned, self._digests = False, None

    def start_sampler(self, batch_size: int) -> RSRSampler:
        """The order of a call of `train()`, with batches of `batch_size` rows on each process."""
        args = self.args
        self._step_draws = batch_size * args.gradient_accumulation_steps * args.world_size
        names = ("sampling", "temperature", "prefer", "keep_fraction", "keep_per_group", "min_tokens")
        names += ("score_threshold",)
        self.sampler = RSRSampler(
            self.table,
            **{name: getattr(args, f"rsr_{name}") for name in names},
            groups=None if self._groups is None else self._groups[0],
            seed=args.seed if args.data_seed is None else args.data_seed,
            # All processes get equally many full batches, so that accelerate repeats no example to even them out.
            pad_to_multiple_of=1 if args.dataloader_drop_last else batch_size * args.world_size,
            live=False,
        )
        micro_batches = len(self.sampler) // (batch_size * args.world_size)  # on each process
        self.steps_per_epoch = max(1, math.ceil(micro_batches / args.gradient_accumulation_steps))
        self._settings = deciding_settings(args, batch_size, self.steps_per_epoch)
        return self.sampler

    def on_train_begin(self, args, state: TrainerState, control, **kwargs):
        """Score for the first time, unless the dataset or a checkpoint has brought scores, or none are needed."""
        if self.args.rsr_rescore_strategy == "online" and state.num_train_epochs <= 1:
            raise RSRError(
                "rsr_rescore_strategy='online' shows its new order from the next epoch, and max_steps="
                f"{self.args.max_steps} ends in the first: raise it or set rsr_rescore_strategy='steps'."
            )
        if self.accelerator.is_main_process:
            self._history.start(state.global_step if self._resumed else None)
        self._warned = False
        if not self._resumed:
            if self._known or self.table.static is not None:
                self._log_scores()
            elif self.args.needs_scores:
                self.rescore(state.global_step)
            if self._known:
                self._write_history(np.flatnonzero(self.table.num_tokens), state.global_step, "dataset")
            if nothing := self._nothing_trains():
                raise RSRError(nothing)
        elif self.args.needs_scores and self.table.static is None and not (self.table.step >= 0).any():
            self.rescore(state.global_step)  # the run of the checkpoint needed none
            self.sampler.refresh()
        # Neither describes the student of a later call of train().
        self._known = self._resumed = False

    def on_epoch_begin(self, args, state: TrainerState, control, **kwargs):
        """Start the epoch's order, and score again where the strategy says so."""
        step, strategy = state.global_step, self.args.rsr_rescore_strategy
        epoch, in_epoch = divmod(step, self.steps_per_epoch)
        # accelerate doesn't reach it through the sampler that skips batches after resuming on 2+ processes.
        self.sampler.set_epoch(epoch)
        if epoch == 0 or in_epoch > 0:
            return
        moments = np.unique(self.table.step[self.table.num_tokens > 0])
        if strategy == "epoch" or (strategy == "steps" and moments.size > 1):  # only scores of one moment compare
            self.rescore(step)
        elif strategy == "online":  # what the last epoch didn't train on
            self.rescore(step, ~self.table.train_mode | (self.table.step < step - self.steps_per_epoch))
        if not self._warned and (nothing := self._nothing_trains()):
            self._warned = True  # once: the student hardly changes any more, nor do its scores
            if self.accelerator.is_main_process:
                logger.warning(f"{nothing} That is so from step {step} on.")

    def on_step_end(self, args, state: TrainerState, control: TrainerControl, **kwargs):
        """Take what the step measured, or score again in the middle of an epoch."""
        step = state.global_step
        if args.rsr_rescore_strategy == "online":
            self._take_online(step)
            if control.should_log:
                self._log_scores()
        elif args.rsr_rescore_strategy == "steps" and step % args.rescore_every(state.max_steps) == 0:
            self._rescore_in_epoch(step, state.max_steps)
        if control.should_log and args.rsr_score_threshold is not None:
            in_epoch = (step - 1) % self.steps_per_epoch + 1
            self._log({"rsr/masked_rows": self.sampler.num_masked(in_epoch * self._step_draws)})

    def on_epoch_end(self, args, state: TrainerState, control, **kwargs):
        self.write_online_history(state.global_step)

    def _nothing_trains(self) -> str | None:
        """What is wrong where the score threshold lets no example through; the same on every process."""
        threshold, scores = self.args.rsr_score_threshold, self.table.scores
        if threshold is None or self.sampler.kept_share() > 0:
            return None
        low, scores, known = self.args.rsr_prefer == "low", scores[np.isfinite(scores)], "none has one"
        if scores.size:
            nearest = f"lowest is {scores.min():.4g}" if low else f"highest is {scores.max():.4g}"
            known = f"the {nearest}, the median {np.median(scores):.4g}"
        return (
            f"No example trains: rsr_score_threshold={threshold} lets scores {self.table.score!r} of {threshold} and "
            f"{'lower' if low else 'higher'} through, and of {len(self.table)} examples {known}. "
            f"{'Raise' if low else 'Lower'} the threshold."
        )

    def rescore(self, step: int, rows: np.ndarray | slice = slice(None)) -> None:
        """Measure rows (all by default) with the student as it is after `step` steps, on all processes together."""
        rows = np.arange(len(self.table))[rows]
        rows = rows[self.table.num_tokens[rows] > 0]
        if not rows.size:
            return
        before, started = self.table.scores, time.perf_counter()
        rows, *measured = self._measure(rows)
        self.table.update(rows, *measured, step=step)
        seconds = time.perf_counter() - started
        logs = {"rsr/seconds": seconds, "rsr/tokens_per_second": float(self.lengths[rows].sum() / seconds)}
        if (moved := spearman(before[rows], self.table.scores[rows])) is not None:
            logs["rsr/spearman_with_last"] = moved
        self._log_scores(logs)
        self._write_history(rows, step, "pass")

    def _rescore_in_epoch(self, step: int, max_steps: int) -> None:
        """Re-score what this epoch may still draw, or all rows if only the next epoch can follow the new scores."""
        args, in_epoch = self.args, step % self.steps_per_epoch
        # Counted as if each batch were a step, so that the same steps see the new scores on any number of processes.
        draws = (in_epoch + read_ahead(args)) * self._step_draws
        if step == max_steps:
            return
        if in_epoch > 0 and draws < self.sampler.num_kept:
            self.sampler.commit(draws)
            self.rescore(step, self.sampler.candidates())
            self.sampler.refresh()
        elif step - in_epoch + (self.steps_per_epoch if in_epoch else 0) < max_steps:
            self.rescore(step)

    def add_online(self, rows: np.ndarray, mean_clipped_rank: np.ndarray, mean_surprisal: np.ndarray) -> None:
        """What a micro-batch of this process measured while it trained; row -1 doesn't train."""
        self._online.append(np.stack([rows, mean_clipped_rank, mean_surprisal], axis=1))

    def _take_online(self, step: int) -> None:
        """Write what the training step measured, on all processes, into every process's table."""
        local = np.concatenate([np.empty((0, 3)), *self._online])  # nothing where the step was empty
        self._online.clear()
        padded = np.full((self._step_draws // self.args.world_size, 3), np.nan)
        padded[: len(local)] = local
        taken = self.accelerator.gather(torch.from_numpy(padded).to(self.accelerator.device)).cpu().numpy()
        taken = taken[taken[:, 0] >= 0]
        taken = taken[self.table.num_tokens[taken[:, 0].astype(np.int64)] > 0]
        rows = taken[:, 0].astype(np.int64)
        # The student that was measured had not taken this step yet.
        self.table.update(rows, taken[:, 1], taken[:, 2], step=step - 1, train_mode=True)
        self._unwritten[rows] = True

    def summary(self) -> dict[str, float]:
        """Numbers of RSR as it is known, and of the score that the examples are ordered by."""
        table, names = self.table, dict.fromkeys((RSR, self.table.score.removeprefix(SCORE_PREFIX)))
        summary = {}
        for name in names:
            summary |= summarize(table.rsr if name == RSR else table.scores, name)
            summary |= summarize_teachers(table, self._teachers, name) if self._teachers else {}
        return summary

    def _log_scores(self, more: dict[str, float] | None = None) -> None:
        kept, logs = self.sampler.kept(), self.summary()
        logs["rsr/kept_share"] = float(kept.mean())
        if self._correct is not None and not np.isnan(balanced := balance(kept, *self._correct)):
            logs["rsr/balance"] = balanced
        self._log(logs | (more or {}))

    def _write_history(self, rows: np.ndarray, step: int, kind: str) -> None:
        if rows.size and self.accelerator.is_main_process:
            self._history.write(self.table, rows, step, kind)

    def write_online_history(self, step: int) -> None:
        """Write what was measured online since the last call."""
        self._write_history(np.flatnonzero(self._unwritten), step, "online")
        self._unwritten[:] = False

    def _deciding(self) -> dict:
        """What a checkpoint records of this run, and a resume compares."""
        if self._digests is None:
            self._digests = digests(self._dataset, self._groups, self.table)
        return self._settings | self._digests

    def save(self, folder: str) -> None:
        """Write into a checkpoint all that an exact resume needs."""
        self.table.save(os.path.join(folder, SCORES_NAME))
        save_file(self.sampler.state_dict(), os.path.join(folder, ORDER_NAME))
        write_json(Path(folder, SETTINGS_NAME), self._deciding())

    def load(self, folder: str, step: int) -> None:
        """
        Go on as the run that saved this checkpoint after `step` steps. `RSRError` if it had other settings, unless
        `rsr_allow_changed_resume` is set.
        """
        paths = [os.path.join(folder, name) for name in (SCORES_NAME, ORDER_NAME)]
        if missing := [path for path in paths if not os.path.isfile(path)]:
            raise RSRError(
                f"{missing[0]} is missing, without which the examples can't go on in the same order. Resume from a "
                "checkpoint that RSRSFTTrainer saved (with save_only_model=False)."
            )
        self.table.load_state_dict(load_file(paths[0]))
        found = changes(folder, self._deciding())
        if self.args.ignore_data_skip and step % self.steps_per_epoch:
            found.append("ignore_data_skip: False -> True, which begins the epoch again")
        said = check_changes(found, folder, step, self.args.rsr_allow_changed_resume)
        if said and self.accelerator.is_main_process:
            logger.warning(said)
        order = load_file(paths[1])
        if not said or order["stream"].numel() <= self.sampler.num_kept:  # else the epoch is shorter now
            self.sampler.load_state_dict(order)
        if said:
            self.sampler.refresh()
        self._resumed = True
