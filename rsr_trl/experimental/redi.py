"""Reinforcement Distillation: train on right and wrong trajectories of a problem (REDI, arXiv:2505.24850, Eq. 5).

Per pair of a right trajectory w and a wrong one l of one problem x, with |y| the trained tokens (completion and end):

    loss = -c ln p(y_w | x) / |y_w| + a ln p(y_l | x) / |y_l|        c = 1, a = 0.8; the mean over the pairs of a step

as in the authors' `dpo2_trainer.py` (loss type `reinforce`; github.com/Tim-Siu/reinforcement-distillation). Theirs:
the first right and the first wrong trajectory of each problem are its pair; one epoch after SFT on right ones, 32
pairs per step, AdamW, 10% warm-up, then linear decay to 0, learning rate 1e-6 (a = 1 collapses at it; 2e-7 is its
rate). Ours: pairs by RSR (`pairs.py`), and the stop. In their Figure 6, ln p per token of the right ones falls by
about 0.15 nats in the best run, and by 1.1 and 3 in those that collapse.
"""

from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

from rsr_trl.experimental.pairs import PAIR, RIGHT, PairSampler, choose_pairs, trained_tokens
from rsr_trl.experimental.row_factors import TOKEN_ROWS, RowWeightedLoss
from rsr_trl.rsr import RSRError
from rsr_trl.training.collator import DrawnRows


logger = logging.get_logger(__name__)

RIGHT_LOG, WRONG_LOG = "redi/right_logp", "redi/wrong_logp"
FIRST_STEPS = 10  # whose median is where the right ones began


@dataclass
class REDIConfig(SFTConfig):
    r"""
    Configuration class for the [`REDITrainer`]. Its own parameters, and one other default than [`~trl.SFTConfig`]'s:

    Parameters:
        learning_rate (`float`, *optional*, defaults to `1e-6`): As published.
        redi_right_weight (`float`, *optional*, defaults to `1.0`): c.
        redi_wrong_weight (`float`, *optional*, defaults to `0.8`): a. `0` trains on the right ones alone.
        redi_correctness_column, redi_problem_column (`str`, *optional*): Whether a trajectory is right (booleans; null
            is in no pair), and its problem. By default well-known columns.
        redi_pairs (`str`, *optional*, defaults to `"first"`): `"first"`: the first right and the first wrong
            trajectory of each problem. `"low"` and `"high"`, on a scored dataset: the right one of the lowest RSR, and
            the wrong one of the lowest or highest, of those with 32 scored tokens or more.
        redi_max_fall (`float`, *optional*, defaults to `0.5`): Nats that ln p per token of the right ones may fall.
            `None` never stops.
        redi_patience (`int`, *optional*, defaults to `50`): Steps over which it must have fallen by more than that,
            in the median.
    """

    learning_rate: float = 1e-6
    redi_right_weight: float = 1.0
    redi_wrong_weight: float = 0.8
    redi_correctness_column: str | None = None
    redi_problem_column: str | None = None
    redi_pairs: Literal["first", "low", "high"] = "first"
    redi_max_fall: float | None = 0.5
    redi_patience: int = 50

    def __post_init__(self):
        super().__post_init__()
        split = self.accelerator_config.split_batches or self.accelerator_config.dispatch_batches
        for wrong, message in (
            (self.per_device_train_batch_size % 2, "per_device_train_batch_size must be even: a batch holds pairs."),
            (not self.redi_right_weight > 0, f"redi_right_weight must be above 0, got {self.redi_right_weight}."),
            (not self.redi_wrong_weight >= 0, f"redi_wrong_weight must be 0 or more, got {self.redi_wrong_weight}."),
            (self.redi_pairs not in ("first", "low", "high"), "redi_pairs must be 'first', 'low' or 'high'."),
            (self.redi_patience < 1, f"redi_patience must be 1 or more, got {self.redi_patience}."),
            (self.train_sampling_strategy != "random", "train_sampling_strategy must be 'random': pairs are drawn."),
            (split, "split_batches and dispatch_batches of accelerator_config would part pairs: leave them unset."),
        ):
            if wrong:
                raise RSRError(message)


