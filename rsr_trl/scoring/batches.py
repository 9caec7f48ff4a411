"""Which rows go through the student together: batches by tokens, longest first. Knows lengths, nothing else."""

from collections.abc import Sequence
from typing import Literal

import numpy as np


Layout = Literal["equal", "padded", "packed"]


def plan_batches(
    lengths: Sequence[int] | np.ndarray, max_batch_tokens: int, layout: Layout = "padded"
) -> list[np.ndarray]:
    """
    Group rows into batches of at most `max_batch_tokens` tokens, longest rows first, so that running out of memory
    shows in the first batch.

    The plan depends on the lengths and the arguments alone: the same data gives the same batches on every run. A
    single row longer than the budget makes a batch of its own.

    Args:
        lengths (integer sequence of length `n`): Tokens of each row; rows of length 0 are left out.
        max_batch_tokens (`int`): Budget of a batch, padding included.
        layout (`str`, *optional*, defaults to `"padded"`):
            `"equal"` puts only rows of one length together, so nothing is computed on padding; `"padded"` fills up
            with padding to the batch's longest row; `"packed"` lays rows one behind another (for attention that keeps
            packed sequences apart), without padding.

    Returns:
        list of integer arrays: indices of each batch's rows, together every row of nonzero length exactly once.
    """
    if max_batch_tokens < 1:
        raise ValueError(f"max_batch_tokens must be at least 1, got {max_batch_tokens}.")
    lengths = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")  # stable: rows of equal length stay in source order
    order = order[lengths[order] > 0]
    falling = lengths[order]
    totals = np.cumsum(falling)
    batches, start = [], 0
    while start < len(order):
        longest = falling[start]
        if layout == "packed":
            used = totals[start] - longest
            stop = int(np.searchsorted(totals, used + max_batch_tokens, side="right"))
        else:
            stop = start + max_batch_tokens // longest
            if layout == "equal":
                stop = min(stop, int(np.searchsorted(-falling, -longest, side="right")))
        stop = min(max(stop, start + 1), len(order))
        batches.append(order[start:stop])
        start = stop
    return batches
