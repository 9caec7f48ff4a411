"""Pieces of work and their sizes; which rows go through the student together, and how they lie in one batch.

Knows numbers alone: neither the model nor what a row is.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np


# From large to small:
#
#   shard    4k to 1M tokens  rows of one file of a job: what a kill loses, and by what processes are uneven
#   window   ~1M tokens       consecutive rows; tokenized while the window before it is scored, and sorted by length
#   batch    4,096 or 32,768  rows of one window; one forward of the backbone
#   tile     positions x columns of logits; one product of the LM head, over one batch or several small ones
SHARD_TOKENS = (2**16, 2**20)  # at least some batches, at most a window
SHARD_SECONDS = 300  # of a shard at most, so that a stop loses minutes, on a slow device of its kind:
FLOPS = {"cpu": 1e11, "cuda": 1e14}  # per second; a token costs 2 for each parameter of the student
SHARDS = (160, 2000)  # at least 20 for each of 8 processes; more files are slow to list, on the Hub and on disk
WINDOW_TOKENS = 2**20  # many batches, so that sorting within a window loses little against sorting everything
BATCH_ROWS = 512  # rows of an iterable dataset that are scored together
TOKENIZED_ROWS = 64  # a call of the tokenizer: enough for its threads, few enough for texts of megabytes
ROWS_WITH_IMAGES = 8  # the same where each may hold megabytes of images
MAX_BATCH_TOKENS = {"cpu": 4096, "cuda": 32_768}  # measured by `make bench`: the CPU gains nothing from larger ones
# A padded batch with so many tokens ends where rows are this much shorter than its longest: small windows would lose a
# third to padding otherwise.
ENOUGH_TOKENS, SIMILAR = 8192, 0.9
HEAD_POSITIONS = 512  # hidden states wait for each other until there are so many: the head's weights are read once
# On the CPU a tile of 1M fp32 numbers stays in the caches between the matrix product and the fold; a GPU wants large
# products.
TILE = {"cpu": (512, 2048), "cuda": (4096, 16384)}

Layout = Literal["equal", "padded", "packed"]


def rows_of_shard(lengths: Sequence[int], num_rows: int | None, num_parameters: int = 0, device: str = "cuda") -> int:
    """
    Rows of a shard, by data, the student's size and the kind of its device: the same for every process and every time.
    `lengths` are the tokens of some rows that stand for all `num_rows`; `None` is a stream.
    """
    mean = max(1.0, float(np.mean(lengths))) if len(lengths) else 1.0
    affordable = SHARD_SECONDS * FLOPS.get(device, 1e13) / (2 * max(1, num_parameters))
    most = min(SHARD_TOKENS[1], max(affordable, MAX_BATCH_TOKENS["cpu"]))
    tokens = most
    if num_rows is not None:
        least = min(SHARD_TOKENS[0], most)
        tokens = max(np.clip(mean * num_rows / SHARDS[0], least, most), mean * num_rows / SHARDS[1])
    return max(1, round(tokens / mean))


def plan_batches(
    lengths: Sequence[int] | np.ndarray,
    max_batch_tokens: int,
    layout: Layout = "padded",
    border: int | None = None,
) -> list[np.ndarray]:
    """
    Indices of each batch's rows, longest rows first so that running out of memory shows in the first batch; together
    every row of nonzero length once. The plan depends on the arguments alone, so the same data gives the same batches.

    Args:
        lengths (integer sequence of length `n`): Tokens of each row.
        max_batch_tokens (`int`): Budget of a batch, padding included; a longer row is a batch of its own.
        layout (`str`, *optional*, defaults to `"padded"`):
            `"equal"` puts only rows of one length together, so nothing is computed on padding; `"padded"` fills up to
            the batch's longest row, and from 8,192 tokens on takes similar rows only; `"packed"` lays rows end to end,
            for attention that keeps them apart.
        border (`int`, *optional*): Rows longer than this don't share a batch with others.
    """
    if max_batch_tokens < 1:
        raise ValueError(f"max_batch_tokens must be at least 1, got {max_batch_tokens}.")
    lengths = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")  # stable: rows of equal length stay in source order
    order = order[lengths[order] > 0]
    # A batch is order[start:stop]. With max_batch_tokens=12:
    #
    #   falling   6  5  5  3  2       lengths, longest first
    #   totals    6 11 16 19 21       tokens up to and with each row
    #   equal    |6 |5  5 |3 |2 |     one length
    #   padded   |6  5 |5  3 |2 |     longest * rows <= 12
    #   packed   |6  5 |5  3  2 |     totals[stop - 1] - totals[start - 1] <= 12
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
            else:
                enough = start - int(-ENOUGH_TOKENS // longest)
                stop = min(stop, max(enough, int(np.searchsorted(-falling, -SIMILAR * longest, side="right"))))
        if border is not None and longest > border:
            stop = min(stop, int(np.searchsorted(-falling, -border, side="left")))
        stop = min(max(stop, start + 1), len(order))
        batches.append(order[start:stop])
        start = stop
    return batches


def lay_out(
    ids: Sequence[np.ndarray], scored: Sequence[np.ndarray], layout: Layout, pad_token_id: int = 0
) -> dict[str, np.ndarray | int]:
    """
    Rows, given by token ids and by which are scored, as the arrays of one batch: `input_ids` (int64) and `scored`
    (bool) of shape `(rows, longest)`, or packed `(1, tokens)`. Where needed, as models take them, `attention_mask`, or
    for packed rows `position_ids`, which start at 0 with each row, and the borders that FlashAttention takes.
    """
    lengths = np.array([len(row) for row in ids])
    if layout == "packed":
        borders, longest = np.cumsum([0, *lengths], dtype=np.int32), int(lengths.max())
        return {
            "input_ids": np.concatenate(ids)[None].astype(np.int64),
            "scored": np.concatenate(scored)[None].astype(bool),
            "position_ids": np.concatenate([np.arange(length) for length in lengths])[None],
            # Some models keep the positions from their attention, and others these: it needs one of both.
            "cu_seq_lens_q": borders,
            "cu_seq_lens_k": borders,
            "max_length_q": longest,
            "max_length_k": longest,
        }
    filled = np.arange(lengths.max())[None] < lengths[:, None]
    arrays = {"input_ids": np.full(filled.shape, pad_token_id, dtype=np.int64), "scored": np.zeros_like(filled)}
    arrays["input_ids"][filled], arrays["scored"][filled] = np.concatenate(ids), np.concatenate(scored)
    if not filled.all():
        arrays["attention_mask"] = filled.astype(np.int64)
    return arrays
