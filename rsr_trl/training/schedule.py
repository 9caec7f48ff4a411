"""When to score: the one place that turns `rsr_rescore_strategy` into moments of a training."""

import math
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.utils import logging

from rsr_trl.training.config import RSRSFTConfig


if TYPE_CHECKING:
    from rsr_trl.training.trainer import RSRSFTTrainer


logger = logging.get_logger(__name__)


class ScoreCallback(TrainerCallback):
    """
    Calls an [`RSRSFTTrainer`] at the moments at which its config has scores measured, logged and written.

    Args:
        trainer ([`RSRSFTTrainer`]): Scores on all its processes at the same moments, as its callbacks run on all.
    """

    def __init__(self, trainer: "RSRSFTTrainer"):
        self.trainer, self._warned = trainer, False

    def on_train_begin(self, args: RSRSFTConfig, state: TrainerState, control, train_dataloader: DataLoader, **kwargs):
        trainer = self.trainer
        if trainer._online and state.num_train_epochs <= 1:
            raise ValueError(
                "rsr_rescore_strategy='online' shows its new order from the next epoch, and max_steps="
                f"{args.max_steps} ends in the first: raise it or set rsr_rescore_strategy='steps'."
            )
        trainer._steps_per_epoch = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)
        if trainer.is_world_process_zero():
            trainer._history.start(state.global_step if trainer._resumed else None)
        if trainer._has_scores and not trainer._resumed:
            trainer._log_scores()
            trainer._write_history(np.flatnonzero(trainer.table.num_tokens), "dataset")
        elif not trainer._resumed and trainer.table.static is None:
            trainer.rescore()
        elif not trainer._resumed:
            trainer._log_scores()
        self._warned = False
        if not trainer._resumed and (nothing := _nothing_trains(trainer)):
            raise ValueError(nothing)
        # Neither describes the student of a later call of train().
        trainer._has_scores = trainer._resumed = False

    def on_epoch_begin(self, args: RSRSFTConfig, state: TrainerState, control, **kwargs):
        trainer = self.trainer
        epoch, in_epoch = divmod(state.global_step, trainer._steps_per_epoch)
        # accelerate doesn't reach the sampler through the batch sampler that skips batches after resuming on 2+
        # processes.
        trainer._sampler.set_epoch(epoch)
        if epoch == 0 or in_epoch > 0:
            return
        if args.rsr_rescore_strategy == "epoch":
            trainer.rescore()
        elif trainer._online:  # what the last epoch didn't train on
            started = (epoch - 1) * trainer._steps_per_epoch
            trainer.rescore(np.flatnonzero(~trainer.table.train_mode | (trainer.table.step < started)))
        if not self._warned and (nothing := _nothing_trains(trainer)):
            self._warned = True  # once: the student hardly changes any more, nor do its scores
            if trainer.is_world_process_zero():
                logger.warning(f"{nothing} That is so from step {state.global_step} on.")

    def on_step_end(self, args: RSRSFTConfig, state: TrainerState, control: TrainerControl, **kwargs):
        trainer = self.trainer
        if trainer._online:
            trainer._take_online_scores()
            if control.should_log:
                trainer._log_scores()
        elif args.rsr_rescore_strategy == "steps" and state.global_step % args.rescore_every(state.max_steps) == 0:
            if state.global_step < state.max_steps:
                trainer._rescore_upcoming()
        if control.should_log and trainer._score_threshold is not None:
            in_epoch = (state.global_step - 1) % trainer._steps_per_epoch + 1
            draws = in_epoch * trainer.get_total_train_batch_size(args)
            trainer._metrics["train"]["rsr/masked_rows"].append(trainer._sampler.num_masked(draws))

    def on_epoch_end(self, args, state, control, **kwargs):
        self.trainer._write_online_history()


def _nothing_trains(trainer: "RSRSFTTrainer") -> str | None:
    """What is wrong where the score threshold lets no example through; the same on every process."""
    args, table, threshold = trainer.args, trainer.table, trainer._score_threshold
    if threshold is None or trainer._sampler.kept_share() > 0:
        return None
    low, scores, found = args.rsr_prefer == "low", table.scores[np.isfinite(table.scores)], "none has one"
    if scores.size:
        nearest = f"lowest is {scores.min():.4g}" if low else f"highest is {scores.max():.4g}"
        found = f"the {nearest}, the median {np.median(scores):.4g}"
    return (
        f"No example trains: rsr_score_threshold={threshold} lets scores {table.score!r} of {threshold} and "
        f"{'lower' if low else 'higher'} through (rsr_prefer={args.rsr_prefer!r}), and of {len(table)} examples "
        f"{found}. {'Raise' if low else 'Lower'} the threshold."
    )
