"""What stands between the sampler and the collator: rows of a dataset by drawn index, and rows that don't train.

The sampler decides in the main process which draws don't train and says so in the index, so that worker processes
never read a score.
"""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset


ROW = "rsr_row"  # number of the row in the training set; -1 where it doesn't train
SCORED = "rsr_scored"  # bool per token: whether it is scored
# Two tokens: causal losses drop the first. `-100` and False: neither loss nor score sees it.
MASKED_ROW = {"input_ids": [0, 0], "labels": [-100, -100], SCORED: [False, False], ROW: -1}


class DrawnRows(torch.utils.data.Dataset):
    """
    A dataset that [`RSRSampler`] can draw from when some of its draws don't train.

    An index below `n` gives that row; a higher one a fully masked row of two tokens. Either has its row number in
    `rsr_row`.

    Args:
        dataset ([`~datasets.Dataset`]): The `n` rows, tokenized.
        num_kept (`int`): Distinct examples of an epoch; the length that the trainer reports.
        num_draws (`int`): Draws of an epoch, padding included.
    """

    def __init__(self, dataset: Dataset, num_kept: int, num_draws: int):
        self.dataset, self.num_kept = dataset, num_kept
        # accelerate cuts what it gathers in the last batch to this length modulo the batch size. Every batch is full
        # here.
        self.total_dataset_length = num_draws

    def __len__(self) -> int:
        return self.num_kept

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        n = len(self.dataset)
        rows = [index for index in indices if index < n]
        fetched = iter(self.dataset.__getitems__(rows) if rows else [])
        return [{**next(fetched), ROW: index} if index < n else MASKED_ROW for index in indices]
