"""Which rows go through the student together: batches by tokens, longest first. Knows lengths, nothing else."""

from collections.abc import Sequence

import numpy as np


def plan_batches(lengths: Sequence[int] | np.ndarray, max_batch_tokens: int, pad: bool = True) -> list[np.ndarray]:
    """
    Group rows into batches of at most `max_batch_tokens` tokens, padding included, longest rows first, so that running out
    of memory shows in the first batch.

    The plan depends on the lengths and the arguments alone: the same data gives the same batches on every run. A single row
    longer than the budget makes a batch of its own.

    Args:
        lengths (integer sequence of length `n`): Tokens of each row; rows of length 0 are left out.
        max_batch_tokens (`int`): Budget of a batch: its number of rows x the length of its longest row.
        pad (`bool`, *optional*, defaults to `True`): Whether rows of different lengths may share a batch. Without it, every
            batch holds rows of one length, and no computation goes into padding.

    Returns:
        list of integer arrays: indices of each batch's rows, together every row of nonzero length exactly once.
    """
    if max_batch_tokens < 1:
        raise ValueError(f"max_batch_tokens must be at least 1, got {max_batch_tokens}.")
    lengths = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")  # stable: rows of equal length stay in source order
    order = order[lengths[order] > 0]
    batches, start = [], 0
    while start < len(order):
        longest = lengths[order[start]]
        stop = start + max(1, max_batch_tokens // longest)
        if not pad:
            # Lengths fall along the order, so the rows as long as this batch's first end where a shorter one begins.
            stop = min(stop, int(np.searchsorted(-lengths[order], -longest, side="right")))
        batches.append(order[start:stop])
        start = min(stop, len(order))
    return batches