class REDITrainer(RowWeightedLoss, SFTTrainer):
    """
    [`~trl.SFTTrainer`] with REDI's loss: pairs of a right and a wrong trajectory of one problem, both halves in one
    batch. Start from a student that was trained on right trajectories before. It logs ln p per token of right and
    wrong ones (`redi/right_logp`, `redi/wrong_logp`; each trajectory counts alike) and stops where the right ones' has
    fallen for long. Evaluation is SFTTrainer's, on all its rows alike.

    Example:

    ```python
    >>> args = REDIConfig(output_dir="out", max_length=20_000, warmup_steps=0.1)
    >>> REDITrainer("sft-student", args=args, train_dataset=dataset).train()  # problem_id, correct, prompt, completion
    ```

    Args:
        args ([`REDIConfig`]): Required.
        train_dataset ([`~datasets.Dataset`]): Trajectories with their problem and whether they are right, as prompt
            and completion, or as `messages` with `assistant_only_loss=True`.
        model, kwargs: As in [`~trl.SFTTrainer`]. Packing, other losses, label smoothing, a `compute_loss_func` and a
            data collator of your own are errors.
    """

    _tag_names = ["trl", "sft", "redi"]

    def __init__(self, model, args, data_collator=None, train_dataset=None, *positional, **kwargs):
        if not isinstance(args, REDIConfig):
            raise RSRError(f"args must be a REDIConfig, got {type(args).__name__}.")
        pairs = choose_pairs(train_dataset, args.redi_pairs, args.redi_correctness_column, args.redi_problem_column)
        super().__init__(model, args, data_collator, pairs, *positional, **kwargs)
        self.model_accepts_loss_kwargs = True  # SFTTrainer's own loss takes num_items, whatever the model does
        pair, is_right = (np.asarray(self.train_dataset[name][:]) for name in (PAIR, RIGHT))
        lengths = trained_tokens(self.train_dataset)
        whole = np.flatnonzero(np.bincount(pair, minlength=len(pairs) // 2) == 2)
        if lost := len(pairs) // 2 - len(whole):
            logger.warning(f"{lost} of {len(pairs) // 2} pairs don't train: a prompt alone fills max_length.")
        row_of = np.zeros((2, len(pairs) // 2), dtype=np.int64)
        row_of[is_right.astype(int), pair] = np.arange(len(pair))
        self._wrong, self._right = row_of[:, whole]
        factors = np.where(is_right, args.redi_right_weight, -args.redi_wrong_weight) / lengths
        device = args.device
        self._signed, self._inverse = (
            torch.from_numpy(np.append(values, 0.0)).to(device) for values in (factors, 1 / lengths)
        )
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self.add_callback(_OnSteps(self))

    def get_train_dataloader(self) -> DataLoader:
        args, n = self.args, len(self.train_dataset)
        seed = args.seed if args.data_seed is None else args.data_seed
        multiple = 1 if args.dataloader_drop_last else self._train_batch_size * args.world_size
        self.sampler = PairSampler(self._right, self._wrong, seed, multiple, nothing=n)
        rows = self._remove_unused_columns(self.train_dataset, description="training")
        rows = DrawnRows(rows, 2 * len(self._right), len(self.sampler))
        return self._get_dataloader(rows, "Training", self._train_batch_size, lambda _: self.sampler, is_training=True)

    def row_factors(self, trained: list[torch.Tensor], num_items) -> torch.Tensor:
        rows = sum(self._inverse[tokens].sum() for tokens in trained)
        self._pairs = (self.accelerator.gather(rows).sum() / 2).round()
        return self._signed * (num_items / self._pairs)

    def compute_loss(self, model, inputs, *args, **kwargs):
        rows = inputs.get(TOKEN_ROWS)
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if rows is not None:
            log_p = self.head.log_probs.double() * self._inverse[rows[:, 1:]]
            right = self._signed[rows[:, 1:]] > 0
            self._sums += torch.stack([log_p[right].sum(), log_p[~right].sum()])
        return loss

    def end_step(self, step: int, first: list[float], recent: deque) -> None:
        """Log the step's means over all processes, and stop where the right ones' has fallen for long."""
        means = (self.accelerator.gather(self._sums[None]).sum(0) / self._pairs).tolist()
        self._sums.zero_()
        for name, value in zip((RIGHT_LOG, WRONG_LOG), means, strict=True):
            self._metrics["train"][name].append(value)
        args, right = self.args, means[0]
        recent.append(right)
        if len(first) < FIRST_STEPS:
            first.append(right)
        now, begun = median(recent), median(first)
        if args.redi_max_fall is None or len(recent) < args.redi_patience or begun - now <= args.redi_max_fall:
            return
        raise RSRError(
            f"Stopped at step {step}: in the last {args.redi_patience} steps, ln p per token of the right "
            f"trajectories was {now:.3g} in the median, {begun - now:.2g} nats below the first steps ({begun:.3g}). "
            f"The student unlearns them too. Lower learning_rate ({args.learning_rate:g}) or redi_wrong_weight "
            f"({args.redi_wrong_weight:g}) and start again from the SFT checkpoint; redi_max_fall=None never stops."
        )


class _OnSteps(TrainerCallback):
    def __init__(self, trainer: REDITrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        logged = [entry[RIGHT_LOG] for entry in state.log_history if RIGHT_LOG in entry]  # a resumed run's beginning
        self.first, self.recent = logged[:1] * FIRST_STEPS, deque(maxlen=args.redi_patience)

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.trainer.sampler.set_epoch(int(state.epoch))  # accelerate doesn't, after a resume on 2+ processes

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.end_step(state.global_step, self.first, self.recent)
