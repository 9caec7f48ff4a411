"""A weight per trajectory in the loss: by score, as it is re-scored, or from a column.

Asked for in TRL (issue 5761, pull requests 5951 and 5952) and not merged there. With the weights w of the rows and
l_t = -ln p of trained token t in row i(t), over all micro-batches and processes of one step:

    loss = sum_t w_i(t) l_t / sum_t w_i(t)

That is SFTTrainer's loss with weights of mean 1 over the trained tokens of the batch: a weight changes how much a row
counts, not the size of a step, and equal weights change nothing, not a bit. LARK's authors normalise alike
(`train_full.py`), but each micro-batch by itself. Weights by the place of a score are ours.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from datasets import Dataset
from scipy.stats import rankdata
from transformers.utils import logging

from rsr_trl.data import read_table
from rsr_trl.experimental.row_factors import RowWeightedLoss
from rsr_trl.rsr import RSRError
from rsr_trl.selection.table import numbers
from rsr_trl.training import prepare
from rsr_trl.training.config import RSRSFTConfig
from rsr_trl.training.trainer import RSRSFTTrainer


logger = logging.get_logger(__name__)


def rank_weights(scores: np.ndarray, prefer: Literal["low", "high"], temperature: float) -> np.ndarray:
    """
    exp(-place / (temperature * m)) of the m rows that have a score, the most suitable in place 0; equal scores share
    their mean place. 0 where the score is NaN. Takes and gives float64 of shape `(n,)`.
    """
    weights, known = np.zeros(len(scores)), ~np.isnan(scores)
    places = rankdata(scores[known] if prefer == "low" else -scores[known]) - 1
    weights[known] = np.exp(-places / (temperature * max(1, known.sum())))
    return weights


def column_weights(dataset: Dataset, column: str) -> np.ndarray:
    """A column as weights: float64 of shape `(n,)`. `RSRError` unless all are finite, none below 0 and some above."""
    weights = numbers(read_table(dataset, [column], "rsr_weight_column"), column)
    if (bad := np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))).size:
        found = "null" if np.isnan(weights[bad[0]]) else weights[bad[0]]
        raise RSRError(
            f"rsr_weight_column: {column!r} must be 0 or more in every row, and isn't in {bad.size} of "
            f"{weights.size}: the first is row {bad[0]} ({found}). A row of weight 0 doesn't train; for wrong "
            "trajectories see REDITrainer."
        )
    if not weights.any():
        raise RSRError(f"rsr_weight_column: {column!r} is 0 in all {weights.size} rows, so that none would train.")
    return weights


@dataclass
class WeightedRSRSFTConfig(RSRSFTConfig):
    r"""
    Configuration class for the [`WeightedRSRSFTTrainer`]: that of [`RSRSFTConfig`], and one of these two.

    Parameters:
        rsr_weighting (`str`, *optional*): `"rank"` weights by the place of `rsr_score` among all examples, as
            [`rank_weights`] does. Weights follow re-scoring from the next step. An example without a score has weight
            0: it doesn't train.
        rsr_weight_temperature (`float`, *optional*, defaults to `1.0`): For `"rank"`: share of the examples over which
            the weight falls by a factor e. Large is near equal weights.
        rsr_weight_column (`str`, *optional*): Column with the weights, 0 or more; only their ratios count.
    """

    rsr_weighting: Literal["rank"] | None = None
    rsr_weight_temperature: float = 1.0
    rsr_weight_column: str | None = None

    @property
    def needs_scores(self) -> bool:
        return self.rsr_weighting is not None or super().needs_scores

    def _contradictions(self) -> Iterator[str]:
        yield from super()._contradictions()
        if self.rsr_weighting not in (None, "rank"):
            yield f"rsr_weighting must be 'rank', got {self.rsr_weighting!r}. A column goes into rsr_weight_column."
        if (self.rsr_weighting is None) == (self.rsr_weight_column is None):
            yield "Set one of rsr_weighting='rank' and rsr_weight_column; without weights, use RSRSFTTrainer."
        if not 0 < self.rsr_weight_temperature < float("inf"):
            yield f"rsr_weight_temperature must be above 0 and finite, got {self.rsr_weight_temperature}."


class WeightedRSRSFTTrainer(RowWeightedLoss, RSRSFTTrainer):
    """
    [`RSRSFTTrainer`] whose loss weights the examples, by the place of their score or by a column; mean 1 over the
    trained tokens of a step. A step whose rows all have weight 0 changes nothing. Evaluation isn't weighted.

    Example:

    ```python
    >>> args = WeightedRSRSFTConfig(output_dir="out", rsr_weighting="rank")
    >>> WeightedRSRSFTTrainer("Qwen/Qwen3-0.6B", args=args, train_dataset=dataset).train()
    ```

    Args:
        args ([`WeightedRSRSFTConfig`]): Required.
        model, train_dataset, kwargs: As in [`RSRSFTTrainer`]. Packing, other losses than TRL's own `nll`, label
            smoothing, a `compute_loss_func` and a data collator of your own are errors.
    """

    _weighted_version = None  # of the table that the weights are of

    def __init__(self, model, args, data_collator=None, train_dataset=None, *positional, **kwargs):
        if not isinstance(args, WeightedRSRSFTConfig):
            raise RSRError(f"args must be a WeightedRSRSFTConfig, got {type(args).__name__}.")
        prepare.check_train_dataset(train_dataset, args)
        if (column := args.rsr_weight_column) is not None:
            column_weights(train_dataset, column)  # before anything is loaded
        super().__init__(model, args, data_collator, train_dataset, *positional, **kwargs)
        if column is not None:
            self._weights = column_weights(self.train_dataset, column)
        elif unscored := int((~self.table.scorable).sum()):
            logger.warning(f"{unscored} of {len(self.table)} examples have no score: they have weight 0.")

    def _first_table(self, num_scored: np.ndarray, virtual_tokens: bool):
        if self.args.needs_scores:
            return super()._first_table(num_scored, virtual_tokens)
        return prepare.unmeasured(self.train_dataset, self.args.rsr_score, num_scored)  # weights decide: no advice

    def get_train_dataloader(self):
        self._weighted_version = None  # a checkpoint may bring another table of the same version
        return super().get_train_dataloader()

    def row_factors(self, trained: list[torch.Tensor], num_items) -> torch.Tensor:
        args, table = self.args, self.table
        if args.rsr_weight_column is None and self._weighted_version != table.version:
            self._weights = rank_weights(table.scores, args.rsr_prefer, args.rsr_weight_temperature)
            self._weighted_version = table.version
        weights = torch.from_numpy(np.append(self._weights, 0.0)).to(args.device)
        sums = [torch.stack([weights[rows].sum(), (rows >= 0).sum()]) for rows in trained]
        sums = torch.stack(sums or [torch.zeros(2, dtype=torch.float64, device=args.device)]).sum(0, keepdim=True)
        weight, count = self.accelerator.gather(sums).sum(0).tolist()
        self._step_is_empty = weight == 0
        if self._may_pass is not self.optimizer:
            self._let_empty_steps_pass()
        return weights * (count / weight if weight else 0.0)
