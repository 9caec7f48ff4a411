"""Pairs of a right and a wrong trajectory of one problem: which ones, and in which order an epoch draws them.

What `redi.py` trains on. The first of each is the choice of REDI's authors, by RSR is ours. It knows no model.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers.utils import logging

from rsr_trl.data import Columns, find_columns
from rsr_trl.rsr import RSR, RSRError
from rsr_trl.selection.choose import choose_rows, long_enough
from rsr_trl.selection.table import ScoredTable


logger = logging.get_logger(__name__)

PAIR, RIGHT = "redi_pair", "redi_right"  # columns of a row: number of its pair, and which half it is


def choose_pairs(
    dataset: Dataset,
    pairs: Literal["first", "low", "high"] = "first",
    correctness_column: str | None = None,
    problem_column: str | None = None,
) -> Dataset:
    """
    The right and the wrong trajectory of every problem that has both, one after the other, with the columns
    `redi_pair` (int64) and `redi_right` (bool). Arguments as in [`REDIConfig`]. `RSRError` if there is no pair.
    """
    columns = find_columns(dataset, Columns(problem=problem_column, correct=correctness_column), needed=("problem",))
    if columns.correct is None:
        raise RSRError(f"No boolean column says which trajectories are right; columns are {dataset.column_names}.")
    by_score = pairs != "first"
    table = ScoredTable.read(dataset, columns, (RSR,) if by_score else (), optional=True)
    able = long_enough(table.tokens) if by_score else np.ones(len(table), dtype=bool)
    cost = table.values[RSR] if by_score else np.arange(len(table), dtype=np.float64)

    def best(rows: np.ndarray, sign: int) -> dict[int, int]:
        """Problem -> its row of the least cost (sign 1) or the highest (-1)."""
        rows = np.flatnonzero(rows & able)
        chosen = rows[choose_rows(sign * cost[rows], table.tokens[rows], groups=table.problem[rows])]
        return dict(zip(table.problem[chosen].tolist(), chosen.tolist(), strict=True))

    right, wrong = best(table.correct == 1, 1), best(table.correct == 0, -1 if pairs == "high" else 1)
    problems = sorted(right.keys() & wrong.keys())
    if not problems:
        raise RSRError(
            f"None of {len(table.problems)} problems has both a right and a wrong trajectory ({columns.correct!r})"
            + (" with an RSR and 32 scored tokens." if by_score else ".")
        )
    if len(problems) < len(table.problems):
        logger.warning(f"{len(problems)} of {len(table.problems)} problems have a pair; the others don't train.")
    chosen = dataset.select([row for problem in problems for row in (right[problem], wrong[problem])])
    chosen = chosen.remove_columns([name for name in (PAIR, RIGHT) if name in chosen.column_names])
    chosen = chosen.add_column(PAIR, np.repeat(np.arange(len(problems)), 2))
    return chosen.add_column(RIGHT, np.tile([True, False], len(problems)))


class PairSampler(Sampler[int]):
    """
    Rows `right[p]`, `wrong[p]` of one pair p after another, shuffled by `seed` and the epoch. The end is filled to a
    multiple of `pad_to_multiple_of` with an index that [`DrawnRows`] makes a row of that doesn't train.
    """

    def __init__(self, right: np.ndarray, wrong: np.ndarray, seed: int, pad_to_multiple_of: int, nothing: int):
        self.rows, self.seed, self.epoch, self.nothing = np.stack([right, wrong], axis=1), seed, 0, nothing
        self._length = -(-self.rows.size // pad_to_multiple_of) * pad_to_multiple_of

    def __len__(self) -> int:
        return self._length

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(self.seed + self.epoch))
        yield from self.rows[order.numpy()].ravel().tolist()
        yield from [self.nothing] * (len(self) - self.rows.size)


def trained_tokens(dataset: Dataset) -> np.ndarray:
    """Trained tokens of each prepared row: int64 of shape `(n,)`. `RSRError` where a prompt trains too."""
    lengths = []
    for batch in dataset.select_columns(["labels"]).with_format("numpy").iter(1000):
        for labels in batch["labels"]:
            if labels[0] != -100:
                raise RSRError(
                    "REDI trains on responses alone, and in this format the prompt trains too: pass columns prompt "
                    "and completion, or messages with assistant_only_loss=True."
                )
            lengths.append(int((labels != -100).sum()))
    return np.array(lengths, dtype=np.int64)
